"""What rows lost on their way from the capture: a codec, an eviction or a cache that was quantized.

A file of codec lossless keeps every bit of what it was given, which may have come out of a file that did not.  So the
MODEL record, which every copy and every recovery keeps, says `lost_by`; what it does not say follows from the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from formats.codecs import codec_name, is_exact
from formats.container.records import RecordHeader, RecordType

from .blocks import FileBlock, FileStates

if TYPE_CHECKING:
    from formats.trace.trace import Trace

_CODED = (RecordType.ROWS, RecordType.STATES)


def of_records(stated: str, codec: str, capture: Mapping[str, Any], records: Iterable[RecordHeader]) -> str:
    """What the rows of a file lost by, such as "scalar"; "" if they are those that were captured.

    Args:
        stated: `lost_by` of its MODEL record.
        codec, capture: of its tier header.
        records: its records, whatever the header says of them.
    """
    if stated or not is_exact(codec):
        return stated or codec
    if isinstance(kind := capture.get("dequantized"), str) and kind:
        return dequantized(kind)
    for record in records:
        if record.type in _CODED and not is_exact(record.codec):
            return codec_name(record.codec)
        if record.type == RecordType.KEPT:
            return "eviction"
    return ""


def of_trace(trace: Trace) -> str:
    """As `of_records`, of a trace, wherever its rows are."""
    stored = [getattr(block, "whole", block) for block in (*trace.blocks, *trace.states)]  # of a sequence of a batch
    records = [one.header for one in stored if isinstance(one, FileBlock | FileStates)]
    found = of_records(trace.lost_by, trace.codec, trace.info, records)
    return found or ("eviction" if trace.kept else "")


def dequantized(kind: str) -> str:
    """The name of what was lost in a cache of these layers, whose rows were taken as the model reads them."""
    return f"{kind}, dequantized"
