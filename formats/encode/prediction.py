"""Which earlier row predicts a row, and what the decoder will have of it, for codecs that predict rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from formats.codecs.base import NO_BASE, Bases, BlockContext, Codec, Prediction
from formats.container.records import Part
from formats.container.safetensors_buffer import pack, parse
from formats.trace.blocks import BlockShape, MemoryBlock
from formats.trace.geometry import Geometry
from formats.trace.views import Labels, Span, View

if TYPE_CHECKING:
    import torch


class Predecessors:
    """The bases of all rows of a trace, and the decoded rows that are bases, kept while blocks are encoded in order."""

    def __init__(self, views: Sequence[View], labels: Labels, geometry: Geometry, how: Prediction) -> None:
        self._geometry = geometry
        self._by_column: dict[tuple[tuple[Span, ...], ...], Mapping[int, int]] = {}
        self._by_layer: list[Mapping[int, int]] = []
        for layer in range(len(geometry.layers)):
            column = tuple(view.layers[layer] for view in views)
            if column not in self._by_column:
                self._by_column[column] = bases_of(column, labels, longest_chain=how.longest_chain, append=how.append)
            self._by_layer.append(self._by_column[column])
        self._decoded: list[MemoryBlock] = []

    def split(self, block: MemoryBlock) -> list[MemoryBlock]:
        """The block as runs of layers whose rows have the same bases."""
        first, count = block.key.first_layer, block.key.layer_count
        edges = [at for at in range(1, count) if self._by_layer[first + at] is not self._by_layer[first + at - 1]]
        return [
            MemoryBlock(
                block.key._replace(first_layer=first + start, layer_count=stop - start),
                {part: rows[start:stop] for part, rows in block.rows.items()},
            )
            for start, stop in zip([0, *edges], [*edges, count], strict=True)
        ]

    def bases(self, block: MemoryBlock, part: Part) -> Bases:
        found = self._by_layer[block.key.first_layer]
        numbers = [found.get(row, NO_BASE) for row in range(block.key.first_row, block.key.span.stop)]
        return Bases(block.key.first_row, numbers, partial(self._fetch, block, part))

    def remember(self, block: MemoryBlock, codec: Codec) -> None:
        """Keep the block as a decoder will have it, if a row outside it may be predicted from one of its rows."""
        span = block.key.span
        for layer in block.key.layers:
            inside = range(span.first, span.stop)
            if any(base in inside and row not in inside for row, base in self._by_layer[layer].items()):
                self._decoded.append(MemoryBlock(block.key, self._as_decoded(block, codec)))
                return

    def _as_decoded(self, block: MemoryBlock, codec: Codec) -> Mapping[Part, torch.Tensor]:
        if codec.exact:
            return block.rows
        shape = BlockShape.of(block.key, self._geometry)
        rows: dict[Part, torch.Tensor] = {}
        for part, tensor in block.rows.items():
            bases = self.bases(block, part)
            payload = parse(pack(codec.encode({part: tensor}, BlockContext(bases=bases))), codec.name)
            rows |= codec.decode(payload, part, shape, tensor.device, BlockContext(fetch=bases.fetch))
        return rows

    def _fetch(self, block: MemoryBlock, part: Part, numbers: Sequence[int]) -> torch.Tensor:
        like = block.rows[part]
        result = like.new_empty(*like.shape[:3], len(numbers), like.shape[4])
        first, stop = block.key.first_layer, block.key.first_layer + block.key.layer_count
        for known in self._decoded:
            low = max(first, known.key.first_layer)
            high = min(stop, known.key.first_layer + known.key.layer_count)
            span = known.key.span
            found = [(at, row - span.first) for at, row in enumerate(numbers) if span.first <= row < span.stop]
            if low < high and found:
                source = known.rows[part][low - known.key.first_layer : high - known.key.first_layer]
                target = result[low - first : high - first]
                target[..., [at for at, _ in found], :] = source[..., [row for _, row in found], :]
        return result


def bases_of(
    column: Sequence[tuple[Span, ...]], labels: Labels, *, longest_chain: int, append: bool
) -> Mapping[int, int]:
    """Row number -> the row that predicts it, for the rows of a layer that come with a step and have one.

    A row that replaces another one (same position, other contents) is predicted from the row that it replaces.  A row
    that a growing cache appends stands by itself, or, without `append`, may be predicted from the row before it.

    Args:
        column: what each snapshot names of the layer.
        longest_chain: rows of a chain of predictions; the next one stands by itself.
    """
    found: dict[int, int] = {}
    depth: dict[int, int] = {}
    before: tuple[Span, ...] = ()
    for number, now in enumerate(column):
        if number and now != before:
            old, rows = _rows(before), _rows(now)
            known, kept = set(old), set(rows)
            replaced = {labels.positions[row]: row for row in old if row not in kept}
            previous = NO_BASE
            for row in rows:
                if row not in known:
                    base = replaced.get(labels.positions[row], NO_BASE if append else previous)
                    if NO_BASE < base < row and depth.get(base, 0) < longest_chain:
                        found[row] = base
                        depth[row] = depth.get(base, 0) + 1
                previous = row
        before = now
    return found


def _rows(spans: Sequence[Span]) -> list[int]:
    return [row for span in spans for row in range(span.first, span.stop)]
