"""Finding the records of a damaged file by their own headers: neither INDEX nor END is trusted, nor
needed.

A record's header proves itself by its CRC, which is seeded with the file's identity and covers the
record's number.  So a record is taken wherever such a header stands and the payload's CRC fits;
between them the file is searched byte by byte.  Where only a header is damaged, INDEX has what it
said, and its own checksums tell whether that is so.
"""

from __future__ import annotations

import os
import re
import struct
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

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

from .findings import FoundRecord, Problem, has_valid_checksum, in_order, mended_superblock

_CHUNK = MIB
# times the length of a file that checksums may take: headers may claim the same bytes
_READINGS = 64
# a header of any record: type and reserved bytes
_ANY = re.compile(rb"(?=[^\x00\x80]\x00.{24}\x00\x00.{8}\x00{4}.{24})", re.DOTALL)

_CLOSING = (RecordType.HEADER, RecordType.INDEX, RecordType.END)


class DamagedFile(RecordReader):
    """The records that are left of a file.

    Attributes:
        records: by number; of records with the same number the first one in the file.
        problems: what is wrong with superblock, records and their order.
        index: what an intact INDEX says of the records before it, by number.
        unsupported: the first record that needs a newer reader, if any.
    """

    def __init__(self, path: str | os.PathLike[str], key: KeySource | None = None) -> None:
        self.problems: list[Problem] = []
        self.records: dict[int, FoundRecord] = {}
        self.index: list[tuple[int, RecordHeader]] = []
        self.unsupported: UnsupportedFileError | None = None
        self._copies: list[FoundRecord] = []
        self._read = 0
        descriptor = open_file(os.fspath(path))
        weakref.finalize(self, os.close, descriptor)
        super().__init__(descriptor, os.fspath(path), key)
        if self.lock is None and isinstance(key, Secret):
            if self.problems:  # a salt of the key that was lost cannot be told from a file without
                raise CorruptError("the superblock no longer says how the file is encrypted", path=self.path, offset=0)
            raise LockedError("is not encrypted, and a key was given", path=self.path)
        for record in self._walk():
            self._take(record)
        self._read_index()
        self._rebuild()
        self._check_order()
        self.problems.sort(key=lambda one: -1 if one.offset is None else one.offset)

    @property
    def total(self) -> int | None:
        """How many records stood before HEADER; None where the file ends before that shows."""
        behind = {RecordType.HEADER: 0, RecordType.INDEX: 1, RecordType.END: 2}
        ends = [
            number - behind[RecordType(record.header.type)]
            for number, record in self.records.items()
            if record.header.type in behind
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
        for record in in_order([*self.records.values(), *self._copies]):
            if record.offset > at:
                gaps.append((at, record.offset))
            at = max(at, record.stop)
        return gaps + [(at, self.size)] * (at < self.size)

    def _superblock(self) -> tuple[int, bytes]:
        """What the superblock says; of a damaged one what it said, or the identity if that is still
        there.
        """
        try:
            return super()._superblock()
        except (CorruptError, UnsupportedFileError) as error:
            fault = error
        data = self._pread(0, min(SUPERBLOCK_BYTES, self.size))
        if isinstance(fault, UnsupportedFileError) and has_valid_checksum(data):
            raise fault  # not damaged: a newer format
        self.problems.append(Problem.of(fault, 0))
        with suppress(CorruptError, UnsupportedFileError):
            return self._read_superblock(mended_superblock(data))
        if len(data) == SUPERBLOCK_BYTES:
            _, minor, _, _, self.file_id, _, _ = SUPERBLOCK.unpack(data)
            if self._header(SUPERBLOCK_BYTES) is not None:
                return minor, self.file_id
        # as a strict reader refuses it
        raise CorruptError(fault.message, path=self.path, offset=fault.offset)

    def _header(self, offset: int) -> RecordHeader | None:
        """The header at an offset, if its CRC is right."""
        if offset + RECORD_BYTES > self.size:
            return None
        unpacked = unpack_record_header(self._pread(offset, RECORD_BYTES), self.file_id)
        return None if unpacked is None else unpacked[0]

    def _walk(self) -> Iterator[FoundRecord]:
        at = SUPERBLOCK_BYTES
        while at < self.size:
            header = self._header(at)
            if header is None:
                stop = self._next(at)
                left = stop == self.size and stop - at < RECORD_BYTES
                what = "truncated in a record header" if left else "no record begins here"
                self._note(f"{what}: {stop - at} bytes cannot be read", at)
            else:
                record = FoundRecord(at, header)
                fault = self._fault(record)
                stop = record.stop
                if fault is None:
                    yield record
                else:
                    self._note(fault, at, header.sequence)
                    # bytes may be missing or too many, so that what follows stands elsewhere
                    if stop > self.size or (stop < self.size and self._header(stop) is None):
                        stop = self._next(at + RECORD_BYTES)
            at = stop

    def _fault(self, record: FoundRecord) -> str | None:
        """Why a record with a right header CRC is not taken."""
        offset, header = record.offset, record.header
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
        """Where the next header with a right CRC begins behind `offset`; the file's length if there
        is none.
        """
        at = offset + 1
        while at + RECORD_BYTES <= self.size:
            chunk = self._pread(at, min(_CHUNK + RECORD_BYTES - 1, self.size - at))
            for match in _ANY.finditer(chunk):
                head = chunk[match.start() : match.start() + RECORD_BYTES]
                if google_crc32c.value(self.file_id + head[:-4]) == int.from_bytes(head[-4:], "little"):
                    return at + match.start()
            at += _CHUNK
        return self.size

    def _take(self, record: FoundRecord) -> None:
        number = record.header.sequence
        if number not in self.records:
            self.records[number] = record
            return
        self._copies.append(record)
        same = record.header == self.records[number].header
        self._note("a copy of a record" if same else "a second record of the same number", record.offset, number)

    def _read_index(self) -> None:
        for record in self._of(RecordType.INDEX):
            try:
                if record.header.raw > most_of_index(record.header.sequence):
                    raise CorruptError(f"an index of {record.header.raw} bytes")
                self.index = parse_index(self.payload(record.offset, record.header), record.header.sequence)
            except CorruptError as error:
                self._note(error.message, record.offset, record.header.sequence)
            else:
                return

    def _rebuild(self) -> None:
        """Take records whose header is damaged, but where it should stand and with one of its two
        checksums.
        """
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
            stored = self._pread(offset, RECORD_BYTES)
            header = replace(listed, payload_crc=self._checksum(offset + RECORD_BYTES, listed.stored))
            try:
                packed = pack_record_header(header, self.file_id)
                self._check_lengths(header, offset)
            except (TscError, struct.error):  # numbers that no reader takes, or that no header holds
                continue
            proven = packed[-4:] == stored[-4:] or packed[-8:-4] == stored[-8:-4]
            if proven and not any(getattr(header, name) for name in MUST_BE_ZERO.get(header.type, ())):
                self.records[listed.sequence] = FoundRecord(offset, header, rebuilt=True)
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

    def _of(self, kind: RecordType) -> list[FoundRecord]:
        return [self.records[number] for number in sorted(self.records) if self.records[number].header.type == kind]

    def _note(self, message: str, offset: int | None, record: int | None = None) -> None:
        self.problems.append(Problem(message, offset, record))
