"""The rows that the snapshots of a trace need, held in memory so they can be encoded repeatedly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from formats.container.records import Part
from formats.limits import require_memory

from .blocks import Block, MemoryBlock
from .geometry import Geometry
from .spans import union
from .trace import Trace
from .views import BlockKey, Span, View

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LayerRows:
    """The rows of consecutive layers of one shape whose snapshots need the same row numbers.

    Attributes:
        first_layer: The index of the first layer.
        layer_count: How many layers there are.
        spans: The row numbers, ascending.
        rows: For each part a tensor (layers, batch, heads, rows of all spans, head size).
    """

    first_layer: int
    layer_count: int
    spans: tuple[Span, ...]
    rows: Mapping[Part, torch.Tensor]

    def blocks(self, cuts: Sequence[int], row_bytes: int, most_rows: int, target_bytes: int) -> Iterator[MemoryBlock]:
        """Split the rows into blocks.

        Args:
            cuts: Row numbers at which a new block begins.
            row_bytes: The size of one row of one layer, in bytes.
            most_rows: The largest number of rows in a block.
            target_bytes: The approximate largest size of a block, in bytes.

        Yields:
            Blocks that together hold all the rows.
        """
        span_offset = 0  # index in `rows` of the first row of the span
        for span in self.spans:
            for piece in _pieces(span, cuts, most_rows):
                layers_per_block = max(1, target_bytes // (piece.rows * row_bytes))
                first = span_offset + piece.first - span.first
                for layer in range(0, self.layer_count, layers_per_block):
                    count = min(layers_per_block, self.layer_count - layer)
                    rows = {
                        part: tensor[layer : layer + count, ..., first : first + piece.rows, :]
                        for part, tensor in self.rows.items()
                    }
                    yield MemoryBlock(BlockKey(Part.JOINT, self.first_layer + layer, count, *piece), rows)
            span_offset += span.rows


def _pieces(span: Span, cuts: Sequence[int], most_rows: int) -> Iterator[Span]:
    """Split a span at the cuts, and into spans of at most `most_rows` rows."""
    edges = sorted({span.first, span.stop, *(cut for cut in cuts if span.first < cut < span.stop)})
    for first, stop in pairwise(edges):
        for row in range(first, stop, most_rows):
            yield Span(row, min(most_rows, stop - row))


def needed_spans(views: Iterable[View], layer: int) -> tuple[Span, ...]:
    """Return the row numbers of a layer that the views use, ascending."""
    return union({span for view in views for span in view.layers[layer]})


def stored_values(geometry: Geometry, views: Sequence[View]) -> int:
    """Count the scalars of all rows and states that the snapshots need, before compression."""
    rows = sum(
        span.rows * geometry.row_bytes[layer]
        for layer in range(len(geometry.layers))
        for span in needed_spans(views, layer)
    )
    states = sum(math.prod(state.shape) for spec in geometry.layers for state in spec.states)
    return rows // geometry.item_bytes + states * geometry.batch * len(views)


def read(trace: Trace, views: Sequence[View] | None = None) -> list[LayerRows]:
    """Read the rows that views need into memory.

    Args:
        trace: The trace that holds the rows.
        views: The views; those of the trace by default.

    Raises:
        LimitError: The rows take more than the memory budget.
        CorruptError: A block of the file is damaged.
    """
    views = trace.views if views is None else views
    geometry = trace.geometry
    shared: dict[tuple[Span, ...], tuple[Span, ...]] = {}
    wanted = []
    columns: dict[tuple[int, ...], tuple[Span, ...]] = {}
    for layer in range(len(geometry.layers)):
        # neighbouring layers mostly share one tuple of spans, whose union is computed once
        identity = tuple(id(view.layers[layer]) for view in views)
        if identity not in columns:
            spans = needed_spans(views, layer)
            columns[identity] = shared.setdefault(spans, spans)
        wanted.append(columns[identity])
    total = sum(span.rows * geometry.row_bytes[layer] for layer, spans in enumerate(wanted) for span in spans)
    require_memory(total, "the rows take")
    groups = []
    for _, run in groupby(range(len(wanted)), key=lambda layer: (wanted[layer], geometry.layers[layer])):
        layers = list(run)
        if not geometry.layers[layers[0]].parts:
            continue
        groups.append(_group(geometry, layers[0], len(layers), wanted[layers[0]]))
    _fill(groups, trace.blocks)
    return groups


def _group(geometry: Geometry, first_layer: int, count: int, spans: tuple[Span, ...]) -> LayerRows:
    """Allocate the uninitialised rows of consecutive layers."""
    import torch

    spec, dtype = geometry.layers[first_layer], getattr(torch, geometry.dtype)
    total = sum(span.rows for span in spans)
    rows = {
        part: torch.empty(count, geometry.batch, spec.part_heads(part), total, spec.head_size(part), dtype=dtype)
        for part in spec.parts
    }
    return LayerRows(first_layer, count, spans, rows)


def _fill(groups: Sequence[LayerRows], blocks: Iterable[Block]) -> None:
    """Copy the rows of the blocks into the groups; only blocks that are needed are read."""
    for block in blocks:
        block_rows: Mapping[Part, torch.Tensor] | None = None
        for group in groups:
            first = max(block.key.first_layer, group.first_layer)
            stop = min(block.key.first_layer + block.key.layer_count, group.first_layer + group.layer_count)
            if first >= stop:
                continue
            span_offset = 0  # index in `group.rows` of the first row of the span
            for span in group.spans:
                low, high = max(span.first, block.key.first_row), min(span.stop, block.key.span.stop)
                if low < high:
                    block_rows = block.read() if block_rows is None else block_rows
                    for part, rows in block_rows.items():
                        source = rows[first - block.key.first_layer : stop - block.key.first_layer]
                        group.rows[part][
                            first - group.first_layer : stop - group.first_layer,
                            ...,
                            span_offset + low - span.first : span_offset + high - span.first,
                            :,
                        ] = source[..., low - block.key.first_row : high - block.key.first_row, :]
                span_offset += span.rows
