"""The distances of stored rows and states from recomputed ones, computed a record at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from formats import Trace
from formats.container.records import Part
from formats.file.blocks import FileBlock
from formats.trace.blocks import Block

from .recomputed_rows import Column, Recomputed
from .tolerances import Distances, spread_of

NAMES = {Part.KEYS: "keys", Part.VALUES: "values", Part.INDEXER: "indexer keys"}


@dataclass
class _Norms:
    """Norms of one part of one layer; see `Distances` for stored, coded, apart and identical.

    Attributes:
        total: the sum of the coded rows, (batch, heads, size), float64.
        energy: the sum of the coded rows' squares, (batch, heads), float64.
    """

    stored: torch.Tensor
    coded: torch.Tensor
    apart: torch.Tensor
    identical: torch.Tensor
    total: torch.Tensor
    energy: torch.Tensor

    @classmethod
    def like(cls, rows: torch.Tensor) -> _Norms:
        """Return empty norms for rows (batch, heads, rows, size)."""
        zeros, heads = rows.new_zeros(rows.shape[:3], dtype=torch.float64), rows.shape[:2]
        unknown = torch.full_like(zeros, torch.inf)
        total = rows.new_zeros((*heads, rows.shape[3]), dtype=torch.float64)
        energy = rows.new_zeros(heads, dtype=torch.float64)
        return cls(zeros, zeros.clone(), unknown, torch.zeros_like(zeros, dtype=torch.bool), total, energy)

    @property
    def spread(self) -> torch.Tensor:
        """The RMS distance of two unrelated coded rows of a head, (batch, heads)."""
        count = self.stored.shape[2]
        return (2 * (self.energy / count - (self.total / count).square().sum(-1)).clamp(min=0)).sqrt()


def of_rows(
    trace: Trace, coded: Trace | None, exact: Recomputed
) -> Iterator[tuple[int, str, Distances, torch.Tensor, torch.Tensor]]:
    """Yield the distances of each part of each layer.

    Args:
        coded: the recomputed rows after the codec, or None for an exact codec.
    Yields:
        (layer, part, distances, the first snapshot of each row, the number of each row).
    """
    norms = {
        (layer, part): _Norms.like(rows)
        for layer, column in enumerate(exact.columns)
        for part, rows in column.rows.items()
    }
    coded_blocks = {} if coded is None else {(block.key, _codec(block)): block for block in coded.blocks}
    for block in () if coded is None else coded.blocks:
        for layer, part, where, rows in _pieces(block, exact.columns):
            norm, wide = norms[layer, part], rows.double()
            norm.coded[..., where] = _norm(wide - exact.columns[layer].rows[part][:, :, where].double())
            norm.total += wide.sum(2)
            norm.energy += wide.square().sum((2, 3))
    for block in trace.blocks:
        twin = coded_blocks.get((block.key, _codec(block)))
        same = twin is not None and _same_payload(block, twin)
        coded_rows = (
            {}
            if twin is None or same
            else {(layer, part): rows for layer, part, _, rows in _pieces(twin, exact.columns)}
        )
        for layer, part, where, rows in _pieces(block, exact.columns):
            expected, norm = exact.columns[layer].rows[part][:, :, where], norms[layer, part]
            if same:
                norm.apart[..., where] = 0.0
            elif (layer, part) in coded_rows:
                norm.apart[..., where] = _norm(rows.double() - coded_rows[layer, part].double())
            norm.stored[..., where] = _norm(rows.double() - expected.double())
            norm.identical[..., where] = same if coded is not None else _same_bits(rows, expected)
    for (layer, part), norm in norms.items():
        column = exact.columns[layer]
        rows = column.rows[part]
        size = _norm(rows.double())
        spreads = spread_of(rows), norm.spread
        distances = Distances(norm.stored, norm.coded, size, norm.identical, norm.apart, *spreads)
        yield layer, NAMES[part], distances, column.first, column.numbers


def _pieces(block: Block, columns: Sequence[Column]) -> Iterator[tuple[int, Part, slice, torch.Tensor]]:
    """Yield (layer, part, slice of the column's rows, these rows) for all rows that views name."""
    span = block.key.span
    for part, rows in block.read().items():
        for offset, layer in enumerate(block.key.layers):
            numbers = columns[layer].numbers
            first, stop = torch.searchsorted(numbers, torch.tensor([span.first, span.stop])).tolist()
            if first < stop:
                yield layer, part, slice(first, stop), rows[offset][:, :, numbers[first:stop] - span.first]


def of_states(trace: Trace, coded: Trace | None, exact: Recomputed) -> Iterator[tuple[int, str, Distances]]:
    """Yield (layer, name, distances) of each state of each layer, whose rows are the snapshots."""
    stored_states, recomputed_states = _StateReader(trace.states), _StateReader(exact.states)
    coded_states = recomputed_states if coded is None else _StateReader(coded.states)
    for layer, spec in enumerate(trace.geometry.layers):
        for number, state in enumerate(spec.states):
            columns: list[list[torch.Tensor]] = [[], [], [], []]
            for snapshot in range(len(trace)):
                stored_state, coded_state, recomputed_state = (
                    reader.read(layer, number, snapshot).flatten(1)
                    for reader in (stored_states, coded_states, recomputed_states)
                )
                expected = recomputed_state.double()
                columns[0].append(_norm(stored_state.double() - expected))
                columns[1].append(_norm(coded_state.double() - expected))
                columns[2].append(_norm(expected))
                columns[3].append(_same_bits(stored_state, coded_state))
            stored, lost, size, identical = (torch.stack(column, -1)[:, None] for column in columns)
            spread = torch.full(stored.shape[:2], torch.inf, dtype=torch.float64)
            yield layer, state.name, Distances(stored, lost, size, identical, stored, spread, spread)


class _StateReader:
    """Reads states by layer, number and snapshot, and caches the last record."""

    def __init__(self, units: Sequence[Any]) -> None:
        self._units = {
            (layer, unit.key.number, snapshot): unit
            for unit in units
            for layer in unit.key.layers
            for snapshot in range(unit.key.first_snapshot, unit.key.span.stop)
        }
        self._last: tuple[Any, torch.Tensor] | None = None

    def read(self, layer: int, number: int, snapshot: int) -> torch.Tensor:
        """Return a state, (batch, *shape)."""
        unit = self._units[layer, number, snapshot]
        if self._last is None or self._last[0] is not unit:
            self._last = (unit, unit.read())
        return self._last[1][layer - unit.key.first_layer, snapshot - unit.key.first_snapshot]


def _norm(difference: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = difference.norm(dim=-1)
    return norm


def _codec(block: Block) -> int:
    return block.header.codec if isinstance(block, FileBlock) else 0


def _same_payload(left: Block, right: Block) -> bool:
    """Return whether two records of a file hold the same bytes and so decode to the same rows."""
    if not (isinstance(left, FileBlock) and isinstance(right, FileBlock)):
        return False
    payloads = (
        {name: (tensor.dtype, tensor.shape, bytes(tensor.data)) for name, tensor in block.tensors()[1].items()}
        for block in (left, right)
    )
    return next(payloads) == next(payloads)


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return whether the last axis is bit for bit the same, for each index of the other axes."""
    if left.dtype != right.dtype:
        return torch.zeros(left.shape[:-1], dtype=torch.bool)
    left_bytes, right_bytes = (tensor.contiguous().view(torch.uint8) for tensor in (left, right))
    return (left_bytes == right_bytes).all(-1)
