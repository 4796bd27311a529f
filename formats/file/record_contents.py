"""What a record says: for each type of record one function that checks and reads it, by itself.

What ties records together, such as rows that are stored twice, is up to who calls: `reader` for a
file that must be whole, `formats.repair` for what is left of a damaged one.  All functions raise
CorruptError without a place; `locating` of a file adds it.  The payloads of tables are made here,
too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from formats.container.records import Part, RecordHeader
from formats.container.safetensors_buffer import TensorView, expect, pack_integers
from formats.errors import CorruptError
from formats.limits import MAX_BLOCK_BYTES, MAX_INTEGER, MAX_JSON_BYTES, MAX_LABELS_PER_RECORD
from formats.trace import head_maps, views
from formats.trace.geometry import Geometry, LayerSpec
from formats.trace.head_maps import HeadMap
from formats.trace.views import Labels, Span, View

_PARTS = frozenset(part.value for part in Part)


def require_short(header: RecordHeader) -> None:
    """Refuse a record of JSON (MODEL, HEADER) that is longer than JSON may be, before it is
    decompressed.
    """
    if header.raw > MAX_JSON_BYTES:
        raise CorruptError(f"a {header.name} record of {header.raw} bytes")


def labels(header: RecordHeader, tensors: Mapping[str, TensorView], batch: int) -> Labels:
    """The labels of the rows of a LABELS record.

    Args:
        batch: sequences of the file, which may have a token id each.
    """
    if header.count > MAX_LABELS_PER_RECORD:
        raise CorruptError("a labels record holds too many rows")
    by_sequence = batch > 1 and "token_ids" in tensors and len(tensors["token_ids"].shape) == 2
    shape = (header.count, batch) if by_sequence else (header.count,)
    token_ids = _token_ids(tensors, shape, {"position_offsets": ("I64", (header.count,))})
    offsets = tensors["position_offsets"].integers()
    positions = [row + shift for row, shift in enumerate(offsets, header.first)]
    if min(positions) < 0 or max(positions) > MAX_INTEGER:
        raise CorruptError("labels: a position is out of range")
    result = Labels(width=batch if by_sequence else 1)
    result.extend(token_ids, positions)
    return result


def snapshots(
    header: RecordHeader, tensors: Mapping[str, TensorView], geometry: Geometry, rows: int, width: int
) -> tuple[list[View], int]:
    """The snapshots of a VIEWS record, and how many spans describe them.

    Args:
        rows: how many rows have labels.
        width: token ids a row, as the labels have them.
    """
    return views.from_tables(tensors, header.count, geometry, rows, width, "views")


def reference(header: RecordHeader, tensors: Mapping[str, TensorView]) -> list[int]:
    """The token ids of a REFERENCE record."""
    return list(_token_ids(tensors, (header.count,), {}))


def check_block(header: RecordHeader, geometry: Geometry, rows: int) -> None:
    """Check what the header of a ROWS record says.

    Args:
        rows: how many rows have labels.
    """
    if header.part not in _PARTS:
        raise CorruptError(f"a block of part {header.part}")
    if Part(header.part) not in (Part.JOINT, *_layers(header, geometry, "a block").parts):
        raise CorruptError("a block of indexer keys that its layers do not have")
    if not 1 <= header.count <= rows - header.first:
        raise CorruptError("a block holds rows without labels")
    if header.layer_count * header.count * geometry.row_bytes[header.first_layer] > MAX_BLOCK_BYTES:
        raise CorruptError(f"a block of more than {MAX_BLOCK_BYTES} bytes")


def check_states(header: RecordHeader, geometry: Geometry, count: int) -> None:
    """Check what the header of a STATES record says.

    Args:
        count: how many snapshots there are.
    """
    spec = _layers(header, geometry, "a states record", rows=False)
    if header.part >= len(spec.states):
        raise CorruptError(f"a states record of state {header.part}")
    if not 1 <= header.count <= count - header.first:
        raise CorruptError("a states record of snapshots that there are not")
    values = header.layer_count * header.count * geometry.batch * spec.states[header.part].bytes
    if values > MAX_BLOCK_BYTES:
        raise CorruptError(f"states of more than {MAX_BLOCK_BYTES} bytes")


def head_map(header: RecordHeader, tensors: Mapping[str, TensorView], geometry: Geometry, rows: int) -> HeadMap:
    """The map of a KEPT record: which rows each head kept.

    Args:
        rows: how many rows have labels.
    """
    spec = _layers(header, geometry, "a map of kept rows")
    if spec.index_size:
        raise CorruptError("a map of kept rows with indexer keys")
    if not 1 <= header.count <= rows - header.first:
        raise CorruptError("a map of kept rows without labels")
    span = Span(header.first, header.count)
    return head_maps.from_tensors(tensors, header.first_layer, header.layer_count, span, spec.heads, "kept")


def attention_heads(header: RecordHeader, geometry: Geometry, rows: int) -> int:
    """How many heads an ATTENTION record has, whose header is checked.

    Args:
        rows: how many rows have labels.
    """
    spec = _layers(header, geometry, "attention")
    if not 1 <= header.count <= rows:
        raise CorruptError("attention to rows without labels")
    return spec.heads


def _layers(header: RecordHeader, geometry: Geometry, what: str, *, rows: bool = True) -> LayerSpec:
    """What the layers of a record are like, all of them; they keep rows unless the record is about
    something else.
    """
    first, stop = header.first_layer, header.first_layer + header.layer_count
    if not first < stop <= len(geometry.layers) or geometry.run_ends[first] < stop:
        raise CorruptError(f"{what} covers layers that cannot be stored together")
    spec = geometry.layers[first]
    if rows and not spec.parts:
        raise CorruptError(f"{what} covers layers that keep no rows")
    return spec


def _token_ids(
    tensors: Mapping[str, TensorView], shape: tuple[int, ...], others: dict[str, tuple[str, tuple[int | None, ...]]]
) -> Sequence[int]:
    """The `token_ids` of a payload, row-major, in either width."""
    wide = "token_ids" in tensors and tensors["token_ids"].dtype == "I32"
    expect(tensors, {"token_ids": ("I32" if wide else "U16", shape), **others}, "token ids")
    token_ids = tensors["token_ids"].integers()
    if min(token_ids) < 0:
        raise CorruptError("token ids: a negative token id")
    return token_ids


def labels_payload(token_ids: Sequence[int], positions: Sequence[int], first: int, width: int) -> bytes:
    """The payload of a LABELS record of rows `first`, `first + 1`, ...; the ids are `width` a row,
    row by row.
    """
    offsets = [position - row for row, position in enumerate(positions, first)]
    shape = (len(positions),) if width == 1 else (len(positions), width)
    return pack_integers(
        {"token_ids": (_dtype(token_ids), shape, token_ids), "position_offsets": ("I64", (len(offsets),), offsets)}
    )


def snapshots_payload(some: Sequence[View], width: int) -> bytes:
    """The payload of a VIEWS record; `width` is as the labels have it."""
    spans, next_tokens = views.to_table(some, width)
    shape = (len(some),) if width == 1 else (len(some), width)
    return pack_integers({"spans": ("I64", (len(spans) // 5, 5), spans), "next_tokens": ("I64", shape, next_tokens)})


def reference_payload(token_ids: Sequence[int]) -> bytes:
    """The payload of a REFERENCE record."""
    return pack_integers({"token_ids": (_dtype(token_ids), (len(token_ids),), token_ids)})


def _dtype(token_ids: Sequence[int]) -> str:
    """The smaller of two widths; the entropy coder does not make up for needless zero bytes."""
    return "U16" if max(token_ids, default=0) < 1 << 16 else "I32"
