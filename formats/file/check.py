"""Checking a whole file: every byte, without keeping more than one record in memory, and without
torch.
"""

from __future__ import annotations

import contextlib
import os

from formats.container.encryption import KeySource
from formats.container.reader import RecordReader
from formats.container.records import RECORD_BYTES, SUPERBLOCK_BYTES, RecordType

from .index import open_file
from .reader import TraceFile

_CLOSING = (RecordType.HEADER, RecordType.INDEX, RecordType.END)


def check(path: str | os.PathLike[str], key: KeySource | None = None, *, decode: bool = False) -> TraceFile:
    """Read and check every byte of a file: all records against the index, all payloads, all rows'
    shapes.

    Args:
        key: the secret of an encrypted file, or what gives it.
        decode: decode all rows, states and attention, too, each by itself: with torch, and with the
            profile of codec klt.  So nothing is left that a restore could refuse.
    Raises:
        StorageError, UsageError: it cannot be read.
        LockedError: it is encrypted, and no key or another one was given.
        CorruptError, UnsupportedFileError: the first thing that is wrong with it.
    """
    file = TraceFile(path, key)
    blocks = {block.offset: block for block in file.blocks}
    attention = {one.offset: one for one in file.attention}
    states = {one.offset: one for one in file.states}
    if file.profile is not None and file.profile.data is not None:
        with file.locating():
            file.profile.load()
    for offset, entry in file.entries:
        if offset in blocks:
            blocks[offset].read() if decode else blocks[offset].tensors()
        elif offset in states:
            states[offset].read() if decode else states[offset].tensors()
        elif offset in attention:
            attention[offset].check()
        else:
            file.payload(offset, entry)
    return file


def check_sealed(path: str | os.PathLike[str]) -> int | None:
    """Check of an encrypted file what can be checked without its key: the checksums, order and
    number of its records.

    Returns:
        how many records there are, or None if the file is not encrypted.
    Raises:
        StorageError, UsageError: it cannot be read.
        CorruptError, UnsupportedFileError: the first thing that is wrong with it.
    """
    descriptor = open_file(os.fspath(path))
    with contextlib.closing(os.fdopen(descriptor, "rb")):
        reader = RecordReader(descriptor, os.fspath(path))
        if reader.lock is None:
            return None
        index_offset, count = reader.end()
        if count < 1 + len(_CLOSING):
            raise reader.corrupt("the end mark counts too few records", index_offset)
        offset = SUPERBLOCK_BYTES
        for sequence in range(count):
            header = reader.header_at(offset, sequence)
            closing = sequence - count + 3  # HEADER, INDEX and END are the last
            wanted = _CLOSING[closing] if closing >= 0 else RecordType.MODEL if sequence == 0 else None
            if header.type != wanted if wanted is not None else header.type in (RecordType.MODEL, *_CLOSING):
                raise reader.corrupt(f"a {header.name} record where it cannot be", offset, sequence)
            if header.type == RecordType.INDEX and offset != index_offset:
                raise reader.corrupt("the end mark does not point to the index", offset, sequence)
            reader.stored(offset, header)
            offset += RECORD_BYTES + header.stored
        if offset != reader.size:
            raise reader.corrupt("bytes behind the end mark", offset)
        return count
