"""How a file ends: records copied from another one, the tier header with the ratios of the whole,
INDEX and END.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from formats.container.encryption import Secret
from formats.container.records import RecordType
from formats.container.safetensors_buffer import pack_integers
from formats.container.writer import RecordWriter
from formats.errors import CorruptError, LimitError, PromiseError, StorageError

from . import header as header_json
from . import promises
from .header import TierHeader
from .index import size_fault

if TYPE_CHECKING:
    from .reader import TraceFile


def require_readable(sink: BinaryIO, secret: Secret | None, path: str | os.PathLike[str]) -> None:
    """Open what was written, before it takes the place of the file at `path`, which can be opened.

    Raises:
        LimitError: no reader would: it says more than a file may.
        StorageError: it cannot be read back.
    """
    from .reader import TraceFile

    sink.flush()
    try:
        TraceFile(f"/dev/fd/{sink.fileno()}", secret)
    except CorruptError as error:
        message = f"nothing was written, since no reader would take it: {error.message}"
        raise LimitError(message, path=os.fspath(path)) from error
    except StorageError as error:
        raise StorageError(error.message, path=os.fspath(path)) from error


def copy_records(file: TraceFile, writer: RecordWriter) -> None:
    """Write all records of a file but its tier header, index and end mark."""
    for offset, entry in file.entries[:-1]:
        checked = file.header_of(offset, entry)
        writer.copy_record(file.reader.frame(offset, checked), checked)


_ROUNDS = 8  # of finding the ratio that a header states of the file that it is part of
_NEAR = 8  # bytes by which files differ whose headers state neighbouring ratios


def finish_records(
    writer: RecordWriter,
    header: TierHeader,
    *,
    lost_by: str = "",
    values: Callable[[], int] | None = None,
    insist: bool = False,
) -> tuple[TierHeader, int]:
    """Write the HEADER, INDEX and END records; returns the header with its ratios and the file's
    length.

    Every file ends here.  So this is where a tier is held against what was written: one that the
    file does not keep is not stated.

    Args:
        lost_by: what MODEL says that the rows had lost by; see `promises`.
        values: counts the stored values, for a promise of bits a value; without it no such promise
            is stated.
        insist: refuse to finish a file that does not keep its tier.
    Raises:
        PromiseError: it does not.
        LimitError: no reader would take the file.
    """
    records = [entry for _, entry in writer.entries]
    fault = size_fault(records, writer.offset)
    if fault:
        raise LimitError(f"{fault}: no reader would take it")
    lost_by = promises.loss_of_records(lost_by, header.codec, header.capture, records)
    stated, length = _settled(writer, header)
    broken = promises.fault_of(stated, length, lost_by)
    if broken is None and promises.bits_of(stated.tier) is not None:
        broken = promises.fault_of_bits(stated, length, values()) if values else "its stored values are not counted"
    if broken is not None:
        if insist:
            raise PromiseError(f"{stated.tier} cannot be met: {broken}")
        stated, _ = _settled(writer, replace(header, tier=""))
    return stated, _close(writer, stated)


def _settled(writer: RecordWriter, header: TierHeader) -> tuple[TierHeader, int]:
    """The header with the ratios of the file that it is part of, and the length of that file;
    nothing is written.
    """
    stated = header.with_ratios(writer.offset)
    found: list[tuple[float, TierHeader, int]] = []
    for _ in range(_ROUNDS):
        length = _close(writer.trial(), stated)
        again = header.with_ratios(length)
        found.append((_off_by(stated, length), stated, length))
        if again == stated:
            return stated, length
        stated = again
    # the length and the ratios chase one another: take the header that is least wrong
    for near in range(length - _NEAR, length + _NEAR + 1):
        stated = header.with_ratios(near)
        reached = _close(writer.trial(), stated)
        found.append((_off_by(stated, reached), stated, reached))
    _, stated, length = min(found, key=lambda one: one[0])
    return stated, length


def _off_by(header: TierHeader, length: int) -> float:
    """How far the stated ratios are from those of a file of this length."""
    raw = (header.raw_bytes_trace, header.raw_bytes_final)
    return max(abs(ratio * length / value - 1) for ratio, value in zip(header.ratios, raw, strict=True))


def _close(writer: RecordWriter, header: TierHeader) -> int:
    writer.record(RecordType.HEADER, header_json.to_json(header))
    table = [
        value
        for offset, h in writer.entries
        for value in (offset, h.type, h.codec, h.stored, h.raw, h.part, h.first_layer, h.layer_count, h.first, h.count)
    ]
    index_offset = writer.offset
    lines = len(writer.entries)
    writer.record(RecordType.INDEX, pack_integers({"records": ("I64", (lines, len(table) // lines), table)}))
    writer.end(index_offset)
    return writer.offset
