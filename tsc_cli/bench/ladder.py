"""Rows of a benchmark, and the ladder: codec klt at five ratios of ONE cache, beside others on the same cache."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from formats.encode.recipe import Recipe
from tsc_cli.scoring.interpolation import bits_at_kl
from tsc_cli.scoring.published import Published, Tier

from .peers import Peer, installed


@dataclass(frozen=True)
class Limits:
    """What a row must keep, on the mean over prompts."""

    max_kl: float
    min_top1: float


@dataclass(frozen=True)
class Row:
    """One line of a table: a recipe, a tier whose recipe is to be found for each prompt, or another project's codec.

    Attributes:
        kind: "published" (the published recipe), "promised" (rate control), "hand", "klt", "baseline" or "peer".
    """

    label: str
    kind: str
    recipe: Recipe | None = None
    tier: Tier | None = None
    published: Published | None = None
    limits: Limits | None = None
    peer: Peer | None = None


# ratio of the float32 cache, everything in the file counted -> what it must keep, on the mean over prompts
RUNGS: dict[int, Limits] = {
    16: Limits(0.0005, 0.985),
    63: Limits(0.006, 0.965),
    125: Limits(0.018, 0.935),
    219: Limits(0.040, 0.905),
    429: Limits(0.120, 0.84),
}
_KIVI: dict[str, Any] = {"keys": "channel", "values": "token", "group": 32}
BASELINES: dict[str, Recipe] = {
    "int8": Recipe("scalar", {"bits": 8, "keys": "token", "group": 64, "symmetric": True}),
    "q8_0": Recipe("scalar", {"format": "q8_0"}),
    "q4_0": Recipe("scalar", {"format": "q4_0"}),
    "KIVI-4": Recipe("scalar", {"bits": 4, **_KIVI}),
    "KIVI-2": Recipe("scalar", {"bits": 2, **_KIVI}),
}
COMPARED_AT = (0.0065, 0.018, 0.046)  # KL at which the best of the others has about 3.6, 2.9 and 2.3 bits a value


def rows() -> list[Row]:
    """The rungs, the baselines and the peers that are installed here."""
    found = [
        Row(f"klt {ratio}x", "klt", tier=Tier(f"{ratio}x", ratio, math.inf), limits=limits)
        for ratio, limits in RUNGS.items()
    ]
    found += [Row(label, "baseline", recipe) for label, recipe in BASELINES.items()]
    return found + [Row(peer.name, "peer", peer=peer) for peer in installed()[0]]


def comparison(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many times fewer bits klt takes than the best other row, at the same KL.

    Bits at a KL lie on a line between two measured points of one family of settings, in logarithms of both; beyond the
    coarsest point that was measured they are that point's, which is more than would be needed.
    """
    points = [row for row in measured if row.get("kl_mean")]
    ours = sorted((row["kl_mean"], _bits(row)) for row in points if row["kind"] == "klt")
    found = []
    for kl in COMPARED_AT:
        mine = _bits_at(ours, kl)
        others = [(bits, family) for family, bits in _families(points, kl)]
        if mine is None or not others:
            continue
        best, name = min(others)
        found.append({"kl": kl, "bits": mine, "best_other": name, "best_other_bits": best, "times": best / mine})
    return found


def _bits(row: Mapping[str, Any]) -> float:
    return 32 / float(row["ratio_final_fp32"])


def _families(points: Sequence[Mapping[str, Any]], kl: float) -> list[tuple[str, float]]:
    """(family, bits at this KL) of every family of other rows that reaches it."""
    by_family: dict[str, list[tuple[float, float]]] = {}
    for row in points:
        if row["kind"] != "klt":
            by_family.setdefault(_family(row["label"]), []).append((row["kl_mean"], _bits(row)))
    found = []
    for family, pairs in by_family.items():
        bits = _bits_at(sorted(pairs), kl)
        if bits is not None:
            found.append((family, bits))
    return found


def _bits_at(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Bits at a KL on the line through the points, or those of the coarsest point that keeps it."""
    between = bits_at_kl(points, kl)
    if between is not None:
        return between
    return min((bits for reached, bits in points if reached <= kl), default=None)


def _family(label: str) -> str:
    """The rows that differ in one setting of one method, such as KIVI-4 and KIVI-2: the label without its bits."""
    return " ".join(_BITS.sub("", label).split()).replace(" ,", ",")


_BITS = re.compile(r"-\d$|\b(\d+b|q=\d+|K\dV\d)\b")
