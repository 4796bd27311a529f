"""Recording of a cache: each snapshot stores its new rows and refers to the rows stored before.

`Recorder` follows a cache that only grows, except that sliding layers drop their oldest rows.  It
is called once for each snapshot and feeds a `RowSink`: a `TraceBuilder` in memory or the file
writer.
`deduplicate` also handles snapshots in which rows were edited, moved or evicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from formats.container.records import Part
from formats.errors import UsageError
from formats.limits import BLOCK_ROWS, TARGET_RECORD_RAW

from .blocks import MemoryBlock
from .geometry import Geometry
from .snapshot import Received
from .states import States, of_snapshot
from .trace import Trace
from .views import BlockKey, Labels, Span, View

if TYPE_CHECKING:
    import torch

# The rows of one layer, one tensor (batch, heads, rows, head size) for each of `LayerSpec.parts`:
# keys, values and, if the layer has any, indexer keys.  It is empty if the layer has no rows.
Rows = tuple["torch.Tensor", ...]

_MIN_BLOCK_ROWS = BLOCK_ROWS // 4  # as many waiting rows of a layer are written as a block at once


class RowSink(Protocol):
    """A sink receives the blocks, labels, views, states and attention that a recorder makes."""

    def add_block(self, block: MemoryBlock) -> None: ...
    def add_labels(self, token_ids: Sequence[int], positions: Sequence[int]) -> None: ...
    def add_view(self, view: View) -> None: ...
    def add_states(self, states: States) -> None: ...
    def add_attention(self, attention: Received) -> None: ...
    def complete(self) -> None:
        """Note that all the snapshots so far need was added, so that they can be salvaged."""
        ...


class TraceBuilder:
    """A sink that keeps everything in memory, as a Trace.

    Args:
        geometry: The layers, shapes and dtype of the cache.
        fingerprint: What identifies the model, by name.
        label_width: How many token ids label a row: 1, or the batch size if the sequences of the
            batch hold different tokens.

    Attributes:
        trace: The trace of all that was added so far.
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
        """Do nothing, because only a trace in a file can be salvaged."""


class Recorder:
    """A recorder follows one growing cache and stores the rows that each snapshot adds.

    The rows of "cross" layers, which belong to the tokens of an encoder, do not grow and are stored
    with the first snapshot.

    Rows are taken from the live cache when a snapshot is made, so rows that left a sliding window
    between two snapshots are never stored.  Rows are copied and wait while they are too few for a
    block (a quarter of `BLOCK_ROWS`), which costs little memory; longer runs are written at once.

    Args:
        sink: What receives the recorded rows.
        geometry: The layers, shapes and dtype of the cache.
        keyframe_interval: Every how many snapshots all rows are stored again; None for never.
        label_width: How many token ids label a row, as in `TraceBuilder`.
    """

    def __init__(
        self, sink: RowSink, geometry: Geometry, *, keyframe_interval: int | None = None, label_width: int = 1
    ) -> None:
        self._sink = sink
        self._width = label_width
        self._geometry = geometry
        self._interval = keyframe_interval
        self._snapshots = 0
        self._token_ids: list[int] = []  # label_width ids for each position, as in Labels
        self._tokens_fed = 0
        self._encoder_tokens = 0
        # a row number minus its token's index; grows when a keyframe stores rows again
        self._shift = 0
        # for each layer the number of leading tokens whose rows were taken
        self._stored = [0] * len(geometry.layers)
        self._pending = PendingRows(sink, geometry)

    def go_on(self, labels: Labels, views: Sequence[View]) -> None:
        """Continue a trace whose rows, labels and views the sink already has.

        Args:
            labels: The labels of the trace.
            views: The views of its snapshots, at least one.

        Raises:
            UsageError: The last snapshot lacks rows that the model keeps, or has them in another
                order, because rows were evicted, moved or replaced.
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
        self._tokens_fed = view.tokens_seen
        self._token_ids = list(labels.token_ids[self._shift * self._width :])
        self._stored = [self._tokens_fed] * len(self._stored)
        self._snapshots = len(views)

    def encoder(self, token_ids: Sequence[int]) -> None:
        """Add the labels of the rows of "cross" layers; this comes before the first snapshot.

        Args:
            token_ids: The ids of the encoder's tokens, `label_width` ids for each position.
        """
        self._encoder_tokens = self._shift = len(token_ids) // self._width
        self._sink.add_labels(token_ids, range(self._encoder_tokens))

    def snapshot(
        self,
        fed: Sequence[int],
        cache: Sequence[Rows],
        next_tokens: Sequence[int] = (),
        states: Sequence[Mapping[str, torch.Tensor]] = (),
    ) -> None:
        """Record a snapshot.

        Args:
            fed: The ids of the tokens fed since the last snapshot, `label_width` for each position.
            cache: The rows that each layer holds now.
            next_tokens: The id of the token that each sequence is fed next; empty if unknown.
            states: The states that each layer holds now, by name, (batch, *shape) each.
        """
        tokens_before = self._tokens_fed
        self._token_ids += fed
        total = self._tokens_fed = len(self._token_ids) // self._width
        keyframe = self._interval and self._snapshots and self._snapshots % self._interval == 0
        if keyframe:
            self._pending.flush()
            self._shift += tokens_before
            self._stored = [0] * len(self._stored)
            self._sink.add_labels(self._token_ids, range(total))
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
        for layer_states in of_snapshot(self._snapshots, states, self._geometry):
            self._sink.add_states(layer_states)
        self._sink.add_view(View((Span(self._shift, total),), tuple(spans), tuple(next_tokens)))
        self._snapshots += 1
        # a file writes its tables on every call, so it is called only when blocks were written
        if flushed:
            self._sink.complete()

    def finish(self) -> None:
        """Write the rows that still wait for a block."""
        self._pending.flush()


class PendingRows:
    """Rows that wait until they fill a block; those of a layer have consecutive row numbers.

    Args:
        sink: What receives the blocks.
        geometry: The layers, shapes and dtype of the cache.
    """

    def __init__(self, sink: RowSink, geometry: Geometry) -> None:
        self._sink = sink
        self._geometry = geometry
        self._clear()

    def _clear(self) -> None:
        self._spans: list[Span | None] = [None] * len(self._geometry.layers)
        self._rows: list[list[Rows]] = [[] for _ in self._geometry.layers]

    def add(self, layer: int, first: int, rows: Rows) -> None:
        """Add rows of a layer.

        Args:
            layer: The index of the layer.
            first: The row number of the first row; if it does not follow the waiting rows of the
                layer, all waiting rows are flushed before.
            rows: A tensor (batch, heads, rows, head size) for each part of the layer.
        """
        span = self._spans[layer]
        if span is not None and span.stop != first:
            self.flush()  # rows left a sliding window before they were seen: the run is broken
            span = None
        count = rows[0].shape[2]
        if count < _MIN_BLOCK_ROWS:
            # a slice shares the storage of the whole cache, which would stay allocated
            rows = tuple(part.clone() for part in rows)
        self._rows[layer].append(rows)
        self._spans[layer] = Span(first, count) if span is None else Span(span.first, span.rows + count)

    def flush_if_large(self) -> bool:
        """Flush all waiting rows if some layer has enough of them for a block.

        Returns:
            Whether the rows were flushed.
        """
        # the rows of a prompt are written at once from the live cache, which saves a copy of them
        large = any(span is not None and span.rows >= _MIN_BLOCK_ROWS for span in self._spans)
        if large:
            self.flush()
        return large

    def flush(self) -> None:
        """Write all waiting rows as blocks, layers of equal rows together."""
        for first_layer, count, _ in self._geometry.runs():
            start = first_layer
            while start < first_layer + count:
                span, stop = self._spans[start], start + 1
                while stop < first_layer + count and self._spans[stop] == span:
                    stop += 1
                if span is not None:
                    self._emit(start, stop, span)
                start = stop
        self._clear()

    def _emit(self, first_layer: int, stop: int, span: Span) -> None:
        """Write the waiting rows `span` of layers [first_layer, stop) as blocks."""
        import torch

        for first_row in range(0, span.rows, BLOCK_ROWS):
            row_count = min(BLOCK_ROWS, span.rows - first_row)
            layers_per_block = max(1, TARGET_RECORD_RAW // (row_count * self._geometry.row_bytes[first_layer]))
            for layer in range(first_layer, stop, layers_per_block):
                layers = range(layer, min(layer + layers_per_block, stop))
                stacked = {
                    part: torch.stack(
                        [_slice([rows[index] for rows in self._rows[n]], first_row, row_count) for n in layers]
                    )
                    for index, part in enumerate(self._geometry.layers[first_layer].parts)
                }
                self._sink.add_block(
                    MemoryBlock(BlockKey(Part.JOINT, layer, len(layers), span.first + first_row, row_count), stacked)
                )


def _slice(pieces: Sequence[torch.Tensor], first: int, count: int) -> torch.Tensor:
    """Concatenate `pieces` along dimension 2 (rows) and return rows [first, first + count)."""
    import torch

    whole = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=2)
    return whole[:, :, first : first + count]
