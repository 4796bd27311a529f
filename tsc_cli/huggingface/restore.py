"""Restoring snapshots into Hugging Face caches, checked before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import EncoderDecoderCache

from formats.errors import MismatchError
from formats.trace.geometry import LayerSpec
from formats.trace.recorder import Rows
from formats.trace.snapshot import Snapshot
from formats.trace.trace import Trace
from tsc_cli.huggingface.fingerprint import fingerprint

from . import cache_layers, probe_run
from .adapter import ModelAdapter
from .caches import layers_of, new_cache, self_layers
from .evicted_layer import EvictedLayer

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


T = TypeVar("T")


def restore(snapshot: Snapshot, adapter: ModelAdapter, specs: Sequence[LayerSpec], into: Cache | None = None) -> Cache:
    """Return the cache that the model had at the snapshot.

    Everything is checked before the cache is built, so that no half-restored cache is returned.

    Args:
        specs: of the snapshot's layers.
        into: an empty cache to fill instead of a new one.
    Raises:
        MismatchError: the snapshot's layers do not fit the model's cache.
    """
    expected = new_cache(adapter)
    cache = expected if into is None else into
    layers: Sequence[Any] = layers_of(cache)
    model_layers: Sequence[Any] = layers_of(expected)
    if len(specs) != len(model_layers) and not isinstance(expected, EncoderDecoderCache):
        # layers that share another's rows are listed, empty, from transformers 5.23 on only
        specs = _without_empty_end(specs, lambda spec: spec.kind == "none" and not spec.states)
        model_layers, layers = _without_empty_layers(model_layers), _without_empty_layers(layers)
    for owner, count in (("model", len(model_layers)), ("cache to fill", len(layers))):
        if count != len(specs):
            raise MismatchError(f"the file has {len(specs)} layers, the {owner} {count}")
    seen = len(snapshot.token_ids)
    _check_kinds(specs, model_layers, len(self_layers(expected)), adapter)
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
        for index, (layer, spec) in enumerate(zip(layers, specs, strict=True)):
            tokens = snapshot.keys[index].shape[2] if spec.kind == "cross" else seen
            cache_layers.fill(layer, _rows(snapshot, index, spec), snapshot.states[index], tokens)
    # a new one notes which cross-attention layers are filled
    if isinstance(cache, EncoderDecoderCache):
        cache = EncoderDecoderCache(cache.self_attention_cache, cache.cross_attention_cache)
    return cache


def _without_empty_layers(layers: Sequence[Any]) -> Sequence[Any]:
    """Return the layers of a cache without the empty ones at its end."""

    def empty(layer: Any) -> bool:
        layer_class = cache_layers.LAYER_CLASSES.get(type(layer))
        return layer_class is not None and layer_class.kind == "none" and not layer_class.states

    return _without_empty_end(layers, empty)


def _without_empty_end(layers: Sequence[T], empty: Callable[[T], bool]) -> Sequence[T]:
    while layers and empty(layers[-1]):
        layers = layers[:-1]
    return layers


def _rows(snapshot: Snapshot, index: int, spec: LayerSpec) -> Rows:
    parts = (snapshot.keys[index], snapshot.values[index], snapshot.indexer_keys[index])
    return tuple(part for part in parts if part is not None) if spec.parts else ()


def _check_kinds(specs: Sequence[LayerSpec], layers: Sequence[Any], decoder_layers: int, adapter: ModelAdapter) -> None:
    """Raise MismatchError unless the model's layers are of the file's kinds."""
    for index, (spec, layer) in enumerate(zip(specs, layers, strict=True)):
        layer_class = cache_layers.class_of(layer)
        kind = "cross" if index >= decoder_layers else layer_class.kind
        if kind != spec.kind or (layer_class.kind == "sliding" and layer.sliding_window != spec.window):
            raise MismatchError(
                f"layer {index} is {_named(spec.kind, spec.window)} in the file and "
                f"{_named(kind, getattr(layer, 'sliding_window', None))} in the model"
            )
        states = layer_class.states and not (
            cache_layers.MAY_BE_UNUSED and not probe_run.geometry(adapter).layers[index].states
        )
        if states != bool(spec.states):
            raise MismatchError(f"layer {index} {'lacks' if layer_class.states else 'has'} states in the file")
        for state in spec.states:
            state_type, _, state_index = state.name.partition(".")
            if state_type not in ("conv", "recurrent") or state_index not in map(str, range(layer.number_of_states)):
                raise MismatchError(
                    f"layer {index} has a state {state.name!r} in the file, which the model does not know"
                )


def _check_sizes(specs: Sequence[LayerSpec], model_specs: Sequence[LayerSpec]) -> None:
    """Raise MismatchError unless heads, their sizes and states are those of the model's cache."""
    for index, (spec, model_spec) in enumerate(zip(specs, model_specs, strict=False)):
        # `restore` refuses other kinds, and another number of layers
        if spec.kind != model_spec.kind:
            continue
        for name in ("heads", "key_size", "value_size", "index_size"):
            if getattr(spec, name) != getattr(model_spec, name):
                raise MismatchError(
                    f"layer {index} has {name.replace('_', ' ')} {getattr(spec, name)} in the file and "
                    f"{getattr(model_spec, name)} in the model"
                )
        stored, expected = ([(state.name, state.shape) for state in side.states] for side in (spec, model_spec))
        if stored != expected:
            raise MismatchError(f"layer {index} has states {stored} in the file and {expected} in the model")


def _named(kind: str, window: int | None) -> str:
    return f"{kind} ({window})" if kind == "sliding" else kind


def _check_rows(snapshot: Snapshot, specs: Sequence[LayerSpec], seen: int) -> bool:
    """Check the layers' row counts; return whether rows of the full-attention layers were evicted.

    Raises:
        MismatchError: a layer holds another number of rows than it should.
    """
    counts = [keys.shape[2] for keys in snapshot.keys]
    full = {index: counts[index] for index, spec in enumerate(specs) if spec.kind == "full"}
    for index, rows in full.items():
        first = next(iter(full))
        if rows != full[first]:  # a model has one mask for all of them
            raise MismatchError(f"layer {index} has {rows} rows, layer {first} has {full[first]}: they must be equal")
        if not 1 <= rows <= seen:
            raise MismatchError(f"layer {index} has {rows} rows after {seen} tokens")
    for index, spec in enumerate(specs):
        if spec.window is not None and counts[index] != min(seen, spec.window - 1):
            raise MismatchError(
                f"layer {index} needs {min(seen, spec.window - 1)} rows after {seen} tokens, "
                f"the file has {counts[index]}"
            )
    return bool(set(full.values()) - {seen})


def _check_empty(
    layers: Sequence[Any], snapshot: Snapshot, specs: Sequence[LayerSpec], seen: int, *, evicted: bool
) -> None:
    """Raise MismatchError unless the caller's cache is empty and can take the rows."""
    for index, (layer, spec) in enumerate(zip(layers, specs, strict=True)):
        layer_class = cache_layers.LAYER_CLASSES.get(type(layer))
        if layer_class is None or layer_class.quantized:
            raise MismatchError(f"layer {index} of the cache to fill is a {type(layer).__name__}, which cannot be")
        if cache_layers.filled(layer) or any(state is not None for state in cache_layers.states_of(layer).values()):
            raise MismatchError("the cache to fill is not empty")
        if layer_class.kind != ("full" if spec.kind == "cross" else spec.kind):
            raise MismatchError(f"layer {index} of the cache to fill is {layer_class.kind}, in the file {spec.kind}")
        if layer_class.static and evicted:
            raise MismatchError("rows were evicted, which a static cache cannot be told")
        if layer_class.kind == "sliding" and cache_layers.window_of(layer) != spec.window:
            raise MismatchError(
                f"layer {index} of the cache to fill keeps {cache_layers.window_of(layer)} tokens, the model's window "
                f"is {spec.window}"
            )
        if layer_class.static and layer_class.kind == "full":
            rows, cross = snapshot.keys[index].shape[2], spec.kind == "cross"
            # what a static cross-attention layer has beyond the encoder's rows would be attended to
            if layer.max_cache_len != rows if cross else layer.max_cache_len < seen:
                raise MismatchError(
                    f"layer {index} of the cache to fill has room for {layer.max_cache_len} tokens, the file has "
                    f"{rows if cross else seen}"
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
    """Restore a snapshot into a transformers cache.

    To go on with `model.generate`, use `generate_inputs`, which gives all that it needs beside the
    cache.

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
        # a state of another dtype has it in every model
        captured = getattr(torch, trace.geometry.dtype)
        restored.states[:] = [
            {name: state.to(dtype) if state.dtype == captured else state for name, state in states.items()}
            for states in restored.states
        ]
    return restore(restored, adapter, trace.geometry.layers, into)
