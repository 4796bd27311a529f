"""A few tokens fed to a model, to see what its cache is like."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch

from formats.trace.geometry import Geometry

from . import caches
from .generation import prefill
from .positions import end_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 12

_geometries: weakref.WeakKeyDictionary[torch.nn.Module, Geometry] = weakref.WeakKeyDictionary()


def tokens_from(model: PreTrainedModel, start: int) -> torch.Tensor:
    """Token ids, (1, 12) or as many as there are positions; other ones for another `start`."""
    known = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    count = min(TOKENS, end_of(model) or TOKENS)
    return torch.arange(start, start + count)[None] * 7 % known


def filled(model: PreTrainedModel, start: int) -> Any:
    """The cache of such tokens, and of what an encoder might have made, if there is one."""
    cache, _ = prefill(model, tokens_from(model, start), chunk=TOKENS, encoded=encoded(model, start))
    return cache


def encoded(model: PreTrainedModel, start: int) -> torch.Tensor | None:
    """Something that an encoder might have made, (1, 5, width), if there is one."""
    if not model.config.is_encoder_decoder:
        return None
    parameter = next(model.parameters())
    noise = torch.randn(1, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(start))
    return noise.to(parameter.device, parameter.dtype)


def geometry(model: PreTrainedModel) -> Geometry:
    """The shape of the model's caches; tried once a model."""
    if model not in _geometries:
        _geometries[model] = caches.geometry_of(filled(model, 3), type(model).__name__)
    return _geometries[model]
