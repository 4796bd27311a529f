"""The suites of the benchmark: rows of published codecs, of promises, and of the ladder.

The ladder has codec klt at five ratios of one cache, with other codecs on the same cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from formats.encode.recipe import Recipe
from tsc_cli.scoring.published import TABLE_1, TABLE_2_THRESHOLDS, TIERS, Published, Tier

from .peers import Peer, installed


@dataclass(frozen=True)
class Limits:
    """The limits that a row must keep, on the mean over prompts."""

    max_kl: float
    min_top1: float


@dataclass(frozen=True)
class Row:
    """One line of a table: a recipe, a tier, or another project's codec.

    Attributes:
        label: the row's name.
        kind: "published" (the published recipe), "promised" (rate control), "hand", "klt",
            "baseline" or "peer".
        recipe: what is measured.
        tier: promises a ratio for which a recipe is found for each prompt.
        published: the published figures.
        limits: what the row must keep.
        peer: another project's codec.
    """

    label: str
    kind: str
    recipe: Recipe | None = None
    tier: Tier | None = None
    published: Published | None = None
    limits: Limits | None = None
    peer: Peer | None = None


# ratio of the float32 cache, with everything in the file counted -> limits
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


def ladder_rows() -> list[Row]:
    """Return rows of the rungs, of the baselines and of the installed peers."""
    rows = [
        Row(f"klt {ratio}x", "klt", tier=Tier(f"{ratio}x", ratio, math.inf), limits=limits)
        for ratio, limits in RUNGS.items()
    ]
    rows += [Row(label, "baseline", recipe) for label, recipe in BASELINES.items()]
    return rows + [Row(peer.name, "peer", peer=peer) for peer in installed()[0]]


def _published(label: str, published: Published) -> Row:
    return Row(label, "published", published.recipe, None, published)


def _threshold_rows() -> list[Row]:
    rows = []
    for threshold in TABLE_2_THRESHOLDS:
        published = TIERS["125x"].published if threshold == 0.05 else None
        recipe = Recipe("vq", {"block": 8, "threshold": threshold})
        rows.append(Row(f"threshold {threshold:.3f}", "published", recipe, None, published))
    return rows


def _hierarchy_rows() -> list[Row]:
    rows = [_published(tier.name, tier.published) for tier in TIERS.values() if tier.published is not None]
    return rows + [Row(tier.name, "promised", tier=tier) for tier in TIERS.values()]


SUITES: dict[str, Callable[[], list[Row]]] = {
    "block-size": lambda: [_published(label, published) for label, published in TABLE_1.items()],
    "threshold": _threshold_rows,
    "hierarchy": _hierarchy_rows,
    "ladder": ladder_rows,
}
