"""Derive the words of `layer_types` for configs that describe their layers in other ways."""

from __future__ import annotations

from collections.abc import Callable

from formats.limits import MAX_LAYERS, MAX_ROWS
from tsc_cli.checkpoints.config_fields import Fields

Pattern = Callable[[Fields, int], list[str]]  # of a config with so many layers


def one_in(period: int, other: str = "sliding_attention", *, field: str | None = None) -> Pattern:
    """Every `period`-th layer is full, the others are not.

    Args:
        field: the config may state another period here.
    """

    def pattern(fields: Fields, layers: int) -> list[str]:
        each = (fields.optional(field, 1, MAX_LAYERS) if field else None) or period
        return [other if (layer + 1) % each else "full_attention" for layer in range(layers)]

    return pattern


def windows(fields: Fields, layers: int) -> list[str]:
    """All layers have the window `sliding_window`, or none has one where that is null."""
    has = fields.optional("sliding_window", 1, MAX_ROWS) is not None
    return ["sliding_attention" if has else "full_attention"] * layers


def listed(field: str, other: str, *, missing_means_all: bool) -> Pattern:
    """The numbers of the full layers are in a list."""

    def pattern(fields: Fields, layers: int) -> list[str]:
        stated = fields.integers(field, 0, layers - 1)
        full = set(range(layers) if stated is None and missing_means_all else stated or [])
        return ["full_attention" if layer in full else other for layer in range(layers)]

    return pattern


def jamba(fields: Fields, layers: int) -> list[str]:
    """One layer in `attn_layer_period` is full, from `attn_layer_offset` on."""
    period = fields.integer("attn_layer_period", 1, MAX_LAYERS)
    offset = fields.integer("attn_layer_offset", 0, period - 1)
    return ["full_attention" if layer % period == offset else "linear_attention" for layer in range(layers)]


def unturned(kind: str, *, turned: str = "full_attention") -> Pattern:
    """Return a pattern by `no_rope_layers`: 1 for layers with RoPE, 0 for those without.

    Args:
        kind: of layers without RoPE.
        turned: of those with it.
    """

    def pattern(fields: Fields, layers: int) -> list[str]:
        period = fields.integer("no_rope_layer_interval", 1, MAX_LAYERS)
        has = fields.integers("no_rope_layers", 0, 1) or [int((layer + 1) % period != 0) for layer in range(layers)]
        if len(has) < layers:
            raise fields.error("no_rope_layers", f"a list of {layers} numbers, one a layer, was expected")
        return [turned if has[layer] else kind for layer in range(layers)]

    return pattern


def smollm3(fields: Fields, layers: int) -> list[str]:
    """Layers without RoPE have the window, if `use_sliding_window` says so."""
    used = fields.flag("use_sliding_window") and fields.optional("sliding_window", 1, MAX_ROWS) is not None
    return unturned("sliding_attention" if used else "full_attention")(fields, layers)
