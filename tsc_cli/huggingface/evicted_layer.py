"""A cache layer for snapshots some of whose rows were evicted."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class EvictedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A full-attention layer that has seen more tokens than it holds rows.

    transformers takes the next position id and the mask from the layer, as it does from a sliding
    one. So `model.generate` goes on at the right position, and attends to every row that is left.
    """

    def __init__(self, tokens_seen: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens_seen = tokens_seen

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.tokens_seen += key_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        return self.tokens_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (rows, offset of the first): right before the query, so that none is masked."""
        rows = 0 if self.keys is None else self.keys.shape[-2]
        return rows + query_length, self.tokens_seen - rows

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.tokens_seen += tokens_to_remove
