"""A second reader of .tsc files, for checking the first.

Written from docs/format.md alone; it shares no code with the product. Where the product is built to be fast and to
open files piecemeal, this reader is built to be compared with the text: it takes the bytes of a whole file, checks
every rule of the specification, and either returns a `Document` or raises `Refused`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, product

import numpy as np

from tests.format_conformance.second_reader.codecs import (
    CHAIN,
    KNOWN_CODECS,
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
from tests.format_conformance.second_reader.encryption import Secret, decrypted
from tests.format_conformance.second_reader.klt import decode_klt
from tests.format_conformance.second_reader.model import Geometry, read_model
from tests.format_conformance.second_reader.payload import (
    I64_MAX,
    MIB,
    as_integer,
    as_list,
    as_object,
    as_text,
    parse_json,
    read_tables,
)
from tests.format_conformance.second_reader.profile import Profile, read_reference
from tests.format_conformance.second_reader.records import (
    ATTENTION,
    HEADER,
    KEPT,
    KNOWN,
    LABELS,
    LAYERED,
    MODEL,
    PROFILE,
    REFERENCE,
    ROWS,
    STATES,
    VIEWS,
    Record,
    payload,
    read_records,
    read_superblock,
)
from tests.format_conformance.second_reader.states import (
    check_layers,
    check_size,
    check_states,
    check_states_record,
    read_states_record,
)

TABLE_BUDGET = 192 * MIB  # this reader's own: decompressed bytes of all tables but ROWS and STATES
SNAPSHOT_BUDGET = 2048 * MIB  # this reader's own: bytes of one snapshot, eight times its token ids
PARTS: tuple[Part, ...] = ("keys", "values", "indexer")

Span = tuple[int, int]  # first row, row behind the last


# HEADER


def check_header(header: dict[str, object], raw: list[tuple[int, int]], length: int, *, exact: bool) -> None:
    """`raw`: what the raw bytes of the trace and of its last snapshot may be; `length`: of the file; `exact`: whether
    MODEL allows that the rows are as captured.
    """
    sizes = {"raw_bytes_trace", "raw_bytes_final", "ratio_trace", "ratio_final"}
    as_object(header, "HEADER", {"schema", "tier", "created_by", "capture", "quality", "codec", "parameters"} | sizes)
    need(header["schema"] == "tsc.header/1", "HEADER: schema")
    for name in ("tier", "created_by", "codec"):
        as_text(header[name], f"HEADER: {name}")
    free_form = [header["capture"], header["parameters"]]
    for entry in [*free_form, *as_list(header["quality"], "HEADER: quality", 2**20)]:
        for value in as_object(entry, "HEADER: capture, parameters or quality").values():
            need(not isinstance(value, list | dict), "HEADER: nested value in capture, parameters or quality")
    names = ("raw_bytes_trace", "raw_bytes_final")
    stated = tuple(as_integer(header[name], f"HEADER: {name}", 1, I64_MAX) for name in names)
    need(stated in raw, "HEADER: raw bytes are wrong")
    for name, raw_bytes in zip(("ratio_trace", "ratio_final"), stated, strict=True):
        ratio = header[name]
        if isinstance(ratio, bool) or not isinstance(ratio, int | float):
            corrupt(f"HEADER: {name} is not a number")
        need(abs(ratio * length / raw_bytes - 1) <= 0.002, f"HEADER: {name} is wrong")
    check_tier(as_text(header["tier"], "HEADER: tier"), stated[0], length)
    if header["tier"] == "lossless":
        need(exact and header["codec"] in ("", "lossless"), "HEADER: tier lossless of rows that lost something")


def check_tier(tier: str, raw_bytes: int, length: int) -> None:
    whole, point, part = tier[:-1].partition(".")
    digits = (whole, part) if point else (whole,)
    if tier[-1:] == "x" and all(text.isascii() and text.isdigit() and len(text) <= 20 for text in digits):
        need(int(whole + part) * length <= raw_bytes * 10 ** len(part), "HEADER: the ratio of the tier is not kept")


# Tables


def read_token_ids(tensor: Tensor, count: int, batch: int = 1) -> Array:
    """Of one sequence, [count, 1], or, where the batch may have a column for each, [count, batch]."""
    several = batch > 1 and len(tensor.shape) == 2
    ids = expect(tensor, {"U16", "I32"}, [count, batch] if several else [count], "token_ids").values()
    need(int(ids.min(initial=0)) >= 0, "token_ids: negative")
    return ids.reshape(count, -1).astype(np.int64)


@dataclass(frozen=True)
class Snapshot:
    next_tokens: tuple[int, ...]  # of each sequence, or one
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


def read_views(raw: bytes, count: int, labels: Array, geometry: Geometry) -> list[Snapshot]:
    total_rows, columns = labels.shape
    with_rows = [layer.has_rows for layer in geometry.layers]
    total_layers = len(with_rows)

    def following(layer: int) -> int:
        """The first layer from `layer` on that has rows."""
        while layer < total_layers and not with_rows[layer]:
            layer += 1
        return layer

    tables = read_tables(raw, {"spans", "next_tokens"})
    chosen = [count] if columns == 1 else [count, columns]
    next_tokens = expect(tables["next_tokens"], {"I64"}, chosen, "next_tokens").integers()
    shape = tables["spans"].shape
    need(len(shape) == 2 and shape[0] <= 2**22, "spans: shape")
    lines = expect(tables["spans"], {"I64"}, [shape[0], 5], "spans").integers()
    snapshots: list[Snapshot] = []
    at = 0
    for number in range(count):
        begin, covered = at, following(0)
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
                need(all(with_rows[layer : layer + layers]), "spans: rows of a layer that has none")
                covered = following(layer + layers)
            group = (layer, layers)
        need(covered == total_layers, "spans: a snapshot does not cover all layers")
        tokens = tuple(next_tokens[number * columns : (number + 1) * columns])
        snapshots.append(Snapshot(tokens, lines[begin:at]))
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
    need(layer.has_rows and not layer.index_size, "KEPT: layers without rows, or with indexer keys")
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
    need(layer.has_rows, "ATTENTION: layers without rows")
    need(1 <= record.number <= total_rows, "ATTENTION: rows")
    shape = [4, record.layer_count, layer.heads, record.number]
    octets = expect(read_tables(payload(data, record), {"received"})["received"], {"U8"}, shape, "received").octets()
    return Attention(record.layers, np.moveaxis(octets, 0, -1).tobytes())


# Rows


def parts_of(record: Record) -> tuple[Part, ...]:
    return (("keys", "values"), ("keys",), ("values",), ("indexer",))[record.part]


def block_of(record: Record, geometry: Geometry, part: Part) -> Block:
    layer = geometry.layers[record.first_layer]
    return Block(
        geometry.dtype, part, record.layer_count, geometry.batch, *layer.shape(part), record.first, record.number
    )


def check_rows_record(record: Record, geometry: Geometry, total_rows: int) -> None:
    need(record.codec != 0, "ROWS: codec 0")
    if record.codec not in KNOWN_CODECS:
        raise Refused(f"unsupported: codec {record.codec}")
    layer = check_layers(record, geometry)
    need(layer.has_rows, "ROWS: layers without rows")
    parts = (0,) if record.codec == 6 else (1, 2, 3) if layer.index_size else (1, 2)
    need(record.part in parts, "ROWS: part")
    need(record.number >= 1 and record.first + record.number <= total_rows, "ROWS: rows")
    whole = geometry.item * geometry.batch * record.layer_count * record.number * layer.row_values
    check_size("ROWS", whole, sum(block_of(record, geometry, part).bytes for part in parts_of(record)))


class Rows:
    """The rows of all ROWS records, decoded when they are asked for, and kept."""

    def __init__(
        self,
        data: memoryview,
        geometry: Geometry,
        stored: list[Record],
        positions: list[int],
        load: Callable[[], Profile] | None,
    ) -> None:
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
            other
            for other in self.stored
            if parts_of(record)[0] in parts_of(other)
            and layer in other.layers
            and 0 <= number - other.first < other.number
        ]
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


def check_coverage(stored: list[Record], snapshots: list[Snapshot], geometry: Geometry) -> None:
    """Nothing stored twice, keys, values and indexer keys of the same rows, and every named row stored."""
    starts: dict[int, list[Record]] = {}
    for record in stored:
        starts.setdefault(record.first_layer, []).append(record)
    by_layer: list[list[Span]] = []
    active: list[Record] = []
    for layer, described in enumerate(geometry.layers):
        still = [record for record in active if layer in record.layers]
        if by_layer and layer not in starts and len(still) == len(active):
            by_layer.append(by_layer[-1])  # the same records as for the layer before
            continue
        active = still + starts.get(layer, [])
        keys, values, indexer = (
            union(((r.first, r.first + r.number) for r in active if part in parts_of(r)), disjoint=True)
            for part in PARTS
        )
        need(keys == values, f"layer {layer}: keys and values of different rows are stored")
        need(indexer == (keys if described.index_size else []), f"layer {layer}: indexer keys of different rows")
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
    labels: Array  # token ids, [rows, 1], or [rows, batch] where the sequences hold different tokens
    positions: list[int]
    reference: list[int]
    snapshots: list[Snapshot]
    geometry: Geometry
    kept: list[Kept]
    attention: list[Attention]
    rows: Rows = field(repr=False)
    states_stored: list[Record] = field(repr=False)

    @property
    def token_ids(self) -> list[int]:
        """Of the first sequence."""
        ids: list[int] = self.labels[:, 0].tolist()
        return ids

    def next_token(self, number: int) -> int | None:
        tokens = self.snapshots[number].next_tokens
        token = min(tokens) if min(tokens) < 0 else tokens[0]
        return token if token >= 0 else None

    def history(self, number: int, sequence: int = 0) -> list[int]:
        """The token ids that the model had been fed at a snapshot."""
        column = sequence if self.labels.shape[1] > 1 else 0
        ids: list[int] = self.labels[self.history_rows(number), column].tolist()
        return ids

    def history_positions(self, number: int) -> list[int]:
        return [self.positions[row] for row in self.history_rows(number)]

    def history_rows(self, number: int) -> list[int]:
        spans = [span for layer, _, rows in self.snapshots[number].groups() if layer == -1 for span in rows]
        if sum(stop - begin for begin, stop in spans) > SNAPSHOT_BUDGET // 8:
            raise Refused("budget: history")
        return [row for begin, stop in spans for row in range(begin, stop)]

    def raw_bytes(self, number: int) -> int:
        """The bytes of the tensors of a snapshot."""
        total = self.geometry.state_bytes
        for first, layers, spans in self.snapshots[number].groups():
            rows = sum(stop - begin for begin, stop in spans)
            if first >= 0:
                total += rows * (self.geometry.row_bytes[first + layers] - self.geometry.row_bytes[first])
        return total

    def unevicted_bytes(self, number: int) -> int:
        """The bytes that the tensors of a snapshot had if all rows were there that the model keeps."""
        groups = self.snapshots[number].groups()
        tokens = sum(stop - begin for layer, _, spans in groups if layer == -1 for begin, stop in spans)
        total = self.geometry.state_bytes
        described = zip(pairwise(self.geometry.row_bytes), self.geometry.layers, self.spans(number), strict=True)
        for (before, after), layer, spans in described:
            rows = tokens if layer.window is None else min(tokens, layer.window - 1)
            if layer.kind == "cross":
                rows = sum(stop - begin for begin, stop in spans)
            total += (after - before) * rows
        return total

    def spans(self, number: int) -> list[list[Span]]:
        """For each layer the rows of a snapshot."""
        rows: list[list[Span]] = [[]] * len(self.geometry.layers)
        for first, layers, spans in self.snapshots[number].groups():
            if first >= 0:
                rows[first : first + layers] = [spans] * layers
        return rows

    def row_positions(self, number: int) -> list[list[list[int]]]:
        """For each layer and each of its heads the positions of the rows of a snapshot."""
        result = []
        for layer, spans in enumerate(self.spans(number)):
            maps = [one for one in self.kept if layer in one.layers]
            heads = []
            for head in range(self.geometry.layers[layer].heads):
                meant: dict[int, int] = {}  # the row that a slot stands for
                for one in maps:
                    meant.update(enumerate(one.rows[layer - one.layers.start][head], one.span[0]))
                numbers = [row for span in spans for row in range(*span)]
                heads.append([self.positions[meant.get(row, row)] for row in numbers])
            result.append(heads)
        return result

    def snapshot(self, number: int) -> list[tuple[bytes, bytes]]:
        """Keys and values of each layer: little-endian values, [batch, heads, rows, size]; empty without rows."""
        keys, values, _ = self.tensors(number)
        return list(zip(keys, values, strict=True))

    def indexer_keys(self, number: int) -> list[bytes]:
        """Those of each layer: little-endian values, [batch, 1, rows, size]; empty where it has none."""
        return self.tensors(number)[2]

    def states(self, number: int) -> list[list[bytes]]:
        """All states of each layer: little-endian values, [batch, *shape]."""
        self.check_budget(number)
        found = [[b""] * len(layer.states) for layer in self.geometry.layers]
        for record in self.states_stored:
            if record.first <= number < record.first + record.number:
                bits = read_states_record(self.rows.data, record, self.geometry)
                for layer, of_layer in zip(record.layers, bits, strict=True):
                    found[layer][record.part] = of_layer[:, :, number - record.first].tobytes()
        return found

    def check_budget(self, number: int) -> None:
        if self.raw_bytes(number) > SNAPSHOT_BUDGET:
            raise Refused("budget: snapshot")

    def tensors(self, number: int) -> list[list[bytes]]:
        """Of all keys, all values and all indexer keys those of each layer."""
        self.check_budget(number)
        rows = self.spans(number)
        found: dict[Part, list[Array]] = {part: [] for part in PARTS}
        for part, buffers in found.items():
            for layer, spans in zip(self.geometry.layers, rows, strict=True):
                length = sum(stop - begin for begin, stop in spans)
                heads, size = layer.shape(part)
                shape = (self.geometry.batch, heads, length, size)
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
        return [[buffer.tobytes() for buffer in buffers] for buffers in found.values()]


def read(data: bytes, profile: bytes | None = None, secret: Secret | None = None) -> Document:
    """Check a whole file by every rule of the specification; `profile` is one that the file may name, `secret` the key
    or passphrase of an encrypted one."""
    view = memoryview(data)
    records = read_records(view, read_superblock(view))
    view = decrypted(view, records, secret)
    of_type = {kind: [record for record in records if record.type == kind] for kind in KNOWN}
    size = sum(record.raw for kind in KNOWN - {MODEL, HEADER, ROWS, STATES} for record in of_type[kind])
    if size > TABLE_BUDGET:
        raise Refused(f"budget: {size} bytes of tables")

    modest = sum(record.raw for kind in (LABELS, VIEWS, KEPT, REFERENCE) for record in of_type[kind])
    need(modest <= 16 * MIB + 64 * len(data), f"tables of {modest} bytes in a file of {len(data)}")

    layers = sum(min(record.layer_count, 4_096) for record in records if record.type in LAYERED)
    need(layers <= 2**18 + len(data) // 4, f"{layers} layers of records in a file of {len(data)}")
    need(records[-2].raw <= 8 + MIB + 80 * len(records[:-2]), "INDEX longer than any")

    listed = [number for record in records[:-2] for number in record]
    index = read_tables(payload(view, records[-2]), {"records"})["records"]
    expect(index, {"I64"}, [len(records) - 2, 10], "INDEX")
    need(list(index.integers()) == listed, "INDEX differs from the record headers")

    for kind in (MODEL, HEADER):  # before they are decompressed
        need(of_type[kind][0].raw <= MIB, "JSON: more than 1 MiB")
    model = parse_json(payload(view, records[0]))
    geometry = read_model(model)

    columns: list[Array] = []
    positions: list[int] = []
    for record in of_type[LABELS]:
        most = min(2**20, 2**26 - record.first)
        need(record.first == len(positions) and 1 <= record.number <= most, "LABELS: rows")
        tables = read_tables(payload(view, record), {"token_ids", "position_offsets"})
        ids = read_token_ids(tables["token_ids"], record.number, geometry.batch)
        need(not columns or ids.shape[1] == columns[0].shape[1], "LABELS: token ids of one and of all sequences")
        columns.append(ids)
        need(sum(one.size for one in columns) <= 2**26, "LABELS: token ids")
        offsets = expect(tables["position_offsets"], {"I64"}, [record.number], "position_offsets").integers()
        positions += [row + offset for row, offset in enumerate(offsets, record.first)]
    need(all(0 <= position <= I64_MAX for position in positions), "LABELS: position out of range")
    labels = np.concatenate(columns) if columns else np.zeros((0, 1), np.int64)

    for record in records:
        if record.type not in KNOWN:
            payload(view, record)  # held to the rules for frames, not interpreted

    snapshots: list[Snapshot] = []
    for record in of_type[VIEWS]:
        most = min(2**20, 2**22 // len(geometry.layers))
        need(record.first == len(snapshots) and 1 <= record.number <= most - record.first, "VIEWS: snapshots")
        snapshots += read_views(payload(view, record), record.number, labels, geometry)
    need(len(snapshots) >= 1, "no snapshot")
    need(labels.shape[1] == 1 or len(snapshots) * labels.shape[1] <= 2**22, "VIEWS: next tokens")
    need(sum(len(snapshot.lines) for snapshot in snapshots) <= 5 * 2**22, "VIEWS: too many spans")
    for snapshot in snapshots:
        for _, _, spans in snapshot.groups():
            ordered = sorted(spans)
            need(all(a[1] <= b[0] for a, b in pairwise(ordered)), "spans: a row is named twice")

    reference: list[int] = []
    for record in of_type[REFERENCE]:
        need(1 <= record.number <= 2**20, "REFERENCE: tokens")
        need(labels.shape[1] == 1, "REFERENCE: beside sequences that hold different tokens")
        table = read_tables(payload(view, record), {"token_ids"})["token_ids"]
        reference = read_token_ids(table, record.number)[:, 0].tolist()

    stored = of_type[ROWS]
    for record in stored:
        check_rows_record(record, geometry, len(labels))
    check_coverage(stored, snapshots, geometry)
    for record in of_type[STATES]:
        check_states_record(record, geometry, len(snapshots))
    check_states(of_type[STATES], geometry, len(snapshots))
    kept = [read_kept(view, record, geometry, len(labels)) for record in of_type[KEPT]]
    check_kept(kept, stored, snapshots)
    attention = [read_attention(view, record, geometry, len(labels)) for record in of_type[ATTENTION]]

    header = parse_json(payload(view, of_type[HEADER][0]))
    load = None
    for record in of_type[PROFILE]:
        load = read_reference(read_tables(payload(view, record)), profile)
    rows = Rows(view, geometry, stored, positions, load)
    document = Document(
        model, header, labels, positions, reference, snapshots, geometry, kept, attention, rows, of_type[STATES]
    )
    named, whole = (
        [raw_bytes(number) for number in range(len(snapshots))]
        for raw_bytes in (document.raw_bytes, document.unevicted_bytes)
    )
    raw = [(sum(named), named[-1])]
    if sum(named) < sum(whole):
        raw.append((sum(whole), whole[-1]))
    check_header(header, raw, len(data), exact="lost_by" not in model)
    for record in stored:
        rows.of(record)
    for record in of_type[STATES]:
        read_states_record(view, record, geometry)
    return document
