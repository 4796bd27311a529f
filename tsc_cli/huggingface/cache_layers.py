"""transformers' cache layers: what each class holds, how it is read, and how a fresh one is filled.

Exact classes, not subclasses: a subclass may hold something that this file does not know.
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
    """What layers of a class hold.

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


# by name: which of them there are depends on the version of transformers
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
    getattr(cache_utils, name): known for name, known in _BY_NAME.items() if hasattr(cache_utils, name)
}
# before there were dummy layers, one without attention (experts alone) had a layer for states,
# which stays empty
MAY_BE_UNUSED = not hasattr(cache_utils, "DummyLayer")


def class_of(layer: Any) -> LayerClass:
    """What the layer holds. Raises KeyError for a class that is not known."""
    return LAYER_CLASSES[type(layer)]


def tokens_seen(layer: Any) -> int:
    """How many tokens a layer with rows has seen."""
    # of a static window, the tensor that transformers keeps beside this integer goes stale
    seen = getattr(layer, "cumulative_length_int", None)
    return int(layer.get_seq_length() if seen is None else seen)


def rows_of(layer: Any) -> Rows:
    """The rows that a layer holds, (batch, heads, rows, size) each: keys, values, indexer keys if it has any.

    Not copied, unless the layer keeps them quantized.
    """
    known = class_of(layer)
    if known.kind == "none":
        return ()
    if known.quantized:
        none = [_no_rows(layer._quantized_keys, layer.keys), _no_rows(layer._quantized_values, layer.values)]
        keys, values = layer.update(*none)  # without rows it appends nothing, and returns them all
        return keys.detach(), values.detach()
    parts = [layer.keys, layer.values]
    if getattr(layer, "indexer_keys", None) is not None:
        parts.append(layer.indexer_keys[:, None])
    if known.static:
        seen = tokens_seen(layer)
        if known.kind == "sliding":  # a ring that is kept in order, one row longer than what is looked at again
            filled = min(seen, layer.keys.shape[2])
            held = min(seen, window_of(layer) - 1)
            parts = [part[:, :, filled - held : filled] for part in parts]
        else:
            parts = [part[:, :, :seen] for part in parts]
    elif known.kind == "sliding" and records(layer):
        needed = rows_needed(layer)
        parts = [part[:, :, part.shape[2] - min(needed, part.shape[2]) :] for part in parts]
    return tuple(part.detach() for part in parts)


def records(layer: Any) -> bool:
    """Whether the layer keeps what it would let go of otherwise, to be cropped: assisted decoding asks for it."""
    return bool(getattr(layer, "record_past", False))


def rows_needed(layer: Any) -> int:
    """How many rows of a sliding layer the next token looks at."""
    return min(tokens_seen(layer), window_of(layer) - 1)


def window_of(layer: Any) -> int:
    """Of a sliding layer; a static one that is shorter than the model's window says its own length."""
    return int(layer.max_cache_len if class_of(layer).static else layer.sliding_window)


def _no_rows(kept: Any, unquantized: torch.Tensor) -> torch.Tensor:
    """A tensor like the quantized one, (batch, heads, 0, head size), of the kind that is kept beside it."""
    whole, facts = kept if isinstance(kept, tuple) else (kept, None)
    batch, heads, _, size = facts["shape"] if isinstance(facts, dict) else whole.shape
    return torch.empty(batch, heads, 0, size, dtype=unquantized.dtype, device=unquantized.device)


def states_of(layer: Any) -> dict[str, torch.Tensor]:
    """The states of a layer by name, (batch, *shape) each; not copied, and overwritten by the next token."""
    if not class_of(layer).states:
        return {}
    found = {f"conv.{number}": _last(layer, number, state) for number, state in _numbered(layer.conv_states)}
    found |= {f"recurrent.{number}": state for number, state in _numbered(layer.recurrent_states)}
    return {name: state.detach() for name, state in found.items() if state is not None}


def _last(layer: Any, number: int, state: torch.Tensor | None) -> torch.Tensor | None:
    """The part of a convolution's state that the next token looks at: while recording it grows, unpadded."""
    size = layer.conv_kernel_size[number] if records(layer) and state is not None else None
    if state is None or size is None:
        return state
    return torch.nn.functional.pad(state, (max(size - state.shape[-1], 0), 0))[..., -size:]


def _numbered(states: Any) -> Any:
    return sorted(states.items()) if isinstance(states, Mapping) else enumerate(states)


def spec_of(layer: Any, where: str, kind: str | None = None) -> LayerSpec:
    """What a filled layer is like.

    Args:
        kind: instead of that of its class.
    Raises:
        UnsupportedCacheError: it was left empty, or holds what cannot be stored.
    """
    rows, states = rows_of(layer) if filled(layer) else (), states_of(layer)
    known = class_of(layer)
    if not rows and known.kind != "none":
        raise UnsupportedCacheError(f"{where} was not filled: nothing was fed, or it shares another layer's cache")
    if known.states and not states and not (MAY_BE_UNUSED and known.kind == "none"):
        raise UnsupportedCacheError(f"{where} was not filled: its state is kept elsewhere")
    if len({part.dtype for part in rows}) > 1 or len({part.shape[2] for part in rows}) > 1:
        raise UnsupportedCacheError(f"{where} has keys and values of different kinds")
    if getattr(layer, "indexer_position_ids", None) is not None:
        raise UnsupportedCacheError(f"{where} keeps positions for its indexer, which cannot be stored yet")
    described = []
    for name, state in states.items():
        dtype = str(state.dtype).removeprefix("torch.")
        if dtype not in DTYPE_BYTES:
            raise UnsupportedCacheError(f"{where} keeps state {name} as {dtype}, which cannot be stored")
        described.append(StateSpec(name, tuple(state.shape[1:]), dtype))
    if not rows:
        return LayerSpec("none", states=tuple(described))
    keys, values = rows[:2]
    return LayerSpec(
        kind or known.kind,
        keys.shape[1],
        keys.shape[3],
        values.shape[3],
        window_of(layer) if known.kind == "sliding" else None,
        rows[2].shape[3] if len(rows) > 2 else 0,
        tuple(described),
    )


def can_lack_rows(layer: Any) -> bool:
    """Whether an `EvictedLayer` can stand for this one."""
    return type(layer) is cache_utils.DynamicLayer


def filled(layer: Any) -> bool:
    """Whether the layer holds rows."""
    return class_of(layer).kind != "none" and bool(layer.is_initialized) and tokens_seen(layer) > 0


def fill(layer: Any, rows: Rows, states: Mapping[str, torch.Tensor], seen: int) -> None:
    """Fill a fresh layer as if it had seen `seen` tokens; the tensors become the layer's own."""
    known = class_of(layer)
    if rows:
        keys, values = rows[:2]
        if known.static:
            _fill_static(layer, keys, values, seen)
        else:
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            if known.kind == "sliding":
                # update() counts only what passes through it; the rows that left the window were
                # seen as well
                layer.cumulative_length = seen
        if len(rows) > 2:
            layer.update_indexer(rows[2][:, 0])
    for name, state in states.items():  # "conv" comes first: it is what marks the layer as filled
        what, number = name.split(".")
        update = layer.update_conv_state if what == "conv" else layer.update_recurrent_state
        update(state, state_idx=int(number))


def _fill_static(layer: Any, keys: torch.Tensor, values: torch.Tensor, seen: int) -> None:
    """In place, as a compiled model expects it; rows that left a window count as zeros."""
    gone = seen - keys.shape[2]
    if gone:
        keys, values = (
            torch.cat([part.new_zeros(*part.shape[:2], gone, part.shape[3]), part], 2) for part in (keys, values)
        )
    layer.update(keys, values)


def twin_of(layer: Any) -> Any:
    """A second layer with the same contents, which goes on by itself.

    Rows need no copy: a dynamic layer grows by concatenation, into new tensors. States are
    overwritten in place.
    """
    twin = copy.copy(layer)
    for name in ("conv_states", "recurrent_states"):
        held = getattr(layer, name, None)
        if held is not None:
            setattr(twin, name, _copied(held))
    for name in ("has_previous_state", "is_conv_states_initialized", "is_recurrent_states_initialized"):
        if hasattr(layer, name):
            setattr(twin, name, copy.copy(getattr(layer, name)))
    return twin


def _copied(states: Any) -> Any:
    if isinstance(states, Mapping):
        return {key: None if one is None else one.clone() for key, one in states.items()}
    return [None if one is None else one.clone() for one in states]
