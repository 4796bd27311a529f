"""All rows that the snapshots of a trace need, in memory, ready to be encoded again and again."""

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
    """The rows of some neighbouring layers that are alike and need the same ones.

    Attributes:
        spans: the row numbers, ascending.
        rows: by part, (layers, batch, heads, rows of all spans, head size).
    """

    first_layer: int
    layer_count: int
    spans: tuple[Span, ...]
    rows: Mapping[Part, torch.Tensor]

    def blocks(self, cuts: Sequence[int], row_bytes: int, most_rows: int, target_bytes: int) -> Iterator[MemoryBlock]:
        """Blocks of at most `most_rows` rows and about `target_bytes` bytes that do not straddle a
        cut.
        """
        at = 0
        for span in self.spans:
            for piece in _pieces(span, cuts, most_rows):
                group = max(1, target_bytes // (piece.rows * row_bytes))
                first = at + piece.first - span.first
                for layer in range(0, self.layer_count, group):
                    count = min(group, self.layer_count - layer)
                    rows = {
                        part: tensor[layer : layer + count, ..., first : first + piece.rows, :]
                        for part, tensor in self.rows.items()
                    }
                    yield MemoryBlock(BlockKey(Part.JOINT, self.first_layer + layer, count, *piece), rows)
            at += span.rows


def _pieces(span: Span, cuts: Sequence[int], most_rows: int) -> Iterator[Span]:
    edges = sorted({span.first, span.stop, *(cut for cut in cuts if span.first < cut < span.stop)})
    for first, stop in pairwise(edges):
        for row in range(first, stop, most_rows):
            yield Span(row, min(most_rows, stop - row))


def needed_spans(views: Iterable[View], layer: int) -> tuple[Span, ...]:
    """The rows of a layer that some snapshot names, ascending."""
    return union({span for view in views for span in view.layers[layer]})


def stored_values(geometry: Geometry, views: Sequence[View]) -> int:
    """Scalars that the snapshots need, each counted once, whatever is stored of them and how."""
    rows = sum(
        span.rows * geometry.row_bytes[layer]
        for layer in range(len(geometry.layers))
        for span in needed_spans(views, layer)
    )
    states = sum(math.prod(state.shape) for spec in geometry.layers for state in spec.states)
    return rows // geometry.item_bytes + states * geometry.batch * len(views)


def read(trace: Trace, views: Sequence[View] | None = None) -> list[LayerRows]:
    """The rows that the views (by default the trace's own) need.

    Raises:
        LimitError: they take more than the memory budget.
        CorruptError: a block of the file is damaged.
    """
    views = trace.views if views is None else views
    geometry = trace.geometry
    shared: dict[tuple[Span, ...], tuple[Span, ...]] = {}
    wanted = []
    columns: dict[tuple[int, ...], tuple[Span, ...]] = {}
    for layer in range(len(geometry.layers)):
        # neighbouring layers mostly share one object in every view: ask once
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
    import torch

    spec, dtype = geometry.layers[first_layer], getattr(torch, geometry.dtype)
    total = sum(span.rows for span in spans)
    rows = {
        part: torch.empty(count, geometry.batch, spec.part_heads(part), total, spec.head_size(part), dtype=dtype)
        for part in spec.parts
    }
    return LayerRows(first_layer, count, spans, rows)


def _fill(groups: Sequence[LayerRows], blocks: Iterable[Block]) -> None:
    for block in blocks:
        found: Mapping[Part, torch.Tensor] | None = None
        for group in groups:
            first = max(block.key.first_layer, group.first_layer)
            stop = min(block.key.first_layer + block.key.layer_count, group.first_layer + group.layer_count)
            if first >= stop:
                continue
            at = 0
            for span in group.spans:
                low, high = max(span.first, block.key.first_row), min(span.stop, block.key.span.stop)
                if low < high:
                    found = block.read() if found is None else found
                    for part, rows in found.items():
                        source = rows[first - block.key.first_layer : stop - block.key.first_layer]
                        group.rows[part][
                            first - group.first_layer : stop - group.first_layer,
                            ...,
                            at + low - span.first : at + high - span.first,
                            :,
                        ] = source[..., low - block.key.first_row : high - block.key.first_row, :]
                at += span.rows
