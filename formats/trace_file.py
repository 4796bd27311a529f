"""Opening a .tsc file: everything but the rows is read and checked, without torch; rows are read on demand."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from . import geometry as geometry_json
from . import header as header_json
from . import kept as kept_rows
from . import states as state_blocks
from . import views as viewing
from .codecs import BlockShape, Codec, Surroundings, codec_by_id
from .codecs.base import from_planes
from .container import RecordReader
from .encryption import KeySource, Secret
from .errors import CorruptError, LimitError, LockedError, StorageError, TscError, UsageError
from .geometry import LayerSpec
from .kept import Kept
from .klt.reference import ProfileReference, from_tensors
from .limits import (
    MAX_BLOCK_BYTES,
    MAX_CHAIN,
    MAX_COLUMNS,
    MAX_INTEGER,
    MAX_JSON_BYTES,
    MAX_LABELS_PER_RECORD,
    MAX_NEXT_TOKENS,
    MAX_ROWS,
    MAX_SNAPSHOTS,
    MAX_SPANS,
    memory_budget,
)
from .records import RECORD_BYTES, SUPERBLOCK_BYTES, Part, RecordHeader, RecordType
from .states import STATE_CODECS, StateKey
from .tensor_buffer import TensorView, expect, parse
from .trace import Trace
from .views import BlockKey, Labels, Span, View

if TYPE_CHECKING:
    import torch

RATIO_TOLERANCE = 0.002  # a stated ratio is rounded down, and the file's length moves by a byte or two with it
_PARTS = frozenset(part.value for part in Part)
INDEX_COLUMNS = ("offset", "type", "codec", "stored", "raw", "part", "first_layer", "layer_count", "first", "count")


@dataclass(frozen=True)
class FileBlock:
    """A block that is read, checked and decoded when it is asked for."""

    file: TraceFile
    offset: int
    header: RecordHeader

    @property
    def key(self) -> BlockKey:
        h = self.header
        return BlockKey(Part(h.part), h.first_layer, h.layer_count, h.first, h.count)

    def tensors(self) -> tuple[Codec, Mapping[str, TensorView], BlockShape]:
        """The checked payload; no torch."""
        shape = BlockShape.of(self.key, self.file.geometry)
        codec = codec_by_id(self.header.codec, self.file.path)
        tensors = self.file.buffer(self.offset, self.header)
        with self.file.locating(self.offset, self.header):
            if self.key.part not in codec.parts:
                raise CorruptError(f"codec {codec.name} does not write records of part {self.header.part}")
            codec.check(tensors, self.key.part, shape, "rows")
        return codec, tensors, shape

    def read(self, device: str | torch.device = "cpu") -> Mapping[Part, torch.Tensor]:
        return self.file.decoded(self, device)


@dataclass(frozen=True)
class FileStates:
    """States that are read, checked and decoded when they are asked for."""

    file: TraceFile
    offset: int
    header: RecordHeader

    @property
    def key(self) -> StateKey:
        h = self.header
        return StateKey(h.part, h.first_layer, h.layer_count, h.first, h.count)

    def tensors(self) -> tuple[Codec, Mapping[str, TensorView], BlockShape]:
        """The checked payload; no torch."""
        shape = state_blocks.block_shape(self.key, self.file.geometry)
        codec = codec_by_id(self.header.codec, self.file.path)
        tensors = self.file.buffer(self.offset, self.header)
        with self.file.locating(self.offset, self.header):
            if codec.name not in STATE_CODECS:
                raise CorruptError(f"codec {codec.name} does not write states")
            codec.check(tensors, Part.VALUES, shape, "states")
        return codec, tensors, shape

    def read(self, device: str | torch.device = "cpu") -> torch.Tensor:
        codec, tensors, shape = self.tensors()
        with self.file.locating(self.offset, self.header):
            values = codec.decode(tensors, Part.VALUES, shape, device)[Part.VALUES]
        key = self.key
        return state_blocks.from_values(values, self.file.geometry.layers[key.first_layer].states[key.number])


@dataclass(frozen=True)
class FileReceived:
    """Attention that is read when it is asked for."""

    file: TraceFile
    offset: int
    header: RecordHeader
    heads: int

    @property
    def first_layer(self) -> int:
        return self.header.first_layer

    @property
    def layer_count(self) -> int:
        return self.header.layer_count

    def check(self) -> TensorView:
        tensors = self.file.buffer(self.offset, self.header)
        with self.file.locating(self.offset, self.header):
            expect(tensors, {"received": ("U8", (4, self.layer_count, self.heads, self.header.count))}, "attention")
        return tensors["received"]

    def read(self) -> torch.Tensor:
        import torch

        return from_planes(self.check(), torch.float32, "cpu")


class TraceFile:
    """An open .tsc file: everything but the rows, checked.  Needs no torch.

    Args:
        key: the secret of an encrypted file, or what gives it.
    Raises:
        LockedError: the file is encrypted, and no key or another one was given; or a secret was given, and it is not
            encrypted: somebody may have put it there.
        and what `load` raises.
    """

    def __init__(self, path: str | os.PathLike[str], key: KeySource | None = None) -> None:
        self.path = os.fspath(path)
        descriptor = open_file(self.path)
        weakref.finalize(self, os.close, descriptor)  # blocks hold the file, so it stays open as long as they live
        self.reader = RecordReader(descriptor, self.path, key)
        if self.reader.lock is None and isinstance(key, Secret):
            raise LockedError("is not encrypted, and a key was given", path=self.path)
        self.entries = self._index()
        model = self._only(RecordType.MODEL, 0)
        header = self._only(RecordType.HEADER, len(self.entries) - 1)
        for offset, entry in (model, header):
            if entry.raw > MAX_JSON_BYTES:
                raise self.reader.corrupt(f"a {entry.name} record of {entry.raw} bytes", offset, entry.sequence)
        with self.locating(*model):
            self.geometry, self.fingerprint = geometry_json.from_json(self.payload(*model))
        with self.locating(*header):
            self.header = header_json.from_json(self.payload(*header))
        self.labels = self._labels()
        self.views = self._views()
        self.reference = self._reference()
        self.blocks = self._blocks()
        self.kept = self._kept()
        self.states = self._states()
        self.attention = self._attention()
        self.profile = self._profile()
        self._decoded: dict[tuple[int, str], Mapping[Part, torch.Tensor]] = {}
        self._depth = 0
        with self.locating():
            keys = [block.key for block in self.blocks]
            viewing.check_coverage(self.views, keys, self.geometry)
            kept_rows.check(self.kept, self.views, keys, self.geometry)
            state_blocks.check_coverage([one.key for one in self.states], len(self.views), self.geometry)
            self._check_sizes()

    @property
    def size(self) -> int:
        return self.reader.size

    def trace(self) -> Trace:
        """The trace, whose rows are read from the file when a snapshot is asked for."""
        return Trace(
            self.geometry, self.fingerprint, self.views, self.labels, self.blocks, self.reference,
            self.header.capture, self.header.quality, self.header.tier, self.header.codec, self.header.parameters,
            self.kept, self.attention, (self.header.raw_bytes_trace, self.header.raw_bytes_final), self.size,
            self.states, self.reader.secret,
        )  # fmt: skip

    def decoded(self, block: FileBlock, device: str | torch.device) -> Mapping[Part, torch.Tensor]:
        """The rows of a block, and on the way those of the blocks that predict it, each decoded once.

        Raises:
            CorruptError: a block is damaged, or the chain of predictions is too long.
            LimitError: the blocks of the chain take more than the memory budget.
        """
        known = self._decoded.get((block.offset, str(device)))
        if known is not None:
            return known
        if self._depth > MAX_CHAIN:
            raise self.reader.corrupt(f"a chain of more than {MAX_CHAIN} predictions", block.offset)
        self._depth += 1
        try:
            codec, tensors, shape = block.tensors()
            with self.locating(block.offset, block.header):
                rows = codec.decode(tensors, block.key.part, shape, device, self._surroundings(block.key, device))
            if self._depth > 1:
                self._decoded[block.offset, str(device)] = rows
                held = sum(t.nbytes for found in self._decoded.values() for t in found.values())
                if held > memory_budget():
                    raise LimitError(f"predictions take more than the budget of {memory_budget()} bytes")
            return rows
        finally:
            self._depth -= 1
            if not self._depth:
                self._decoded.clear()

    def _surroundings(self, key: BlockKey, device: str | torch.device) -> Surroundings:
        return Surroundings(
            first_layer=key.first_layer, positions=self.labels.positions[key.first_row : key.span.stop],
            fetch=partial(self._fetch, key, device), profile=None if self.profile is None else self.profile.load,
        )  # fmt: skip

    def _fetch(self, wanted: BlockKey, device: str | torch.device, numbers: Sequence[int]) -> torch.Tensor:
        """Decoded rows of the layers and the part of `wanted`: (layers, batch, heads, len(numbers), head size)."""
        import torch

        spec = self.geometry.layers[wanted.first_layer]
        heads, size = spec.part_heads(wanted.part), spec.head_size(wanted.part)
        shape = (wanted.layer_count, self.geometry.batch, heads, len(numbers), size)
        result = torch.empty(shape, dtype=getattr(torch, self.geometry.dtype), device=device)
        missing = wanted.layer_count * len(numbers)
        for block in self.blocks:
            first = max(block.key.first_layer, wanted.first_layer)
            stop = min(block.key.first_layer + block.key.layer_count, wanted.first_layer + wanted.layer_count)
            span = block.key.span
            found = [(at, number - span.first) for at, number in enumerate(numbers) if span.first <= number < span.stop]
            whole = block.key.part is Part.JOINT and wanted.part is not Part.INDEXER
            if first >= stop or not found or not (whole or block.key.part is wanted.part):
                continue
            rows = self.decoded(block, device)[wanted.part][
                first - block.key.first_layer : stop - block.key.first_layer
            ]
            target = result[first - wanted.first_layer : stop - wanted.first_layer]
            target[..., [at for at, _ in found], :] = rows[..., [row for _, row in found], :]
            missing -= (stop - first) * len(found)
        if missing:
            raise CorruptError("rows are predicted from rows that the file does not hold")
        return result

    def payload(self, offset: int, entry: RecordHeader) -> bytes:
        """The payload of a record, whose own header must say what the index says of it."""
        return self.reader.payload(offset, self._header(offset, entry))

    def _header(self, offset: int, entry: RecordHeader) -> RecordHeader:
        header = self.reader.header_at(offset, entry.sequence)
        if _described(header) != _described(entry):
            raise self.reader.corrupt("the index describes this record wrongly", offset, entry.sequence)
        return header

    def buffer(self, offset: int, entry: RecordHeader) -> dict[str, TensorView]:
        payload = self.payload(offset, entry)
        with self.locating(offset, entry):
            return parse(payload, entry.name)

    def locating(self, offset: int | None = None, entry: RecordHeader | None = None) -> _Locating:
        """A context in which a TscError learns the file, record and offset concerned."""
        return _Locating(self.path, offset, entry.sequence if entry else None)

    def _index(self) -> list[tuple[int, RecordHeader]]:
        index_offset, count = self.reader.end()
        if count < 4 or not SUPERBLOCK_BYTES <= index_offset < self.size:
            raise self.reader.corrupt("the end mark points outside the file", self.size)
        header = self.reader.header_at(index_offset, count - 2)
        end_offset = self.size - RECORD_BYTES - 8
        if header.type != RecordType.INDEX or index_offset + RECORD_BYTES + header.stored != end_offset:
            raise self.reader.corrupt("the end mark does not point to the index", index_offset, count - 2)
        with self.locating(index_offset, header):
            tensors = parse(self.reader.payload(index_offset, header), "index")
            expect(tensors, {"records": ("I64", (count - 2, len(INDEX_COLUMNS)))}, "index")
        table, entries, at = tensors["records"].integers(), [], SUPERBLOCK_BYTES
        for sequence in range(count - 2):
            line = table[sequence * len(INDEX_COLUMNS) : (sequence + 1) * len(INDEX_COLUMNS)]
            offset, kind, codec, stored, raw, part, first_layer, layers, first, length = line
            if min(line) < 0 or kind in (RecordType.INDEX, RecordType.END):
                raise self.reader.corrupt(f"the index lists record {sequence} as what it cannot be", index_offset)
            if offset != at or not 0 <= stored <= index_offset - at - RECORD_BYTES:
                raise self.reader.corrupt("the index does not tile the file", index_offset, count - 2)
            entry = RecordHeader(kind, sequence, stored, raw, codec, part, first_layer, layers, first, length)
            if kind != RecordType.ROWS:  # of these few, the index could otherwise hide one, even one marked as needed
                self._header(offset, entry)
            entries.append((offset, entry))
            at = offset + RECORD_BYTES + stored
        if at != index_offset:
            raise self.reader.corrupt("the index does not tile the file", index_offset, count - 2)
        return entries

    def _of_type(self, kind: RecordType) -> list[tuple[int, RecordHeader]]:
        return [(offset, entry) for offset, entry in self.entries if entry.type == kind]

    def _only(self, kind: RecordType, sequence: int) -> tuple[int, RecordHeader]:
        found = self._of_type(kind)
        if len(found) != 1 or found[0][1].sequence != sequence:
            raise self.reader.corrupt(f"there must be one {kind.name.lower()} record, as record {sequence}")
        return found[0]

    def _consecutive(self, kind: RecordType, most: int) -> tuple[list[tuple[int, RecordHeader]], int]:
        """The records of a type whose ranges follow on one another from 0, and where they stop."""
        found, at = self._of_type(kind), 0
        for offset, entry in found:
            if entry.first != at or not 1 <= entry.count <= most - at:
                raise self.reader.corrupt(f"{entry.name} records do not follow on one another", offset, entry.sequence)
            at += entry.count
        return found, at

    def _labels(self) -> Labels:
        labels = Labels()
        records, _ = self._consecutive(RecordType.LABELS, MAX_ROWS)
        widths: set[int] = set()
        for offset, entry in records:
            if entry.count > MAX_LABELS_PER_RECORD:
                raise self.reader.corrupt("a labels record holds too many rows", offset, entry.sequence)
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                tokens, width = _labelled_ids(tensors, entry.count, self.geometry.batch)
                widths.add(width)
                if len(widths) != 1:
                    raise CorruptError("labels: some records have ids for each sequence, some for all")
                if (len(labels) + entry.count) * width > MAX_ROWS:
                    raise CorruptError(f"labels: more than {MAX_ROWS} token ids")
                offsets = tensors["position_offsets"].integers()
                positions = [row + shift for row, shift in enumerate(offsets, entry.first)]
                if min(positions) < 0 or max(positions) > MAX_INTEGER:
                    raise CorruptError("labels: a position is out of range")
            labels.extend(tokens, positions)
        labels.width = widths.pop() if widths else 1
        return labels

    def _views(self) -> list[View]:
        views: list[View] = []
        most = min(MAX_SNAPSHOTS, MAX_COLUMNS // len(self.geometry.layers))
        records, total = self._consecutive(RecordType.VIEWS, most)
        total_spans = 0
        if not total:
            raise self.reader.corrupt("there is no snapshot")
        if self.labels.width > 1 and total * self.labels.width > MAX_NEXT_TOKENS:
            raise self.reader.corrupt(f"more than {MAX_NEXT_TOKENS} next tokens")
        for offset, entry in records:
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                found, spans = viewing.from_tables(tensors, entry.count, self.geometry, self.labels, "views")
                views += found
                total_spans += spans
                if total_spans > MAX_SPANS:
                    raise CorruptError(f"views: more than {MAX_SPANS} spans")
        return views

    def _reference(self) -> list[int]:
        # `first` is 0 in each of them, so that two do not follow on one another
        records, _ = self._consecutive(RecordType.REFERENCE, MAX_LABELS_PER_RECORD)
        for offset, entry in records:
            if self.labels.width > 1:
                raise self.reader.corrupt("a reference beside sequences that hold different tokens", offset)
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                return list(_token_ids(tensors, (entry.count,), {}))
        return []

    def _blocks(self) -> list[FileBlock]:
        blocks = []
        for offset, entry in self._of_type(RecordType.ROWS):
            if entry.part not in _PARTS:
                raise self.reader.corrupt(f"a block of part {entry.part}", offset, entry.sequence)
            if Part(entry.part) not in (Part.JOINT, *self._layers(offset, entry, "a block").parts):
                raise self.reader.corrupt("a block of indexer keys that its layers do not have", offset, entry.sequence)
            if not 1 <= entry.count <= len(self.labels) - entry.first:
                raise self.reader.corrupt("a block holds rows without labels", offset, entry.sequence)
            if entry.layer_count * entry.count * self.geometry.row_bytes[entry.first_layer] > MAX_BLOCK_BYTES:
                raise self.reader.corrupt(f"a block of more than {MAX_BLOCK_BYTES} bytes", offset, entry.sequence)
            blocks.append(FileBlock(self, offset, entry))
        return blocks

    def _layers(self, offset: int, entry: RecordHeader, what: str, *, rows: bool = True) -> LayerSpec:
        """What the layers that a record covers are like, all of them; they have rows unless it is not about rows."""
        first, stop = entry.first_layer, entry.first_layer + entry.layer_count
        if not first < stop <= len(self.geometry.layers) or self.geometry.run_ends[first] < stop:
            raise self.reader.corrupt(f"{what} covers layers that cannot be stored together", offset, entry.sequence)
        spec = self.geometry.layers[first]
        if rows and not spec.parts:
            raise self.reader.corrupt(f"{what} covers layers that keep no rows", offset, entry.sequence)
        return spec

    def _states(self) -> list[FileStates]:
        found = []
        for offset, entry in self._of_type(RecordType.STATES):
            spec = self._layers(offset, entry, "a states record", rows=False)
            if entry.part >= len(spec.states):
                raise self.reader.corrupt(f"a states record of state {entry.part}", offset, entry.sequence)
            if not 1 <= entry.count <= len(self.views) - entry.first:
                raise self.reader.corrupt("a states record of snapshots that there are not", offset, entry.sequence)
            values = entry.layer_count * entry.count * self.geometry.batch * spec.states[entry.part].bytes
            if values > MAX_BLOCK_BYTES:
                raise self.reader.corrupt(f"states of more than {MAX_BLOCK_BYTES} bytes", offset, entry.sequence)
            found.append(FileStates(self, offset, entry))
        return found

    def _kept(self) -> list[Kept]:
        found = []
        for offset, entry in self._of_type(RecordType.KEPT):
            spec = self._layers(offset, entry, "a map of kept rows")
            if spec.index_size:
                raise self.reader.corrupt("a map of kept rows with indexer keys", offset, entry.sequence)
            if not 1 <= entry.count <= len(self.labels) - entry.first:
                raise self.reader.corrupt("a map of kept rows without labels", offset, entry.sequence)
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                span = Span(entry.first, entry.count)
                found.append(
                    kept_rows.from_tensors(tensors, entry.first_layer, entry.layer_count, span, spec.heads, "kept")
                )
        return found

    def _attention(self) -> list[FileReceived]:
        found = []
        for offset, entry in self._of_type(RecordType.ATTENTION):
            spec = self._layers(offset, entry, "attention")
            if not 1 <= entry.count <= len(self.labels):
                raise self.reader.corrupt("attention to rows without labels", offset, entry.sequence)
            found.append(FileReceived(self, offset, entry, spec.heads))
        return found

    def _profile(self) -> ProfileReference | None:
        records = self._of_type(RecordType.PROFILE)
        if len(records) > 1:
            raise self.reader.corrupt("there is more than one profile record")
        for offset, entry in records:
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                return from_tensors(tensors, "profile record")
        return None

    def _check_sizes(self) -> None:
        stated = self.header.raw_bytes_trace, self.header.raw_bytes_final
        raw = [viewing.raw_bytes(self.geometry, view) for view in self.views]
        whole = [viewing.unevicted_bytes(self.geometry, view) for view in self.views]
        # rows may have been evicted since the capture, but no more than there were tokens
        evicted = sum(raw) < sum(whole)
        allowed = [(sum(raw), raw[-1])] + [(sum(whole), whole[-1])] * evicted
        if stated not in allowed:
            raise CorruptError("the tier header states other raw bytes than the snapshots have")
        if self.header.ratios is not None:
            for ratio, value in zip(self.header.ratios, stated, strict=True):
                if not abs(ratio * self.size / value - 1) <= RATIO_TOLERANCE:
                    raise CorruptError("the tier header states another ratio than the file has")


class _Locating:
    def __init__(self, path: str, offset: int | None, record: int | None) -> None:
        self._place = (path, offset, record)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, TscError) and error.path is None:
            error.path, error.offset, error.record = self._place


def _described(header: RecordHeader) -> tuple[int, ...]:
    return (
        header.type, header.codec, header.stored, header.raw, header.part, header.first_layer, header.layer_count,
        header.first, header.count,
    )  # fmt: skip


def _labelled_ids(tensors: Mapping[str, TensorView], count: int, batch: int) -> tuple[Sequence[int], int]:
    """(token ids, how many a row) of a LABELS payload: one, or one for each sequence."""
    by_sequence = batch > 1 and "token_ids" in tensors and len(tensors["token_ids"].shape) == 2
    shape = (count, batch) if by_sequence else (count,)
    return _token_ids(tensors, shape, {"position_offsets": ("I64", (count,))}), batch if by_sequence else 1


def _token_ids(
    tensors: Mapping[str, TensorView], shape: tuple[int, ...],
    others: Mapping[str, tuple[str, tuple[int | None, ...]]],
) -> Sequence[int]:  # fmt: skip
    wide = "token_ids" in tensors and tensors["token_ids"].dtype == "I32"
    expect(tensors, {"token_ids": ("I32" if wide else "U16", shape), **others}, "token ids")
    tokens = tensors["token_ids"].integers()
    if min(tokens) < 0:
        raise CorruptError("token ids: a negative token id")
    return tokens


def open_file(path: str) -> int:
    """A descriptor of a regular file, to read.  Raises StorageError, UsageError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise StorageError(f"cannot be opened: {error.strerror}", path=path) from error
    if not os.path.isfile(path):
        os.close(descriptor)
        raise UsageError("is not a regular file", path=path)
    return descriptor


def load(path: str | os.PathLike[str], key: KeySource | None = None) -> Trace:
    """Open a .tsc file.  Rows are read and checked when a snapshot is asked for.

    Args:
        key: the secret of an encrypted file, or what gives it.
    Raises:
        StorageError, UsageError: it cannot be read.
        LockedError: it is encrypted, and no key or another one was given.
        CorruptError, UnsupportedFileError: it is damaged, or needs a newer reader.
    """
    return TraceFile(path, key).trace()
