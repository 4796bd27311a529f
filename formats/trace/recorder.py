"""From snapshots to stored rows: what is new in a snapshot is written once, the rest is referred
to.

`Recorder` follows a cache that grows (and, in sliding layers, drops rows at the front), one call a
snapshot, and feeds a `RowSink`: a `TraceBuilder` in memory or the file writer.  `deduplicate` does
the same for snapshots of any history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from formats.container.records import Part
from formats.errors import UsageError
from formats.limits import BLOCK_ROWS, TARGET_RECORD_RAW

from .blocks import MemoryBlock
from .geometry import Geometry
from .states import States, of_snapshot
from .trace import Received, Trace
from .views import BlockKey, Labels, Span, View

if TYPE_CHECKING:
    import torch

# one layer's rows, (batch, heads, rows, head size) each: keys, values and, if it has any, indexer
# keys, as in `LayerSpec.parts`; nothing if the layer has no rows
Rows = tuple["torch.Tensor", ...]

_SMALL = BLOCK_ROWS // 4  # rows that are worth a block of their own


class RowSink(Protocol):
    """What takes the rows of a trace as they come."""

    def add_block(self, block: MemoryBlock) -> None: ...
    def add_labels(self, token_ids: Sequence[int], positions: Sequence[int]) -> None: ...
    def add_view(self, view: View) -> None: ...
    def add_states(self, states: States) -> None: ...
    def add_attention(self, attention: Received) -> None: ...
    def complete(self) -> None: ...  # whatever the snapshots so far need was added


class TraceBuilder:
    """A sink that keeps everything in memory, as a Trace.

    Args:
        label_width: token ids a row: 1, or the batch if its sequences hold different tokens.
    """

    def __init__(self, geometry: Geometry, fingerprint: Mapping[str, str], label_width: int = 1) -> None:
        self._blocks: list[MemoryBlock] = []
        self._states: list[States] = []
        self._attention: list[Received] = []
        self.trace = Trace(
            geometry,
            dict(fingerprint),
            labels=Labels(width=label_width),
            blocks=self._blocks,
            states=self._states,
            attention=self._attention,
        )

    def add_block(self, block: MemoryBlock) -> None:
        self._blocks.append(block)

    def add_labels(self, token_ids: Sequence[int], positions: Sequence[int]) -> None:
        self.trace.labels.extend(token_ids, positions)

    def add_view(self, view: View) -> None:
        self.trace.views.append(view)

    def add_states(self, states: States) -> None:
        self._states.append(states)

    def add_attention(self, attention: Received) -> None:
        self._attention.append(attention)

    def complete(self) -> None:
        """Nothing: a trace in memory is not salvaged."""


class Recorder:
    """Follows one growing cache, and the cache of an encoder's tokens ("cross" layers), which does
    not grow.

    Rows are taken from the live cache when a snapshot is made, so that rows which left a sliding
    window between two snapshots are never stored.  New rows of decode steps wait until `BLOCK_ROWS`
    of them fill a block (they are a fraction of one cache); the rest is handed on at once.
    """

    def __init__(
        self, sink: RowSink, geometry: Geometry, *, keyframe_interval: int | None = None, label_width: int = 1
    ) -> None:
        self._sink = sink
        self._width = label_width
        self._geometry = geometry
        self._interval = keyframe_interval
        self._snapshots = 0
        self._tokens: list[int] = []  # label_width of them a token, as Labels has them
        self._fed = 0
        self._encoded = 0
        self._shift = 0  # row number minus token number; grows when a keyframe stores rows again
        self._stored = [0] * len(geometry.layers)  # tokens up to which a layer's rows were taken
        self._pending = PendingRows(sink, geometry)

    def go_on(self, labels: Labels, views: Sequence[View]) -> None:
        """Go on where a trace ends, whose rows, labels and views the sink has already.

        Raises:
            UsageError: its last snapshot is not the last of a run that grew: rows were evicted,
                moved or replaced.
        """
        view, stop = views[-1], len(labels)
        whole = len(view.history) == 1 and view.history[0].stop == stop
        for spans, spec in zip(view.layers, self._geometry.layers, strict=True):
            grown = len(spans) == 1 and spans[0].stop == stop
            held = min(view.tokens_seen, spec.window - 1) if spec.window else view.tokens_seen
            whole = whole and (spec.kind in ("cross", "none") or (grown and spans[0].rows == held))
        if not whole:
            raise UsageError("the trace cannot go on: its last snapshot does not hold all that the model keeps")
        self._shift = view.history[0].first
        self._fed = view.tokens_seen
        self._tokens = list(labels.token_ids[self._shift * self._width :])
        self._stored = [self._fed] * len(self._stored)
        self._snapshots = len(views)

    def encoder(self, token_ids: Sequence[int]) -> None:
        """Say, before the first snapshot, which tokens the rows of "cross" layers belong to; ids as
        in `snapshot`.
        """
        self._encoded = self._shift = len(token_ids) // self._width
        self._sink.add_labels(token_ids, range(self._encoded))

    def snapshot(
        self,
        fed: Sequence[int],
        cache: Sequence[Rows],
        next_tokens: Sequence[int] = (),
        states: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> None:
        """Record a snapshot.

        Args:
            fed: ids of the tokens fed since the last one, `label_width` of them a token.
            cache: the rows of every layer now.
            next_tokens: for each sequence the token that the run will feed next, if it has chosen.
            states: the states of every layer now, by name, (batch, *shape) each.
        """
        tokens_before = self._fed
        self._tokens += fed
        total = self._fed = len(self._tokens) // self._width
        keyframe = self._interval and self._snapshots and self._snapshots % self._interval == 0
        if keyframe:
            self._pending.flush()
            self._shift += tokens_before
            self._stored = [0] * len(self._stored)
            self._sink.add_labels(self._tokens, range(total))
        else:
            self._sink.add_labels(list(fed), range(tokens_before, total))
        spans: list[tuple[Span, ...]] = []
        for layer, (spec, rows) in enumerate(zip(self._geometry.layers, cache, strict=True)):
            if not spec.parts:
                spans.append(())
                continue
            present = rows[0].shape[2]
            if spec.kind == "cross":
                if not self._snapshots:
                    self._pending.add(layer, 0, rows)
                spans.append((Span(0, present),))
                continue
            new = total - max(self._stored[layer], total - present)
            if new:
                self._pending.add(layer, total - new + self._shift, tuple(part[:, :, -new:] for part in rows))
            self._stored[layer] = total
            spans.append((Span(total - present + self._shift, present),))
        flushed = self._pending.flush_if_large()
        for one in of_snapshot(self._snapshots, states, self._geometry):
            self._sink.add_states(one)
        self._sink.add_view(View((Span(self._shift, total),), tuple(spans), tuple(next_tokens)))
        self._snapshots += 1
        # not more often: a file gets as many tables as it has blocks of rows, and its rows stay in
        # blocks
        if flushed:
            self._sink.complete()

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

    def add(self, layer: int, first: int, rows: Rows) -> None:
        span = self._spans[layer]
        if span is not None and span.stop != first:
            self.flush()  # rows left a sliding window before they were seen: the run is broken
            span = None
        count = rows[0].shape[2]
        if count < _SMALL:
            # a view would keep the whole grown cache alive
            rows = tuple(part.clone() for part in rows)
        self._rows[layer].append(rows)
        self._spans[layer] = Span(first, count) if span is None else Span(span.first, span.rows + count)

    def flush_if_large(self) -> bool:
        """Hand rows on if they are worth it; whether they were."""
        # a prompt's rows are handed on while they are the live cache, not a copy of it
        large = any(span is not None and span.rows >= _SMALL for span in self._spans)
        if large:
            self.flush()
        return large

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
                    for side, part in enumerate(self._geometry.layers[first_layer].parts)
                }
                self._sink.add_block(
                    MemoryBlock(BlockKey(Part.JOINT, layer, len(layers), span.first + row, rows), stacked)
                )


def _slice(pieces: Sequence[torch.Tensor], first: int, count: int) -> torch.Tensor:
    """Rows [first, first + count) of the concatenation of `pieces` along dimension 2."""
    import torch

    whole = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=2)
    return whole[:, :, first : first + count]
