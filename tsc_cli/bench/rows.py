"""A row of a benchmark: what is made of each cache, and what it must keep."""

from __future__ import annotations

from dataclasses import dataclass

from formats.encode.recipe import Recipe
from tsc_cli.scoring.published import Published, Tier

from .peers import Peer


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
