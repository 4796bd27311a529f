"""Tiers: named promises about a file, and the recipes published under these names (docs/claims.md).

`Nx` promises two things. The bytes of the captured trace are at least N times those of the file,
with everything counted and no rounding (`promises` checks that). And the KL is at most the lowest
that was published for a file of this size or smaller, so that a larger file never has a worse
limit. A file that reaches the ratio only at a worse KL does not keep the tier.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from formats.encode.recipe import Recipe
from formats.errors import UsageError
from formats.file import promises


@dataclass(frozen=True)
class Published:
    """The published figures and recipe of a tier.

    Attributes:
        where: the published table or section.
        ratio: trace over file, as stated.
        kl, top1, perplexity_change: as stated; None where they state none.
    """

    recipe: Recipe
    where: str
    ratio: float
    kl: float | None = None
    top1: float | None = None
    perplexity_change: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Tier:
    """A named promise about a file.

    Attributes:
        ratio: trace over file, at least; None promises bit-exactness instead of a size.
        max_kl: mean KL that the promise includes.
        published: the published tier of this name, if there is one.
    """

    name: str
    ratio: float | None
    max_kl: float
    published: Published | None = None

    @property
    def promise(self) -> str:
        if self.ratio is None:
            return "every tensor bit-identical to the capture"
        return f"trace / file >= {self.ratio:g} at a KL of at most {self.max_kl:g}"


def _blocks(codec: str, **settings: object) -> Recipe:
    return Recipe(codec, settings)


_DELTA: dict[str, object] = {"bits": 4, "kf": 64}
TIERS: dict[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier("lossless", None, 1e-6, Published(Recipe("lossless"), "tiers", 7.98, kl=1e-6, top1=1.0)),
        Tier("63x", 63, 0.01, Published(Recipe("delta", _DELTA), "tiers", 63, top1=1.0, perplexity_change=-0.03)),
        Tier(
            "84x",
            84,
            0.053,  # what 219x has
            Published(Recipe("delta", _DELTA, evict="h2o", evict_settings={"keep": 0.75}), "tiers", 84, kl=0.08),
        ),
        Tier("125x", 125, 0.053, Published(_blocks("vq", block=8, threshold=0.05), "tiers", 125, kl=0.057, top1=1.0)),
        Tier("219x", 219, 0.053, Published(_blocks("pq", block=8, m=2, threshold=0.08), "tiers", 219, kl=0.053)),
        Tier("429x", 429, 0.154, Published(_blocks("vq", block=2, fallback=False), "Table 1", 429, kl=0.154, top1=1.0)),
        Tier(
            "1034x",
            1034,
            0.5,
            Published(
                _blocks("vq", block=8, fallback=False), "Table 1", 1034, kl=1.09, top1=0.2, remark="KL 1.09 to 3.08"
            ),
        ),
    )
}
# Table 1 has two rows that are no tiers
TABLE_1: dict[str, Published] = {
    "vq-8": Published(_blocks("vq", block=8, fallback=False), "Table 1", 1034, kl=1.09, remark="KL 1.09 to 3.08"),
    "vq-4": Published(_blocks("vq", block=4, fallback=False), "Table 1", 854, kl=2.11),
    "vq-2": Published(_blocks("vq", block=2, fallback=False), "Table 1", 429, kl=0.154, top1=1.0),
    "scalar-8": Published(Recipe("scalar", {"bits": 8}), "Table 1", 216, kl=0.030),
}
# Table 2 and Figure 1: blocks whose error exceeds the threshold are fp16; the share of VQ blocks at
# 0.05 is 2.3%
TABLE_2_THRESHOLDS = (0.100, 0.070, 0.050, 0.030, 0.000)

_MOST = 10**9  # times smaller that may be asked for


def tier_of(name: str) -> Tier:
    """Return the tier of this name, published or any other `Nx`.

    Raises:
        UsageError: there is no such tier.
    """
    if name in TIERS:
        return TIERS[name]
    ratio = promises.ratio_of(name)
    if ratio is None or not 1 <= ratio < _MOST:
        near = difflib.get_close_matches(name, TIERS, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(TIERS)}, or any Nx such as 300x"
        raise UsageError(f"there is no tier {name!r}", hint=hint)
    limits = [tier.max_kl for tier in TIERS.values() if tier.ratio is not None and tier.ratio >= ratio]
    return Tier(name, float(ratio), min(limits, default=TIERS["1034x"].max_kl))


# mean KL in nats, at most
QUALITIES = {"near-exact": 0.001, "high": 0.01, "balanced": 0.05, "small": 0.15}


@dataclass(frozen=True)
class Goal:
    """A quality to keep in as few bytes as possible.

    Attributes:
        name: as the tier header states it.
        max_kl: the largest mean KL in nats.
        min_top1: the smallest share of equal top-1 tokens.
    """

    name: str
    max_kl: float = float("inf")
    min_top1: float = 0.0

    @property
    def promise(self) -> str:
        wanted = [f"a KL of at most {self.max_kl:g}"] if self.max_kl < float("inf") else []
        wanted += [f"a top-1 share of at least {self.min_top1:g}"] if self.min_top1 else []
        return " and ".join(wanted)


def goal_of(quality: str) -> Goal:
    """Return the goal of this name. Raises UsageError if there is none."""
    if quality not in QUALITIES:
        near = difflib.get_close_matches(quality, QUALITIES, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(QUALITIES)}"
        raise UsageError(f"there is no quality {quality!r}", hint=hint)
    return Goal(quality, QUALITIES[quality])


@dataclass(frozen=True)
class Verdict:
    """A published word for a measured KL."""

    word: str
    below: float
    meaning: str


VERDICTS = (
    Verdict("exact", 1e-6, "no difference but rounding"),
    Verdict("proven", 0.01, "as good as the best 4-bit cache types"),
    Verdict("defensible", 0.1, "the published bound"),
    Verdict("borderline", 0.5, "text goes on sensibly, facts may be lost"),
    Verdict("archival", float("inf"), "keeps the gist; do not generate from it"),
)


def verdict(kl: float) -> str:
    """Return the word for a mean KL in nats; NaN is archival."""
    return next((step.word for step in VERDICTS if kl < step.below), "archival")


@dataclass(frozen=True)
class Family:
    """Recipes that differ in one setting, whose larger values make larger files.

    Attributes:
        recipe: the recipe without that setting.
        knob: the setting that is searched.
        low: the smallest value of the knob, at least 2.
        high: the largest value of the knob.
        values: the settings of the knob that are tried, ascending, instead of all between the
            bounds.
        follow: another setting that is this share of the knob.
        rate: bits a value that the largest setting takes, roughly; the family is tried where about
            that can be spent.
    """

    label: str
    recipe: Recipe
    knob: str
    low: int = 2
    high: int = 1 << 16
    values: tuple[int, ...] = ()
    follow: dict[str, float] = field(default_factory=dict)
    rate: float | None = None


# first rows, kept exactly: their damage costs more than their bytes (arXiv 2309.17453, claims.md)
SINKS = 4
FINENESS = (160, 720)  # of codec klt: from a caricature to the rounding of float32


def klt_family(profile: str, *, embed: bool = False) -> Family:
    """Return codec klt with the profile of this digest, which the file names or holds."""
    low, high = FINENESS
    settings = tuple(range(low, high + 1))
    recipe = Recipe("klt", {"profile": profile}, embed_profile=embed)
    return Family("klt", recipe, "fineness", low, high, values=settings)


def families(klt: Family | None = None) -> list[Family]:
    """Return the families that rate control chooses from, codec klt first if it has a profile."""
    choices = [klt] if klt is not None else []
    choices += [
        Family(
            f"scalar, values {share:g}",
            Recipe("scalar", {"group": 64}, exact_sinks=SINKS),
            "levels",
            3,
            follow={"values_levels": share},
        )
        for share in (1.0, 0.75, 0.5)
    ]
    rotated = {"keys": "token", "symmetric": True, "hadamard": True, "group": 64}
    choices.append(Family("scalar, rotated", Recipe("scalar", rotated, exact_sinks=SINKS), "levels", 3))
    sizes = (160, 192, 224, 256)
    for block in (4, 5, 6, 8):  # with smaller ones scalar is better at the same size
        recipe = Recipe("vq", {"block": block, "fallback": False}, exact_sinks=SINKS)
        choices.append(Family(f"vq, block {block}", recipe, "centroids", values=sizes, rate=8 / block))
    recipe = Recipe("pq", {"block": 8, "m": 2, "fallback": False}, exact_sinks=SINKS)
    choices.append(Family("pq, block 8", recipe, "centroids", values=sizes, rate=2.0))
    return choices
