"""How far stored rows and states are from recomputed ones, a record at a time."""

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
    """Of one part of one layer, (batch, heads, rows)."""

    stored: torch.Tensor
    own: torch.Tensor
    apart: torch.Tensor
    identical: torch.Tensor
    mean: torch.Tensor
    energy: torch.Tensor

    @classmethod
    def like(cls, rows: torch.Tensor) -> _Norms:
        """For rows (batch, heads, rows, size); `mean` and `energy` are sums over what the codec makes of them."""
        zeros, heads = rows.new_zeros(rows.shape[:3], dtype=torch.float64), rows.shape[:2]
        unknown = torch.full_like(zeros, torch.inf)
        mean = rows.new_zeros((*heads, rows.shape[3]), dtype=torch.float64)
        energy = rows.new_zeros(heads, dtype=torch.float64)
        return cls(zeros, zeros.clone(), unknown, torch.zeros_like(zeros, dtype=torch.bool), mean, energy)

    @property
    def spread(self) -> torch.Tensor:
        """The RMS distance of two unrelated rows of what the codec makes, (batch, heads)."""
        count = self.stored.shape[2]
        return (2 * (self.energy / count - (self.mean / count).square().sum(-1)).clamp(min=0)).sqrt()


def of_rows(
    trace: Trace, own: Trace | None, exact: Recomputed
) -> Iterator[tuple[int, str, Distances, torch.Tensor, torch.Tensor]]:
    """(layer, part, distances, the first snapshot of each row, its number) of every part of every layer.

    Args:
        own: what the codec makes of the recomputed rows, or None if it loses nothing.
    """
    norms = {
        (layer, part): _Norms.like(rows)
        for layer, column in enumerate(exact.columns)
        for part, rows in column.rows.items()
    }
    again = {} if own is None else {(block.key, _codec(block)): block for block in own.blocks}
    for block in () if own is None else own.blocks:
        for layer, part, at, rows in _pieces(block, exact.columns):
            found, wide = norms[layer, part], rows.double()
            found.own[..., at] = _norm(wide - exact.columns[layer].rows[part][:, :, at].double())
            found.mean += wide.sum(2)
            found.energy += wide.square().sum((2, 3))
    for block in trace.blocks:
        twin = again.get((block.key, _codec(block)))
        same = twin is not None and _same_payload(block, twin)
        made = (
            {}
            if twin is None or same
            else {(layer, part): rows for layer, part, _, rows in _pieces(twin, exact.columns)}
        )
        for layer, part, at, rows in _pieces(block, exact.columns):
            expected, found = exact.columns[layer].rows[part][:, :, at], norms[layer, part]
            if same or (layer, part) in made:
                found.apart[..., at] = 0.0 if same else _norm(rows.double() - made[layer, part].double())
            found.stored[..., at] = _norm(rows.double() - expected.double())
            found.identical[..., at] = same if own is not None else _same_bits(rows, expected)
    for (layer, part), found in norms.items():
        column = exact.columns[layer]
        rows = column.rows[part]
        size = _norm(rows.double())
        spreads = spread_of(rows), found.spread
        distances = Distances(found.stored, found.own, size, found.identical, found.apart, *spreads)
        yield layer, NAMES[part], distances, column.first, column.numbers


def _pieces(block: Block, columns: Sequence[Column]) -> Iterator[tuple[int, Part, slice, torch.Tensor]]:
    """(layer, part, which rows of the column, these rows) of a block; rows that nobody names are left out."""
    span = block.key.span
    for part, rows in block.read().items():
        for offset, layer in enumerate(block.key.layers):
            numbers = columns[layer].numbers
            first, stop = torch.searchsorted(numbers, torch.tensor([span.first, span.stop])).tolist()
            if first < stop:
                yield layer, part, slice(first, stop), rows[offset][:, :, numbers[first:stop] - span.first]


def of_states(trace: Trace, own: Trace | None, exact: Recomputed) -> Iterator[tuple[int, str, Distances]]:
    """(layer, name, distances) of every state of every layer, where the rows are the snapshots."""
    stored, coded = _Units(trace.states), _Units(() if own is None else own.states)
    recomputed = _Units(exact.states)
    for layer, spec in enumerate(trace.geometry.layers):
        for number, state in enumerate(spec.states):
            columns: list[list[torch.Tensor]] = [[], [], [], []]
            for snapshot in range(len(trace)):
                wanted = recomputed.read(layer, number, snapshot)
                found = stored.read(layer, number, snapshot)
                made = wanted if own is None else coded.read(layer, number, snapshot)
                flat = [one.double().flatten(1) for one in (found, made, wanted)]
                columns[0].append(_norm(flat[0] - flat[2]))
                columns[1].append(_norm(flat[1] - flat[2]))
                columns[2].append(_norm(flat[2]))
                columns[3].append(_same_bits(found.flatten(1), made.flatten(1)))
            away, lost, size, same = (torch.stack(column, -1)[:, None] for column in columns)
            spread = torch.full(away.shape[:2], torch.inf, dtype=torch.float64)
            yield layer, state.name, Distances(away, lost, size, same, away, spread, spread)


class _Units:
    """States by layer, number and snapshot; the last record that was read is kept."""

    def __init__(self, units: Sequence[Any]) -> None:
        self._units = {
            (layer, unit.key.number, snapshot): unit
            for unit in units
            for layer in unit.key.layers
            for snapshot in range(unit.key.first_snapshot, unit.key.span.stop)
        }
        self._last: tuple[Any, torch.Tensor] | None = None

    def read(self, layer: int, number: int, snapshot: int) -> torch.Tensor:
        """(batch, *shape)."""
        unit = self._units[layer, number, snapshot]
        if self._last is None or self._last[0] is not unit:
            self._last = (unit, unit.read())
        return self._last[1][layer - unit.key.first_layer, snapshot - unit.key.first_snapshot]


def _norm(difference: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = difference.norm(dim=-1)
    return found


def _codec(block: Block) -> int:
    return block.header.codec if isinstance(block, FileBlock) else 0


def _same_payload(one: Block, other: Block) -> bool:
    """Whether two records of a file hold the same bytes, from which a decoder makes the same rows."""
    if not (isinstance(one, FileBlock) and isinstance(other, FileBlock)):
        return False
    left, right = one.tensors()[1], other.tensors()[1]
    return left.keys() == right.keys() and all(
        (left[name].dtype, left[name].shape, bytes(left[name].data))
        == (right[name].dtype, right[name].shape, bytes(right[name].data))
        for name in left
    )


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Whether the values of the last axis are bit for bit the same, for each of the other axes."""
    if one.dtype != other.dtype:
        return torch.zeros(one.shape[:-1], dtype=torch.bool)
    left, right = (tensor.contiguous().view(torch.uint8) for tensor in (one, other))
    return (left == right).all(-1)
