"""The comparison of the ladder: bits of codec klt and of the best other codec at the same KL."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tsc_cli.scoring.interpolation import bits_at_kl

# KL at which the best other codec has about 3.6, 2.9 and 2.3 bits a value
COMPARED_AT = (0.0065, 0.018, 0.046)


def comparison(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare the bits of codec klt with those of the best other codec at the same KL.

    Bits at a KL are interpolated between two points of one family of settings, on a line in
    logarithms of both.  Beyond the coarsest measured point they are that point's, which is an upper
    bound.

    Args:
        measured: rows of a `tsc.bench/1` document.
    Returns:
        {"kl", "bits", "best_other", "best_other_bits", "times"} at each KL that is reached.
    """
    points = [row for row in measured if row.get("kl_mean")]
    ours = sorted((row["kl_mean"], _bits(row)) for row in points if row["kind"] == "klt")
    compared = []
    for kl in COMPARED_AT:
        bits = _bits_at(ours, kl)
        others = _families(points, kl)
        if bits is None or not others:
            continue
        best, name = min(others)
        compared.append({"kl": kl, "bits": bits, "best_other": name, "best_other_bits": best, "times": best / bits})
    return compared


def _bits(row: Mapping[str, Any]) -> float:
    return 32 / float(row["ratio_final_fp32"])


def _families(points: Sequence[Mapping[str, Any]], kl: float) -> list[tuple[float, str]]:
    """List the bits at this KL and the name of every family of other rows that reaches it."""
    by_family: dict[str, list[tuple[float, float]]] = {}
    for row in points:
        if row["kind"] != "klt":
            by_family.setdefault(_family(row["label"]), []).append((row["kl_mean"], _bits(row)))
    bits = [(_bits_at(sorted(pairs), kl), family) for family, pairs in by_family.items()]
    return [(reached, family) for reached, family in bits if reached is not None]


def _bits_at(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Interpolate bits at a KL, or return those of the coarsest point that keeps it."""
    between = bits_at_kl(points, kl)
    if between is not None:
        return between
    return min((bits for reached, bits in points if reached <= kl), default=None)


def _family(label: str) -> str:
    """Return a label without its bits: KIVI for KIVI-4 and KIVI-2."""
    return " ".join(_BITS.sub("", label).split()).replace(" ,", ",")


_BITS = re.compile(r"-\d$|\b(\d+b|q=\d+|K\dV\d)\b")
