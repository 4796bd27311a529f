"""A short trial run of a model, to see the shape of its cache."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from formats.trace.geometry import Geometry

from . import caches
from .adapter import ModelAdapter
from .generation import prefill

TOKENS = 12

_geometries: weakref.WeakKeyDictionary[torch.nn.Module, Geometry] = weakref.WeakKeyDictionary()


def tokens_from(adapter: ModelAdapter, start: int) -> torch.Tensor:
    """Return token ids that `start` decides, (1, 12) or as many as there are positions."""
    count = min(TOKENS, adapter.positions.end or TOKENS)
    return torch.arange(start, start + count)[None] * 7 % adapter.vocabulary


def filled(adapter: ModelAdapter, start: int) -> Any:
    """Return the cache of these tokens, and of a made-up encoder output if there is an encoder."""
    cache, _ = prefill(adapter, tokens_from(adapter, start), chunk=TOKENS, encoded=encoded(adapter, start))
    return cache


def encoded(adapter: ModelAdapter, start: int) -> torch.Tensor | None:
    """Return a made-up encoder output, (1, 5, width), or None for a model without an encoder."""
    if not adapter.config.is_encoder_decoder:
        return None
    noise = torch.randn(1, 5, adapter.config.hidden_size, generator=torch.Generator().manual_seed(start))
    return noise.to(adapter.device, adapter.dtype)


def geometry(adapter: ModelAdapter) -> Geometry:
    """Return the geometry of the model's caches, found by one trial a model."""
    if adapter.model not in _geometries:
        _geometries[adapter.model] = caches.geometry_of(filled(adapter, 3), adapter.name)
    return _geometries[adapter.model]
