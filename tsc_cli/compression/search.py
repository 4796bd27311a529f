"""Rate control: the best file that keeps a promise.

For each family of recipes the largest file within the promise is found by bisection; the finalists are measured and the
best one wins.  What "best" means is the caller's: the KL where a model is at hand, else the relative error of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from formats.codecs.scalar import MAX_LEVELS
from formats.encode.recipe import Recipe
from formats.errors import PromiseError
from tsc_cli.scoring.published import Family, Tier, families

from .candidates import Candidate, Choice, Measure, Sizer

QUALITY_BYTES = 768  # left for the measurement that the tier header takes when the file is written
_GROUPS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_COARSE = 16  # levels up to which one more changes much
MAX_FINE = 1 << 12  # levels of scalar beyond which lossless is smaller
_TRIALS = 10  # pairs of levels that a climb measures at most
_KLT_BEST = 5.0  # bits a value below which no other codec comes near klt (docs/klt.md)
_INTERPOLATIONS = 8  # after which a search halves what is left
_FIRST_STEP = 4  # settings from the first guess to the second
_STEP = 1.06  # neighbouring knob settings differ by this factor, or by 1


def knob_settings(family: Family) -> list[int]:
    """The values that a family's knob is tried at, ascending."""
    if family.values:
        return list(family.values)
    found = [family.low]
    while found[-1] < family.high:
        found.append(min(family.high, max(found[-1] + 1, round(found[-1] * _STEP))))
    return found


def at(family: Family, value: int) -> Recipe:
    """The family's recipe with its knob at `value`."""
    followers = {name: max(family.low, round(value * share)) for name, share in family.follow.items() if share != 1.0}
    return replace(family.recipe, settings={**family.recipe.settings, family.knob: value, **followers})


def largest_within(
    sizer: Sizer, family: Family, max_bytes: float, start: int | None = None, *, slack: float = 0.0
) -> Candidate | None:
    """The family's largest file of at most `max_bytes`, or None if even its smallest is larger.

    Sizes rise with the knob, nearly exponentially: the next setting is where a line through the logarithms of the two
    nearest sizes meets the limit.

    Args:
        start: a guess of the knob.
        slack: a file that is smaller by no more than this share will do.
    """
    settings = knob_settings(family)
    recipes = [at(family, value) for value in settings]

    def over(size: int) -> float:
        return math.log(max(1, size) / max(max_bytes, 1e-9))

    sizes = [(index, sizer.known(recipe)) for index, recipe in enumerate(recipes)]
    known = {index: over(size) for index, size in sizes if size is not None}
    before = len(known)
    low = max((index for index in known if known[index] <= 0), default=-1)
    high = min((index for index in known if known[index] > 0 and index > low), default=len(settings))
    while high - low > 1 and not (low >= 0 and known[low] >= math.log1p(-slack)):
        if known:
            guess = _next_guess(known, low, high, halve=len(known) > before + _INTERPOLATIONS)
        else:
            guess = settings.index(start) if start in settings else len(settings) // 2
        known[guess] = over(sizer(recipes[guess]))
        if known[guess] <= 0:
            low = guess
        else:
            high = guess
    if low < 0:
        return None
    return Candidate(family.label, recipes[low], sizer(recipes[low]))


def _next_guess(known: Mapping[int, float], low: int, high: int, *, halve: bool) -> int:
    """An index between `low` and `high` (exclusive): halfway, or where the limit is reached as far as is known."""
    near = sorted(known, key=lambda index: abs(known[index]))[:2]
    guess = (low + high) // 2
    if not halve and len(near) == 1:
        guess = near[0] + (-_FIRST_STEP if known[near[0]] > 0 else _FIRST_STEP)
    elif not halve and known[near[0]] != known[near[1]]:
        slope = (known[near[0]] - known[near[1]]) / (near[0] - near[1])
        guess = math.floor(near[0] - known[near[0]] / slope) if slope > 0 else guess
    return min(max(guess, low + 1), high - 1)


def choose(
    sizer: Sizer,
    tier: Tier,
    measure: Measure,
    progress: Callable[[int], None],
    *,
    good_enough: float = 0.0,
    klt: Family | None = None,
    start: int | None = None,
) -> Choice:
    """The best recipe whose file keeps the tier's ratio.

    Args:
        measure: quality of a recipe, lower is better; called once for each family that fits.
        good_enough: a quality that cannot be told from a better one; what follows it is not tried.
        progress: called with 1 for each family that was tried; there are `len(families(klt))`.
        klt: codec klt, if there is a profile for it.
        start: a guess of codec klt's fineness.
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
    for family in families(klt):
        candidate = None
        if found and (_quality(found[-1]) < good_enough or (_beyond_compare(found[0]) and bits < _KLT_BEST)):
            progress(1)
            continue
        if family.rate is None or 0.75 * bits <= family.rate <= 1.2 * bits:
            candidate = largest_within(sizer, family, max_bytes, start if family is klt else None)
        progress(1)
        if candidate is not None:
            found.append(replace(candidate, quality=measure(candidate.recipe)))
    if not found:
        raise PromiseError(f"no codec makes this trace {tier.ratio:g} times smaller")
    best = min(found, key=_quality)
    if "levels" in best.recipe.settings and not _quality(best) < good_enough:
        found += _climb(sizer, best, max_bytes, measure)
    return Choice(min(found, key=_quality), found)


def _climb(sizer: Sizer, start: Candidate, max_bytes: float, measure: Measure) -> list[Candidate]:
    """What a hill climb over the levels of keys and of values finds, each pair with the smallest group that fits.

    A step of a level is coarse where there are few of them, and keys and values are not worth the same; the size of the
    groups fills what is left of the promise.
    """
    recipe = start.recipe
    levels = recipe.settings["levels"]
    at = (levels, recipe.settings.get("values_levels", levels))
    step = 1 if levels < _COARSE else levels // _COARSE
    known: dict[tuple[int, int], Candidate] = {}

    def tried(pair: tuple[int, int]) -> Candidate:
        if pair not in known:
            found = _smallest_group(sizer, recipe, pair, max_bytes)
            if found is not None and len(known) < _TRIALS:
                known[pair] = Candidate(start.label, found[0], found[1], measure(found[0]))
            else:
                known[pair] = Candidate(start.label, recipe, 0, None)
        return known[pair]

    while True:
        around = [at, *((at[0] + a * step, at[1] + b * step) for a, b in ((1, 0), (0, -1), (0, 1), (-1, 0)))]
        best = min(around, key=lambda pair: _quality(tried(pair)))
        if best == at:
            return [candidate for candidate in known.values() if candidate.quality is not None]
        at = best


def _smallest_group(sizer: Sizer, recipe: Recipe, pair: tuple[int, int], max_bytes: float) -> tuple[Recipe, int] | None:
    """The recipe with these levels and the smallest group that fits, and its size."""
    if not 3 <= min(pair) <= max(pair) <= MAX_LEVELS:
        return None
    low, high, best = 0, len(_GROUPS), None
    while low < high:
        middle = (low + high) // 2
        settings = {**recipe.settings, "levels": pair[0], "values_levels": pair[1], "group": _GROUPS[middle]}
        changed = replace(recipe, settings=settings)
        size = sizer(changed)
        if size <= max_bytes:
            best, high = (changed, size), middle
        else:
            low = middle + 1
    return best


def _quality(candidate: Candidate) -> float:
    return float("inf") if candidate.quality is None else candidate.quality


def _beyond_compare(candidate: Candidate) -> bool:
    """Whether no other codec comes near at low rates: one with a profile, unless the file holds that, too."""
    return candidate.recipe.needs_profile and not candidate.recipe.embed_profile


Good = Callable[[Recipe], bool]


def smallest(sizer: Sizer, family: Family, good: Good, start: int | None = None) -> Candidate | None:
    """The family's smallest file that is good, or None if not even its largest is.

    Quality rises with the knob but for noise; what is returned was tried and found good.

    Args:
        good: tells whether a recipe's file is good enough; it is called a few times.
        start: a guess of the knob.
    """
    settings = [value for value in knob_settings(family) if value <= family.high]
    low, high = -1, len(settings)  # one that is not good, one that is
    guess = min(max(settings.index(start), 0), len(settings) - 1) if start in settings else len(settings) // 2
    reach = max(1, len(settings) // 64) if start in settings else len(settings)
    while high - low > 1:
        if good(at(family, settings[guess])):
            high, step = guess, -reach
        else:
            low, step = guess, reach
        outside = guess + step
        guess = outside if low < outside < high else (low + high) // 2
        reach *= 2
    if high == len(settings):
        return None
    recipe = at(family, settings[high])
    return Candidate(family.label, recipe, sizer(recipe))


def smallest_for(
    sizer: Sizer, good: Good, klt: Family | None = None, start: int | None = None, tried: Sequence[Candidate] = ()
) -> Candidate | None:
    """The smallest file that is good, of codec klt if there is a profile, else of scalar; None if there is none.

    Args:
        klt: codec klt, if there is a profile for it; start: a guess of its fineness.
        tried: candidates that are known to be good.
    """
    known = list(tried)
    wanted = [klt] if klt is not None else []
    wanted += [one for one in families() if one.follow.get("values_levels") == 0.75]
    for family in wanted:
        found = smallest(sizer, replace(family, high=min(family.high, MAX_FINE)), good, start)
        if found is not None:
            known.append(found)
            if _beyond_compare(found) and 8 * found.file_bytes / sizer.source.stored_values < _KLT_BEST:
                break
    return min(known, key=lambda candidate: candidate.file_bytes, default=None)
