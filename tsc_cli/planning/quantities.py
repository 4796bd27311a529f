"""Quantities as a person writes them: 128k tokens, 80GB, 10Gbit/s, 400TFLOP/s."""

from __future__ import annotations

import re

from formats.errors import UsageError
from formats.limits import MAX_ROWS
from tsc_cli.checkpoints.config_fields import shown

_QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{1,9})?) ?([A-Za-z/]*)", re.ASCII)
_POWERS = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6, "Z": 7}
_SIZES = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for letter, power in _POWERS.items() if 0 < power < 6},
    **{f"{letter}iB": 1024**power for letter, power in _POWERS.items() if 1 < power < 6},
    "KiB": 1024,
}
_TOKENS = {"": 1, "k": 1 << 10, "K": 1 << 10, "m": 1 << 20, "M": 1 << 20}
_BANDWIDTHS = {
    **{f"{letter}B/s": 1000.0**power for letter, power in _POWERS.items() if power < 6},
    **{f"{letter}bit/s": 1000.0**power / 8 for letter, power in _POWERS.items() if power < 6},
}
_FLOPS = {f"{letter}{unit}": 1000.0**power for letter, power in _POWERS.items() for unit in ("", "FLOP/s", "FLOPS")}
_COUNTS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
MOST = 10**21  # of anything: more is a slip of the keyboard, and sums of it stay numbers


def tokens(text: str) -> int:
    """Tokens of a context; k is 1,024, so that 128k is 131,072.

    Raises:
        UsageError: it is not a whole number from 1 to `MAX_ROWS`, the rows that a file can hold.
    """
    value = _parse(text, _TOKENS, "--context", "such as 8192, 128k or 1M, where k is 1,024 tokens")
    if value != int(value) or value > MAX_ROWS:
        raise UsageError(f"--context {shown(text)} is not a whole number of tokens from 1 to {MAX_ROWS:,}")
    return int(value)


def size(text: str, option: str) -> int:
    """Bytes; kB, MB, GB are powers of 1,000, KiB, MiB, GiB powers of 1,024.

    Raises:
        UsageError: it is no size, or zero; the message names the option.
    """
    return _whole(text, _SIZES, option, "such as 80GB (10^9 bytes) or 80GiB (2^30)")


def count(text: str, option: str) -> int:
    """A number of parameters, such as 7B.  Raises UsageError."""
    return _whole(text, _COUNTS, option, "such as 8030000000 or 8.03B")


def bandwidth(text: str) -> float:
    """Bytes a second.  Raises UsageError."""
    return _parse(text, _BANDWIDTHS, "--bandwidth", "such as 10Gbit/s or 1.25GB/s: bits and bytes differ by 8")


def flops(text: str) -> float:
    """Floating-point operations a second.  Raises UsageError."""
    return _parse(text, _FLOPS, "--flops", "such as 400TFLOP/s")


def _whole(text: str, units: dict[str, int], option: str, hint: str) -> int:
    value = _parse(text, units, option, hint)
    if value < 1:
        raise UsageError(f"{option} {shown(text)} is less than one", hint=hint)
    return int(value)


def _parse(text: str, units: dict[str, int] | dict[str, float], option: str, hint: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in units:
        raise UsageError(f"{option} {shown(text)} is not understood", hint=hint)
    unit = units[match[2]]
    # whole numbers stay exact: a float has 53 bits
    value = float(match[1]) * unit if "." in match[1] else int(match[1]) * unit
    if not 0 < value <= MOST:
        raise UsageError(f"{option} {shown(text)} is out of range: more than 0 and at most {MOST:.0e}", hint=hint)
    return value
