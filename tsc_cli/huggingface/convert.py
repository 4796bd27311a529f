"""Caches that tsc did not make: from a user's own run, static, quantized, or as tuples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache

from formats import Geometry, Recorder, Trace, TraceBuilder
from formats.errors import UnsupportedCacheError, UsageError
from formats.file import promises
from formats.trace.geometry import LayerSpec
from formats.trace.recorder import Rows
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.model_families import families

from . import cache_layers, caches, probe_run
from .adapter import ModelAdapter
from .prompts import TokenIds, as_ids, by_row, padding_of
from .self_test import require_restorable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tuples = Sequence[tuple[torch.Tensor, ...]]


def from_cache(
    cache: Cache,
    model: PreTrainedModel | ModelAdapter,
    input_ids: TokenIds,
    *,
    attention_mask: TokenIds | None = None,
    next_tokens: TokenIds | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Trace:
    """Return a trace of one snapshot: what a cache of the model holds. `to_cache` is the inverse.

    Of a static cache the filled part is taken. The rows of a quantized one are dequantized, with a
    warning and a note in `trace.info` and `trace.lost_by`: a run that goes on from them rounds
    otherwise than the quantized one.

    Args:
        cache: a DynamicCache, StaticCache, QuantizedCache or EncoderDecoderCache that the model has
            filled.
        input_ids: the tokens that it has been fed so far, (tokens,) or (batch, tokens); those of
            the decoder, if there is an encoder, whose own input must have had no padding.
        attention_mask: (batch, tokens), 0 at padding, which must be at the left.
        next_tokens: the tokens to go on with, if they are known, (batch,): what `Trace.pending`
            gives.
        tokenizer: if given, its hash becomes part of the fingerprint.
    Raises:
        UnsupportedCacheError: a layer of another class, or the cache is not of the kind that the
            model makes.
        UsageError: the cache has seen another number of tokens than there are, or another batch.
    """
    adapter = ModelAdapter.of(model)
    name = adapter.name
    expected = caches.layers_of(caches.new_cache(adapter))
    if type(cache) not in (DynamicCache, StaticCache, QuantizedCache, EncoderDecoderCache):
        raise UnsupportedCacheError(f"a {type(cache).__name__} cannot be stored", hint=families.HINT)
    _check_layers(caches.layers_of(cache), expected, name)
    fingerprint.require_repeatable(adapter)
    require_restorable(adapter)
    ids = as_ids(input_ids)
    adapter.check_tokens(ids)
    geometry = caches.geometry_of(cache, name, padding_of(attention_mask, ids))
    seen = caches.tokens_seen(cache)
    if ids.shape[0] != geometry.batch:
        raise UsageError(f"the cache holds {geometry.batch} sequences, input_ids has {ids.shape[0]}")
    if seen and ids.shape[1] != seen:
        raise UsageError(
            f"the cache has seen {seen} tokens, input_ids has {ids.shape[1]}",
            hint="give the tokens that were fed: the last one that generate returned was not",
        )
    _check_rows_held(caches.self_layers(cache), geometry, adapter, ids.shape[1])
    builder = TraceBuilder(geometry, fingerprint.of(adapter, tokenizer), geometry.batch)
    recorder = Recorder(builder, geometry, label_width=geometry.batch)
    recorder.encoder([0] * (caches.encoded_rows(cache) * geometry.batch))
    next_ids = () if next_tokens is None else [int(token) for token in as_ids(next_tokens).reshape(-1)]
    if len(next_ids) not in (0, geometry.batch):
        raise UsageError(f"{len(next_ids)} next tokens for {geometry.batch} sequences")
    adapter.check_tokens(as_ids(next_ids))
    recorder.snapshot(by_row(ids), caches.rows_of(cache), next_ids, caches.states_of(cache))
    recorder.finish()
    trace = builder.trace
    trace.info = {"prompt_tokens": ids.shape[1], "cache": type(cache).__name__}
    if geometry.batch > 1:
        trace.info["sequences"] = geometry.batch
    if isinstance(cache, QuantizedCache):
        trace.info["dequantized"] = kind = type(cache.layers[0]).__name__
        trace.lost_by = promises.dequantized(kind)
        warnings.warn(
            f"the rows of a {kind} are stored dequantized: a run that goes on from them rounds otherwise", stacklevel=2
        )
    return trace


def _check_layers(layers: Sequence[Any], expected: Sequence[Any], name: str) -> None:
    """Raise UnsupportedCacheError unless the layers keep what the model's own cache keeps."""
    if len(layers) != len(expected):
        raise UnsupportedCacheError(f"the cache has {len(layers)} layers, that of {name} {len(expected)}")
    for index, (layer, model_layer) in enumerate(zip(layers, expected, strict=True)):
        layer_class = cache_layers.LAYER_CLASSES.get(type(layer))
        if layer_class is None:
            raise UnsupportedCacheError(
                f"layer {index} is a {type(layer).__name__}, which cannot be stored yet", hint=families.HINT
            )
        model_class = cache_layers.class_of(model_layer)
        if (layer_class.kind, layer_class.states) != (model_class.kind, model_class.states):
            raise UnsupportedCacheError(
                f"layer {index} of the cache is {layer_class.kind}, that of {name} {model_class.kind}",
                hint="make the cache with the model's config: DynamicCache(config=model.config)",
            )
        if layer_class.kind == "sliding" and cache_layers.window_of(layer) != model_layer.sliding_window:
            raise UnsupportedCacheError(
                f"layer {index} of the cache keeps {cache_layers.window_of(layer)} tokens, the model's window is "
                f"{model_layer.sliding_window}",
                hint="a static cache needs room for a whole window",
            )


def _check_rows_held(layers: Sequence[Any], geometry: Geometry, adapter: ModelAdapter, fed: int) -> None:
    """Raise UnsupportedCacheError unless each layer still holds all that the next token looks at.

    Of a layer that records its past for assisted decoding, what lies there decides: it may hold
    more than that, or, cropped more than once between two passes, less.
    """
    hint = "feed the tokens to the model anew: capture(model, input_ids)"
    for index, (layer, spec) in enumerate(zip(layers, geometry.layers, strict=False)):
        layer_class = cache_layers.class_of(layer)
        if layer_class.kind != "none" and cache_layers.tokens_seen(layer) != fed:
            raise UnsupportedCacheError(
                f"layer {index} has seen {cache_layers.tokens_seen(layer)} tokens, input_ids has {fed}", hint=hint
            )
        if layer_class.kind == "sliding":
            held, needed = cache_layers.rows_of(layer)[0].shape[2], cache_layers.rows_needed(layer)
            if held < needed:
                raise UnsupportedCacheError(
                    f"layer {index} holds {held} of the {needed} rows that the next token looks at: "
                    "it was cropped beyond what it had recorded",
                    hint=hint,
                )
        if layer_class.states and cache_layers.records_past(layer):
            _check_states(index, layer, spec, adapter, fed, hint)


def _check_states(index: int, layer: Any, spec: LayerSpec, adapter: ModelAdapter, fed: int, hint: str) -> None:
    """Raise UnsupportedCacheError unless a recording layer's states are those of its last token."""
    if any(state.name.startswith("recurrent") for state in spec.states):
        raise UnsupportedCacheError(
            f"layer {index} was told to record its past, to be cropped, which its recurrent states do not follow",
            hint=hint,
        )
    own = {state.name: state.shape for state in probe_run.geometry(adapter).layers[index].states}
    for state in spec.states:
        columns = layer.conv_states[int(state.name.partition(".")[2])].shape[-1]
        if state.shape != own.get(state.name) or columns < min(fed, state.shape[-1]):
            raise UnsupportedCacheError(
                f"layer {index} holds {columns} columns of state {state.name}, the model's has the shape "
                f"{own.get(state.name)}: it was cropped beyond what it had recorded",
                hint=hint,
            )


def from_tuples(tuples: Tuples, model: PreTrainedModel | ModelAdapter) -> Cache:
    """Return a cache made of (keys, values) of each layer, as older programs pass them on.

    Args:
        tuples: tensors of (batch, heads, tokens, head size); with four of them a layer, the last
            two are those of cross-attention.
    Raises:
        UnsupportedCacheError: the model's layers keep more than keys and values of every token.
        UsageError: another number of layers, or shapes that do not fit together.
    """
    adapter = ModelAdapter.of(model)
    cache = caches.new_cache(adapter)
    layers = caches.layers_of(cache)
    rows: list[Rows] = [tuple(parts[:2]) for parts in tuples]
    rows += [tuple(parts[2:4]) for parts in tuples if len(parts) == 4]
    if len(rows) != len(layers):
        raise UsageError(f"tuples of {len(rows)} layers, the model has {len(layers)}")
    for index, (layer, parts) in enumerate(zip(layers, rows, strict=True)):
        layer_class = cache_layers.class_of(layer)
        if layer_class.kind != "full" or layer_class.states or hasattr(layer, "indexer_keys"):
            raise UnsupportedCacheError(
                f"layer {index} of {adapter.name} keeps more than keys and values: it is a {type(layer).__name__}",
                hint="from_cache takes a whole cache",
            )
        if len(parts) != 2 or any(part.dim() != 4 for part in parts) or parts[0].shape[:3] != parts[1].shape[:3]:
            raise UsageError(f"layer {index}: keys and values of (batch, heads, tokens, head size) were expected")
    for layer, parts in zip(layers, rows, strict=True):
        cache_layers.fill(layer, parts, {}, parts[0].shape[2])
    if isinstance(cache, EncoderDecoderCache):
        return EncoderDecoderCache(cache.self_attention_cache, cache.cross_attention_cache)
    return cache


def to_tuples(cache: Cache) -> tuple[tuple[torch.Tensor, ...], ...]:
    """Return (keys, values) of each layer and its cross-attention; the inverse of `from_tuples`.

    Raises:
        UnsupportedCacheError: a layer keeps more than keys and values of every token.
    """
    layers = caches.layers_of(cache)
    for index, layer in enumerate(layers):
        layer_class = cache_layers.class_of(layer)
        if layer_class.kind != "full" or layer_class.states or hasattr(layer, "indexer_keys"):
            raise UnsupportedCacheError(
                f"layer {index} is a {type(layer).__name__}: tuples hold keys and values of every token only"
            )
    rows = [tuple(parts) for parts in caches.rows_of(cache)]
    if isinstance(cache, EncoderDecoderCache):
        half = len(rows) // 2
        return tuple(decoder + cross for decoder, cross in zip(rows[:half], rows[half:], strict=True))
    return tuple(rows)


def branch(cache: Cache) -> Cache:
    """Return an independent cache with the same contents."""
    for layer in caches.layers_of(cache):
        layer_class = cache_layers.class_of(layer)
        if layer_class.static or layer_class.quantized:
            raise UnsupportedCacheError(f"a {type(layer).__name__} is written in place", hint="restore it twice")
    twin: Cache = caches.fork(cache)
    return twin


def repeat(cache: Cache, times: int) -> Cache:
    """Return a cache with each sequence `times` times in a row, to continue a prompt several times.

    Raises:
        UnsupportedCacheError: the cache is static or quantized.
    """
    batch = next(
        tensor.shape[0]
        for rows, states in zip(caches.rows_of(cache), caches.states_of(cache), strict=True)
        for tensor in (*rows, *states.values())
    )
    twin = branch(cache)
    # transformers' annotation asks for a LongTensor
    order: Any = torch.arange(batch).repeat_interleave(times)
    twin.reorder_cache(order)
    return twin
