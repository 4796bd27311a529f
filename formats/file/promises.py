"""Whether a file keeps the tier that it states: asked by its writer when the file is finished, and by every reader."""

from __future__ import annotations

import re
from fractions import Fraction

from formats.codecs import is_exact

from .header import TierHeader, rounded_down

_DECIMAL = r"(\d{1,20}(?:\.\d{1,20})?)"
_RATIO = re.compile(_DECIMAL + "x", re.ASCII)
_BITS = re.compile(_DECIMAL + "bits", re.ASCII)


def ratio_of(tier: str) -> Fraction | None:
    """N of a tier `Nx`, exactly: how many times smaller than its snapshots a file is; None of any other tier."""
    match = _RATIO.fullmatch(tier)
    return None if match is None else Fraction(match[1])


def bits_of(tier: str) -> Fraction | None:
    """N of a tier `Nbits`, exactly: how many bits of the file there are for a stored value, at most."""
    match = _BITS.fullmatch(tier)
    return None if match is None else Fraction(match[1])


def fault_of(header: TierHeader, length: int, lost_by: str) -> str | None:
    """What a file of this length does not keep of the tier that its header states, in words.

    `60x` is kept at exactly 60 and not at 59.99: nothing is rounded.  Tiers that are no ratio and not "lossless" are
    promises of quality, which only a measurement can tell.

    Args:
        lost_by: see `loss`.
    """
    ratio = ratio_of(header.tier)
    if ratio is not None and ratio * length > header.raw_bytes_trace:
        return f"the file is {rounded_down(header.raw_bytes_trace / length):g} times smaller than its snapshots"
    if header.tier == "lossless" and (lost_by or not is_exact(header.codec, own=True)):
        return f"its rows are not as captured ({lost_by or header.codec})"
    return None


def fault_of_bits(header: TierHeader, length: int, values: int) -> str | None:
    """As `fault_of`, of a tier `Nbits` and a file of so many stored values, which only its writer is held to."""
    bits = bits_of(header.tier)
    if bits is not None and 8 * length > bits * values:
        return f"the file takes {8 * length / values:.6g} bits a stored value"
    return None
