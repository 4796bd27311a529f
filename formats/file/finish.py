"""The end of writing a file: records copied from another file, then HEADER, INDEX and END."""

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
    """Check that a new file can be opened, before it replaces the readable file at `path`.

    Args:
        sink: The new file.
        secret: The secret that it is encrypted with, if it is.
        path: The path of the file to replace, for messages.

    Raises:
        LimitError: The new file exceeds a limit of the format, so readers refuse it.
        StorageError: It cannot be read back.
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
    """Copy all records of a file except HEADER, INDEX and END to the writer."""
    for offset, entry in file.entries[:-1]:
        checked = file.header_of(offset, entry)
        writer.copy_record(file.reader.frame(offset, checked), checked)


# The header states the compression ratios of the file, and its own length depends on them, so they
# are found by iteration.
_MAX_ITERATIONS = 8
_LENGTH_TOLERANCE = 8  # bytes around the last length that are tried if the iteration does not end


def finish_records(
    writer: RecordWriter,
    header: TierHeader,
    *,
    lost_by: str = "",
    values: Callable[[], int] | None = None,
    insist: bool = False,
) -> tuple[TierHeader, int]:
    """Write the HEADER, INDEX and END records.

    Every file is finished here, so this function also checks the promise of the header's tier
    against what was written.  The header is written without a tier if the file breaks the promise.

    Args:
        writer: The writer, with all other records written.
        header: The header, whose ratios are still to be set.
        lost_by: How the rows had lost precision before, as the MODEL record states; see `promises`.
        values: A function that counts the stored values, for a tier that promises bits per value;
            without it, such a tier is left out.
        insist: Raise an error if the file breaks its promise, and leave the file unfinished.

    Returns:
        The header as it was written, and the length of the file in bytes.

    Raises:
        PromiseError: The file breaks the promise of its tier, and `insist` is set.
        LimitError: The file exceeds a limit of the format, so readers would refuse it.
    """
    records = [entry for _, entry in writer.entries]
    fault = size_fault(records, writer.offset)
    if fault:
        raise LimitError(f"{fault}: no reader would take it")
    lost_by = promises.loss_of_records(lost_by, header.codec, header.capture, records)
    stated, length = _with_final_ratios(writer, header)
    broken = promises.fault_of(stated, length, lost_by)
    if broken is None and promises.bits_of(stated.tier) is not None:
        broken = promises.fault_of_bits(stated, length, values()) if values else "its stored values are not counted"
    if broken is not None:
        if insist:
            raise PromiseError(f"{stated.tier} cannot be met: {broken}")
        stated, _ = _with_final_ratios(writer, replace(header, tier=""))
    return stated, _close(writer, stated)


def _with_final_ratios(writer: RecordWriter, header: TierHeader) -> tuple[TierHeader, int]:
    """Find the ratios that the header states, without writing anything.

    Returns:
        The header with its ratios, and the length in bytes of the file that contains it.
    """
    stated = header.with_ratios(writer.offset)
    candidates: list[tuple[float, TierHeader, int]] = []  # (error of the ratios, header, length)
    for _ in range(_MAX_ITERATIONS):
        length = _close(writer.trial(), stated)
        updated = header.with_ratios(length)
        candidates.append((_ratio_error(stated, length), stated, length))
        if updated == stated:
            return stated, length
        stated = updated
    # the iteration alternates between headers: take the one whose ratios are closest
    for assumed_length in range(length - _LENGTH_TOLERANCE, length + _LENGTH_TOLERANCE + 1):
        stated = header.with_ratios(assumed_length)
        actual_length = _close(writer.trial(), stated)
        candidates.append((_ratio_error(stated, actual_length), stated, actual_length))
    _, stated, length = min(candidates, key=lambda candidate: candidate[0])
    return stated, length


def _ratio_error(header: TierHeader, length: int) -> float:
    """Return the larger relative error of the stated ratios, for a file of `length` bytes."""
    raw_bytes = (header.raw_bytes_trace, header.raw_bytes_final)
    return max(abs(ratio * length / raw - 1) for ratio, raw in zip(header.ratios, raw_bytes, strict=True))


def _close(writer: RecordWriter, header: TierHeader) -> int:
    """Write the HEADER, INDEX and END records, and return the length of the file in bytes."""
    writer.record(RecordType.HEADER, header_json.to_json(header))
    table = [
        value
        for offset, h in writer.entries
        for value in (offset, h.type, h.codec, h.stored, h.raw, h.part, h.first_layer, h.layer_count, h.first, h.count)
    ]
    index_offset = writer.offset
    record_count = len(writer.entries)
    writer.record(
        RecordType.INDEX, pack_integers({"records": ("I64", (record_count, len(table) // record_count), table)})
    )
    writer.end(index_offset)
    return writer.offset
