"""Making a file anew with another tier header or another encryption: its records stay, as they were before that."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .atomic import atomic_write
from .closing import copy_records, finish_records
from .encryption import KeySource, Secret
from .errors import UsageError
from .header import TierHeader
from .record_writer import RecordWriter, Sink
from .records import FILE_ID_BYTES
from .trace_file import TraceFile
from .trace_writer import minor_for

_RATIOS = 2  # minor version of a header that states ratios


def record_quality(
    path: str | os.PathLike[str], quality: Sequence[Mapping[str, Any]], key: KeySource | None = None
) -> None:
    """Replace the quality records in a file's tier header; every other record stays as it is.

    Raises:
        LockedError: the file is encrypted, and no key or another one was given.
    """
    file = TraceFile(path, key)
    header = replace(file.header, quality=[dict(record) for record in quality])
    target = os.path.realpath(path)  # a link stays a link: its target gets the measurement
    with atomic_write(target, force=True) as sink:
        os.fchmod(sink.fileno(), stat.S_IMODE(os.stat(target).st_mode))
        _write(file, sink, file.reader.file_id, file.reader.minor, file.reader.secret, header)


def encrypt(file: TraceFile, sink: Sink, secret: Secret) -> int:
    """Write an encrypted copy of a file; returns its length in bytes.

    It has a new identity: that of the original may follow from what it holds.

    Raises:
        UsageError: the file is encrypted already.
    """
    if file.reader.lock is not None:
        raise UsageError("is encrypted already", path=file.path, hint="tsc decrypt it first, to change the key")
    return _write(file, sink, os.urandom(FILE_ID_BYTES), file.reader.minor, secret, file.header)


def decrypt(file: TraceFile, sink: Sink) -> int:
    """Write a copy of an encrypted file that is not; returns its length in bytes.

    Raises:
        UsageError: the file is not encrypted.
    """
    if file.reader.lock is None:
        raise UsageError("is not encrypted", path=file.path)
    minor = minor_for(file.geometry, file.labels.width)
    return _write(file, sink, file.reader.file_id, minor, None, file.header)


def _write(
    file: TraceFile, sink: Sink, file_id: bytes, minor: int, secret: Secret | None, header: TierHeader
) -> int:  # fmt: skip
    writer = RecordWriter(sink, file_id, max(minor, _RATIOS), secret)
    copy_records(file, writer)
    _, length = finish_records(writer, header)
    return length
