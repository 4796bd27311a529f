"""For codecs that predict rows: the base of each row, and what a decoder will have of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
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
    """The bases of all rows of a trace, and the decoded rows of those that are bases.

    Blocks must be encoded in order.
    """

    def __init__(self, views: Sequence[View], labels: Labels, geometry: Geometry, prediction: Prediction) -> None:
        self._geometry = geometry
        self._by_column: dict[tuple[tuple[Span, ...], ...], Mapping[int, int]] = {}
        self._by_layer: list[Mapping[int, int]] = []
        for layer in range(len(geometry.layers)):
            column = tuple(view.layers[layer] for view in views)
            if column not in self._by_column:
                self._by_column[column] = bases_of(
                    column, labels, longest_chain=prediction.longest_chain, append=prediction.append
                )
            self._by_layer.append(self._by_column[column])
        self._decoded: list[MemoryBlock] = []

    def split(self, block: MemoryBlock) -> list[MemoryBlock]:
        """Split a block into runs of layers whose rows have the same bases."""
        first, count = block.key.first_layer, block.key.layer_count
        bases = self._by_layer[first : first + count]
        edges = [layer for layer in range(1, count) if bases[layer] is not bases[layer - 1]]
        return [
            MemoryBlock(
                block.key._replace(first_layer=first + start, layer_count=stop - start),
                {part: rows[start:stop] for part, rows in block.rows.items()},
            )
            for start, stop in zip([0, *edges], [*edges, count], strict=True)
        ]

    def bases(self, block: MemoryBlock, part: Part) -> Bases:
        """Return the bases of a block whose layers all have the same ones."""
        by_row = self._by_layer[block.key.first_layer]
        numbers = [by_row.get(row, NO_BASE) for row in range(block.key.first_row, block.key.span.stop)]
        return Bases(block.key.first_row, numbers, partial(self._fetch, block, part))

    def remember(self, block: MemoryBlock, codec: Codec) -> None:
        """Decode and keep a block if rows outside it are predicted from its rows."""
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
        for decoded in self._decoded:
            low = max(first, decoded.key.first_layer)
            high = min(stop, decoded.key.first_layer + decoded.key.layer_count)
            span = decoded.key.span
            pairs = [(index, row - span.first) for index, row in enumerate(numbers) if span.first <= row < span.stop]
            if low < high and pairs:
                source = decoded.rows[part][low - decoded.key.first_layer : high - decoded.key.first_layer]
                target = result[low - first : high - first]
                target[..., [index for index, _ in pairs], :] = source[..., [row for _, row in pairs], :]
        return result


def bases_of(
    column: Sequence[tuple[Span, ...]], labels: Labels, *, longest_chain: int, append: bool
) -> Mapping[int, int]:
    """Map the rows of a layer that come with a step to their bases; rows without one are left out.

    A row that replaces another one (same position, other contents) is predicted from that one.  A
    row that a growing cache appends is coded by itself or, if `append` is false, predicted from the
    row before it.

    Args:
        column: the spans of the layer's rows in each snapshot.
        longest_chain: the most rows in a chain of predictions; the next row is coded by itself.
    """
    bases: dict[int, int] = {}
    depth: dict[int, int] = {}
    for spans_before, spans in pairwise(column):
        if spans == spans_before:
            continue
        rows_before, rows = _rows(spans_before), _rows(spans)
        new, remaining = set(rows) - set(rows_before), set(rows)
        replaced = {labels.positions[row]: row for row in rows_before if row not in remaining}
        previous = NO_BASE
        for row in rows:
            if row in new:
                base = replaced.get(labels.positions[row], NO_BASE if append else previous)
                if NO_BASE < base < row and depth.get(base, 0) < longest_chain:
                    bases[row] = base
                    depth[row] = depth.get(base, 0) + 1
            previous = row
    return bases


def _rows(spans: Sequence[Span]) -> list[int]:
    return [row for span in spans for row in range(span.first, span.stop)]
