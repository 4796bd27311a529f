"""From snapshots to stored rows: what is new in a snapshot is written once, the rest is referred to.

`Recorder` follows a cache that grows (and, in sliding layers, drops rows at the front), one call a snapshot.
`deduplicate` takes snapshots of any history (rows replaced, dropped, moved) and finds what they share.
Both feed a `RowSink`: a `TraceBuilder` in memory or the file writer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from .container import Part
from .errors import UsageError
from .geometry import Geometry
from .limits import BLOCK_ROWS, TARGET_RECORD_RAW
from .trace import MemoryBlock, Snapshot, Trace
from .views import BlockKey, Span, View, merged

if TYPE_CHECKING:
    import torch

Rows = tuple["torch.Tensor", "torch.Tensor"]  # keys and values of one layer, (batch, heads, rows, head size)


class RowSink(Protocol):
    """What takes the rows of a trace as they come."""

    def add_block(self, block: MemoryBlock) -> None: ...
    def add_labels(self, token_ids: Sequence[int], positions: Sequence[int]) -> None: ...
    def add_view(self, view: View) -> None: ...


class TraceBuilder:
    """A sink that keeps everything in memory, as a Trace."""

    def __init__(self, geometry: Geometry, fingerprint: Mapping[str, str]) -> None:
        self._blocks: list[MemoryBlock] = []
        self.trace = Trace(geometry, dict(fingerprint), blocks=self._blocks)

    def add_block(self, block: MemoryBlock) -> None:
        self._blocks.append(block)

    def add_labels(self, token_ids: Sequence[int], positions: Sequence[int]) -> None:
        self.trace.labels.extend(token_ids, positions)

    def add_view(self, view: View) -> None:
        self.trace.views.append(view)


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
        self._pending = _Pending(sink, geometry)

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


class _Pending:
    """Rows that wait for their block, per layer a contiguous run of row numbers."""

    def __init__(self, sink: RowSink, geometry: Geometry) -> None:
        self._sink = sink
        self._geometry = geometry
        self._clear()

    def _clear(self) -> None:
        self._first: list[int | None] = [None] * len(self._geometry.layers)
        self._rows: list[list[Rows]] = [[] for _ in self._geometry.layers]
        self._count = 0

    def add(self, layer: int, first: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        stop = self._first[layer]
        if stop is not None and stop + sum(rows[0].shape[2] for rows in self._rows[layer]) != first:
            self.flush()  # rows left a sliding window before they were seen: the run is broken
        if self._first[layer] is None:
            self._first[layer] = first
        if keys.shape[2] < BLOCK_ROWS // 4:
            keys, values = keys.clone(), values.clone()  # a view would keep the whole grown cache alive
        self._rows[layer].append((keys, values))
        self._count = max(self._count, sum(rows[0].shape[2] for rows in self._rows[layer]))

    def flush_if_large(self) -> None:
        # a prompt's rows are handed on while they are the live cache, not a copy of it
        if self._count >= BLOCK_ROWS // 4:
            self.flush()

    def flush(self) -> None:
        ranges = [
            None if first is None else Span(first, sum(keys.shape[2] for keys, _ in rows))
            for first, rows in zip(self._first, self._rows, strict=True)
        ]
        for first_layer, count, _ in self._geometry.runs():
            at = first_layer
            while at < first_layer + count:
                span, stop = ranges[at], at + 1
                while stop < first_layer + count and ranges[stop] == span:
                    stop += 1
                if span is not None:
                    self._emit(at, stop, span)
                at = stop
        self._clear()

    def _emit(self, first_layer: int, stop: int, span: Span) -> None:
        import torch

        for row in range(0, span.rows, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, span.rows - row)
            group = max(1, TARGET_RECORD_RAW // (rows * self._geometry.row_bytes(first_layer)))
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


def deduplicate(
    snapshots: Iterable[Snapshot], geometry: Geometry, fingerprint: Mapping[str, str] | None = None
) -> Trace:
    """A trace of snapshots that may differ in any way; a row that the previous snapshot held is stored once.

    A row is the same when its token, its position, and its keys and values are bit-identical; rows are compared layer
    by layer, so that an edit that leaves the first layers' rows as they were stores only the others again.

    Raises:
        UsageError: a snapshot's tensors do not fit the geometry.
    """
    builder = TraceBuilder(geometry, fingerprint or {})
    previous: list[dict[bytes, int]] = [{} for _ in geometry.layers]
    labelled: dict[tuple[int, int], int] = {}
    for number, snapshot in enumerate(snapshots):
        _check_shapes(snapshot, geometry, number)
        numbers, previous = _match(snapshot, geometry, previous, builder, labelled)
        history = merged(Span(labelled[label], 1) for label in zip(snapshot.token_ids, snapshot.positions, strict=True))
        layers = tuple(merged(Span(row, 1) for row in rows) for rows in numbers)
        builder.add_view(View(history, layers, snapshot.next_token))
    return builder.trace


def _match(
    snapshot: Snapshot, geometry: Geometry, previous: list[dict[bytes, int]], builder: TraceBuilder,
    labelled: dict[tuple[int, int], int],
) -> tuple[list[list[int]], list[dict[bytes, int]]]:  # fmt: skip
    """Row numbers of every layer's rows; rows that `previous` lacks are added to `builder` under new numbers."""
    token_at = dict(zip(snapshot.positions, snapshot.token_ids, strict=True))
    fresh: dict[int, int] = {}  # position -> new row number, shared by the layers in which that row is new
    numbers: list[list[int]] = []
    found: list[dict[bytes, int]] = []
    new_rows: list[list[tuple[int, int]]] = []

    def number_for(position: int) -> int:
        if position not in fresh:
            fresh[position] = len(builder.trace.labels)
            builder.add_labels([token_at[position]], [position])
            labelled[token_at[position], position] = fresh[position]
        return fresh[position]

    for position, token in zip(snapshot.positions, snapshot.token_ids, strict=True):
        if (token, position) not in labelled:
            number_for(position)
    for layer in range(len(geometry.layers)):
        table: dict[bytes, int] = {}
        rows: list[int] = []
        new: list[tuple[int, int]] = []
        for at, identity in enumerate(_identities(snapshot, layer, token_at)):
            row = previous[layer].get(identity)
            if row is None:
                row = number_for(snapshot.row_positions[layer][at])
                new.append((row, at))
            table[identity] = row
            rows.append(row)
        numbers.append(rows)
        found.append(table)
        new_rows.append(new)
    _emit_new(snapshot, geometry, new_rows, builder)
    return numbers, found


def _identities(snapshot: Snapshot, layer: int, token_at: Mapping[int, int]) -> list[bytes]:
    """For each row its label and all its bytes: equal identities are equal rows, by comparison, not by a hash."""
    import torch

    def as_rows(tensor: torch.Tensor) -> list[bytes]:
        flat = tensor.detach().transpose(0, 2).reshape(-1).view(torch.uint8).cpu().numpy()
        return [row.tobytes() for row in flat.reshape(tensor.shape[2], -1)]

    labels = [f"{token_at[position]},{position};".encode() for position in snapshot.row_positions[layer]]
    return [
        label + key + value
        for label, key, value in zip(
            labels, as_rows(snapshot.keys[layer]), as_rows(snapshot.values[layer]), strict=True
        )
    ]


def _emit_new(
    snapshot: Snapshot, geometry: Geometry, new_rows: list[list[tuple[int, int]]], builder: TraceBuilder
) -> None:
    """Add blocks of new rows, given for each layer as (row number, index in the snapshot)."""
    runs: dict[tuple[Span, tuple[int, ...]], list[int]] = {}
    for layer, new in enumerate(new_rows):
        ordered = sorted(new)
        while ordered:
            count = 1
            while count < len(ordered) and ordered[count][0] == ordered[0][0] + count:
                count += 1
            indices = tuple(index for _, index in ordered[:count])
            runs.setdefault((Span(ordered[0][0], count), indices), []).append(layer)
            ordered = ordered[count:]
    pending = _Pending(builder, geometry)
    for (span, indices), layers in runs.items():
        for layer in layers:
            at = list(indices)
            pending.add(layer, span.first, snapshot.keys[layer][:, :, at], snapshot.values[layer][:, :, at])
        pending.flush()


def _check_shapes(snapshot: Snapshot, geometry: Geometry, number: int) -> None:
    if len(snapshot.keys) != len(geometry.layers) or len(snapshot.values) != len(geometry.layers):
        raise UsageError(f"snapshot {number} has {len(snapshot.keys)} layers, the model {len(geometry.layers)}")
    for layer, spec in enumerate(geometry.layers):
        rows = len(snapshot.row_positions[layer])
        if not set(snapshot.row_positions[layer]) <= set(snapshot.positions):
            raise UsageError(f"snapshot {number}, layer {layer}: a row stands at a position that no token has")
        for part, tensor in ((Part.KEYS, snapshot.keys[layer]), (Part.VALUES, snapshot.values[layer])):
            want = (geometry.batch, spec.heads, rows, spec.head_size(part))
            if tuple(tensor.shape) != want or str(tensor.dtype) != f"torch.{geometry.dtype}":
                raise UsageError(
                    f"snapshot {number}, layer {layer}: {part.name.lower()} are {tuple(tensor.shape)} "
                    f"{tensor.dtype}, not {want} {geometry.dtype}"
                )
