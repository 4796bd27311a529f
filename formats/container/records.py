"""Superblock and record headers: their fields, their ids, their bytes.  docs/format.md has the
tables.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import google_crc32c

MAJOR, MINOR = 1, 0  # the format that this program reads and writes
FILE_ID_BYTES = 16

SUPERBLOCK = struct.Struct("<8sHHI16s28sI")
RECORD = struct.Struct("<BBHIQQHHIIIQQII")
SUPERBLOCK_BYTES = SUPERBLOCK.size
RECORD_BYTES = RECORD.size
ENCRYPTED = 0x0001  # a flag of the superblock
RESERVED_FLAGS = 0x00FE  # must be zero; bits 8 to 15 are ignored
ANCILLARY = 0x80


class RecordType(IntEnum):
    """Literal ids, for ever.  Types with bit 7 set are ancillary: a reader that does not know one
    skips it.
    """

    MODEL = 0x01
    ROWS = 0x02
    LABELS = 0x03
    VIEWS = 0x04
    HEADER = 0x05
    INDEX = 0x06
    END = 0x07
    KEPT = 0x08
    PROFILE = 0x09
    STATES = 0x0A
    REFERENCE = 0x81
    ATTENTION = 0x82


# what is read at opening, beside MODEL, HEADER and INDEX, and in proportion to rows and snapshots
LAYERED = frozenset((RecordType.ROWS, RecordType.KEPT, RecordType.STATES, RecordType.ATTENTION))
TABLES = frozenset((RecordType.LABELS, RecordType.VIEWS, RecordType.KEPT, RecordType.REFERENCE))
KNOWN_TYPES = frozenset(kind.value for kind in RecordType)


_ROW_FIELDS = ("codec", "part", "first_layer", "layer_count")
MUST_BE_ZERO: dict[int, tuple[str, ...]] = {
    RecordType.MODEL: (*_ROW_FIELDS, "first", "count"),
    RecordType.LABELS: _ROW_FIELDS,
    RecordType.VIEWS: _ROW_FIELDS,
    RecordType.HEADER: (*_ROW_FIELDS, "first", "count"),
    RecordType.INDEX: (*_ROW_FIELDS, "first", "count"),
    RecordType.END: _ROW_FIELDS,
    RecordType.KEPT: ("codec", "part"),
    RecordType.PROFILE: (*_ROW_FIELDS, "first", "count"),
    RecordType.REFERENCE: (*_ROW_FIELDS, "first"),
    RecordType.ATTENTION: ("codec", "part", "first"),
}


class Part(IntEnum):
    """What of the rows a ROWS record holds; JOINT is keys and values."""

    JOINT = 0
    KEYS = 1
    VALUES = 2
    INDEXER = 3  # keys of one head by which a sparse attention chooses its rows


@dataclass(frozen=True)
class RecordHeader:
    """What is known of a record without its payload.  `first` and `count` are rows or snapshots, by
    type.
    """

    type: int
    sequence: int
    stored: int
    raw: int
    codec: int = 0
    part: int = 0
    first_layer: int = 0
    layer_count: int = 0
    first: int = 0
    count: int = 0
    payload_crc: int = 0

    @property
    def name(self) -> str:
        return RecordType(self.type).name.lower() if self.type in KNOWN_TYPES else f"0x{self.type:02x}"


def signature(major: int = MAJOR) -> bytes:
    """As PNG's: a byte over 127, the name, CR LF and SUB, so that text-mode damage shows at
    once.
    """
    return b"\x89TSC" + bytes([major]) + b"\r\n\x1a"


def pack_superblock(file_id: bytes, lock: bytes = b"", minor: int = MINOR) -> bytes:
    """The first 64 bytes of a file.

    Args:
        lock: what an encrypted file says of its key.
        minor: the oldest minor version that knows all that the file needs.
    """
    head = SUPERBLOCK.pack(signature(), minor, ENCRYPTED if lock else 0, 0, file_id, lock, 0)[:-4]
    return head + struct.pack("<I", google_crc32c.value(head))


def pack_record_header(header: RecordHeader, file_id: bytes) -> bytes:
    head = described(header) + struct.pack("<I", header.payload_crc)
    return head + struct.pack("<I", google_crc32c.value(file_id + head))


def unpack_record_header(data: bytes, file_id: bytes) -> tuple[RecordHeader, bool] | None:
    """A record header, and whether reserved bits of it are set; None if its checksum is not that of
    this file's.
    """
    (
        kind,
        flags,
        codec,
        sequence,
        stored,
        raw,
        part,
        reserved_a,
        first_layer,
        layer_count,
        reserved_b,
        first,
        count,
        payload_crc,
        crc,
    ) = RECORD.unpack(data)
    if google_crc32c.value(file_id + data[:-4]) != crc:
        return None
    header = RecordHeader(kind, sequence, stored, raw, codec, part, first_layer, layer_count, first, count, payload_crc)
    return header, bool(flags or reserved_a or reserved_b)


def described(header: RecordHeader) -> bytes:
    """A record header without its two checksums: 56 bytes."""
    return RECORD.pack(
        header.type,
        0,
        header.codec,
        header.sequence,
        header.stored,
        header.raw,
        header.part,
        0,
        header.first_layer,
        header.layer_count,
        0,
        header.first,
        header.count,
        0,
        0,
    )[:-8]
