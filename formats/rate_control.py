"""Rate control: the best file that keeps a promise.

For each family of recipes the largest file within the promise is found by bisection; the finalists are measured and the
best one wins.  What "best" means is the caller's: the KL where a model is at hand, else the relative error of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .compression import Recipe, Source, write
from .errors import PromiseError
from .tiers import Family, Tier, families

if TYPE_CHECKING:
    import torch

Measure = Callable[[Recipe], float]
QUALITY_BYTES = 768  # left for the measurement that the tier header takes when the file is written
_GROUPS = (16, 20, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024)
_COARSE = 16  # levels up to which one more changes much
_REFINED = 2  # families whose best candidate is refined
_STEP = 1.06  # neighbouring knob settings differ by this factor, or by 1


@dataclass(frozen=True)
class Candidate:
    """A recipe that was tried.

    Attributes:
        quality: what `measure` said of it, lower is better; None if it was not measured.
    """

    label: str
    recipe: Recipe
    file_bytes: int
    quality: float | None = None


@dataclass(frozen=True)
class Choice:
    """What rate control found: the winner and everything that it was compared with."""

    winner: Candidate
    candidates: list[Candidate]


class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes, /) -> None:
        self.count += len(data)


class Sizer:
    """Lengths of the files that recipes give of one source; every recipe is encoded once."""

    def __init__(self, source: Source, device: str | torch.device = "cpu") -> None:
        self.source = source
        self._device = device
        self._known: dict[str, int] = {}

    def __call__(self, recipe: Recipe) -> int:
        key = repr(recipe)
        if key not in self._known:
            sink = _Counter()
            write(self.source, recipe, sink, device=self._device)
            self._known[key] = sink.count
        return self._known[key]


def knob_settings(family: Family) -> list[int]:
    """The values that a family's knob is tried at, ascending."""
    found = [family.low]
    while found[-1] < family.high:
        found.append(min(family.high, max(found[-1] + 1, round(found[-1] * _STEP))))
    return found


def at(family: Family, value: int) -> Recipe:
    """The family's recipe with its knob at `value`."""
    followers = {name: max(family.low, round(value * share)) for name, share in family.follow.items() if share != 1.0}
    return replace(family.recipe, settings={**family.recipe.settings, family.knob: value, **followers})


def largest_within(sizer: Sizer, family: Family, max_bytes: float) -> Candidate | None:
    """The family's largest file of at most `max_bytes`, or None if even its smallest is larger."""
    if not family.knob:
        size = sizer(family.recipe)
        return Candidate(family.label, family.recipe, size) if size <= max_bytes else None
    settings, best = knob_settings(family), None
    low, high = 0, len(settings)
    while low < high:
        middle = (low + high) // 2
        recipe = at(family, settings[middle])
        size = sizer(recipe)
        if size <= max_bytes:
            best, low = Candidate(family.label, recipe, size), middle + 1
        else:
            high = middle
    return best


def choose(sizer: Sizer, tier: Tier, measure: Measure, progress: Callable[[int], None]) -> Choice:
    """The best recipe whose file keeps the tier's ratio.

    Args:
        measure: quality of a recipe, lower is better; called once for each family that fits.
        progress: called with 1 for each family that was tried; there are `len(families())`.
    Raises:
        PromiseError: none does.
    """
    exact = Candidate("lossless", Recipe("lossless"), sizer(Recipe("lossless")), 0.0)
    raw, _ = sizer.source.captured_bytes
    if tier.ratio is None or exact.file_bytes * tier.ratio <= raw:
        return Choice(exact, [exact])
    max_bytes = raw / tier.ratio - QUALITY_BYTES
    bits = 8 * max_bytes / sizer.source.stored_values
    found: list[Candidate] = []
    for family in families():
        candidate = None
        if not family.floor or bits / 2 <= family.floor <= bits:
            candidate = largest_within(sizer, family, max_bytes)
        progress(1)
        if candidate is not None:
            found.append(replace(candidate, quality=measure(candidate.recipe)))
    if not found:
        raise PromiseError(f"no codec makes this trace {tier.ratio:g} times smaller")
    for candidate in sorted(found, key=_quality)[:_REFINED]:
        for other in _neighbours(sizer, candidate, max_bytes):
            found.append(replace(other, quality=measure(other.recipe)))
    return Choice(min(found, key=_quality), found)


def _neighbours(sizer: Sizer, candidate: Candidate, max_bytes: float) -> list[Candidate]:
    """The scalar recipe and the next finer ones, each with the smallest group that still fits.

    A step of a few levels is coarse; the size of the groups fills the rest of the promise.
    """
    recipe = candidate.recipe
    if recipe.codec != "scalar":
        return []
    levels, values = recipe.settings["levels"], recipe.settings.get("values_levels", recipe.settings["levels"])
    found = []
    finer_by = 1 if levels < _COARSE else max(1, levels // 16)
    for finer in [(levels + a * finer_by, values + b * finer_by) for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]:
        low, high, best = 0, len(_GROUPS), None
        while low < high:
            middle = (low + high) // 2
            settings = {**recipe.settings, "levels": finer[0], "values_levels": finer[1], "group": _GROUPS[middle]}
            changed = replace(recipe, settings=settings)
            size = sizer(changed)
            if size <= max_bytes:
                best, high = Candidate(f"{candidate.label}, refined", changed, size), middle
            else:
                low = middle + 1
        if best is not None:
            found.append(best)
    return found


def _quality(candidate: Candidate) -> float:
    return float("inf") if candidate.quality is None else candidate.quality


def smallest_at(
    sizer: Sizer, max_quality: float, measure: Measure, tried: Sequence[Candidate] = ()
) -> Candidate | None:
    """The smallest file whose quality is at most `max_quality`, by bisection of one family; None if there is none."""
    known = [candidate for candidate in tried if _quality(candidate) <= max_quality]
    family = next(one for one in families() if one.knob and one.follow.get("values_levels") == 0.75)
    settings = [value for value in knob_settings(family) if value <= 1 << 8]
    low, high = 0, len(settings)
    while low < high:
        middle = (low + high) // 2
        recipe = at(family, settings[middle])
        quality = measure(recipe)
        if quality <= max_quality:
            known.append(Candidate(family.label, recipe, sizer(recipe), quality))
            high = middle
        else:
            low = middle + 1
    return min(known, key=lambda candidate: candidate.file_bytes, default=None)
