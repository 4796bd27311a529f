"""How much attention each cached row receives while a model runs, for `h2o` eviction.

The model's own attention function computes its output as ever, so that a capture is the same with
observation and without, bit for bit; beside it the probabilities are computed once more, a few
queries at a time, and only their sums are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from formats import Geometry
from formats.errors import UnsupportedCacheError
from formats.trace.snapshot import MemoryReceived

from .adapter import ModelAdapter

_OBSERVABLE = "sdpa"
_MAX_SCORES = 1 << 25  # attention scores in memory at once


@dataclass
class Observation:
    """Attention received so far, by layer: (KV heads, rows), float32."""

    received: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
    ) -> None:
        """Add the attention probabilities of one call.

        Args:
            query: (1, heads, queries, size).
            key: (1, KV heads, rows, size).
            mask: (1, 1 or heads, queries, rows) of booleans or of terms to add; None is causal.
            scaling: a factor of the scores; None is 1 / sqrt(size).
        """
        query, key = query[0].float(), key[0].float()
        kv_heads, rows, size = key.shape
        group, queries = query.shape[0] // kv_heads, query.shape[1]
        query = query.reshape(kv_heads, group, queries, size) * (scaling if scaling is not None else size**-0.5)
        total = torch.zeros(kv_heads, rows, device=key.device)
        step = max(1, _MAX_SCORES // (kv_heads * group * rows))
        row_indices = torch.arange(rows, device=key.device)
        for first in range(0, queries, step):
            piece = query[:, :, first : first + step]
            scores = piece @ key[:, None].transpose(-1, -2)
            count = piece.shape[2]
            if mask is None:  # causal: the last query sees all rows
                last_seen = torch.arange(first, first + count, device=key.device) + rows - queries
                scores.masked_fill_(row_indices > last_seen[:, None], -torch.inf)
            else:
                visible = mask[0, :, first : first + count, :rows]
                scores = _masked(scores.flatten(0, 1), visible).view_as(scores)
            total += scores.softmax(-1).sum((1, 2))
        earlier = self.received.get(layer)
        # a moved window has other rows
        if earlier is not None and earlier.shape[1] <= total.shape[1]:
            total[:, : earlier.shape[1]] += earlier
        self.received[layer] = total

    def records(self, geometry: Geometry, tokens: int) -> Iterator[MemoryReceived]:
        """Yield the attention received in each run of full-attention layers.

        Raises:
            UnsupportedCacheError: a layer computed its attention unobserved.
        """
        for first, count, spec in geometry.runs():
            if spec.kind != "full":
                continue
            totals = []
            for layer in range(first, first + count):
                total = self.received.get(layer)
                if total is None or total.shape != (spec.heads, tokens):
                    raise UnsupportedCacheError(f"the attention of layer {layer} could not be observed")
                totals.append(total.cpu())
            yield MemoryReceived(first, count, torch.stack(totals))


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Apply a mask (1 or heads, queries, rows) to scores (heads, queries, rows)."""
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


@contextlib.contextmanager
def observed(adapter: ModelAdapter) -> Iterator[Observation]:
    """Observe the model's attention inside the context.

    Raises:
        UnsupportedCacheError: the model does not compute attention by transformers' `sdpa`
            function.
    """
    observation = Observation()
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kernel = getattr(adapter.config.get_text_config(decoder=True), "_attn_implementation", None)
    if kernel != _OBSERVABLE:
        raise UnsupportedCacheError(
            f"{adapter.name} runs with {kernel} attention, which cannot be observed",
            hint="capture without --attention, or load the model with attn_implementation='sdpa'",
        )
    original: Any = ALL_ATTENTION_FUNCTIONS[_OBSERVABLE]

    def observing(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with torch.no_grad():
            observation.add(module.layer_idx, query, key, attention_mask, kwargs.get("scaling"))
        return original(module, query, key, value, attention_mask, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS[_OBSERVABLE] = observing
    try:
        yield observation
    finally:
        ALL_ATTENTION_FUNCTIONS[_OBSERVABLE] = original
