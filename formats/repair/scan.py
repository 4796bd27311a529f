"""Finding the records of a damaged file by their own headers: neither INDEX nor END is trusted, nor needed.

A record's header proves itself by its CRC, which is seeded with the file's identity and covers the record's number.  So
a record is taken wherever such a header stands and the payload's CRC fits; between them the file is searched byte by
byte.  Where only a header is damaged, INDEX has what it said, and its own checksums tell whether that is so.
"""

from __future__ import annotations

import os
import re
import struct
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import NamedTuple

import google_crc32c

from formats.container.encryption import KeySource, Secret
from formats.container.reader import RecordReader
from formats.container.records import (
    MUST_BE_ZERO,
    RECORD_BYTES,
    SUPERBLOCK,
    SUPERBLOCK_BYTES,
    RecordHeader,
    RecordType,
    pack_record_header,
    signature,
    unpack_record_header,
)
from formats.errors import CorruptError, LockedError, TscError, UnsupportedFileError
from formats.file.index import most_of_index, open_file, parse_index
from formats.limits import MAX_RECORDS, MIB

_CHUNK = MIB
_READINGS = 64  # times the length of a file that checksums may take: headers may claim the same bytes
# a header of any record: type and reserved bytes
_ANY = re.compile(rb"(?=[^\x00\x80]\x00.{24}\x00\x00.{8}\x00{4}.{24})", re.DOTALL)


class Found(NamedTuple):
    """A record whose header and payload have the right checksums."""

    offset: int
    header: RecordHeader
    rebuilt: bool = False  # the header was damaged; INDEX says what it was

    @property
    def stop(self) -> int:
        return self.offset + RECORD_BYTES + self.header.stored


def in_order(found: Iterable[Found]) -> list[Found]:
    """By place; a lying index may give one place to two records."""
    return sorted(found, key=lambda one: one.offset)


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


class Wreck(RecordReader):
    """The records that are left of a file.

    Attributes:
        records: by number; of records with the same number the first one in the file.
        problems: what is wrong with superblock, records and their order.
        index: what an intact INDEX says of the records before it, by number.
        unsupported: the first record that needs a newer reader, if any.
    """

    def __init__(self, path: str | os.PathLike[str], key: KeySource | None = None) -> None:
        self.problems: list[Problem] = []
        self.records: dict[int, Found] = {}
        self.index: list[tuple[int, RecordHeader]] = []
        self.unsupported: UnsupportedFileError | None = None
        self._copies: list[Found] = []
        self._read = 0
        descriptor = open_file(os.fspath(path))
        weakref.finalize(self, os.close, descriptor)
        super().__init__(descriptor, os.fspath(path), key)
        if self.lock is None and isinstance(key, Secret):
            lost = ", or too damaged to say how" if self.problems else ""
            raise LockedError(f"is not encrypted{lost}, and a key was given", path=self.path)
        for found in self._walk():
            self._take(found)
        self._read_index()
        self._rebuild()
        self._check_order()
        self.problems.sort(key=lambda one: -1 if one.offset is None else one.offset)

    @property
    def total(self) -> int | None:
        """How many records stood before HEADER; None where the file ends before that shows."""
        behind = {RecordType.HEADER: 0, RecordType.INDEX: 1, RecordType.END: 2}
        ends = [
            number - behind[RecordType(found.header.type)]
            for number, found in self.records.items()
            if found.header.type in behind
        ]
        return min(ends) if ends and min(ends) > 0 else None

    @property
    def lost(self) -> list[int]:
        """The numbers of records before HEADER that there were and that cannot be read."""
        last = max((number for number, one in self.records.items() if one.header.type not in _CLOSING), default=-1)
        stop = last + 1 if self.total is None else self.total
        return [number for number in range(stop) if number not in self.records]

    @property
    def unread(self) -> list[tuple[int, int]]:
        """Ranges [start, stop) of bytes that are in no record."""
        gaps, at = [], min(SUPERBLOCK_BYTES, self.size)
        if at and any(one.offset == 0 for one in self.problems):
            gaps.append((0, at))
        for found in in_order([*self.records.values(), *self._copies]):
            if found.offset > at:
                gaps.append((at, found.offset))
            at = max(at, found.stop)
        return gaps + [(at, self.size)] * (at < self.size)

    def _superblock(self) -> tuple[int, bytes]:
        """What the superblock says; of a damaged one what it said, or the identity if that is still there."""
        try:
            return super()._superblock()
        except (CorruptError, UnsupportedFileError) as error:
            fault = error
        data = self._pread(0, min(SUPERBLOCK_BYTES, self.size))
        if isinstance(fault, UnsupportedFileError) and _has_its_checksum(data):
            raise fault  # not damaged: a newer format
        self.problems.append(Problem.of(fault, 0))
        with suppress(CorruptError, UnsupportedFileError):
            return self._read_superblock(_with_a_byte_mended(data))
        if len(data) == SUPERBLOCK_BYTES:
            _, minor, _, _, self.file_id, _, _ = SUPERBLOCK.unpack(data)
            if self._header(SUPERBLOCK_BYTES) is not None:
                return minor, self.file_id
        raise CorruptError(fault.message, path=self.path, offset=fault.offset)  # as a strict reader refuses it

    def _header(self, offset: int) -> RecordHeader | None:
        """The header at an offset, if its CRC is right."""
        if offset + RECORD_BYTES > self.size:
            return None
        unpacked = unpack_record_header(self._pread(offset, RECORD_BYTES), self.file_id)
        return None if unpacked is None else unpacked[0]

    def _walk(self) -> Iterator[Found]:
        at = SUPERBLOCK_BYTES
        while at < self.size:
            header = self._header(at)
            if header is None:
                stop = self._next(at)
                left = stop == self.size and stop - at < RECORD_BYTES
                what = "truncated in a record header" if left else "no record begins here"
                self._note(f"{what}: {stop - at} bytes cannot be read", at)
            else:
                found = Found(at, header)
                fault = self._fault(found)
                stop = found.stop
                if fault is None:
                    yield found
                else:
                    self._note(fault, at, header.sequence)
                    # bytes may be missing or too many, so that what follows stands elsewhere
                    if stop > self.size or (stop < self.size and self._header(stop) is None):
                        stop = self._next(at + RECORD_BYTES)
            at = stop

    def _fault(self, found: Found) -> str | None:
        """Why a record with a right header CRC is not taken."""
        offset, header = found.offset, found.header
        try:
            self.header_at(offset, header.sequence)
        except CorruptError as error:
            return error.message
        except UnsupportedFileError as error:
            self.unsupported = self.unsupported or error
            return error.message
        if header.sequence >= MAX_RECORDS:
            return f"a record is number {header.sequence}"
        if self._checksum(offset + RECORD_BYTES, header.stored) != header.payload_crc:
            return "checksum of a record does not match"
        return None

    def _checksum(self, offset: int, length: int) -> int:
        self._read += length
        if self._read > _READINGS * self.size:
            raise self.corrupt("headers of more records than can have been written", offset)
        crc: int = google_crc32c.value(b"")
        for at in range(offset, offset + length, _CHUNK):
            crc = google_crc32c.extend(crc, self._pread(at, min(_CHUNK, offset + length - at)))
        return crc

    def _next(self, offset: int) -> int:
        """Where the next header with a right CRC begins behind `offset`; the file's length if there is none."""
        at = offset + 1
        while at + RECORD_BYTES <= self.size:
            chunk = self._pread(at, min(_CHUNK + RECORD_BYTES - 1, self.size - at))
            for match in _ANY.finditer(chunk):
                head = chunk[match.start() : match.start() + RECORD_BYTES]
                if google_crc32c.value(self.file_id + head[:-4]) == int.from_bytes(head[-4:], "little"):
                    return at + match.start()
            at += _CHUNK
        return self.size

    def _take(self, found: Found) -> None:
        number = found.header.sequence
        if number not in self.records:
            self.records[number] = found
            return
        self._copies.append(found)
        same = found.header == self.records[number].header
        self._note("a copy of a record" if same else "a second record of the same number", found.offset, number)

    def _read_index(self) -> None:
        for found in self._of(RecordType.INDEX):
            try:
                if found.header.raw > most_of_index(found.header.sequence):
                    raise CorruptError(f"an index of {found.header.raw} bytes")
                self.index = parse_index(self.payload(found.offset, found.header), found.header.sequence)
            except CorruptError as error:
                self._note(error.message, found.offset, found.header.sequence)
            else:
                return

    def _rebuild(self) -> None:
        """Take records whose header is damaged, but where it should stand and with one of its two checksums."""
        ordered = in_order(self.records.values())
        for offset, listed in self.index:
            if listed.sequence in self.records or offset + RECORD_BYTES + listed.stored > self.size:
                continue
            behind = bisect_right(ordered, offset, key=lambda one: one.offset)
            taken = (
                offset < one.stop and one.offset < offset + RECORD_BYTES for one in ordered[max(0, behind - 1) :][:2]
            )
            if offset < SUPERBLOCK_BYTES or any(taken):
                continue
            found = self._pread(offset, RECORD_BYTES)
            header = replace(listed, payload_crc=self._checksum(offset + RECORD_BYTES, listed.stored))
            try:
                packed = pack_record_header(header, self.file_id)
                self._check_lengths(header, offset)
            except (TscError, struct.error):  # numbers that no reader takes, or that no header holds
                continue
            proven = packed[-4:] == found[-4:] or packed[-8:-4] == found[-8:-4]
            if proven and not any(getattr(header, name) for name in MUST_BE_ZERO.get(header.type, ())):
                self.records[listed.sequence] = Found(offset, header, rebuilt=True)
                self.problems = [one for one in self.problems if one.offset != offset]
                self._note("a record header is damaged; the index has what it said", offset, listed.sequence)

    def _check_order(self) -> None:
        """What a strict reader would miss; bytes that are no record are noted already."""
        ordered = in_order(self.records.values())
        for before, after in pairwise(ordered):
            if after.header.sequence < before.header.sequence:
                self._note(
                    f"record {after.header.sequence} stands behind record {before.header.sequence}",
                    after.offset,
                    after.header.sequence,
                )
        if self.total is not None and self.lost:
            some = ", ".join(map(str, self.lost[:6])) + (", ..." if len(self.lost) > 6 else "")
            self._note(f"{len(self.lost)} of {self.total + 3} records cannot be read: {some}", None)
        for kind in (RecordType.HEADER, RecordType.INDEX, RecordType.END):
            if not self._of(kind):
                self._note(f"there is no {kind.name.lower()} record", self.size)
        for end in self._of(RecordType.END):
            if end.stop != self.size:
                self._note(f"{self.size - end.stop} bytes behind the end mark", end.stop)
            elif self._pread(end.stop - len(signature()), len(signature())) != signature():
                self._note("the end mark is not the signature", end.offset, end.header.sequence)

    def _of(self, kind: RecordType) -> list[Found]:
        return [self.records[number] for number in sorted(self.records) if self.records[number].header.type == kind]

    def _note(self, message: str, offset: int | None, record: int | None = None) -> None:
        self.problems.append(Problem(message, offset, record))


def _with_a_byte_mended(superblock: bytes) -> bytes:
    """A superblock of which one byte was damaged, as it was; another one as it is.

    An encrypted file has its salt nowhere else, and every bit of its superblock is authenticated with every record.
    """
    if len(superblock) < SUPERBLOCK_BYTES or _has_its_checksum(superblock):
        return superblock
    for at, change in product(range(SUPERBLOCK_BYTES), range(1, 256)):
        tried = superblock[:at] + bytes([superblock[at] ^ change]) + superblock[at + 1 :]
        if _has_its_checksum(tried):
            return tried
    return superblock


def _has_its_checksum(superblock: bytes) -> bool:
    checksum = int.from_bytes(superblock[-4:], "little")
    return len(superblock) == SUPERBLOCK_BYTES and google_crc32c.value(superblock[:-4]) == checksum


_CLOSING = (RecordType.HEADER, RecordType.INDEX, RecordType.END)
