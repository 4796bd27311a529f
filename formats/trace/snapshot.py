"""Snapshot: the cache at one moment, and the attention that its rows received."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Received(Protocol):
    """How much attention each row of the first snapshot received, accumulated over all queries, in
    some layers.
    """

    @property
    def first_layer(self) -> int: ...
    @property
    def layer_count(self) -> int: ...

    def read(self) -> torch.Tensor:
        """(layers, KV heads, rows), float32: the sum of the attention probabilities of all queries
        of the group.
        """
        ...


@dataclass(frozen=True)
class MemoryReceived:
    """Attention at hand."""

    first_layer: int
    layer_count: int
    received: torch.Tensor

    def read(self) -> torch.Tensor:
        return self.received


@dataclass(frozen=True)
class Snapshot:
    """The cache at one moment.

    Attributes:
        keys, values: for each layer, (batch, heads, rows, head size); without elements if the layer
            has no rows.
        row_positions: for each layer, the position ids of its rows, int64: (rows,), or (heads,
            rows) if heads hold different tokens.
        token_ids: the tokens fed so far; `positions` their position ids.
        next_token: the token that the capturing run fed next, if it chose one.
        indexer_keys: for each layer (batch, 1, rows, index size), or None if it has none.
        states: for each layer its states by name, (batch, *shape) each.
        lost_by: as of the trace that it is of.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    row_positions: list[torch.Tensor]
    token_ids: list[int]
    positions: list[int]
    next_token: int | None = None
    indexer_keys: list[torch.Tensor | None] = field(default_factory=list)
    states: list[dict[str, torch.Tensor]] = field(default_factory=list)
    lost_by: str = ""

    def __post_init__(self) -> None:
        """A snapshot put together of keys and values has nothing else."""
        if not self.indexer_keys:
            self.indexer_keys.extend([None] * len(self.keys))
        if not self.states:
            self.states.extend({} for _ in self.keys)
