"""Count the rows that a snapshot shares with the one before, and measure how far others differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from formats.trace.trace import Trace
from formats.trace.views import Span

from .directions import common
from .measures import energies
from .rows import groups


@dataclass
class Held:
    """Rows of a snapshot, counted over all layers.

    Attributes:
        identical: bit-identical to the row of the same token in the snapshot before.
        differing: the snapshot before holds the token's row, with other bits.
        new: it does not hold it.
        ratio: energy of the differences of the differing rows, over their energy without channel
            means; None if there are none.
    """

    identical: int = 0
    differing: int = 0
    new: int = 0
    ratio: float | None = None

    @property
    def rows(self) -> int:
        return self.identical + self.differing + self.new


def held_before(trace: Trace, snapshot_number: int) -> Held | None:
    """Compare a snapshot with the one before it; None for the first.

    A row that both name by one number is stored once: it needs no comparison. Others are compared
    by position; where heads hold different tokens such rows count as new.

    Raises:
        CorruptError, LimitError: the rows cannot be read.
    """
    if not snapshot_number:
        return None
    view, earlier = trace.views[snapshot_number], trace.views[snapshot_number - 1]
    shared, left, whole = Held(), 0.0, 0.0
    for group in groups(trace, snapshot_number):
        unshared = [layer for layer in group if _numbers(view.layers[layer]) - _numbers(earlier.layers[layer])]
        shared.identical += sum(view.rows(layer) for layer in group if layer not in unshared)
        if not unshared:
            continue
        now, then = (trace.snapshot(at, layers=unshared) for at in (snapshot_number, snapshot_number - 1))
        for at, layer in enumerate(unshared):
            earlier_rows = _numbers(earlier.layers[layer])
            same = torch.tensor([row in earlier_rows for row in _rows(view.layers[layer])])
            here, there = _common(now.row_positions[at], then.row_positions[at])
            equal = torch.ones(len(here), dtype=torch.bool)
            for mine, theirs in ((now.keys, then.keys), (now.values, then.values)):
                one, other = mine[at][:, :, here], theirs[at][:, :, there]
                equal &= _equal_bits(one, other)
            differing = here[~equal & ~same[here]]
            paired = there[~equal & ~same[here]]
            shared.identical += int((equal | same[here]).sum()) + int(same.sum() - same[here].sum())
            shared.differing += len(differing)
            for mine, theirs in ((now.keys, then.keys), (now.values, then.values)):
                one, other = (rows[at].double().transpose(1, 2) for rows in (mine, theirs))
                mean = one.flatten(0, 1).mean(0)
                left += float(energies(one[:, differing] - other[:, paired], centred=False).sum())
                whole += float(energies(one[:, differing] - mean, centred=False).sum())
    shared.new = sum(view.rows(layer) for layer in range(len(view.layers))) - shared.identical - shared.differing
    shared.ratio = left / whole if shared.differing and whole > 0 else None
    return shared


def _rows(spans: Sequence[Span]) -> list[int]:
    return [row for span in spans for row in range(span.first, span.stop)]


def _numbers(spans: Sequence[Span]) -> frozenset[int]:
    return frozenset(_rows(spans))


def _common(here: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    none = torch.empty(0, dtype=torch.int64)
    if here.ndim > 1 or there.ndim > 1:
        return none, none
    here_indices, there_indices = common(here, there)
    return (none, none) if here_indices is None or there_indices is None else (here_indices, there_indices)


def _equal_bits(rows_here: torch.Tensor, rows_there: torch.Tensor) -> torch.Tensor:
    """Compare the bits of rows over members and heads: (batch, heads, rows, size) -> (rows,)."""
    mine, theirs = (rows.contiguous().view(torch.uint8) for rows in (rows_here, rows_there))
    return (mine == theirs).all(-1).all(0).all(0)
