"""A second reader of .tsc files, for checking the first.

Written from docs/format.md alone; it shares no code with the product. Where the product is built to be fast and to
open files piecemeal, this reader is built to be compared with the text: it takes the bytes of a whole file, checks
every rule of the specification, and either returns a `Document` or raises `Refused`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise, product
from typing import NamedTuple

import numpy as np

from tests.second_reader_codecs import (
    CHAIN,
    ITEM_SIZES,
    Array,
    Block,
    Part,
    Refused,
    Tensor,
    corrupt,
    decode,
    expect,
    need,
)
from tests.second_reader_klt import decode_klt
from tests.second_reader_payload import (
    I64_MAX,
    MIB,
    as_integer,
    as_list,
    as_object,
    as_text,
    parse_json,
    read_tables,
    unframe,
)
from tests.second_reader_profile import Profile, read_reference

MODEL, ROWS, LABELS, VIEWS, HEADER, INDEX, END, KEPT, PROFILE, REFERENCE, ATTENTION = *range(1, 10), 0x81, 0x82
KNOWN = {MODEL, ROWS, LABELS, VIEWS, HEADER, INDEX, END, KEPT, PROFILE, REFERENCE, ATTENTION}
LAYERED = {ROWS, KEPT, ATTENTION}  # types whose records are of some layers
TABLE_BUDGET = 192 * MIB  # this reader's own: decompressed bytes of all tables but ROWS
SNAPSHOT_BUDGET = 2048 * MIB  # this reader's own: bytes of one snapshot, eight times its token ids
BLOCK_BUDGET = 64 * MIB  # this reader's own: arithmetic takes several times the bytes of a block of rows

Span = tuple[int, int]  # first row, row behind the last


# Checksum


def crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # 0x1EDC6F41 with its bits reversed
        table.append(value)
    return table


CRC_TABLE = crc_table()


def crc32c(data: bytes | memoryview) -> int:
    table, crc = CRC_TABLE, 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


# Records


class Record(NamedTuple):
    """What INDEX says of a record, in its order."""

    offset: int
    type: int
    codec: int
    stored: int
    raw: int
    part: int
    first_layer: int
    layer_count: int
    first: int
    number: int  # how many rows, snapshots, tokens or records ("count" in the text)

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.layer_count)


def read_superblock(data: memoryview) -> bytes:
    """The file identity."""
    need(len(data) >= 64, "shorter than a superblock")
    signature = bytes(data[:8])
    need(signature[:4] == b"\x89TSC" and signature[5:] == b"\r\n\x1a", "signature")
    if data[4] != 1:
        raise Refused(f"unsupported: major version {data[4]}")
    need(crc32c(data[:60]) == int.from_bytes(data[60:64], "little"), "superblock CRC")
    need(data[10] == 0, "reserved flag")
    need(not any(data[12:16]) and not any(data[32:60]), "reserved bytes of the superblock")
    return bytes(data[16:32])


def read_record(data: memoryview, offset: int, sequence: int, identity: bytes) -> Record:
    where = f"record {sequence}"
    need(len(data) - offset >= 64, f"{where}: header is cut off")
    header = bytes(data[offset : offset + 64])
    (kind, reserved_a, codec, number, stored, raw, part, reserved_b, first_layer, layer_count, reserved_c,
     first, count, payload_crc, header_crc) = struct.unpack("<BBHIQQHHIIIQQII", header)  # fmt: skip
    need(crc32c(identity + header[:60]) == header_crc, f"{where}: header CRC")
    need(number == sequence, f"{where}: sequence number {number}")
    need(reserved_a == reserved_b == reserved_c == 0, f"{where}: reserved bytes")
    need(kind not in (0x00, 0x80), f"{where}: type {kind}")
    if kind not in KNOWN and kind < 0x80:
        raise Refused(f"unsupported: {where}: type {kind}")
    if kind in KNOWN:
        need(kind == ROWS or codec == part == 0, f"{where}: codec and part must be 0")
        need(kind in LAYERED or first_layer == layer_count == 0, f"{where}: layers must be 0")
        need(kind in (ROWS, LABELS, KEPT, VIEWS, END) or first == 0, f"{where}: first must be 0")
        need(kind not in (MODEL, HEADER, INDEX, PROFILE) or count == 0, f"{where}: count must be 0")
    need(stored <= len(data) - offset - 64, f"{where}: payload is cut off")
    need(raw <= 256 * MIB and (raw <= 16 * MIB or raw <= 1024 * stored), f"{where}: raw length {raw}")
    need(raw >= 1 or kind == END, f"{where}: empty payload")
    need(crc32c(data[offset + 64 : offset + 64 + stored]) == payload_crc, f"{where}: payload CRC")
    return Record(offset, kind, codec, stored, raw, part, first_layer, layer_count, first, count)


def read_records(data: memoryview, identity: bytes) -> list[Record]:
    """All records, in a valid order, up to an END that closes the file."""
    records: list[Record] = []
    offset = 64
    while not records or records[-1].type != END:
        need(len(records) < 2**20, "more than 2^20 records")
        record = read_record(data, offset, len(records), identity)
        records.append(record)
        offset += 64 + record.stored
    need(offset == len(data), "bytes behind END")
    need(len(records) >= 4, "too few records")
    for number, record in enumerate(records):
        fixed = {0: MODEL, len(records) - 3: HEADER, len(records) - 2: INDEX, len(records) - 1: END}
        expected = fixed.get(number)
        if expected is None:
            need(record.type not in (MODEL, HEADER, INDEX), f"record {number}: type {record.type} is out of place")
        else:
            need(record.type == expected, f"record {number}: type {record.type} in place of {expected}")
    for kind, name in ((REFERENCE, "REFERENCE"), (PROFILE, "PROFILE")):
        need(sum(record.type == kind for record in records) <= 1, f"more than one {name}")
    end = records[-1]
    need(end.stored == 8 and end.raw == 0, "length of END")
    need(data[end.offset + 64 :] == data[:8], "payload of END")
    need(end.first == records[-2].offset, "END does not point at INDEX")
    need(end.number == len(records), "END counts another number of records")
    return records


def payload(data: memoryview, record: Record) -> bytes:
    """The decompressed payload of one record; its checksum was right."""
    frame = bytes(data[record.offset + 64 : record.offset + 64 + record.stored])
    return unframe(frame, record.raw, f"payload at {record.offset}")


# MODEL and HEADER


@dataclass(frozen=True)
class Layer:
    heads: int
    key_size: int
    value_size: int
    window: int | None  # None: full

    def size(self, part: Part) -> int:
        return self.key_size if part == "keys" else self.value_size


@dataclass(frozen=True)
class Geometry:
    dtype: str
    item: int
    batch: int
    layers: list[Layer]
    row_bytes: list[int]  # bytes of one row in all layers before each layer; the last, in all layers


def read_model(model: dict[str, object]) -> Geometry:
    as_object(model, "MODEL", {"schema", "dtype", "batch", "layers", "fingerprint"})
    need(model["schema"] == "tsc.model/1", "MODEL: schema")
    dtype = as_text(model["dtype"], "MODEL: dtype")
    need(dtype in ITEM_SIZES, "MODEL: dtype")
    batch = as_integer(model["batch"], "MODEL: batch", 1, 2**20)
    layers: list[Layer] = []
    for entry in as_list(model["layers"], "MODEL: layers", 4096):
        kind = as_object(entry, "MODEL: run of layers").get("kind")
        need(kind in ("full", "sliding"), "MODEL: kind")
        names = {"heads", "key_size", "value_size"} | ({"window"} if kind == "sliding" else set())
        run = as_object(entry, "MODEL: run of layers", {"count", "kind"} | names)
        size = {name: as_integer(run[name], f"MODEL: {name}", 1, 2**20) for name in sorted(names)}
        count = as_integer(run["count"], "MODEL: count", 1, 4096 - len(layers))
        layers += [Layer(size["heads"], size["key_size"], size["value_size"], size.get("window"))] * count
    need(len(layers) >= 1, "MODEL: no layers")
    for value in as_object(model["fingerprint"], "MODEL: fingerprint").values():
        as_text(value, "MODEL: fingerprint")
    item = ITEM_SIZES[dtype]
    sizes = [item * batch * layer.heads * (layer.key_size + layer.value_size) for layer in layers]
    return Geometry(dtype, item, batch, layers, list(accumulate(sizes, initial=0)))


def check_header(header: dict[str, object], raw: list[tuple[int, int]], length: int) -> None:
    """`raw`: what the raw bytes of the trace and of its last snapshot may be; `length`: of the file."""
    required = {"schema", "tier", "created_by", "raw_bytes_trace", "raw_bytes_final", "capture", "quality"}
    optional = frozenset({"codec", "parameters", "ratio_trace", "ratio_final"})
    as_object(header, "HEADER", required, optional)
    need(header["schema"] == "tsc.header/1", "HEADER: schema")
    for name in ("tier", "created_by", "codec"):
        as_text(header.get(name, ""), f"HEADER: {name}")
    free_form = [header["capture"], header.get("parameters", {})]
    for entry in [*free_form, *as_list(header["quality"], "HEADER: quality", 2**20)]:
        for value in as_object(entry, "HEADER: capture, parameters or quality").values():
            need(not isinstance(value, list | dict), "HEADER: nested value in capture, parameters or quality")
    names = ("raw_bytes_trace", "raw_bytes_final")
    stated = tuple(as_integer(header[name], f"HEADER: {name}", 1, I64_MAX) for name in names)
    need(stated in raw, "HEADER: raw bytes are wrong")
    need(("ratio_trace" in header) == ("ratio_final" in header), "HEADER: one ratio without the other")
    if "ratio_trace" in header:
        for name, raw_bytes in zip(("ratio_trace", "ratio_final"), stated, strict=True):
            ratio = header[name]
            if isinstance(ratio, bool) or not isinstance(ratio, int | float):
                corrupt(f"HEADER: {name} is not a number")
            need(abs(ratio * length / raw_bytes - 1) <= 0.002, f"HEADER: {name} is wrong")


# Tables


def read_token_ids(tensor: Tensor, count: int) -> list[int]:
    ids = list(expect(tensor, {"U16", "I32"}, [count], "token_ids").integers())
    need(min(ids, default=0) >= 0, "token_ids: negative")
    return ids


@dataclass(frozen=True)
class Snapshot:
    next_token: int
    lines: array[int]  # its lines of `spans`, five numbers each

    def groups(self) -> list[tuple[int, int, list[Span]]]:
        """First layer (-1: history), number of layers and rows of each group."""
        groups: list[tuple[int, int, list[Span]]] = []
        for at in range(0, len(self.lines), 5):
            _, layer, layers, first, rows = self.lines[at : at + 5]
            if not groups or groups[-1][0] != layer:
                groups.append((layer, layers, []))
            groups[-1][2].append((first, first + rows))
        return groups


def read_views(raw: bytes, count: int, total_rows: int, total_layers: int) -> list[Snapshot]:
    tables = read_tables(raw, {"spans", "next_tokens"})
    next_tokens = expect(tables["next_tokens"], {"I64"}, [count], "next_tokens").integers()
    shape = tables["spans"].shape
    need(len(shape) == 2 and shape[0] <= 2**22, "spans: shape")
    lines = expect(tables["spans"], {"I64"}, [shape[0], 5], "spans").integers()
    snapshots: list[Snapshot] = []
    at = 0
    for number in range(count):
        begin, covered = at, 0
        group: tuple[int, int] | None = None
        while at < len(lines) and lines[at] == number:
            _, layer, layers, first, rows = lines[at : at + 5]
            at += 5
            need(first >= 0 and 1 <= rows <= total_rows - first, "spans: rows")
            if group is not None and layer == group[0]:
                need(layers == group[1], "spans: lines of a group differ in their layers")
                continue
            if layer == -1:
                need(group is None and layers == 1, "spans: history")
            else:
                need(layer == covered and 1 <= layers <= total_layers - layer, "spans: layers")
                covered = layer + layers
            group = (layer, layers)
        need(covered == total_layers, "spans: a snapshot does not cover all layers")
        snapshots.append(Snapshot(next_tokens[number], lines[begin:at]))
    need(at == len(lines), "spans: lines of no snapshot, or not sorted")
    return snapshots


@dataclass(frozen=True)
class Kept:
    """What the heads of some layers kept of the rows of a span."""

    layers: range
    span: Span
    rows: list[list[list[int]]]  # by layer and head: the row that each slot stands for

    @property
    def slots(self) -> int:
        return len(self.rows[0][0])

    @property
    def evicted(self) -> Span:
        """Numbers that are neither stored nor named."""
        return self.span[0] + self.slots, self.span[1]


def read_kept(data: memoryview, record: Record, geometry: Geometry, total_rows: int) -> Kept:
    layer = check_layers(record, geometry)
    need(record.number >= 1 and record.first + record.number <= total_rows, "KEPT: rows")
    shape = [record.layer_count, layer.heads, -(-record.number // 8)]
    octets = expect(read_tables(payload(data, record), {"kept"})["kept"], {"U8"}, shape, "kept").octets()
    bits = np.unpackbits(octets, axis=-1, bitorder="little")
    need(not bits[..., record.number :].any(), "kept: bits behind the last row")
    counts = bits.sum(-1)
    need(int(counts.min()) == int(counts.max()) >= 1, "kept: heads keep different numbers of rows, or none")
    rows = [[(record.first + head.nonzero()[0]).tolist() for head in layer_bits] for layer_bits in bits]
    return Kept(record.layers, (record.first, record.first + record.number), rows)


def check_kept(kept: list[Kept], stored: list[Record], snapshots: list[Snapshot]) -> None:
    """No two maps of the same rows, and nothing of evicted rows is stored or named."""
    for at, one in enumerate(kept):
        for other in kept[:at]:
            need(not (meet(one.layers, other.layers) and overlap(one.span, other.span)), "KEPT: spans overlap")
        for record in stored:
            rows = record.first, record.first + record.number
            need(not (meet(one.layers, record.layers) and overlap(one.evicted, rows)), "KEPT: stored evicted rows")
        for snapshot in snapshots:
            for first, layers, spans in snapshot.groups():
                if first >= 0 and meet(one.layers, range(first, first + layers)):
                    need(not any(overlap(one.evicted, span) for span in spans), "KEPT: a view names evicted rows")


def meet(a: range, b: range) -> bool:
    return max(a.start, b.start) < min(a.stop, b.stop)


def overlap(a: Span, b: Span) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])


@dataclass(frozen=True)
class Attention:
    layers: range
    received: bytes  # little-endian float32, [layers, heads, rows of the first snapshot]


def read_attention(data: memoryview, record: Record, geometry: Geometry, total_rows: int) -> Attention:
    layer = check_layers(record, geometry)
    need(1 <= record.number <= total_rows, "ATTENTION: rows")
    shape = [4, record.layer_count, layer.heads, record.number]
    octets = expect(read_tables(payload(data, record), {"received"})["received"], {"U8"}, shape, "received").octets()
    return Attention(record.layers, np.moveaxis(octets, 0, -1).tobytes())


# Rows


def parts_of(record: Record) -> tuple[Part, ...]:
    return (("keys", "values"), ("keys",), ("values",))[record.part]


def block_of(record: Record, geometry: Geometry, part: Part) -> Block:
    layer = geometry.layers[record.first_layer]
    return Block(
        geometry.dtype, part, record.layer_count, geometry.batch, layer.heads, layer.size(part), record.first,
        record.number,
    )  # fmt: skip


def check_layers(record: Record, geometry: Geometry) -> Layer:
    """The layers that a record is of exist and are all alike; returns one."""
    need(record.layer_count >= 1 and record.layers.stop <= len(geometry.layers), f"type {record.type}: layers")
    alike = geometry.layers[record.first_layer]
    need(all(geometry.layers[layer] == alike for layer in record.layers), f"type {record.type}: layers are not alike")
    return alike


def check_rows_record(record: Record, geometry: Geometry, total_rows: int) -> None:
    need(record.codec != 0, "ROWS: codec 0")
    if record.codec > 6:
        raise Refused(f"unsupported: codec {record.codec}")
    need(record.part == 0 if record.codec == 6 else record.part in (1, 2), "ROWS: part")
    check_layers(record, geometry)
    need(record.number >= 1 and record.first + record.number <= total_rows, "ROWS: rows")
    size = sum(block_of(record, geometry, part).bytes for part in parts_of(record))
    need(size <= 256 * MIB, f"ROWS: {size} bytes when decoded")
    if size > BLOCK_BUDGET:
        raise Refused(f"budget: {size} bytes of rows")


class Rows:
    """The rows of all ROWS records, decoded when they are asked for, and kept."""

    def __init__(
        self, data: memoryview, geometry: Geometry, stored: list[Record], positions: list[int],
        load: Callable[[], Profile] | None,
    ) -> None:  # fmt: skip
        self.data, self.geometry, self.stored, self.positions, self.load = data, geometry, stored, positions, load
        self.decoded: dict[int, dict[Part, Array]] = {}  # by offset
        self.integers: dict[int, list[int]] = {}  # by offset: those of codec 6, in the order in which they are decoded
        self.links: dict[int, int] = {}  # by offset: the most records that are followed from it, one from the other

    @cached_property
    def profile(self) -> Profile:
        if self.load is None:
            corrupt("rows that need a profile in a file without a PROFILE record")
        return self.load()

    def of(self, record: Record, depth: int = 0) -> dict[Part, Array]:
        """The values of a record as bits, [layers, batch, heads, rows, size]; `depth` records were followed to it."""
        if record.offset not in self.decoded:
            need(depth <= CHAIN, "delta: too many records from one base to the next")
            self.links[record.offset] = 0

            def fetch(numbers: list[int]) -> Array:
                return self.bases(record, numbers, depth)

            tables = read_tables(payload(self.data, record))
            blocks = [block_of(record, self.geometry, part) for part in parts_of(record)]
            if record.codec == 6:
                positions = self.positions[record.first : record.first + record.number]
                found = decode_klt(tables, self.profile, record.first_layer, (blocks[0], blocks[1]), positions)
                self.decoded[record.offset], self.integers[record.offset] = found.rows, found.integers
            else:
                self.decoded[record.offset] = {blocks[0].part: decode(record.codec, tables, blocks[0], fetch)}
            need(self.links[record.offset] <= CHAIN, "delta: too many records from one base to the next")
        return self.decoded[record.offset]

    def bases(self, record: Record, numbers: list[int], depth: int) -> Array:
        """Rows of these numbers for the layers of `record`, from the records that store them."""
        rows = [np.stack([self.base(record, layer, number, depth) for number in numbers], 2) for layer in record.layers]
        return np.stack(rows)

    def base(self, record: Record, layer: int, number: int, depth: int) -> Array:
        holders = [
            other for other in self.stored
            if other.part in (0, record.part) and layer in other.layers and 0 <= number - other.first < other.number
        ]  # fmt: skip
        need(len(holders) == 1, "delta: a base is not stored")
        rows = self.of(holders[0], depth + 1)[parts_of(record)[0]]
        self.links[record.offset] = max(self.links[record.offset], 1 + self.links[holders[0].offset])
        return rows[layer - holders[0].first_layer, :, :, number - holders[0].first]


def union(spans: Iterable[Span], disjoint: bool = False) -> list[Span]:
    """The spans sorted, with those that touch or overlap joined."""
    joined: list[Span] = []
    for begin, stop in sorted(spans):
        if joined and begin <= joined[-1][1]:
            need(not disjoint or begin == joined[-1][1], "ROWS: a row is stored twice")
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((begin, stop))
    return joined


def contains(outer: list[Span], inner: list[Span]) -> bool:
    """Whether every span of `inner` lies in one of `outer`; both come from `union`."""
    at = 0
    for begin, stop in inner:
        while at < len(outer) and outer[at][1] < stop:
            at += 1
        if at == len(outer) or begin < outer[at][0]:
            return False
    return True


def check_coverage(stored: list[Record], snapshots: list[Snapshot], total_layers: int) -> None:
    """Nothing stored twice, keys and values of the same rows, and every named row stored."""
    starts: dict[int, list[Record]] = {}
    for record in stored:
        starts.setdefault(record.first_layer, []).append(record)
    by_layer: list[list[Span]] = []
    active: list[Record] = []
    for layer in range(total_layers):
        still = [record for record in active if layer in record.layers]
        if by_layer and layer not in starts and len(still) == len(active):
            by_layer.append(by_layer[-1])  # the same records as for the layer before
            continue
        active = still + starts.get(layer, [])
        keys, values = (
            union(((r.first, r.first + r.number) for r in active if r.part in (0, part)), disjoint=True)
            for part in (1, 2)
        )
        need(keys == values, f"layer {layer}: keys and values of different rows are stored")
        by_layer.append(keys)
    named: dict[tuple[int, int], set[Span]] = {}
    for snapshot in snapshots:
        for first, layers, spans in snapshot.groups():
            if first >= 0:
                named.setdefault((first, layers), set()).update(spans)
    for (first, layers), named_spans in named.items():
        rows = union(named_spans)
        checked: list[Span] | None = None
        for layer in range(first, first + layers):
            if by_layer[layer] is not checked:
                checked = by_layer[layer]
                need(contains(checked, rows), f"layer {layer}: a snapshot names a row that is not stored")


# The file


@dataclass
class Document:
    model: dict[str, object]
    header: dict[str, object]
    token_ids: list[int]
    positions: list[int]
    reference: list[int]
    snapshots: list[Snapshot]
    geometry: Geometry
    kept: list[Kept]
    attention: list[Attention]
    rows: Rows = field(repr=False)

    def next_token(self, number: int) -> int | None:
        token = self.snapshots[number].next_token
        return token if token >= 0 else None

    def history(self, number: int) -> list[int]:
        """The token ids that the model had been fed at a snapshot."""
        return [self.token_ids[row] for row in self.history_rows(number)]

    def history_positions(self, number: int) -> list[int]:
        return [self.positions[row] for row in self.history_rows(number)]

    def history_rows(self, number: int) -> list[int]:
        spans = [span for layer, _, rows in self.snapshots[number].groups() if layer == -1 for span in rows]
        if sum(stop - begin for begin, stop in spans) > SNAPSHOT_BUDGET // 8:
            raise Refused("budget: history")
        return [row for begin, stop in spans for row in range(begin, stop)]

    def raw_bytes(self, number: int) -> int:
        """The bytes of the tensors of a snapshot."""
        total = 0
        for first, layers, spans in self.snapshots[number].groups():
            rows = sum(stop - begin for begin, stop in spans)
            if first >= 0:
                total += rows * (self.geometry.row_bytes[first + layers] - self.geometry.row_bytes[first])
        return total

    def unevicted_bytes(self, number: int) -> int:
        """The bytes that the tensors of a snapshot had if all rows were there that the model keeps."""
        groups = self.snapshots[number].groups()
        tokens = sum(stop - begin for layer, _, spans in groups if layer == -1 for begin, stop in spans)
        sizes = pairwise(self.geometry.row_bytes)
        return sum(
            (after - before) * (tokens if layer.window is None else min(tokens, layer.window - 1))
            for (before, after), layer in zip(sizes, self.geometry.layers, strict=True)
        )

    def spans(self, number: int) -> list[list[Span]]:
        """For each layer the rows of a snapshot."""
        rows: list[list[Span]] = []
        for first, layers, spans in self.snapshots[number].groups():
            rows += [spans] * (layers if first >= 0 else 0)
        return rows

    def row_positions(self, number: int) -> list[list[list[int]]]:
        """For each layer and each of its heads the positions of the rows of a snapshot."""
        result = []
        for layer, spans in enumerate(self.spans(number)):
            maps = [one for one in self.kept if layer in one.layers]
            heads = []
            for head in range(self.geometry.layers[layer].heads):
                meant = {}  # the row that a slot stands for
                for one in maps:
                    meant.update(enumerate(one.rows[layer - one.layers.start][head], one.span[0]))
                numbers = [row for span in spans for row in range(*span)]
                heads.append([self.positions[meant.get(row, row)] for row in numbers])
            result.append(heads)
        return result

    def snapshot(self, number: int) -> list[tuple[bytes, bytes]]:
        """Keys and values of each layer: little-endian values, [batch, heads, rows, size]."""
        if self.raw_bytes(number) > SNAPSHOT_BUDGET:
            raise Refused("budget: snapshot")
        rows = self.spans(number)
        found: dict[Part, list[Array]] = {"keys": [], "values": []}
        for part, buffers in found.items():
            for layer, spans in zip(self.geometry.layers, rows, strict=True):
                length = sum(stop - begin for begin, stop in spans)
                shape = (self.geometry.batch, layer.heads, length, layer.size(part))
                buffers.append(np.zeros(shape, f"<u{self.geometry.item}"))
        for record in self.rows.stored:
            for part, at in product(parts_of(record), record.layers):
                target = 0
                for begin, stop in rows[at]:
                    low, high = max(begin, record.first), min(stop, record.first + record.number)
                    if low < high:
                        source = self.rows.of(record)[part][at - record.first_layer]
                        there = found[part][at][:, :, target + low - begin : target + high - begin]
                        there[:] = source[:, :, low - record.first : high - record.first]
                    target += stop - begin
        return [(k.tobytes(), v.tobytes()) for k, v in zip(found["keys"], found["values"], strict=True)]


def read(data: bytes, profile: bytes | None = None) -> Document:
    """Check a whole file by every rule of the specification; `profile` is one that the file may name."""
    view = memoryview(data)
    records = read_records(view, read_superblock(view))
    of_type = {kind: [record for record in records if record.type == kind] for kind in KNOWN}
    tables = sum(record.raw for kind in KNOWN - {MODEL, HEADER, ROWS} for record in of_type[kind])
    if tables > TABLE_BUDGET:
        raise Refused(f"budget: {tables} bytes of tables")

    listed = [number for record in records[:-2] for number in record]
    index = read_tables(payload(view, records[-2]), {"records"})["records"]
    expect(index, {"I64"}, [len(records) - 2, 10], "INDEX")
    need(list(index.integers()) == listed, "INDEX differs from the record headers")

    for kind in (MODEL, HEADER):  # before they are decompressed
        need(of_type[kind][0].raw <= MIB, "JSON: more than 1 MiB")
    model = parse_json(payload(view, records[0]))
    geometry = read_model(model)

    token_ids: list[int] = []
    positions: list[int] = []
    for record in of_type[LABELS]:
        rows = min(2**20, 2**26 - record.first)
        need(record.first == len(token_ids) and 1 <= record.number <= rows, "LABELS: rows")
        labels = read_tables(payload(view, record), {"token_ids", "position_offsets"})
        token_ids += read_token_ids(labels["token_ids"], record.number)
        offsets = expect(labels["position_offsets"], {"I64"}, [record.number], "position_offsets").integers()
        positions += [row + offset for row, offset in enumerate(offsets, record.first)]
    need(all(0 <= position <= I64_MAX for position in positions), "LABELS: position out of range")

    for record in records:
        if record.type not in KNOWN:
            payload(view, record)  # held to the rules for frames, not interpreted

    snapshots: list[Snapshot] = []
    for record in of_type[VIEWS]:
        most = min(2**20, 2**22 // len(geometry.layers))
        need(record.first == len(snapshots) and 1 <= record.number <= most - record.first, "VIEWS: snapshots")
        snapshots += read_views(payload(view, record), record.number, len(token_ids), len(geometry.layers))
    need(len(snapshots) >= 1, "no snapshot")
    need(sum(len(snapshot.lines) for snapshot in snapshots) <= 5 * 2**22, "VIEWS: too many spans")
    for snapshot in snapshots:
        for _, _, spans in snapshot.groups():
            ordered = sorted(spans)
            need(all(a[1] <= b[0] for a, b in pairwise(ordered)), "spans: a row is named twice")

    reference: list[int] = []
    for record in of_type[REFERENCE]:
        need(1 <= record.number <= 2**20, "REFERENCE: tokens")
        reference = read_token_ids(read_tables(payload(view, record), {"token_ids"})["token_ids"], record.number)

    stored = of_type[ROWS]
    for record in stored:
        check_rows_record(record, geometry, len(token_ids))
    check_coverage(stored, snapshots, len(geometry.layers))
    kept = [read_kept(view, record, geometry, len(token_ids)) for record in of_type[KEPT]]
    check_kept(kept, stored, snapshots)
    attention = [read_attention(view, record, geometry, len(token_ids)) for record in of_type[ATTENTION]]

    header = parse_json(payload(view, of_type[HEADER][0]))
    load = None
    for record in of_type[PROFILE]:
        load = read_reference(read_tables(payload(view, record)), profile)
    rows = Rows(view, geometry, stored, positions, load)
    document = Document(model, header, token_ids, positions, reference, snapshots, geometry, kept, attention, rows)
    named, whole = (
        [raw_bytes(number) for number in range(len(snapshots))]
        for raw_bytes in (document.raw_bytes, document.unevicted_bytes)
    )
    raw = [(sum(named), named[-1])]
    if sum(named) < sum(whole):
        raw.append((sum(whole), whole[-1]))
    check_header(header, raw, len(data))
    for record in stored:
        rows.of(record)
    return document
