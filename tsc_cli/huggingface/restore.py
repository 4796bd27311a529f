"""Snapshots -> Hugging Face caches, checked before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import EncoderDecoderCache

from formats.errors import MismatchError
from formats.trace.geometry import LayerSpec
from formats.trace.recorder import Rows
from formats.trace.trace import Snapshot, Trace
from tsc_cli.huggingface.fingerprint import fingerprint

from . import cache_layers, probe_run
from .adapter import ModelAdapter
from .caches import layers_of, new_cache, self_layers
from .evicted_layer import EvictedLayer

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


T = TypeVar("T")


def restore(snapshot: Snapshot, adapter: ModelAdapter, specs: Sequence[LayerSpec], into: Cache | None = None) -> Cache:
    """The cache that the model had at that moment.

    Everything is checked before the cache is built, so that nothing half-restored is ever handed
    out.

    Args:
        specs: of the snapshot's layers.
        into: an empty cache to fill instead of a new one.
    Raises:
        MismatchError: the snapshot's layers do not fit the model's cache.
    """
    expected = new_cache(adapter)
    cache = expected if into is None else into
    layers: Sequence[Any] = layers_of(cache)
    own: Sequence[Any] = layers_of(expected)
    if len(specs) != len(own) and not isinstance(expected, EncoderDecoderCache):
        # layers that share another's rows have an empty layer of their own from transformers 5.23
        # on, and none before
        specs, own = _without_empty_end(specs, lambda spec: spec.kind == "none" and not spec.states), _filling(own)
        layers = _filling(layers)
    for what, count in (("model", len(own)), ("cache to fill", len(layers))):
        if count != len(specs):
            raise MismatchError(f"the file has {len(specs)} layers, the {what} {count}")
    seen = len(snapshot.token_ids)
    _check_kinds(specs, own, len(self_layers(expected)), adapter)
    evicted = _check_rows(snapshot, specs, seen)
    if into is not None:
        _check_empty(layers, snapshot, specs, seen, evicted=evicted)
    if evicted:
        full = [layer for layer, spec in zip(layers, specs, strict=True) if spec.kind == "full"]
        if not all(map(cache_layers.can_lack_rows, full)):
            raise MismatchError("rows were evicted, which this model's cache cannot be told")
        if isinstance(cache, EncoderDecoderCache):
            raise MismatchError("rows were evicted, which an encoder-decoder model's cache cannot be told")
        layers = [
            EvictedLayer(seen) if spec.kind == "full" else layer for layer, spec in zip(layers, specs, strict=True)
        ]
        cache.layers = [*layers, *cache.layers[len(layers) :]]
    with torch.no_grad():
        for number, (layer, spec) in enumerate(zip(layers, specs, strict=True)):
            tokens = snapshot.keys[number].shape[2] if spec.kind == "cross" else seen
            cache_layers.fill(layer, _rows(snapshot, number, spec), snapshot.states[number], tokens)
    if isinstance(cache, EncoderDecoderCache):  # anew: it notes which cross-attention layers are filled
        cache = EncoderDecoderCache(cache.self_attention_cache, cache.cross_attention_cache)
    return cache


def _filling(layers: Sequence[Any]) -> Sequence[Any]:
    """Layers of a cache without the empty ones at its end."""

    def empty(layer: Any) -> bool:
        known = cache_layers.LAYER_CLASSES.get(type(layer))
        return known is not None and known.kind == "none" and not known.states

    return _without_empty_end(layers, empty)


def _without_empty_end(layers: Sequence[T], empty: Callable[[T], bool]) -> Sequence[T]:
    while layers and empty(layers[-1]):
        layers = layers[:-1]
    return layers


def _rows(snapshot: Snapshot, number: int, spec: LayerSpec) -> Rows:
    parts = (snapshot.keys[number], snapshot.values[number], snapshot.indexer_keys[number])
    return tuple(part for part in parts if part is not None) if spec.parts else ()


def _check_kinds(specs: Sequence[LayerSpec], layers: Sequence[Any], own: int, adapter: ModelAdapter) -> None:
    """Raise MismatchError unless the model's layers are of the kinds of the file's."""
    for number, (spec, layer) in enumerate(zip(specs, layers, strict=True)):
        known = cache_layers.class_of(layer)
        kind = "cross" if number >= own else known.kind
        if kind != spec.kind or (known.kind == "sliding" and layer.sliding_window != spec.window):
            raise MismatchError(
                f"layer {number} is {_named(spec.kind, spec.window)} in the file and "
                f"{_named(kind, getattr(layer, 'sliding_window', None))} in the model"
            )
        states = known.states and not (
            cache_layers.MAY_BE_UNUSED and not probe_run.geometry(adapter).layers[number].states
        )
        if states != bool(spec.states):
            raise MismatchError(f"layer {number} {'lacks' if known.states else 'has'} states in the file")
        for state in spec.states:
            what, _, at = state.name.partition(".")
            if what not in ("conv", "recurrent") or at not in map(str, range(layer.number_of_states)):
                raise MismatchError(
                    f"layer {number} has a state {state.name!r} in the file, which the model does not know"
                )


def _check_sizes(specs: Sequence[LayerSpec], own: Sequence[LayerSpec]) -> None:
    """Raise MismatchError unless heads, their sizes and states are those of the model's own cache."""
    for number, (spec, mine) in enumerate(zip(specs, own, strict=False)):  # `restore` says if there are others or more
        for name in ("heads", "key_size", "value_size", "index_size"):
            if spec.kind == mine.kind and getattr(spec, name) != getattr(mine, name):
                raise MismatchError(
                    f"layer {number} has {name.replace('_', ' ')} {getattr(spec, name)} in the file and "
                    f"{getattr(mine, name)} in the model"
                )
        shapes = [[(state.name, state.shape) for state in one.states] for one in (spec, mine)]
        if spec.kind == mine.kind and shapes[0] != shapes[1]:
            raise MismatchError(f"layer {number} has states {shapes[0]} in the file and {shapes[1]} in the model")


def _named(kind: str, window: int | None) -> str:
    return f"{kind} ({window})" if kind == "sliding" else kind


def _check_rows(snapshot: Snapshot, specs: Sequence[LayerSpec], seen: int) -> bool:
    """Raise MismatchError unless the layers hold as many rows as they should; returns whether rows were evicted."""
    counts = [keys.shape[2] for keys in snapshot.keys]
    full = {number: counts[number] for number, spec in enumerate(specs) if spec.kind == "full"}
    for number, rows in full.items():
        first = next(iter(full))
        if rows != full[first]:  # a model has one mask for all of them
            raise MismatchError(f"layer {number} has {rows} rows, layer {first} has {full[first]}: they must be equal")
        if not 1 <= rows <= seen:
            raise MismatchError(f"layer {number} has {rows} rows after {seen} tokens")
    for number, spec in enumerate(specs):
        if spec.window is not None and counts[number] != min(seen, spec.window - 1):
            raise MismatchError(
                f"layer {number} needs {min(seen, spec.window - 1)} rows after {seen} tokens, "
                f"the file has {counts[number]}"
            )
    return bool(set(full.values()) - {seen})


def _check_empty(
    layers: Sequence[Any], snapshot: Snapshot, specs: Sequence[LayerSpec], seen: int, *, evicted: bool
) -> None:
    """Raise MismatchError unless a cache that was handed in can take the rows."""
    for number, (layer, spec) in enumerate(zip(layers, specs, strict=True)):
        known = cache_layers.LAYER_CLASSES.get(type(layer))
        if known is None or known.quantized:
            raise MismatchError(f"layer {number} of the cache to fill is a {type(layer).__name__}, which cannot be")
        if cache_layers.filled(layer) or any(state is not None for state in cache_layers.states_of(layer).values()):
            raise MismatchError("the cache to fill is not empty")
        if known.kind != ("full" if spec.kind == "cross" else spec.kind):
            raise MismatchError(f"layer {number} of the cache to fill is {known.kind}, in the file {spec.kind}")
        if known.static and evicted:
            raise MismatchError("rows were evicted, which a static cache cannot be told")
        if known.kind == "sliding" and cache_layers.window_of(layer) != spec.window:
            raise MismatchError(
                f"layer {number} of the cache to fill keeps {cache_layers.window_of(layer)} tokens, the model's window "
                f"is {spec.window}"
            )
        if known.static and known.kind == "full":
            held, cross = snapshot.keys[number].shape[2], spec.kind == "cross"
            # what a static cross-attention layer has beyond the encoder's rows would be attended to
            if layer.max_cache_len != held if cross else layer.max_cache_len < seen:
                raise MismatchError(
                    f"layer {number} of the cache to fill has room for {layer.max_cache_len} tokens, the file has "
                    f"{held if cross else seen}"
                )


def to_cache(
    trace: Trace,
    model: PreTrainedModel | ModelAdapter,
    snapshot: int = -1,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    allow_model_mismatch: bool = False,
    into: Cache | None = None,
) -> Cache:
    """Restore a snapshot into a transformers cache, as `model.generate(past_key_values=...)` takes it.

    `generate_inputs` gives all that `generate` needs; what it makes of a cache alone differs
    between kinds of models.

    Args:
        trace: from `load` or `capture`.
        snapshot: which one; negative numbers count from the end.
        tokenizer: if given, it must be the one of the capture, too.
        allow_model_mismatch: skip the check that the model is the one of the capture, for research.
            The dtype is converted; the layers must still be of the same kinds and sizes.
        into: an empty cache to fill, such as a StaticCache; by default a new one of the model's own
            kind.
    Raises:
        MismatchError: another model, the field that differs is named; or `into` is not such a
            cache. Nothing has been touched.
        CorruptError: the file is damaged.
    """
    adapter = ModelAdapter.of(model)
    if not allow_model_mismatch:
        fingerprint.require_same(trace.fingerprint, fingerprint.of(adapter, tokenizer))
    if allow_model_mismatch or not trace.fingerprint:
        _check_sizes(trace.geometry.layers, probe_run.geometry(adapter).layers)
    restored = trace.snapshot(snapshot, device=adapter.device)
    if allow_model_mismatch:
        dtype = adapter.dtype
        restored.keys[:] = [keys.to(dtype) for keys in restored.keys]
        restored.values[:] = [values.to(dtype) for values in restored.values]
        restored.indexer_keys[:] = [None if keys is None else keys.to(dtype) for keys in restored.indexer_keys]
        captured = getattr(torch, trace.geometry.dtype)  # a state of another dtype than the rows has it in any model
        restored.states[:] = [
            {name: state.to(dtype) if state.dtype == captured else state for name, state in states.items()}
            for states in restored.states
        ]
    return restore(restored, adapter, trace.geometry.layers, into)
