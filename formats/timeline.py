"""From snapshots to stored rows: what is new in a snapshot is written once, the rest is referred to.

`Recorder` follows a cache that grows (and, in sliding layers, drops rows at the front), one call a snapshot, and feeds
a `RowSink`: a `TraceBuilder` in memory or the file writer.  `deduplicate` does the same for snapshots of any history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from .geometry import Geometry
from .limits import BLOCK_ROWS, TARGET_RECORD_RAW
from .records import Part
from .trace import MemoryBlock, Received, Trace
from .views import BlockKey, Span, View

if TYPE_CHECKING:
    import torch

Rows = tuple["torch.Tensor", "torch.Tensor"]  # keys and values of one layer, (batch, heads, rows, head size)


_SMALL = BLOCK_ROWS // 4  # rows that are worth a block of their own


class RowSink(Protocol):
    """What takes the rows of a trace as they come."""

    def add_block(self, block: MemoryBlock) -> None: ...
    def add_labels(self, token_ids: Sequence[int], positions: Sequence[int]) -> None: ...
    def add_view(self, view: View) -> None: ...
    def add_attention(self, attention: Received) -> None: ...


class TraceBuilder:
    """A sink that keeps everything in memory, as a Trace."""

    def __init__(self, geometry: Geometry, fingerprint: Mapping[str, str]) -> None:
        self._blocks: list[MemoryBlock] = []
        self._attention: list[Received] = []
        self.trace = Trace(geometry, dict(fingerprint), blocks=self._blocks, attention=self._attention)

    def add_block(self, block: MemoryBlock) -> None:
        self._blocks.append(block)

    def add_labels(self, token_ids: Sequence[int], positions: Sequence[int]) -> None:
        self.trace.labels.extend(token_ids, positions)

    def add_view(self, view: View) -> None:
        self.trace.views.append(view)

    def add_attention(self, attention: Received) -> None:
        self._attention.append(attention)


class Recorder:
    """Follows one growing cache.

    Rows are taken from the live cache when a snapshot is made, so that rows which left a sliding window between two
    snapshots are never stored.  New rows of decode steps wait until `BLOCK_ROWS` of them fill a block (they are a
    fraction of one cache); the rest is handed on at once.
    """

    def __init__(self, sink: RowSink, geometry: Geometry, *, keyframe_interval: int | None = None) -> None:
        self._sink = sink
        self._geometry = geometry
        self._interval = keyframe_interval
        self._snapshots = 0
        self._tokens: list[int] = []
        self._shift = 0  # row number minus token number; grows when a keyframe stores rows again
        self._stored = [0] * len(geometry.layers)  # tokens up to which a layer's rows were taken
        self._pending = PendingRows(sink, geometry)

    def snapshot(self, fed: Sequence[int], cache: Sequence[Rows], next_token: int | None) -> None:
        """Record a snapshot: `fed` are the tokens fed since the last one, `cache` the rows of every layer now."""
        tokens_before = len(self._tokens)
        self._tokens += fed
        total = len(self._tokens)
        keyframe = self._interval and self._snapshots and self._snapshots % self._interval == 0
        if keyframe:
            self._pending.flush()
            self._shift += tokens_before
            self._stored = [0] * len(self._stored)
            self._sink.add_labels(self._tokens, range(total))
        else:
            self._sink.add_labels(list(fed), range(tokens_before, total))
        spans = []
        for layer, (keys, values) in enumerate(cache):
            present = keys.shape[2]
            new = total - max(self._stored[layer], total - present)
            if new:
                self._pending.add(layer, total - new + self._shift, keys[:, :, -new:], values[:, :, -new:])
            self._stored[layer] = total
            spans.append((Span(total - present + self._shift, present),))
        self._pending.flush_if_large()
        self._sink.add_view(View((Span(self._shift, total),), tuple(spans), next_token))
        self._snapshots += 1

    def finish(self) -> None:
        self._pending.flush()


class PendingRows:
    """Rows that wait for their block, per layer a contiguous run of row numbers."""

    def __init__(self, sink: RowSink, geometry: Geometry) -> None:
        self._sink = sink
        self._geometry = geometry
        self._clear()

    def _clear(self) -> None:
        self._spans: list[Span | None] = [None] * len(self._geometry.layers)
        self._rows: list[list[Rows]] = [[] for _ in self._geometry.layers]

    def add(self, layer: int, first: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        span = self._spans[layer]
        if span is not None and span.stop != first:
            self.flush()  # rows left a sliding window before they were seen: the run is broken
            span = None
        count = keys.shape[2]
        if count < _SMALL:
            keys, values = keys.clone(), values.clone()  # a view would keep the whole grown cache alive
        self._rows[layer].append((keys, values))
        self._spans[layer] = Span(first, count) if span is None else Span(span.first, span.rows + count)

    def flush_if_large(self) -> None:
        # a prompt's rows are handed on while they are the live cache, not a copy of it
        if any(span is not None and span.rows >= _SMALL for span in self._spans):
            self.flush()

    def flush(self) -> None:
        for first_layer, count, _ in self._geometry.runs():
            at = first_layer
            while at < first_layer + count:
                span, stop = self._spans[at], at + 1
                while stop < first_layer + count and self._spans[stop] == span:
                    stop += 1
                if span is not None:
                    self._emit(at, stop, span)
                at = stop
        self._clear()

    def _emit(self, first_layer: int, stop: int, span: Span) -> None:
        import torch

        for row in range(0, span.rows, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, span.rows - row)
            group = max(1, TARGET_RECORD_RAW // (rows * self._geometry.row_bytes[first_layer]))
            for layer in range(first_layer, stop, group):
                layers = range(layer, min(layer + group, stop))
                stacked = {
                    part: torch.stack([_slice([r[side] for r in self._rows[n]], row, rows) for n in layers])
                    for side, part in enumerate((Part.KEYS, Part.VALUES))
                }
                self._sink.add_block(
                    MemoryBlock(BlockKey(Part.JOINT, layer, len(layers), span.first + row, rows), stacked)
                )


def _slice(pieces: Sequence[torch.Tensor], first: int, count: int) -> torch.Tensor:
    """Rows [first, first + count) of the concatenation of `pieces` along dimension 2."""
    import torch

    whole = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=2)
    return whole[:, :, first : first + count]
