"""transformers' cache layers: what each class holds, how it is read, and how a fresh one is filled.

Classes are matched exactly: a subclass may hold something that this file does not know.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import cache_utils

from formats.errors import UnsupportedCacheError
from formats.trace.geometry import DTYPE_BYTES, LayerSpec, StateSpec
from formats.trace.recorder import Rows

from .evicted_layer import EvictedLayer


@dataclass(frozen=True)
class LayerClass:
    """What layers of one transformers class hold.

    Attributes:
        kind: of `LayerSpec`: "full", "sliding" or "none".
        states: True if there are states, replaced in place with every token.
        static: True if rows are written into tensors of a fixed size, of which only a part is
            filled.
        quantized: True if rows are kept quantized.
    """

    kind: str
    states: bool = False
    static: bool = False
    quantized: bool = False


# by name, since versions of transformers differ in which of them they have
_BY_NAME = {
    "DynamicLayer": LayerClass("full"),
    "DynamicSlidingWindowLayer": LayerClass("sliding"),
    "DynamicIndexedLayer": LayerClass("full"),
    "LinearAttentionLayer": LayerClass("none", states=True),
    "LinearAttentionAndFullAttentionLayer": LayerClass("full", states=True),
    "LinearAttentionAndSlidingWindowAttentionLayer": LayerClass("sliding", states=True),
    "DummyLayer": LayerClass("none"),
    "StaticLayer": LayerClass("full", static=True),
    "StaticSlidingWindowLayer": LayerClass("sliding", static=True),
    "StaticIndexedLayer": LayerClass("full", static=True),
    "LinearAttentionAndStaticFullAttentionLayer": LayerClass("full", states=True, static=True),
    "LinearAttentionAndStaticSlidingWindowAttentionLayer": LayerClass("sliding", states=True, static=True),
    "QuantoQuantizedLayer": LayerClass("full", quantized=True),
    "HQQQuantizedLayer": LayerClass("full", quantized=True),
    "Fp8QuantizedLayer": LayerClass("full", quantized=True),
}
LAYER_CLASSES: dict[type, LayerClass] = {EvictedLayer: LayerClass("full")} | {
    getattr(cache_utils, name): layer_class for name, layer_class in _BY_NAME.items() if hasattr(cache_utils, name)
}
# before DummyLayer, a layer of experts alone had a layer for states, which stays empty
MAY_BE_UNUSED = not hasattr(cache_utils, "DummyLayer")


def class_of(layer: Any) -> LayerClass:
    """Return what the layer's class holds. Raises KeyError for an unknown class."""
    return LAYER_CLASSES[type(layer)]


def tokens_seen(layer: Any) -> int:
    """Return how many tokens a layer with rows has seen."""
    # of a static window, the tensor that transformers keeps beside this integer goes stale
    seen = getattr(layer, "cumulative_length_int", None)
    return int(layer.get_seq_length() if seen is None else seen)


def rows_of(layer: Any) -> Rows:
    """Return a layer's keys, values and, if there are any, indexer keys.

    Returns:
        a tensor of (batch, heads, rows, size) each; a view, unless the layer is quantized.
    """
    layer_class = class_of(layer)
    if layer_class.kind == "none":
        return ()
    if layer_class.quantized:
        keys, values = layer.update(  # given no rows, it appends none and returns all of them
            _no_rows(layer._quantized_keys, layer.keys), _no_rows(layer._quantized_values, layer.values)
        )
        return keys.detach(), values.detach()
    parts = [layer.keys, layer.values]
    if getattr(layer, "indexer_keys", None) is not None:
        parts.append(layer.indexer_keys[:, None])
    if layer_class.static:
        seen = tokens_seen(layer)
        if layer_class.kind == "sliding":  # rows in order, one more than the next token looks at
            stop = min(seen, layer.keys.shape[2])
            parts = [part[:, :, stop - rows_needed(layer) : stop] for part in parts]
        else:
            parts = [part[:, :, :seen] for part in parts]
    elif layer_class.kind == "sliding" and records_past(layer):
        parts = [part[:, :, max(part.shape[2] - rows_needed(layer), 0) :] for part in parts]
    return tuple(part.detach() for part in parts)


def records_past(layer: Any) -> bool:
    """Return whether the layer keeps rows beyond its window, to be cropped by assisted decoding."""
    return bool(getattr(layer, "record_past", False))


def rows_needed(layer: Any) -> int:
    """Return how many rows of a sliding layer the next token looks at."""
    return min(tokens_seen(layer), window_of(layer) - 1)


def window_of(layer: Any) -> int:
    """Return the window of a sliding layer; of a shorter static one, its length."""
    return int(layer.max_cache_len if class_of(layer).static else layer.sliding_window)


def _no_rows(quantized: Any, unquantized: torch.Tensor) -> torch.Tensor:
    """Return a tensor (batch, heads, 0, head size) like the unquantized rows of the layer."""
    tensor, metadata = quantized if isinstance(quantized, tuple) else (quantized, None)
    batch, heads, _, size = metadata["shape"] if isinstance(metadata, dict) else tensor.shape
    return torch.empty(batch, heads, 0, size, dtype=unquantized.dtype, device=unquantized.device)


def states_of(layer: Any) -> dict[str, torch.Tensor]:
    """Return views of a layer's states by name, (batch, *shape); the next token overwrites them."""
    if not class_of(layer).states:
        return {}
    states = {f"conv.{index}": _last_columns(layer, index, state) for index, state in _indexed(layer.conv_states)}
    states |= {f"recurrent.{index}": state for index, state in _indexed(layer.recurrent_states)}
    return {name: state.detach() for name, state in states.items() if state is not None}


def _last_columns(layer: Any, index: int, state: torch.Tensor | None) -> torch.Tensor | None:
    """Return what the next token reads of a convolution's state, which grows while recording."""
    size = layer.conv_kernel_size[index] if records_past(layer) and state is not None else None
    if state is None or size is None:
        return state
    return torch.nn.functional.pad(state, (max(size - state.shape[-1], 0), 0))[..., -size:]


def _indexed(states: Any) -> Any:
    return sorted(states.items()) if isinstance(states, Mapping) else enumerate(states)


def spec_of(layer: Any, where: str, kind: str | None = None) -> LayerSpec:
    """Return the spec of a filled layer.

    Args:
        where: the layer's name in messages.
        kind: replaces the kind of its class.
    Raises:
        UnsupportedCacheError: the layer is empty, or holds what cannot be stored.
    """
    rows, states = rows_of(layer) if filled(layer) else (), states_of(layer)
    layer_class = class_of(layer)
    if not rows and layer_class.kind != "none":
        raise UnsupportedCacheError(f"{where} was not filled: nothing was fed, or it shares another layer's cache")
    if layer_class.states and not states and not (MAY_BE_UNUSED and layer_class.kind == "none"):
        raise UnsupportedCacheError(f"{where} was not filled: its state is kept elsewhere")
    if len({part.dtype for part in rows}) > 1 or len({part.shape[2] for part in rows}) > 1:
        raise UnsupportedCacheError(f"{where} has keys and values of different kinds")
    if getattr(layer, "indexer_position_ids", None) is not None:
        raise UnsupportedCacheError(f"{where} keeps positions for its indexer, which cannot be stored yet")
    state_specs = []
    for name, state in states.items():
        dtype = str(state.dtype).removeprefix("torch.")
        if dtype not in DTYPE_BYTES:
            raise UnsupportedCacheError(f"{where} keeps state {name} as {dtype}, which cannot be stored")
        state_specs.append(StateSpec(name, tuple(state.shape[1:]), dtype))
    if not rows:
        return LayerSpec("none", states=tuple(state_specs))
    keys, values = rows[:2]
    return LayerSpec(
        kind or layer_class.kind,
        keys.shape[1],
        keys.shape[3],
        values.shape[3],
        window_of(layer) if layer_class.kind == "sliding" else None,
        rows[2].shape[3] if len(rows) > 2 else 0,
        tuple(state_specs),
    )


def can_lack_rows(layer: Any) -> bool:
    """Return whether an `EvictedLayer` can replace this layer."""
    return type(layer) is cache_utils.DynamicLayer


def filled(layer: Any) -> bool:
    """Return whether the layer holds rows."""
    return class_of(layer).kind != "none" and bool(layer.is_initialized) and tokens_seen(layer) > 0


def fill(layer: Any, rows: Rows, states: Mapping[str, torch.Tensor], seen: int) -> None:
    """Fill a fresh layer as if it had seen `seen` tokens; the tensors become the layer's own."""
    layer_class = class_of(layer)
    if rows:
        keys, values = rows[:2]
        if layer_class.static:
            _fill_static(layer, keys, values, seen)
        else:
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            if layer_class.kind == "sliding":
                # update() counts only what passes through it; the rows that left the window were
                # seen as well
                layer.cumulative_length = seen
        if len(rows) > 2:
            layer.update_indexer(rows[2][:, 0])
    for name, state in states.items():  # "conv" comes first: it marks the layer as filled
        state_type, index = name.split(".")
        update = layer.update_conv_state if state_type == "conv" else layer.update_recurrent_state
        update(state, state_idx=int(index))


def _fill_static(layer: Any, keys: torch.Tensor, values: torch.Tensor, seen: int) -> None:
    """Fill in place, as a compiled model expects it; rows that left a window become zeros."""
    missing = seen - keys.shape[2]
    if missing:
        keys, values = (torch.nn.functional.pad(part, (0, 0, missing, 0)) for part in (keys, values))
    layer.update(keys, values)


def twin_of(layer: Any) -> Any:
    """Return an independent layer with the same contents.

    Rows need no copy: a dynamic layer grows by concatenation, into new tensors. States are
    overwritten in place.
    """
    twin = copy.copy(layer)
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name, None)
        if states is not None:
            setattr(twin, name, _copied(states))
    for name in ("has_previous_state", "is_conv_states_initialized", "is_recurrent_states_initialized"):
        if hasattr(layer, name):
            setattr(twin, name, copy.copy(getattr(layer, name)))
    return twin


def _copied(states: Any) -> Any:
    if isinstance(states, Mapping):
        return {key: None if state is None else state.clone() for key, state in states.items()}
    return [None if state is None else state.clone() for state in states]
