"""Hugging Face caches <-> snapshots.  The only file that knows transformers' cache classes.

A cache that cannot be restored faithfully is refused by name before anything is captured: a snapshot that restores
"successfully" into a wrong state is the worst thing that this tool could do.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from formats.errors import MismatchError, UnsupportedCacheError
from formats.geometry import DTYPE_BYTES, Geometry, LayerSpec
from formats.timeline import Rows
from formats.trace import Snapshot, Trace

from . import fingerprint, supported

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EvictedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A full-attention layer some of whose rows were evicted: it has seen more tokens than it holds rows.

    transformers takes the next position id and the mask from what a layer says of itself, as a sliding-window layer
    does.  So `model.generate` goes on at the right position, and every row that is held is attended to.
    """

    def __init__(self, tokens_seen: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens_seen = tokens_seen

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.tokens_seen += key_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        return self.tokens_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(rows, offset of the first row): the rows stand right before the query, so that none is masked."""
        held = 0 if self.keys is None else self.keys.shape[-2]
        return held + query_length, self.tokens_seen - held

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.tokens_seen += tokens_to_remove


_KINDS: dict[type, str] = {DynamicLayer: "full", DynamicSlidingWindowLayer: "sliding"}


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache of the kind that the model generates with.

    Raises:
        UnsupportedCacheError: the model needs a kind of cache that cannot be stored; it is named.
    """
    config = model.config
    name = type(model).__name__
    reason = supported.refusal_of(config.model_type)
    if any(hasattr(module, "rope_deltas") for module in model.modules()):
        reason = supported.MROPE  # an image of another prompt would shift what follows a restored cache
    if reason is not None:
        raise UnsupportedCacheError(f"{name} cannot be captured: {reason}", hint=supported.HINT)
    if config.is_encoder_decoder:
        raise UnsupportedCacheError(
            f"{name} is an encoder-decoder model: its cross-attention cache cannot be stored yet", hint=supported.HINT
        )
    cache = DynamicCache(config=config)
    refuse_unsupported(cache, name)
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise UnsupportedCacheError(f"{name} does not take a cache that was filled before", hint=supported.HINT)
    if not cache.layers:
        raise UnsupportedCacheError(f"{name} does not say which cache layers it has", hint=supported.HINT)
    return cache


def refuse_unsupported(cache: Any, model_name: str) -> None:
    """Raise UnsupportedCacheError unless every layer is of a class that can be stored and restored exactly.

    Exact classes, not subclasses: a subclass may hold state that this file does not know.
    """
    if type(cache) is not DynamicCache:
        raise UnsupportedCacheError(
            f"{model_name} uses {type(cache).__name__}, which cannot be stored yet", hint=supported.HINT
        )
    for number, layer in enumerate(cache.layers):
        if type(layer) not in _KINDS:
            raise UnsupportedCacheError(
                f"layer {number} of {model_name} is a {type(layer).__name__}, which cannot be stored yet",
                hint=supported.HINT,
            )


def geometry_of(cache: DynamicCache, model_name: str) -> Geometry:
    """The shape of a cache that the model has filled.

    Raises:
        UnsupportedCacheError: a layer was left empty, or its dtype or batch cannot be stored.
    """
    specs = []
    for number, layer in enumerate(_layers(cache)):
        if not layer.is_initialized or layer.keys is None or layer.values is None:
            raise UnsupportedCacheError(
                f"layer {number} of {model_name} was not filled: it shares another layer's cache"
            )
        keys, values = layer.keys, layer.values
        if keys.shape[:3] != values.shape[:3] or keys.dtype != values.dtype:
            raise UnsupportedCacheError(f"layer {number} of {model_name} has keys and values of different kinds")
        window = layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
        specs.append(LayerSpec(_KINDS[type(layer)], keys.shape[1], keys.shape[3], values.shape[3], window))
    first, _ = rows_of(cache)[0]
    for number, (keys, _) in enumerate(rows_of(cache)):
        if keys.dtype != first.dtype:
            raise UnsupportedCacheError(
                f"layer {number} of {model_name} holds {keys.dtype}, layer 0 {first.dtype}: they must be alike"
            )
    dtype = str(first.dtype).removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise UnsupportedCacheError(f"{model_name} keeps its cache as {dtype}, which cannot be stored")
    return Geometry(dtype, tuple(specs), batch=first.shape[0])


def rows_of(cache: DynamicCache) -> list[Rows]:
    """Keys and values of every layer as they are in the cache, (batch, heads, rows, head size); not copied."""
    return [(layer.keys.detach(), layer.values.detach()) for layer in _layers(cache)]


def _layers(cache: DynamicCache) -> list[Any]:
    """The layers, all of a class in `_KINDS`; transformers types them as the union of everything it knows."""
    return list(cache.layers)


def fork(cache: DynamicCache) -> DynamicCache:
    """A second cache with the same contents.

    Feeding tokens to either leaves the other alone: a dynamic layer grows by concatenation, into a new tensor.
    """
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def with_leaves(cache: DynamicCache) -> tuple[DynamicCache, list[Rows]]:
    """A second cache whose rows are leaves of an autograd graph, and these leaves, (keys, values) of each layer."""
    twin = fork(cache)
    for layer in _layers(twin):
        layer.keys, layer.values = (rows.detach().clone().requires_grad_() for rows in (layer.keys, layer.values))
    return twin, [(layer.keys, layer.values) for layer in _layers(twin)]


def with_rows(cache: DynamicCache, rows: Sequence[Rows]) -> DynamicCache:
    """A second cache that has seen the same tokens and holds these rows, (keys, values) of each layer."""
    twin = fork(cache)
    for layer, (keys, values) in zip(_layers(twin), rows, strict=True):
        layer.keys, layer.values = keys, values
    return twin


def restore(snapshot: Snapshot, model: PreTrainedModel) -> DynamicCache:
    """The cache that the model had at that moment.

    Everything is checked before the cache is built, so that nothing half-restored is ever handed out.

    Raises:
        MismatchError: the snapshot's layers do not fit the model's cache.
    """
    cache = new_cache(model)
    if len(cache.layers) != len(snapshot.keys):
        raise MismatchError(f"the file has {len(snapshot.keys)} layers, the model {len(cache.layers)}")
    seen = len(snapshot.token_ids)
    held = {
        number: keys.shape[2]
        for number, (layer, keys) in enumerate(zip(_layers(cache), snapshot.keys, strict=True))
        if _is_full(layer)
    }
    for number, rows in held.items():
        first = next(iter(held))
        if rows != held[first]:  # a model has one mask for all of them
            raise MismatchError(f"layer {number} has {rows} rows, layer {first} has {held[first]}: they must be equal")
    for number, (layer, keys, values) in enumerate(zip(_layers(cache), snapshot.keys, snapshot.values, strict=True)):
        expected = keys.shape[2] if _is_full(layer) else min(seen, layer.sliding_window - 1)
        if _is_full(layer) and not 1 <= expected <= seen:
            raise MismatchError(f"layer {number} has {expected} rows after {seen} tokens")
        if keys.shape[2] != expected or values.shape[2] != expected:
            raise MismatchError(
                f"layer {number} needs {expected} rows after {seen} tokens, the file has {keys.shape[2]}"
            )
    if set(held.values()) - {seen}:
        cache.layers = [EvictedLayer(seen) if _is_full(layer) else layer for layer in cache.layers]
    for layer, keys, values in zip(_layers(cache), snapshot.keys, snapshot.values, strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if isinstance(layer, DynamicSlidingWindowLayer):
            # update() counts only what passes through it; the rows that left the window were seen as well
            layer.cumulative_length = seen
    return cache


def _is_full(layer: Any) -> bool:
    return not isinstance(layer, DynamicSlidingWindowLayer)


def to_cache(
    trace: Trace, model: PreTrainedModel, snapshot: int = -1, *, tokenizer: Any = None, force: bool = False
) -> DynamicCache:
    """Restore a snapshot into a transformers cache, as `model.generate(past_key_values=...)` takes it.

    Args:
        trace: from `load` or `capture`.
        snapshot: which one; negative numbers count from the end.
        tokenizer: if given, it must be the one of the capture, too.
        force: skip the check that the model is the one of the capture, for research; the dtype is converted.
    Raises:
        MismatchError: another model; the field that differs is named, and nothing has been touched.
        CorruptError: the file is damaged.
    """
    device = next(model.parameters()).device
    if not force:
        fingerprint.require_same(trace.fingerprint, fingerprint.of(model, tokenizer))
    restored = trace.snapshot(snapshot, device=device)
    if force:
        dtype = next(model.parameters()).dtype
        restored.keys[:] = [keys.to(dtype) for keys in restored.keys]
        restored.values[:] = [values.to(dtype) for values in restored.values]
    return restore(restored, model)


def identical(one: DynamicCache, other: DynamicCache) -> bool:
    """True if every key and value is bit-identical (NaNs and signed zeros compared as bits)."""
    return all(
        _same_bits(a, b)
        for left, right in zip(rows_of(one), rows_of(other), strict=True)
        for a, b in zip(left, right, strict=True)
    )


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
