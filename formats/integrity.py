"""Checking a whole file: every byte, without torch and without keeping more than one record in memory."""

from __future__ import annotations

import os

from .trace_file import TraceFile


def check(path: str | os.PathLike[str]) -> TraceFile:
    """Read and check every byte of a file: all records against the index, all payloads, all rows' shapes.

    Raises:
        StorageError, UsageError: it cannot be read.
        CorruptError, UnsupportedFileError: the first thing that is wrong with it.
    """
    file = TraceFile(path)
    blocks = {block.offset: block for block in file.blocks}
    attention = {one.offset: one for one in file.attention}
    states = {one.offset: one for one in file.states}
    if file.profile is not None and file.profile.data is not None:
        with file.locating():
            file.profile.load()
    for offset, entry in file.entries:
        if offset in blocks:
            blocks[offset].tensors()
        elif offset in states:
            states[offset].tensors()
        elif offset in attention:
            attention[offset].check()
        else:
            file.payload(offset, entry)
    return file
