"""Hugging Face caches: made, read and copied. `restore` fills them again.

A cache that cannot be restored faithfully is refused by name before anything is captured, since a
snapshot that restores into a wrong state is worse than an error.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache

from formats.errors import UnsupportedCacheError
from formats.trace.geometry import DTYPE_BYTES, Geometry
from formats.trace.recorder import Rows
from tsc_cli.model_families import families

from . import cache_layers
from .adapter import ModelAdapter


def new_cache(adapter: ModelAdapter) -> Cache:
    """Return an empty cache of the kind that the model generates with.

    Raises:
        UnsupportedCacheError: the model needs a kind of cache that cannot be stored; it is named.
    """
    config, name = adapter.config, adapter.name
    reason = families.refusal_of(config.model_type)
    if any(hasattr(module, "rope_deltas") for module in adapter.model.modules()):
        # an image of another prompt would shift what follows a restored cache
        reason = families.MROPE
    if reason is not None:
        raise UnsupportedCacheError(f"{name} cannot be captured: {reason}", hint=families.HINT)
    cache: Cache
    if config.is_encoder_decoder:
        # T5 counts the decoder's layers in its decoder's config only
        decoder = adapter.model.get_decoder().config  # type: ignore[no-untyped-call]
        cache = EncoderDecoderCache(DynamicCache(config=decoder), DynamicCache(config=decoder))
    else:
        cache = DynamicCache(config=config)
    refuse_unsupported(cache, name)
    if adapter.cache_argument is None:
        raise UnsupportedCacheError(f"{name} does not take a cache that was filled before", hint=families.HINT)
    if not layers_of(cache):
        raise UnsupportedCacheError(f"{name} does not say which cache layers it has", hint=families.HINT)
    return cache


def refuse_unsupported(cache: Any, model_name: str) -> None:
    """Raise UnsupportedCacheError unless every layer's class can be stored and restored exactly."""
    if type(cache) not in (DynamicCache, EncoderDecoderCache):
        raise UnsupportedCacheError(
            f"{model_name} uses {type(cache).__name__}, which cannot be stored yet", hint=families.HINT
        )
    for number, layer in enumerate(layers_of(cache)):
        if type(layer) not in cache_layers.LAYER_CLASSES:
            raise UnsupportedCacheError(
                f"layer {number} of {model_name} is a {type(layer).__name__}, which cannot be stored yet",
                hint=families.HINT,
            )


def layers_of(cache: Cache) -> list[Any]:
    """Return all layers; those of self-attention come before those of cross-attention."""
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return list(cache.layers)


def self_layers(cache: Cache) -> list[Any]:
    """Return the layers of self-attention."""
    return list(cache.self_attention_cache.layers if isinstance(cache, EncoderDecoderCache) else cache.layers)


def tokens_seen(cache: Cache) -> int:
    """Return how many tokens were fed; 0 if no layer counts them (a model of states only)."""
    filled = [layer for layer in self_layers(cache) if cache_layers.filled(layer)]
    return max((cache_layers.tokens_seen(layer) for layer in filled), default=0)


def takes_several(cache: Cache) -> bool:
    """Return whether several tokens in one pass over a filled cache give the same as one by one.

    Some models with states (Jamba, Mamba) begin anew with such a pass, and an indexer chooses other
    rows in it.
    """
    return not any(
        cache_layers.class_of(layer).states or hasattr(layer, "indexer_keys") for layer in self_layers(cache)
    )


def encoded_rows(cache: Cache) -> int:
    """Return how many rows of an encoder's tokens the cache holds."""
    if not isinstance(cache, EncoderDecoderCache):
        return 0
    return max((cache_layers.tokens_seen(layer) for layer in cache.cross_attention_cache.layers), default=0)


def geometry_of(cache: Cache, model_name: str, padding: Sequence[int] = ()) -> Geometry:
    """Return the geometry of a cache that the model has filled.

    Args:
        padding: rows at the beginning of each sequence that are padding.
    Raises:
        UnsupportedCacheError: a layer is empty, or its dtype or batch cannot be stored.
    """
    decoder_layers, specs = len(self_layers(cache)), []
    for index, layer in enumerate(layers_of(cache)):
        where = f"layer {index} of {model_name}"
        specs.append(cache_layers.spec_of(layer, where, "cross" if index >= decoder_layers else None))
    keys = {index: rows[0] for index, rows in enumerate(rows_of(cache)) if rows}
    for index, tensor in keys.items():
        first_index, first = next(iter(keys.items()))
        if tensor.dtype != first.dtype:
            raise UnsupportedCacheError(
                f"layer {index} of {model_name} holds {tensor.dtype}, layer {first_index} {first.dtype}: "
                "they must be alike"
            )
    states = (state for by_name in states_of(cache) for state in by_name.values())
    first = next(iter([*keys.values(), *states]))
    dtype = str(first.dtype).removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise UnsupportedCacheError(f"{model_name} keeps its cache as {dtype}, which cannot be stored")
    return Geometry(dtype, tuple(specs), first.shape[0], tuple(padding) if any(padding) else ())


def rows_of(cache: Cache) -> list[Rows]:
    """Return views of every layer's rows, (batch, heads, rows, size) a part."""
    return [cache_layers.rows_of(layer) for layer in layers_of(cache)]


def states_of(cache: Cache) -> list[dict[str, torch.Tensor]]:
    """Return views of every layer's states by name, (batch, *shape) each."""
    return [cache_layers.states_of(layer) for layer in layers_of(cache)]


def fork(cache: Cache) -> Any:
    """Return an independent cache with the same contents."""
    twin: Any = copy.copy(cache)
    if isinstance(cache, EncoderDecoderCache):
        twin.self_attention_cache = fork(cache.self_attention_cache)
        twin.cross_attention_cache = fork(cache.cross_attention_cache)
        twin.is_updated = dict(cache.is_updated)
    else:
        twin.layers = [cache_layers.twin_of(layer) for layer in cache.layers]
    return twin


def with_leaves(cache: Cache) -> tuple[Cache, list[Rows]]:
    """Return a copy whose keys and values are autograd leaves, and these leaves of each layer."""
    leaves: list[Rows] = [tuple(part.clone().requires_grad_() for part in rows[:2]) for rows in rows_of(cache)]
    return with_rows(cache, leaves), leaves


def with_rows(cache: Cache, rows: Sequence[Rows]) -> Cache:
    """Return a copy of the cache that holds these keys and values of each layer instead."""
    twin: Cache = fork(cache)
    for layer, parts in zip(layers_of(twin), rows, strict=True):
        if parts:
            layer.keys, layer.values = parts[:2]
    return twin


def identical(left: Cache, right: Cache) -> bool:
    """Return whether every tensor is bit-identical (NaNs and signed zeros compared as bits)."""
    same_rows = all(
        len(parts) == len(others) and all(map(_same_bits, parts, others))
        for parts, others in zip(rows_of(left), rows_of(right), strict=True)
    )
    return same_rows and all(map(_same_states, states_of(left), states_of(right)))


def _same_states(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(_same_bits(left[name], right[name]) for name in left)


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))
