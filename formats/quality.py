"""Putting what was measured into a file that exists already."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .atomic import atomic_write
from .container import RecordWriter
from .trace_file import TraceFile
from .trace_writer import finish_records


def record_quality(path: str | os.PathLike[str], quality: Sequence[Mapping[str, Any]]) -> None:
    """Replace the quality records in a file's tier header; every other record stays as it is, byte for byte."""
    file = TraceFile(path)
    header = replace(file.header, quality=[dict(record) for record in quality])
    target = os.path.realpath(path)  # a link stays a link: its target gets the measurement
    with atomic_write(target, force=True) as sink:
        os.fchmod(sink.fileno(), stat.S_IMODE(os.stat(target).st_mode))
        writer = RecordWriter(sink, file.reader.file_id, max(file.reader.minor, 2))  # 2: a header that states ratios
        for offset, entry in file.entries[:-1]:
            checked = file.reader.header_at(offset, entry.sequence)
            writer.copy_record(file.reader.stored(offset, checked), checked)
        finish_records(writer, header)
