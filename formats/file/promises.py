"""Whether a file keeps the tier that it states, and what its rows lost since they were captured.

The writer asks when a file is finished, and so does every reader.  A file of codec lossless keeps
every bit of what it was given, which may have come out of a file that did not.  So the MODEL
record, which every copy and every recovery keeps, says `lost_by`; what it does not say follows from
the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from formats.codecs import codec_name, is_exact
from formats.container.records import RecordHeader, RecordType

from .blocks import FileBlock, FileStates
from .header import TierHeader, rounded_down

if TYPE_CHECKING:
    from formats.trace.trace import Trace

_CODED = (RecordType.ROWS, RecordType.STATES)

_DECIMAL = r"(\d{1,20}(?:\.\d{1,20})?)"
_RATIO = re.compile(_DECIMAL + "x", re.ASCII)
_BITS = re.compile(_DECIMAL + "bits", re.ASCII)


def ratio_of(tier: str) -> Fraction | None:
    """N of a tier `Nx`, exactly: how many times smaller than its snapshots a file is; None of any
    other tier.
    """
    match = _RATIO.fullmatch(tier)
    return None if match is None else Fraction(match[1])


def bits_of(tier: str) -> Fraction | None:
    """N of a tier `Nbits`, exactly: how many bits of the file there are for a stored value, at
    most.
    """
    match = _BITS.fullmatch(tier)
    return None if match is None else Fraction(match[1])


def fault_of(header: TierHeader, length: int, lost_by: str) -> str | None:
    """What a file of this length does not keep of the tier that its header states, in words.

    `60x` is kept at exactly 60 and not at 59.99: nothing is rounded.  Tiers that are no ratio and
    not "lossless" are promises of quality, which only a measurement can tell.

    Args:
        lost_by: what the rows lost by, or "".
    """
    ratio = ratio_of(header.tier)
    if ratio is not None and ratio * length > header.raw_bytes_trace:
        return f"the file is {rounded_down(header.raw_bytes_trace / length):g} times smaller than its snapshots"
    if header.tier == "lossless" and (lost_by or not is_exact(header.codec, own=True)):
        return f"its rows are not as captured ({lost_by or header.codec})"
    return None


def fault_of_bits(header: TierHeader, length: int, values: int) -> str | None:
    """As `fault_of`, of a tier `Nbits` and a file of so many stored values, which only its writer
    is held to.
    """
    bits = bits_of(header.tier)
    if bits is not None and 8 * length > bits * values:
        return f"the file takes {8 * length / values:.6g} bits a stored value"
    return None


def loss_of_records(stated: str, codec: str, capture: Mapping[str, Any], records: Iterable[RecordHeader]) -> str:
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


def loss_of_trace(trace: Trace) -> str:
    """As `loss_of_records`, of a trace, wherever its rows are."""
    # of a sequence of a batch
    stored = [getattr(block, "whole", block) for block in (*trace.blocks, *trace.states)]
    records = [one.header for one in stored if isinstance(one, FileBlock | FileStates)]
    found = loss_of_records(trace.lost_by, trace.codec, trace.info, records)
    return found or ("eviction" if trace.head_maps else "")


def dequantized(kind: str) -> str:
    """The name of what was lost in a cache of these layers, whose rows were taken as the model
    reads them.
    """
    return f"{kind}, dequantized"
