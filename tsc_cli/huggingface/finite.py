"""Numbers that are none: where logits are first seen, and which weight they come from.

Weights are not scanned at loading: each NaN that matters reaches the logits, and a weight that no token of a run meets
changes nothing of what is stored.  One look at logits costs a thousandth of the pass that made them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch

from formats.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# models that rule tokens out by a logit of minus infinity, none of whose weights is infinite
_ruling_out: WeakSet[Any] = WeakSet()


class NotFiniteError(UsageError):
    """A model's logits are NaN or infinite, so that they say nothing."""


def require_finite(model: PreTrainedModel, logits: torch.Tensor) -> None:
    """Raise NotFiniteError for logits that give no probabilities.

    Minus infinity is a logit of a token that a model rules out, unless a weight is infinite.
    """
    if not logits.numel():
        return
    low, high = torch.aminmax(logits.float(), dim=-1)  # of NaN both are NaN
    if bool(high.isfinite().all()):
        if bool(low.isfinite().all()) or model in _ruling_out:
            return
        if not_finite(model) is None:
            _ruling_out.add(model)
            return
    name = not_finite(model)
    if name is not None:
        raise NotFiniteError(
            f"the model's logits are not finite: tensor {name!r} holds NaN or infinity", hint="fetch the model again"
        )
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    raise NotFiniteError(
        f"the model's logits are not finite, though all of its weights are: what it computes overflows in {dtype}, or "
        "its cache holds NaN or infinity",
        hint="--dtype float32 reaches further",
    )


def not_finite(model: PreTrainedModel) -> str | None:
    """The name of the first tensor of a model that holds NaN or infinity, or None."""
    for tensors in (model.named_parameters(), model.named_buffers()):
        for name, tensor in tensors:
            if tensor.is_meta or not tensor.is_floating_point():
                continue
            plain = tensor.float() if tensor.element_size() == 1 else tensor  # of 8 bits torch has no such test
            if not bool(plain.isfinite().all()):
                return name
    return None
