"""What a search of a damaged file meets: records that are intact, and problems; and its superblock,
mended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import google_crc32c

from formats.container.records import RECORD_BYTES, SUPERBLOCK_BYTES, RecordHeader
from formats.errors import TscError


class FoundRecord(NamedTuple):
    """A record whose header and payload have the right checksums."""

    offset: int
    header: RecordHeader
    rebuilt: bool = False  # the header was damaged; INDEX says what it was

    @property
    def stop(self) -> int:
        return self.offset + RECORD_BYTES + self.header.stored


def in_order(records: Iterable[FoundRecord]) -> list[FoundRecord]:
    """By place; a lying index may give one place to two records."""
    return sorted(records, key=lambda record: record.offset)


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file, or (`damage` False) only unusual."""

    message: str
    offset: int | None = None
    record: int | None = None
    damage: bool = True

    @classmethod
    def of(cls, error: TscError, offset: int | None = None, record: int | None = None) -> Problem:
        at = offset if error.offset is None else error.offset
        return cls(error.message, at, record if error.record is None else error.record)


def mended_superblock(superblock: bytes) -> bytes:
    """A superblock of which one byte was damaged, as it was; another one as it is.

    An encrypted file has its salt nowhere else, and every bit of its superblock is authenticated
    with every record.
    """
    if len(superblock) < SUPERBLOCK_BYTES or has_valid_checksum(superblock):
        return superblock
    for at, change in product(range(SUPERBLOCK_BYTES), range(1, 256)):
        tried = superblock[:at] + bytes([superblock[at] ^ change]) + superblock[at + 1 :]
        if has_valid_checksum(tried):
            return tried
    return superblock


def has_valid_checksum(superblock: bytes) -> bool:
    checksum = int.from_bytes(superblock[-4:], "little")
    return len(superblock) == SUPERBLOCK_BYTES and google_crc32c.value(superblock[:-4]) == checksum
