"""Which stored rows make up a snapshot: spans, views, labels.  Integers only, no tensors of the
cache.

Row numbers are global to a trace: row r of every layer belongs to the same token, whose id and
position LABELS give. A layer stores only the rows that some snapshot needs.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import NamedTuple

from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView, expect
from formats.errors import CorruptError
from formats.limits import MAX_ROWS, MAX_SNAPSHOTS, MAX_SPANS

from .geometry import Geometry


class Span(NamedTuple):
    """Rows `first` to `first + rows - 1`."""

    first: int
    rows: int

    @property
    def stop(self) -> int:
        return self.first + self.rows


@dataclass(frozen=True)
class View:
    """One snapshot, as references to rows.

    Attributes:
        history: rows of all tokens that the model has been fed so far, in order (a sliding layer
            has dropped some).
        layers: for each layer, the rows in its cache, in cache order.
        next_tokens: for each sequence the token that the capturing run chose to feed next; empty if
            it did not.
    """

    history: tuple[Span, ...]
    layers: tuple[tuple[Span, ...], ...]
    next_tokens: tuple[int, ...] = ()

    @property
    def next_token(self) -> int | None:
        """That of the first sequence."""
        return self.next_tokens[0] if self.next_tokens else None

    @property
    def tokens_seen(self) -> int:
        return sum(span.rows for span in self.history)

    def rows(self, layer: int) -> int:
        return sum(span.rows for span in self.layers[layer])


class BlockKey(NamedTuple):
    """Layers [first_layer, first_layer + layer_count) x rows [first_row, first_row + row_count) of
    one part.
    """

    part: Part
    first_layer: int
    layer_count: int
    first_row: int
    row_count: int

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part.KEYS, Part.VALUES) if self.part is Part.JOINT else (self.part,)

    @property
    def span(self) -> Span:
        return Span(self.first_row, self.row_count)

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.layer_count)


@dataclass
class Labels:
    """Token id and position of every row, by row number.

    Attributes:
        token_ids: `width` of them a row, row by row.
        positions: one a row; in a sequence with padding, padding is counted.
        width: 1, or the batch if its sequences hold different tokens.
    """

    token_ids: array[int] = field(default_factory=lambda: array("q"))
    positions: array[int] = field(default_factory=lambda: array("q"))
    width: int = 1

    def __len__(self) -> int:
        return len(self.positions)

    def extend(self, token_ids: Iterable[int], positions: Iterable[int]) -> None:
        self.token_ids.extend(iter(token_ids))  # an array of another width of integers, too
        self.positions.extend(positions)

    def tokens(self, spans: Iterable[Span], sequence: int = 0) -> list[int]:
        """The token ids of these rows in one sequence."""
        column, width = sequence % self.width, self.width
        return [
            token for span in spans for token in self.token_ids[span.first * width + column : span.stop * width : width]
        ]


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same rows in the same order with neighbouring spans joined and empty ones dropped."""
    result: list[Span] = []
    for span in spans:
        if result and result[-1].stop == span.first and span.rows:
            result[-1] = Span(result[-1].first, result[-1].rows + span.rows)
        elif span.rows:
            result.append(span)
    return tuple(result)


def raw_bytes(geometry: Geometry, view: View) -> int:
    """Bytes of a snapshot's tensors in the dtype in which the model ran."""
    total, rows, last = 0, 0, None
    for layer, spans in enumerate(view.layers):
        if spans is not last:  # neighbouring layers mostly share one object
            rows, last = view.rows(layer), spans
        total += rows * geometry.row_bytes[layer] + geometry.state_bytes[layer]
    return total


def unevicted_bytes(geometry: Geometry, view: View) -> int:
    """Bytes that a snapshot would have if its layers had kept all that the model keeps of the
    tokens fed.
    """
    seen = view.tokens_seen
    kept = [
        view.rows(layer) if spec.kind == "cross" else min(seen, spec.window - 1) if spec.window else seen
        for layer, spec in enumerate(geometry.layers)
    ]
    return sum(geometry.state_bytes) + sum(rows * size for rows, size in zip(kept, geometry.row_bytes, strict=True))


HISTORY = -1  # stands in the layer column of a view table for the history


def to_table(views: Sequence[View], width: int = 1) -> tuple[list[int], list[int]]:
    """(span table, next tokens), both flat; a table row is snapshot, first layer, layers, first
    row, rows.

    Args:
        width: next tokens a snapshot, as labels have it.
    """
    table: list[int] = []
    for number, view in enumerate(views):
        for span in view.history:
            table += [number, HISTORY, 1, *span]
        layer = 0
        for spans, group in groupby(view.layers):
            count = len(list(group))
            for span in spans:
                table += [number, layer, count, *span]
            layer += count
    return table, [token for view in views for token in view.next_tokens or (-1,) * width]


def from_tables(
    tensors: Mapping[str, TensorView], snapshots: int, geometry: Geometry, rows: int, width: int, what: str
) -> tuple[list[View], int]:
    """(views, number of spans) of a VIEWS payload that holds `snapshots` views.  Raises
    CorruptError.

    Args:
        rows: how many rows have labels.
        width: token ids a row, as the labels have them.
    """
    layers = len(geometry.layers)
    expect(
        tensors, {"spans": ("I64", (None, 5)), "next_tokens": ("I64", (None,) if width == 1 else (None, width))}, what
    )
    spans, next_tokens = tensors["spans"].integers(), tensors["next_tokens"].integers()
    if len(next_tokens) != snapshots * width or snapshots > MAX_SNAPSHOTS or len(spans) // 5 > MAX_SPANS:
        raise CorruptError(f"{what}: a wrong number of snapshots")
    histories: list[list[Span]] = [[] for _ in range(snapshots)]
    columns: list[dict[tuple[int, int], list[Span]]] = [{} for _ in range(snapshots)]
    last = (0, HISTORY)
    for at in range(0, len(spans), 5):
        number, layer, count, first, length = spans[at : at + 5]
        if (number, layer) < last or not 0 <= number < snapshots or not HISTORY <= layer < layers:
            raise CorruptError(f"{what}: spans are not in order")
        if not 1 <= length <= MAX_ROWS or not 0 <= first <= rows - length:
            raise CorruptError(f"{what}: a span reaches outside the {rows} rows of the trace")
        last = (number, layer)
        if layer == HISTORY:
            if count != 1:
                raise CorruptError(f"{what}: a history span covers one column")
            histories[number].append(Span(first, length))
        elif 1 <= count <= layers - layer:
            columns[number].setdefault((layer, count), []).append(Span(first, length))
        else:
            raise CorruptError(f"{what}: a span covers layers that the model does not have")
    views = [
        View(tuple(history), _columns(column, geometry, what), _chosen(next_tokens[at * width : (at + 1) * width]))
        for at, (history, column) in enumerate(zip(histories, columns, strict=True))
    ]
    if any(_overlap(named) for view in views for named in {view.history, *view.layers}):
        raise CorruptError(f"{what}: a snapshot names a row twice")
    return views, len(spans) // 5


def _chosen(tokens: Sequence[int]) -> tuple[int, ...]:
    return () if min(tokens) < 0 else tuple(tokens)


def _overlap(spans: Iterable[Span]) -> bool:
    return any(a.stop > b.first for a, b in pairwise(sorted(spans)))


def _columns(found: dict[tuple[int, int], list[Span]], geometry: Geometry, what: str) -> tuple[tuple[Span, ...], ...]:
    """The rows of each layer; the groups pass over layers that have none."""
    result: list[tuple[Span, ...]] = []
    bare = geometry.without_rows
    for (layer, count), spans in found.items():
        while len(result) < layer and len(result) in bare:
            result.append(())
        if layer != len(result) or not bare.isdisjoint(range(layer, layer + count)):
            raise CorruptError(f"{what}: a snapshot lacks or repeats layer {min(layer, len(result))}")
        result += [tuple(spans)] * count
    while len(result) in bare:
        result.append(())
    if len(result) != len(geometry.layers):
        raise CorruptError(f"{what}: a snapshot lacks layer {len(result)}")
    return tuple(result)


def check_coverage(views: Sequence[View], blocks: Iterable[BlockKey], geometry: Geometry) -> None:
    """Every row that a view names is stored exactly once.  Raises CorruptError."""
    stored = _stored_intervals(blocks, geometry)
    for number, view in enumerate(views):
        for layer, spans in enumerate(view.layers):
            if layer and spans is view.layers[layer - 1] and stored[layer] is stored[layer - 1]:
                continue
            for span in spans:
                at = bisect_right(stored[layer], span.first, key=lambda run: run.first) - 1
                if at < 0 or span.stop > stored[layer][at].stop:
                    raise CorruptError(f"snapshot {number} needs rows of layer {layer} that the file does not hold")


def _stored_intervals(blocks: Iterable[BlockKey], geometry: Geometry) -> list[tuple[Span, ...]]:
    """For each layer the rows of which all parts are stored; equal layers share one object."""
    by_layer: list[dict[Part, list[Span]]] = [{part: [] for part in spec.parts} for spec in geometry.layers]
    for block in blocks:
        parts, span = block.parts, block.span
        for layer in block.layers:
            for part in parts:
                by_layer[layer][part].append(span)
    shared: dict[tuple[Span, ...], tuple[Span, ...]] = {}
    result = []
    for layer, found in enumerate(by_layer):
        for spans in found.values():
            if _overlap(spans):
                raise CorruptError(f"rows of layer {layer} are stored twice")
        # records come in any order
        each = {merged(sorted(spans)) for spans in found.values()} or {()}
        if len(each) != 1:
            raise CorruptError(f"layer {layer} has keys without values or values without keys")
        rows = each.pop()
        result.append(shared.setdefault(rows, rows))
    return result
