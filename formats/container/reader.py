"""The container, read: superblock, records, end mark.  Bytes only; what a record means is decided
elsewhere.

`docs/format.md` is the specification of everything here.  Two rules carry the rest:

* a length is trusted only after the CRC of the header that states it, and a payload is decompressed
only after the
  CRC of its stored bytes (without it, half of all single-bit flips of a zstd frame decode silently
  to wrong data);
* header CRCs are seeded with the file's identity and cover the sequence number, so that a record
cannot be moved
  within a file or between files unnoticed.
"""

from __future__ import annotations

import os

import google_crc32c
import zstandard

from formats import limits
from formats.errors import CorruptError, StorageError, TscError, UnsupportedFileError

from .encryption import TAG_BYTES, Cipher, KeySource, Lock, Secret
from .records import (
    ANCILLARY,
    ENCRYPTED,
    KNOWN_TYPES,
    MAJOR,
    MINOR,
    MUST_BE_ZERO,
    RECORD_BYTES,
    RESERVED_FLAGS,
    SUPERBLOCK,
    SUPERBLOCK_BYTES,
    RecordHeader,
    RecordType,
    described,
    signature,
    unpack_record_header,
)

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class RecordReader:
    """Reads and checks records of an open file with `pread`: no memory map, no shared file
    position.

    Args:
        key: the secret of an encrypted file, or what gives it; asked for when a payload is read.

    Attributes:
        lock: what an encrypted file says of its key; None of others.
    """

    lock: Lock | None = None

    def __init__(self, fd: int, path: str, key: KeySource | None = None) -> None:
        self.fd = fd
        self.path = path
        self._key = key
        self._unlocked: tuple[Secret, Cipher] | None = None
        self._first_bytes = b""
        try:
            self.size = os.fstat(fd).st_size
        except OSError as error:
            raise StorageError(f"cannot be read: {error.strerror}", path=path) from error
        self.minor, self.file_id = self._superblock()

    def _superblock(self) -> tuple[int, bytes]:
        return self._read_superblock(self._pread(0, min(SUPERBLOCK_BYTES, self.size)))

    def _read_superblock(self, data: bytes) -> tuple[int, bytes]:
        self._check_signature(data[:8])
        if len(data) < SUPERBLOCK_BYTES:
            raise self.corrupt("truncated in the superblock", len(data))
        _, minor, flags, reserved, file_id, lock, crc = SUPERBLOCK.unpack(data)
        if google_crc32c.value(data[:-4]) != crc:
            raise self.corrupt("checksum of the superblock does not match", 0)
        if minor > MINOR:
            raise self._unsupported(f"format version {MAJOR}.{minor}", f"version {MAJOR}.{MINOR}")
        if flags & RESERVED_FLAGS or reserved or (any(lock) and not flags & ENCRYPTED):
            raise self.corrupt("reserved bits of the superblock are set", 0)
        if flags & ENCRYPTED:
            try:
                self.lock = Lock.unpack(lock)
            except TscError as error:
                error.path, error.offset = self.path, SUPERBLOCK_BYTES - 4 - len(lock)
                raise
        self._first_bytes = data
        return minor, file_id

    @property
    def secret(self) -> Secret | None:
        """What the records are encrypted with; None if they are not.

        Raises:
            LockedError: the file is encrypted, and no key or another one was given.
        """
        return None if self.lock is None else self._unlock(self.lock)[0]

    def _unlock(self, lock: Lock) -> tuple[Secret, Cipher]:
        if self._unlocked is None:
            self._unlocked = Cipher.of_file(self._key, self.file_id, lock, self.path)
        return self._unlocked

    def _check_signature(self, found: bytes) -> None:
        want = signature()
        if found == want:
            return
        if found[:4] == want[:4] and found[5:] == want[5:]:
            raise self._unsupported(f"format version {found[4]}", f"version {MAJOR}")
        if found[:4] == want[:4] and len(found) == 8:
            raise self.corrupt("signature damaged: the file was converted as text on its way", 0)
        raise self.corrupt("not a .tsc file", 0)

    def _unsupported(self, what: str, known: str) -> UnsupportedFileError:
        message = f"{what} is not supported, this reader knows {known}"
        return UnsupportedFileError(message, path=self.path, hint="update tsc")

    def header_at(self, offset: int, sequence: int) -> RecordHeader:
        """The checked header of the record that begins at `offset` and must have this sequence
        number.
        """
        if self.size - offset < RECORD_BYTES:
            raise self.corrupt("truncated in a record header", offset, sequence)
        unpacked = unpack_record_header(self._pread(offset, RECORD_BYTES), self.file_id)
        if unpacked is None:
            raise self.corrupt("checksum of a record header does not match", offset, sequence)
        header, reserved = unpacked
        if header.sequence != sequence:
            message = f"record {header.sequence} stands where record {sequence} belongs"
            raise self.corrupt(message, offset, sequence)
        if reserved:
            raise self.corrupt("reserved bits of a record header are set", offset, sequence)
        if any(getattr(header, name) for name in MUST_BE_ZERO.get(header.type, ())):
            raise self.corrupt("a record header sets fields that its type does not have", offset, sequence)
        self._check_lengths(header, offset)
        return header

    def _check_lengths(self, header: RecordHeader, offset: int) -> None:
        if header.type & ~ANCILLARY == 0:
            raise self.corrupt(f"record type {header.type} is not valid", offset, header.sequence)
        if header.type not in KNOWN_TYPES and not header.type & ANCILLARY:
            raise UnsupportedFileError(
                f"record type 0x{header.type:02x} is not known to this reader and is marked as needed",
                path=self.path,
                offset=offset,
                record=header.sequence,
                hint="update tsc",
            )
        if header.stored > self.size - offset - RECORD_BYTES:
            raise self.corrupt("truncated in a record", offset, header.sequence)
        if not header.raw and header.type != RecordType.END:
            # an empty frame is not worth having: python-zstandard looks no further than a declared
            # size of 0
            raise self.corrupt("a record declares an empty payload", offset, header.sequence)
        frame = header.stored - (0 if self.lock is None or header.type == RecordType.END else TAG_BYTES)
        if frame < 0:
            raise self.corrupt("a record is shorter than the tag of its encryption", offset, header.sequence)
        if header.raw > limits.MAX_RECORD_RAW or (
            header.raw > limits.FREE_RAW and header.raw > limits.MAX_RATIO * frame
        ):
            raise self.corrupt(
                f"a record declares {header.raw} bytes for {header.stored} stored", offset, header.sequence
            )
        if frame > header.raw + header.raw // limits.FRAME_SHARE + limits.FRAME_MORE:
            raise self.corrupt(
                f"a record stores {header.stored} bytes for {header.raw} that it declares", offset, header.sequence
            )

    def payload(self, offset: int, header: RecordHeader) -> bytes:
        """The checked, decompressed payload of a record whose header was read with `header_at`."""
        frame = self.frame(offset, header)
        try:
            return unframed(frame, header.raw)
        except CorruptError as error:
            raise self.corrupt(error.message, offset, header.sequence) from error.__cause__

    def frame(self, offset: int, header: RecordHeader) -> bytes:
        """The checked zstd frame of a record, decrypted and authenticated if the file is encrypted.

        Raises:
            LockedError: it is encrypted, and no key or another one was given.
        """
        stored = self.stored(offset, header)
        if self.lock is None:
            return stored
        _, cipher = self._unlock(self.lock)
        try:
            return cipher.open(stored, header.sequence, self._first_bytes + described(header))
        except CorruptError as error:
            raise self.corrupt(error.message, offset, header.sequence) from None

    def stored(self, offset: int, header: RecordHeader) -> bytes:
        """The checked payload as stored."""
        stored = self._pread(offset + RECORD_BYTES, header.stored)
        if google_crc32c.value(stored) != header.payload_crc:
            raise self.corrupt("checksum of a record does not match", offset, header.sequence)
        return stored

    def end(self) -> tuple[int, int]:
        """(offset of the INDEX record, number of records), from the END record that closes the
        file.
        """
        want = signature()
        offset = self.size - RECORD_BYTES - len(want)
        if offset < SUPERBLOCK_BYTES or self._pread(self.size - len(want), len(want)) != want:
            raise self.corrupt("truncated or added to: the end mark is missing", self.size)
        sequence = int.from_bytes(self._pread(offset + 4, 4), "little")
        header = self.header_at(offset, sequence)
        if header.type != RecordType.END or header.stored != len(want) or header.raw:
            raise self.corrupt("the last record is not an end mark", offset, sequence)
        self.stored(offset, header)
        if header.count != sequence + 1 or header.count > limits.MAX_RECORDS:
            raise self.corrupt("the end mark states a wrong number of records", offset, sequence)
        return header.first, header.count

    def corrupt(self, message: str, offset: int | None = None, record: int | None = None) -> CorruptError:
        return CorruptError(message, path=self.path, offset=offset, record=record)

    def _pread(self, offset: int, length: int) -> bytes:
        chunks = []
        try:
            while length:
                chunk = os.pread(self.fd, length, offset)
                if not chunk:
                    raise self.corrupt("truncated while it was being read", offset)
                chunks.append(chunk)
                offset, length = offset + len(chunk), length - len(chunk)
        except OSError as error:
            raise StorageError(f"cannot be read: {error.strerror}", path=self.path, offset=offset) from error
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def unframed(stored: bytes | memoryview, raw: int) -> bytes:
    """The content of one zstd frame, which must declare `raw` bytes.  Raises CorruptError."""
    fault = _frame_fault(stored, raw)
    if fault:
        raise CorruptError(fault)
    try:
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptError("a zstd frame cannot be decoded") from error


def _frame_fault(stored: bytes | memoryview, raw: int) -> str | None:
    """Why `stored` may not be decompressed, or None.

    python-zstandard ignores `max_output_size` when the frame declares a size, and 16 bytes can
    declare 1 TiB: the declared size is compared with the (bounded) raw length first.
    """
    if bytes(stored[:4]) != ZSTD_MAGIC:
        return "a payload is not a zstd frame"
    try:
        frame = zstandard.get_frame_parameters(stored)
    except zstandard.ZstdError:
        return "the header of a zstd frame cannot be read"
    if frame.content_size != raw:
        return f"a zstd frame declares another size than its record ({raw})"
    if frame.window_size > limits.MAX_WINDOW or frame.dict_id:
        return "a zstd frame asks for a window or a dictionary that is not allowed"
    return None
