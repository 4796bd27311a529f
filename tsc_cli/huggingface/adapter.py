"""The model as the rest of the product sees it, and one way to run it over a cache.

transformers renamed the argument and the output field of a cache: `past_key_values`, for Mamba
`cache_params`, became `cache`. A model's own signature decides, not a version number: code that
came with a checkpoint keeps the names of its time.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from transformers import GenerationMixin

from formats.errors import UnsupportedCacheError, UsageError

from .positions import Positions
from .wrappers import unwrapped

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

_CACHE_NAMES = ("cache", "past_key_values", "cache_params")

# models that exclude tokens by a logit of minus infinity and whose weights are all finite
_excludes_tokens: WeakSet[Any] = WeakSet()


class NotFiniteError(UsageError):
    """A model's logits are NaN or infinite, so that no token can be told from another."""


class ModelAdapter:
    """A transformers model with the operations that capture, restore and measurement need.

    Args:
        model: a transformers model; wrappers around it (`torch.compile`, peft and others) are
            looked through.
    Attributes:
        model: the transformers model itself.
    Raises:
        UnsupportedCacheError: what is given is neither a transformers model nor a known wrapper of
            one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: PreTrainedModel = unwrapped(model)

    @classmethod
    def of(cls, model: PreTrainedModel | ModelAdapter) -> ModelAdapter:
        """Return an adapter of the model, or the adapter itself if one is given."""
        return model if isinstance(model, ModelAdapter) else cls(model)

    @property
    def name(self) -> str:
        """The name of the model's class, for messages."""
        return type(self.model).__name__

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def dtype_name(self) -> str:
        """As a file states it, such as "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def positions(self) -> Positions:
        return Positions(self.model)

    @cached_property
    def vocabulary(self) -> int:
        """The number of token ids that the model has an embedding for."""
        return int(self.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]

    @cached_property
    def _arguments(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.model.forward).parameters)

    def takes(self, argument: str) -> bool:
        """Return whether the model's `forward` has this parameter."""
        return argument in self._arguments

    @property
    def cache_argument(self) -> str | None:
        """The name by which the model takes a cache, or None if it takes none."""
        return next((name for name in _CACHE_NAMES if self.takes(name)), None)

    @property
    def generate_argument(self) -> str:
        """The name by which `model.generate` takes a cache: one for all models from 5.24 on."""
        if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters:
            return "cache"
        return self.cache_argument if self.cache_argument == "cache_params" else "past_key_values"

    def check_tokens(self, ids: torch.Tensor) -> None:
        """Raise UsageError unless the model knows all of these token ids."""
        unknown = [token for token in torch.unique(ids).tolist() if not 0 <= token < self.vocabulary]
        if unknown:
            raise UsageError(
                f"the model has no token {unknown[0]}: its ids go from 0 to {self.vocabulary - 1}",
                hint="take the tokenizer that belongs to the model",
            )

    def run(self, cache: Cache, **arguments: Any) -> torch.Tensor:
        """Feed `arguments` to the model in one pass; the cache grows.

        Returns:
            the logits, (batch, tokens, vocabulary).
        Raises:
            UnsupportedCacheError: the model takes no cache, or returns another one than it was
                given.
        """
        if self.cache_argument is None:
            raise UnsupportedCacheError(f"{self.name} does not take a cache that was filled before")
        output = self.model(**arguments, **{self.cache_argument: cache}, use_cache=True)
        returned = _returned_cache(output)
        if returned is not cache:
            raise UnsupportedCacheError(
                f"{self.name} keeps its cache as {type(returned).__name__}, which cannot be stored yet"
            )
        logits: torch.Tensor = output.logits
        return logits

    def require_finite(self, logits: torch.Tensor) -> None:
        """Raise NotFiniteError for logits that give no probabilities; it names the weight at fault.

        Minus infinity is a logit of a token that a model rules out, unless a weight is infinite.
        Weights are not scanned at loading: each NaN that matters reaches the logits, and one look
        at these costs a thousandth of the pass that made them.
        """
        if not logits.numel():
            return
        low, high = torch.aminmax(logits.float(), dim=-1)  # both are NaN if any logit is
        if bool(high.isfinite().all()):
            if bool(low.isfinite().all()) or self.model in _excludes_tokens:
                return
            if self._tensor_not_finite() is None:
                _excludes_tokens.add(self.model)
                return
        name = self._tensor_not_finite()
        if name is not None:
            raise NotFiniteError(
                f"the model's logits are not finite: tensor {name!r} holds NaN or infinity",
                hint="fetch the model again",
            )
        raise NotFiniteError(
            "the model's logits are not finite, though all of its weights are: what it computes overflows in "
            f"{self.dtype_name}, or its cache holds NaN or infinity",
            hint="--dtype float32 reaches further",
        )

    def _tensor_not_finite(self) -> str | None:
        """The name of the first weight or buffer that holds NaN or infinity, or None."""
        for tensors in (self.model.named_parameters(), self.model.named_buffers()):
            for name, tensor in tensors:
                if tensor.is_meta or not tensor.is_floating_point():
                    continue
                # torch has no such test of 8 bits
                values = tensor.float() if tensor.element_size() == 1 else tensor
                if not bool(values.isfinite().all()):
                    return name
        return None


def _returned_cache(output: Any) -> Any:
    """The cache that a pass returned, or None."""
    if isinstance(output, Mapping):  # asking an output for a name of another version would warn
        return next((output[name] for name in _CACHE_NAMES if name in output), None)
    caches = (getattr(output, name, None) for name in _CACHE_NAMES)
    return next((cache for cache in caches if cache is not None), None)
