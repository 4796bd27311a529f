"""Making a file anew with another tier header or another encryption: its records stay, as they were
before that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from formats.container.atomic_write import atomic_write, only_writer
from formats.container.encryption import KeySource, Secret
from formats.container.records import FILE_ID_BYTES
from formats.container.writer import RecordWriter, Sink
from formats.errors import StorageError, UsageError
from formats.trace.row_store import stored_values

from .finish import copy_records, finish_records, require_readable
from .header import TierHeader
from .reader import TraceFile


def record_quality(
    path: str | os.PathLike[str],
    quality: Sequence[Mapping[str, Any]],
    key: KeySource | None = None,
    measured: TraceFile | None = None,
) -> TierHeader:
    """Replace the quality records in a file's tier header; every other record stays as it is.

    Args:
        measured: the file as it was opened to be measured; another one may have taken its name
            since.
    Returns:
        The new header.  It states no tier if the longer file does not keep it.
    Raises:
        LockedError: the file is encrypted, and no key or another one was given.
        StorageError: it is not what was measured, or another process is writing to it.
        LimitError: the records are more than a header may hold.
    """
    target = os.path.realpath(path)  # a link stays a link: its target gets the measurement
    with only_writer(target):
        file = TraceFile(target, key)
        if measured is not None and _content(measured) != _content(file):
            raise StorageError("changed while it was being measured: nothing was recorded", path=os.fspath(path))
        header = replace(file.header, quality=[dict(record) for record in quality])
        with atomic_write(target, overwrite=True) as sink:
            os.fchmod(sink.fileno(), stat.S_IMODE(os.stat(target).st_mode))
            stated, _ = _write(file, sink, file.reader.file_id, file.reader.secret, header)
            require_readable(sink, file.reader.secret, path)
    return stated


def _content(file: TraceFile) -> tuple[object, ...]:
    """The identity and all records but the header."""
    return file.reader.file_id, file.entries[:-1]


def encrypt(file: TraceFile, sink: Sink, secret: Secret) -> tuple[TierHeader, int]:
    """Write an encrypted copy of a file; returns its header and its length in bytes.

    It has a new identity: that of the original may follow from what it holds.  A tier that the
    longer file does not keep is not stated.

    Raises:
        UsageError: the file is encrypted already.
    """
    if file.reader.lock is not None:
        raise UsageError("is encrypted already", path=file.path, hint="tsc decrypt it first, to change the key")
    return _write(file, sink, os.urandom(FILE_ID_BYTES), secret, file.header)


def decrypt(file: TraceFile, sink: Sink) -> tuple[TierHeader, int]:
    """Write a copy of an encrypted file that is not; returns its header and its length in bytes.

    Raises:
        UsageError: the file is not encrypted.
    """
    if file.reader.lock is None:
        raise UsageError("is not encrypted", path=file.path)
    return _write(file, sink, file.reader.file_id, None, file.header)


def _write(
    file: TraceFile, sink: Sink, file_id: bytes, secret: Secret | None, header: TierHeader
) -> tuple[TierHeader, int]:
    writer = RecordWriter(sink, file_id, secret)
    copy_records(file, writer)
    return finish_records(
        writer, header, lost_by=file.stated_loss, values=lambda: stored_values(file.geometry, file.views)
    )
