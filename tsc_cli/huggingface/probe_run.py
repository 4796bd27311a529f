"""A few tokens fed to a model, to see what its cache is like."""

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
    """Token ids, (1, 12) or as many as there are positions; other ones for another `start`."""
    count = min(TOKENS, adapter.positions.end or TOKENS)
    return torch.arange(start, start + count)[None] * 7 % adapter.vocabulary


def filled(adapter: ModelAdapter, start: int) -> Any:
    """The cache of such tokens, and of what an encoder might have made, if there is one."""
    cache, _ = prefill(adapter, tokens_from(adapter, start), chunk=TOKENS, encoded=encoded(adapter, start))
    return cache


def encoded(adapter: ModelAdapter, start: int) -> torch.Tensor | None:
    """Something that an encoder might have made, (1, 5, width), if there is one."""
    if not adapter.config.is_encoder_decoder:
        return None
    noise = torch.randn(1, 5, adapter.config.hidden_size, generator=torch.Generator().manual_seed(start))
    return noise.to(adapter.device, adapter.dtype)


def geometry(adapter: ModelAdapter) -> Geometry:
    """The shape of the model's caches; tried once a model."""
    if adapter.model not in _geometries:
        _geometries[adapter.model] = caches.geometry_of(filled(adapter, 3), adapter.name)
    return _geometries[adapter.model]
