"""Writing records, in order and never seeking.  `container` reads them; docs/format.md specifies
both.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Protocol

import google_crc32c
import zstandard

from formats import limits
from formats.errors import LimitError

from .encryption import TAG_BYTES, Cipher, Secret
from .records import RecordHeader, RecordType, described, pack_record_header, pack_superblock, signature

ZSTD_LEVEL = 1  # higher levels gain nothing on byte planes (docs/design.md)


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class _Nowhere:
    def write(self, data: bytes, /) -> None:
        del data


class RecordWriter:
    """Appends records to a sink, strictly in order; never seeks, so that a pipe will do.

    Args:
        secret: encrypt the records; `salt` is random, but for files that must be made twice.
    """

    def __init__(self, sink: Sink, file_id: bytes, secret: Secret | None = None, salt: bytes | None = None) -> None:
        self._sink = sink
        self.file_id = file_id
        self.offset = 0
        self.entries: list[tuple[int, RecordHeader]] = []
        self._cipher: Cipher | None = None
        if secret is None:
            self._superblock = pack_superblock(file_id)
        else:
            self._cipher = Cipher.fresh(secret, file_id) if salt is None else Cipher(secret, file_id, salt)
            self._superblock = pack_superblock(file_id, self._cipher.lock.pack())
        self._write(self._superblock)

    def record(
        self,
        kind: RecordType,
        payload: bytes,
        *,
        codec: int = 0,
        part: int = 0,
        layers: tuple[int, int] = (0, 0),
        span: tuple[int, int] = (0, 0),
    ) -> RecordHeader:
        """Compress `payload` into one zstd frame and write it as the next record."""
        frame = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(payload)
        if len(payload) > limits.MAX_RECORD_RAW or len(self.entries) >= limits.MAX_RECORDS - 2:
            raise LimitError(
                f"a file holds at most {limits.MAX_RECORDS} records of at most {limits.MAX_RECORD_RAW} bytes"
            )
        if len(payload) > limits.FREE_RAW and len(payload) > limits.MAX_RATIO * len(frame):
            raise LimitError(f"a record of {len(payload)} bytes that are all alike: no reader would take it")
        return self._record(kind, frame, len(payload), codec, part, layers, span)

    def end(self, index_offset: int) -> None:
        """The END record: where the index lies, how many records there are, and the signature once
        more.
        """
        self._record(RecordType.END, signature(), 0, 0, 0, (0, 0), (index_offset, len(self.entries) + 1))

    def copy_record(self, frame: bytes, header: RecordHeader) -> None:
        """Write a record that a reader's `frame` gave, under the same sequence number."""
        if header.sequence != len(self.entries):
            raise ValueError("records are copied in order")
        self._record(
            header.type,
            frame,
            header.raw,
            header.codec,
            header.part,
            (header.first_layer, header.layer_count),
            (header.first, header.count),
        )

    def trial(self) -> RecordWriter:
        """A writer that stands where this one does and writes nowhere: `offset` tells what records
        would take.

        What it encrypts leaves the memory no more than its key does.
        """
        twin = copy.copy(self)
        twin._sink = _Nowhere()
        twin.entries = list(self.entries)
        return twin

    def _record(
        self, kind: int, payload: bytes, raw: int, codec: int, part: int, layers: tuple[int, int], span: tuple[int, int]
    ) -> RecordHeader:
        """`payload` is a zstd frame, or what END holds."""
        cipher = None if kind == RecordType.END else self._cipher
        length = len(payload) + (0 if cipher is None else TAG_BYTES)
        header = RecordHeader(kind, len(self.entries), length, raw, codec, part, *layers, *span)
        stored = payload
        if cipher is not None:
            stored = cipher.seal(payload, header.sequence, self._superblock + described(header))
        header = replace(header, payload_crc=google_crc32c.value(stored))
        self.entries.append((self.offset, header))
        self._write(pack_record_header(header, self.file_id))
        self._write(stored)
        return header

    def _write(self, data: bytes) -> None:
        self._sink.write(data)
        self.offset += len(data)
