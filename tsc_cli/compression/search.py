"""Rate control: the search for the best file that keeps a promise.

Of each family of recipes the largest file within the promised size is found by bisection; these
files are measured, and the best one wins.  The caller chooses the measure: the KL if there is a
model, else the relative error of the rows.
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

QUALITY_BYTES = 768  # reserved for the measurement in the tier header
_GROUPS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_COARSE = 16  # below so many levels, one more changes much
MAX_FINE = 1 << 12  # with more levels, scalar is larger than lossless
_TRIALS = 10  # the most pairs of levels that a climb measures
_KLT_BEST = 5.0  # below so many bits a value, klt is by far the best codec (docs/klt.md)
_INTERPOLATIONS = 8  # trials before a search switches to bisection
_FIRST_STEP = 4  # distance of the second guess from the first, in settings
_STEP = 1.06  # neighbouring knob settings differ by this factor, or by 1


def knob_settings(family: Family) -> list[int]:
    """List the values at which a family's knob is tried, ascending."""
    if family.values:
        return list(family.values)
    values = [family.low]
    while values[-1] < family.high:
        values.append(min(family.high, max(values[-1] + 1, round(values[-1] * _STEP))))
    return values


def recipe_at(family: Family, value: int) -> Recipe:
    """Return the family's recipe with its knob at `value`."""
    followers = {name: max(family.low, round(value * share)) for name, share in family.follow.items() if share != 1.0}
    return replace(family.recipe, settings={**family.recipe.settings, family.knob: value, **followers})


def largest_within(
    sizer: Sizer, family: Family, max_bytes: float, start: int | None = None, *, slack: float = 0.0
) -> Candidate | None:
    """Find the family's largest file of at most `max_bytes`, or None if all are larger.

    Sizes rise with the knob, almost exponentially: the next setting is where a line through the
    logarithms of the two nearest sizes meets the limit.

    Args:
        start: a guess of the knob's value.
        slack: a file may be smaller than the limit by this share.
    """
    settings = knob_settings(family)
    recipes = [recipe_at(family, value) for value in settings]

    def log_excess(size: int) -> float:
        return math.log(max(1, size) / max(max_bytes, 1e-9))

    sizes = [(index, sizer.known(recipe)) for index, recipe in enumerate(recipes)]
    excess = {index: log_excess(size) for index, size in sizes if size is not None}
    known_before = len(excess)
    low = max((index for index in excess if excess[index] <= 0), default=-1)
    high = min((index for index in excess if excess[index] > 0 and index > low), default=len(settings))
    while high - low > 1 and not (low >= 0 and excess[low] >= math.log1p(-slack)):
        if excess:
            guess = _next_guess(excess, low, high, halve=len(excess) > known_before + _INTERPOLATIONS)
        else:
            guess = settings.index(start) if start in settings else len(settings) // 2
        excess[guess] = log_excess(sizer(recipes[guess]))
        if excess[guess] <= 0:
            low = guess
        else:
            high = guess
    if low < 0:
        return None
    return Candidate(family.label, recipes[low], sizer(recipes[low]))


def _next_guess(excess: Mapping[int, float], low: int, high: int, *, halve: bool) -> int:
    """Guess an index between `low` and `high` (exclusive): halfway, or by interpolation."""
    nearest = sorted(excess, key=lambda index: abs(excess[index]))[:2]
    guess = (low + high) // 2
    if not halve and len(nearest) == 1:
        guess = nearest[0] + (-_FIRST_STEP if excess[nearest[0]] > 0 else _FIRST_STEP)
    elif not halve and excess[nearest[0]] != excess[nearest[1]]:
        slope = (excess[nearest[0]] - excess[nearest[1]]) / (nearest[0] - nearest[1])
        guess = math.floor(nearest[0] - excess[nearest[0]] / slope) if slope > 0 else guess
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
    """Choose the best recipe whose file keeps the tier's ratio.

    Args:
        measure: the error of a recipe; called once for each family that fits.
        progress: called with 1 for each family that was tried; there are `len(families(klt))`.
        good_enough: an error that is as good as none, after which no other family is tried.
        klt: recipes of codec klt, if there is a profile.
        start: a guess of codec klt's fineness.
    Raises:
        PromiseError: no recipe keeps it.
    """
    exact = Candidate("lossless", Recipe("lossless"), sizer(Recipe("lossless")), 0.0)
    raw, _ = sizer.source.captured_bytes
    if tier.ratio is None or exact.file_bytes * tier.ratio <= raw:
        return Choice(exact, [exact])
    max_bytes = raw / tier.ratio - QUALITY_BYTES
    bits = 8 * max_bytes / sizer.source.stored_values
    candidates: list[Candidate] = []
    for family in families(klt):
        candidate = None
        if candidates and (
            _quality(candidates[-1]) < good_enough or (_beyond_compare(candidates[0]) and bits < _KLT_BEST)
        ):
            progress(1)
            continue
        if family.rate is None or 0.75 * bits <= family.rate <= 1.2 * bits:
            candidate = largest_within(sizer, family, max_bytes, start if family is klt else None)
        progress(1)
        if candidate is not None:
            candidates.append(replace(candidate, quality=measure(candidate.recipe)))
    if not candidates:
        raise PromiseError(f"no codec makes this trace {tier.ratio:g} times smaller")
    best = min(candidates, key=_quality)
    if "levels" in best.recipe.settings and not _quality(best) < good_enough:
        candidates += _climb(sizer, best, max_bytes, measure)
    return Choice(min(candidates, key=_quality), candidates)


def _climb(sizer: Sizer, start: Candidate, max_bytes: float, measure: Measure) -> list[Candidate]:
    """Improve the levels of keys and of values by hill climbing, with the smallest group that fits.

    One level more is a coarse step if there are few, and errors of keys and of values cost
    differently; the size of the groups uses up what is left of the promised size.

    Returns:
        the candidates that were measured.
    """
    recipe = start.recipe
    levels = recipe.settings["levels"]
    best = (levels, recipe.settings.get("values_levels", levels))
    step = 1 if levels < _COARSE else levels // _COARSE
    trials: dict[tuple[int, int], Candidate] = {}

    def trial(pair: tuple[int, int]) -> Candidate:
        if pair not in trials:
            fitting = _smallest_group(sizer, recipe, pair, max_bytes)
            if fitting is not None and len(trials) < _TRIALS:
                trials[pair] = Candidate(start.label, *fitting, measure(fitting[0]))
            else:
                trials[pair] = Candidate(start.label, recipe, 0, None)
        return trials[pair]

    while True:
        center = best
        moves = ((0, 0), (1, 0), (0, -1), (0, 1), (-1, 0))
        neighbours = [(center[0] + keys * step, center[1] + values * step) for keys, values in moves]
        best = min(neighbours, key=lambda pair: _quality(trial(pair)))
        if best == center:
            return [candidate for candidate in trials.values() if candidate.quality is not None]


def _smallest_group(sizer: Sizer, recipe: Recipe, pair: tuple[int, int], max_bytes: float) -> tuple[Recipe, int] | None:
    """Return the recipe with these levels and the smallest group that fits, and its size."""
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
    """Tell whether the codec is by far the best at low rates (klt without an embedded profile)."""
    return candidate.recipe.needs_profile and not candidate.recipe.embed_profile


Good = Callable[[Recipe], bool]


def smallest(sizer: Sizer, family: Family, good: Good, start: int | None = None) -> Candidate | None:
    """Find the family's smallest file that is good, or None if even its largest is not.

    Quality rises with the knob, apart from noise; the file that is returned was measured.

    Args:
        good: tells whether a recipe's file is good enough; it is called a few times.
        start: a guess of the knob's value.
    """
    settings = [value for value in knob_settings(family) if value <= family.high]
    low, high = -1, len(settings)  # `low` is not good, `high` is good
    guess = min(max(settings.index(start), 0), len(settings) - 1) if start in settings else len(settings) // 2
    reach = max(1, len(settings) // 64) if start in settings else len(settings)
    while high - low > 1:
        if good(recipe_at(family, settings[guess])):
            high, step = guess, -reach
        else:
            low, step = guess, reach
        outside = guess + step
        guess = outside if low < outside < high else (low + high) // 2
        reach *= 2
    if high == len(settings):
        return None
    recipe = recipe_at(family, settings[high])
    return Candidate(family.label, recipe, sizer(recipe))


def smallest_for(
    sizer: Sizer, good: Good, klt: Family | None = None, start: int | None = None, tried: Sequence[Candidate] = ()
) -> Candidate | None:
    """Find the smallest file that is good, of codec klt or scalar; None if there is none.

    Args:
        klt: recipes of codec klt, if there is a profile.
        start: a guess of its fineness.
        tried: candidates that are known to be good.
    """
    candidates = list(tried)
    searched = [klt] if klt is not None else []
    searched += [family for family in families() if family.follow.get("values_levels") == 0.75]
    for family in searched:
        candidate = smallest(sizer, replace(family, high=min(family.high, MAX_FINE)), good, start)
        if candidate is not None:
            candidates.append(candidate)
            if _beyond_compare(candidate) and 8 * candidate.file_bytes / sizer.source.stored_values < _KLT_BEST:
                break
    return min(candidates, key=lambda candidate: candidate.file_bytes, default=None)
