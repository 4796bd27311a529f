"""Opening a .tsc file: everything but the rows is read and checked, without torch; rows are read on demand."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import geometry as geometry_json
from . import header as header_json
from . import views as viewing
from .codecs import BlockShape, Codec, codec_by_id
from .container import RecordReader
from .errors import CorruptError, StorageError, TscError, UsageError
from .limits import MAX_COLUMNS, MAX_INTEGER, MAX_JSON_BYTES, MAX_LABELS_PER_RECORD, MAX_ROWS, MAX_SNAPSHOTS, MAX_SPANS
from .records import RECORD_BYTES, SUPERBLOCK_BYTES, Part, RecordHeader, RecordType
from .tensor_buffer import TensorView, expect, parse
from .trace import Trace
from .views import BlockKey, Labels, View

if TYPE_CHECKING:
    import torch

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
        codec, tensors, shape = self.tensors()
        return codec.decode(tensors, self.key.part, shape, device)


class TraceFile:
    """An open .tsc file: everything but the rows, checked.  Needs no torch."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        descriptor = _open(self.path)
        weakref.finalize(self, os.close, descriptor)  # blocks hold the file, so it stays open as long as they live
        self.reader = RecordReader(descriptor, self.path)
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
        with self.locating():
            viewing.check_coverage(self.views, [block.key for block in self.blocks], self.geometry)
            self._check_sizes()

    @property
    def size(self) -> int:
        return self.reader.size

    def trace(self) -> Trace:
        """The trace, whose rows are read from the file when a snapshot is asked for."""
        return Trace(
            self.geometry, self.fingerprint, self.views, self.labels, self.blocks, self.reference,
            self.header.capture, self.header.quality, self.header.tier, self.size,
        )  # fmt: skip

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
        for offset, entry in records:
            if entry.count > MAX_LABELS_PER_RECORD:
                raise self.reader.corrupt("a labels record holds too many rows", offset, entry.sequence)
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                tokens = _token_ids(tensors, entry.count, {"position_offsets": ("I64", (entry.count,))})
                offsets = tensors["position_offsets"].integers()
                positions = [row + shift for row, shift in enumerate(offsets, entry.first)]
                if min(positions) < 0 or max(positions) > MAX_INTEGER:
                    raise CorruptError("labels: a position is out of range")
            labels.extend(tokens, positions)
        return labels

    def _views(self) -> list[View]:
        views: list[View] = []
        most = min(MAX_SNAPSHOTS, MAX_COLUMNS // len(self.geometry.layers))
        records, total = self._consecutive(RecordType.VIEWS, most)
        total_spans = 0
        if not total:
            raise self.reader.corrupt("there is no snapshot")
        for offset, entry in records:
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                found, spans = viewing.from_tables(
                    tensors, entry.count, len(self.geometry.layers), len(self.labels), "views"
                )
                views += found
                total_spans += spans
                if total_spans > MAX_SPANS:
                    raise CorruptError(f"views: more than {MAX_SPANS} spans")
        return views

    def _reference(self) -> list[int]:
        records, _ = self._consecutive(RecordType.REFERENCE, MAX_LABELS_PER_RECORD)
        if len(records) > 1:
            raise self.reader.corrupt("there is more than one reference record")
        for offset, entry in records:
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                return _token_ids(tensors, entry.count, {})
        return []

    def _blocks(self) -> list[FileBlock]:
        blocks = []
        for offset, entry in self._of_type(RecordType.ROWS):
            layers = self.geometry.layers[entry.first_layer : entry.first_layer + entry.layer_count]
            if entry.part not in _PARTS or not layers or len(layers) != entry.layer_count or len(set(layers)) != 1:
                raise self.reader.corrupt(
                    "a block covers layers that cannot be stored together", offset, entry.sequence
                )
            if not 1 <= entry.count <= len(self.labels) - entry.first:
                raise self.reader.corrupt("a block holds rows without labels", offset, entry.sequence)
            blocks.append(FileBlock(self, offset, entry))
        return blocks

    def _check_sizes(self) -> None:
        raw = [viewing.raw_bytes(self.geometry, view) for view in self.views]
        if (self.header.raw_bytes_trace, self.header.raw_bytes_final) != (sum(raw), raw[-1]):
            raise CorruptError("the tier header states other raw bytes than the snapshots have")


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


def _token_ids(
    tensors: Mapping[str, TensorView], count: int, others: Mapping[str, tuple[str, tuple[int | None, ...]]]
) -> list[int]:
    wide = "token_ids" in tensors and tensors["token_ids"].dtype == "I32"
    expect(tensors, {"token_ids": ("I32" if wide else "U16", (count,)), **others}, "token ids")
    tokens = list(tensors["token_ids"].integers())
    if min(tokens) < 0:
        raise CorruptError("token ids: a negative token id")
    return tokens


def _open(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise StorageError(f"cannot be opened: {error.strerror}", path=path) from error
    if not os.path.isfile(path):
        os.close(descriptor)
        raise UsageError("is not a regular file", path=path)
    return descriptor


def load(path: str | os.PathLike[str]) -> Trace:
    """Open a .tsc file.  Rows are read and checked when a snapshot is asked for.

    Raises:
        StorageError, UsageError: it cannot be read.
        CorruptError, UnsupportedFileError: it is damaged, or needs a newer reader.
    """
    return TraceFile(path).trace()
