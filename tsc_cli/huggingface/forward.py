"""One pass of a model over a cache, whatever the model calls it.

transformers renamed the argument and the output field: `past_key_values`, for Mamba `cache_params`, became `cache`.  A
model's own signature decides, not a version number: code that came with a checkpoint keeps the names of its time.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationMixin

from formats.errors import UnsupportedCacheError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

_NAMES = ("cache", "past_key_values", "cache_params")


def takes(model: PreTrainedModel, argument: str) -> bool:
    """Whether a pass of the model can be given this argument."""
    return argument in inspect.signature(model.forward).parameters


def cache_argument(model: PreTrainedModel) -> str | None:
    """The name by which the model takes a cache, or None if it takes none."""
    return next((name for name in _NAMES if takes(model, name)), None)


def generate_argument(model: PreTrainedModel) -> str:
    """The name by which `model.generate` takes a cache: from 5.24 on it has one name for all models."""
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters:
        return "cache"
    name = cache_argument(model)
    return name if name in ("past_key_values", "cache_params") else "past_key_values"


def returned_cache(output: Any) -> Any:
    """The cache that a pass returned, or None."""
    if isinstance(output, Mapping):  # asking an output for a name of another version would warn
        return next((output[name] for name in _NAMES if name in output), None)
    return next((found for name in _NAMES if (found := getattr(output, name, None)) is not None), None)


def run(model: PreTrainedModel, cache: Cache, **arguments: Any) -> torch.Tensor:
    """Feed `arguments` to the model; the cache grows.  Returns the logits, (batch, tokens, vocabulary).

    Raises:
        UnsupportedCacheError: the model takes no cache, or returns another one than it was given.
    """
    name = cache_argument(model)
    if name is None:
        raise UnsupportedCacheError(f"{type(model).__name__} does not take a cache that was filled before")
    output = model(**arguments, **{name: cache}, use_cache=True)
    returned = returned_cache(output)
    if returned is not cache:
        raise UnsupportedCacheError(
            f"{type(model).__name__} keeps its cache as {type(returned).__name__}, which cannot be stored yet"
        )
    logits: torch.Tensor = output.logits
    return logits
