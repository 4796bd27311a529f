"""A .tsc file as records: its index, checked, and the payload of each record on demand."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence

from formats.container.encryption import KeySource, Secret
from formats.container.reader import RecordReader
from formats.container.records import LAYERED, RECORD_BYTES, SUPERBLOCK_BYTES, TABLES, RecordHeader, RecordType
from formats.container.safetensors_buffer import TensorView, expect, parse
from formats.errors import CorruptError, Locating, LockedError, StorageError, UsageError
from formats.limits import (
    FREE_LAYERS,
    FREE_TABLES,
    LAYERS_SHARE,
    MAX_JSON_BYTES,
    MAX_LAYERS,
    TABLES_COST,
    TABLES_RATIO,
    require_memory,
)

INDEX_COLUMNS = ("offset", "type", "codec", "stored", "raw", "part", "first_layer", "layer_count", "first", "count")


def most_of_index(lines: int) -> int:
    """Bytes that an INDEX of so many lines may have: a header, and its integers."""
    return 8 + MAX_JSON_BYTES + 8 * len(INDEX_COLUMNS) * lines


def parse_index(payload: bytes, lines: int) -> list[tuple[int, RecordHeader]]:
    """(offset, header) of each record before an INDEX record, as its payload states them.  Raises
    CorruptError.

    Args:
        lines: how many records there are.
    """
    tensors = parse(payload, "index")
    expect(tensors, {"records": ("I64", (lines, len(INDEX_COLUMNS)))}, "index")
    numbers, found = tensors["records"].integers(), []
    for sequence in range(lines):
        line = numbers[sequence * len(INDEX_COLUMNS) : (sequence + 1) * len(INDEX_COLUMNS)]
        if min(line) < 0:
            raise CorruptError(f"the index lists record {sequence} as what it cannot be")
        offset, kind, codec, stored, raw, part, first_layer, layers, first, count = line
        header = RecordHeader(kind, sequence, stored, raw, codec, part, first_layer, layers, first, count)
        found.append((offset, header))
    return found


class RecordFile:
    """An open .tsc file, of which the end mark and the index are checked.

    Args:
        key: the secret of an encrypted file, or what gives it.
    Attributes:
        entries: (offset, header) of each record before the index, in file order; as the index
            states them.
    Raises:
        LockedError: the file is encrypted, and no key or another one was given; or a secret was
            given, and it is not encrypted: somebody may have put it there.
        StorageError, UsageError: it cannot be read.
        CorruptError, UnsupportedFileError: it is damaged, or needs a newer reader.
    """

    def __init__(self, path: str | os.PathLike[str], key: KeySource | None = None) -> None:
        self.path = os.fspath(path)
        descriptor = open_file(self.path)
        # blocks hold the file, so it stays open as long as they live
        weakref.finalize(self, os.close, descriptor)
        self.reader = RecordReader(descriptor, self.path, key)
        if self.reader.lock is None and isinstance(key, Secret):
            raise LockedError("is not encrypted, and a key was given", path=self.path)
        self.entries = self._index()
        with self.locating():
            require_proportionate([entry for _, entry in self.entries], self.size)

    @property
    def size(self) -> int:
        return self.reader.size

    def payload(self, offset: int, entry: RecordHeader) -> bytes:
        """The payload of a record, whose own header must say what the index says of it."""
        return self.reader.payload(offset, self.header_of(offset, entry))

    def header_of(self, offset: int, entry: RecordHeader) -> RecordHeader:
        header = self.reader.header_at(offset, entry.sequence)
        if _described(header) != _described(entry):
            raise self.reader.corrupt("the index describes this record wrongly", offset, entry.sequence)
        return header

    def buffer(self, offset: int, entry: RecordHeader) -> dict[str, TensorView]:
        payload = self.payload(offset, entry)
        with self.locating(offset, entry):
            return parse(payload, entry.name)

    def locating(self, offset: int | None = None, entry: RecordHeader | None = None) -> Locating:
        """A context in which a TscError learns the file, record and offset concerned."""
        return Locating(self.path, offset, entry.sequence if entry else None)

    def _index(self) -> list[tuple[int, RecordHeader]]:
        index_offset, count = self.reader.end()
        if count < 4 or not SUPERBLOCK_BYTES <= index_offset < self.size:
            raise self.reader.corrupt("the end mark points outside the file", self.size)
        header = self.reader.header_at(index_offset, count - 2)
        end_offset = self.size - RECORD_BYTES - 8
        if header.type != RecordType.INDEX or index_offset + RECORD_BYTES + header.stored != end_offset:
            raise self.reader.corrupt("the end mark does not point to the index", index_offset, count - 2)
        if header.raw > most_of_index(min(count - 2, index_offset // RECORD_BYTES)):
            raise self.reader.corrupt(f"an index of {header.raw} bytes", index_offset, count - 2)
        with self.locating(index_offset, header):
            lines = parse_index(self.reader.payload(index_offset, header), count - 2)
        at = SUPERBLOCK_BYTES
        for offset, entry in lines:
            if entry.type in (RecordType.INDEX, RecordType.END):
                message = f"the index lists record {entry.sequence} as what it cannot be"
                raise self.reader.corrupt(message, index_offset)
            if offset != at or entry.stored > index_offset - at - RECORD_BYTES:
                raise self.reader.corrupt("the index does not tile the file", index_offset, count - 2)
            # of these few, the index could otherwise hide one that is marked as needed
            if entry.type != RecordType.ROWS:
                self.header_of(offset, entry)
            at = offset + RECORD_BYTES + entry.stored
        if at != index_offset:
            raise self.reader.corrupt("the index does not tile the file", index_offset, count - 2)
        return lines

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


def _described(header: RecordHeader) -> tuple[int, ...]:
    return (
        header.type,
        header.codec,
        header.stored,
        header.raw,
        header.part,
        header.first_layer,
        header.layer_count,
        header.first,
        header.count,
    )


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


def size_fault(records: Sequence[RecordHeader], size: int) -> str | None:
    """What a file of `size` bytes says of itself out of all proportion to that, if anything.

    A few kB could otherwise describe what fills a memory.
    """
    tables = sum(header.raw for header in records if header.type in TABLES)
    if tables > FREE_TABLES + TABLES_RATIO * size:
        return f"tables of {tables} bytes in a file of {size}"
    # a record of more layers than a model may have is another fault
    layers = sum(min(header.layer_count, MAX_LAYERS) for header in records if header.type in LAYERED)
    if layers > FREE_LAYERS + size // LAYERS_SHARE:
        return f"records of {layers} layers, all counted, in a file of {size} bytes"
    return None


def require_proportionate(records: Sequence[RecordHeader], size: int) -> None:
    """Without this, some 30 kB of zstd frames could describe 2^26 rows that nobody stored, or 2^20
    records all layers.

    Args:
        size: the length of the file in bytes.
    Raises:
        CorruptError: something is out of proportion.
        LimitError: tables take more than the memory budget.
    """
    fault = size_fault(records, size)
    if fault:
        raise CorruptError(fault)
    cost = TABLES_COST * sum(header.raw for header in records if header.type in TABLES)
    require_memory(cost, "the tables take")
