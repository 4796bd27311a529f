"""Count the parameters of each layer's feed-forward part, in all and for one token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from formats.limits import MAX_LAYERS
from tsc_cli.checkpoints.config_fields import Fields

from .attention import Shape


@dataclass(frozen=True)
class FeedForward:
    """Of one layer: all numbers, and those that one token is multiplied with."""

    total: int
    active: int


Rule = Callable[[Fields, Shape], list[FeedForward]]


def _dense(weights: int) -> FeedForward:
    return FeedForward(weights, weights)


def gated(fields: Fields, of: Shape) -> list[FeedForward]:
    """Gate, up and down (SwiGLU, GeGLU)."""
    return [_dense(3 * of.hidden * fields.integer("intermediate_size"))] * of.layers


def plain(field: str, *, times: int | None = None) -> Rule:
    """Up and down.

    Args:
        times: of the residual stream, where the size is missing (GPT-2); without it a missing size
            is an error.
    """

    def rule(fields: Fields, of: Shape) -> list[FeedForward]:
        stated = fields.optional(field) if times is not None else fields.integer(field)
        inner = stated if stated is not None else (times or 0) * of.hidden
        return [_dense(2 * of.hidden * inner)] * of.layers

    return rule


def none(fields: Fields, of: Shape) -> list[FeedForward]:
    """Layers without a feed-forward part (Mamba)."""
    del fields
    return [FeedForward(0, 0)] * of.layers


def lfm2(fields: Fields, of: Shape) -> list[FeedForward]:
    """Two thirds of `block_ff_dim`, times a factor, rounded up to a multiple."""
    inner = fields.integer("intermediate_size")
    if fields.flag("block_auto_adjust_ff_dim"):
        inner = int(fields.number("block_ffn_dim_multiplier", 0.001, 1000) * int(2 * inner / 3))
        multiple = fields.integer("block_multiple_of")
        inner = -(-inner // multiple) * multiple
    return [_dense(3 * of.hidden * inner)] * of.layers


Layers = Callable[[Fields, int], list[bool]]  # which layers have experts


def everywhere(fields: Fields, layers: int) -> list[bool]:
    del fields
    return [True] * layers


def after_first(fields: Fields, layers: int) -> list[bool]:
    """The first `first_k_dense_replace` layers are dense (DeepSeek)."""
    if (fields.optional("moe_layer_freq", 0) or 1) != 1:
        raise fields.unsupported("moe_layer_freq", "only 1 is known: experts in every layer after the dense ones")
    first = fields.integer("first_k_dense_replace", 0, MAX_LAYERS)
    return [layer >= first for layer in range(layers)]


def stepped(fields: Fields, layers: int) -> list[bool]:
    """Every `decoder_sparse_step`-th layer, but those of `mlp_only_layers` (Qwen)."""
    step = fields.integer("decoder_sparse_step", 1, MAX_LAYERS)
    dense = set(fields.integers("mlp_only_layers", 0, MAX_LAYERS) or [])
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]


def jamba(fields: Fields, layers: int) -> list[bool]:
    """One layer in `expert_layer_period`, from `expert_layer_offset` on."""
    period = fields.integer("expert_layer_period", 1, MAX_LAYERS)
    offset = fields.integer("expert_layer_offset", 0, period - 1)
    many = fields.integer("num_experts") > 1
    return [many and layer % period == offset for layer in range(layers)]


def llama4(fields: Fields, layers: int) -> list[bool]:
    """`moe_layers` lists them, or every `interleave_moe_layer_step`-th layer has experts."""
    step = fields.integer("interleave_moe_layer_step", 1, MAX_LAYERS)
    stated = fields.integers("moe_layers", 0, MAX_LAYERS)
    having = set(range(step - 1, layers, step) if stated is None else stated)
    return [layer in having for layer in range(layers)]


@dataclass(frozen=True)
class Experts:
    """A rule for mixtures of experts, each gate, up and down.

    Attributes:
        count: field with the number of experts.
        size: field with the inner size of one.
        where: which layers have experts; the others are gated with `dense` as the inner size.
        shared_size: field with the inner size of an expert that every token meets.
        shared_gate: it has a gate.
        shared_count: field with how many experts of `size` every token meets.
    """

    count: str
    size: str
    where: Layers = everywhere
    dense: str = "intermediate_size"
    shared_size: str | None = None
    shared_gate: bool = False
    shared_count: str | None = None

    def __call__(self, fields: Fields, of: Shape) -> list[FeedForward]:
        having = self.where(fields, of.layers)
        for field in (self.count, self.size, self.dense, self.shared_size, self.shared_count, "num_experts_per_tok"):
            if field is not None:
                fields.optional(field, 0)  # stated by many configs although no layer uses it
        sparse = self._sparse(fields, of.hidden) if any(having) else _dense(0)
        dense = _dense(0 if all(having) else 3 * of.hidden * fields.integer(self.dense))
        return [sparse if has else dense for has in having]

    def _sparse(self, fields: Fields, hidden: int) -> FeedForward:
        count, chosen = fields.integer(self.count, 0), fields.integer("num_experts_per_tok", 0)
        if chosen > count:
            raise fields.error("num_experts_per_tok", f"{chosen} of {count} experts")
        expert = 3 * hidden * fields.integer(self.size)
        always = count * hidden  # the router
        if self.shared_size is not None:
            always += 3 * hidden * fields.integer(self.shared_size, 0) + (hidden if self.shared_gate else 0)
        if self.shared_count is not None:
            always += expert * (fields.optional(self.shared_count, 0) or 0)
        return FeedForward(always + count * expert, always + chosen * expert)
