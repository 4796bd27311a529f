"""Compress: from a captured trace to the file that keeps a promise."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from formats import Trace
from formats.codecs.klt import profile_store
from formats.container.atomic_write import atomic_write
from formats.container.records import Part
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import Header, write
from formats.errors import CorruptError, PromiseError, UsageError
from formats.file.header import TierHeader
from formats.file.writer import content_id
from tsc_cli.progress import Progress, nothing
from tsc_cli.scoring.published import TIERS, Family, Goal, Tier, goal_of, klt_family, tier_of
from tsc_cli.text_format import spelled

from .candidates import Candidate, Choice, Sizer, error_of
from .search import QUALITY_BYTES, choose, largest_within, smallest_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from formats.codecs.klt.profile import Profile
    from tsc_cli.scoring.scorer import Judge


@dataclass(frozen=True)
class Compressed:
    """What was written."""

    header: TierHeader
    file_bytes: int


class Compressor:
    """One captured trace, and everything that has been learned about its files so far.

    Args:
        judge: measures the KL of candidates; without one the relative error of the rows decides.
        sizer: knows sizes already.
        profile: of the model, for codec klt; None if there is none.
        embed_profile: files of codec klt hold it, which counts.
    """

    def __init__(
        self,
        source: Source,
        judge: Judge | None,
        sizer: Sizer | None = None,
        profile: Profile | None = None,
        *,
        embed_profile: bool = False,
    ) -> None:
        self.source = source
        self._embed_profile = embed_profile
        self.profile = None if profile is None else profile_store.remember(profile)
        self.judge = judge
        self._device = "cpu" if judge is None else judge.device
        self._sizer = sizer or Sizer(source, self._device)

    def choose(self, tier: Tier, progress: Progress = nothing) -> Choice:
        """The best recipe that keeps the tier.

        Raises:
            PromiseError: no recipe keeps the ratio, or none at the tier's KL; says what can be had.
        """
        measure = error_of(self.source, self._device) if self.judge is None else self.judge.kl
        try:
            enough = 0.0 if self.judge is None else TIERS["lossless"].max_kl  # rounding, no more
            bits = math.inf if tier.ratio is None else self._raw_bits / tier.ratio
            choice = choose(
                self._sizer, tier, measure, progress, good_enough=enough, klt=self.klt, start=self._guess("bits", bits)
            )
        except PromiseError as error:
            raise self._broken(tier, error.message, []) from None
        if self.judge is not None and not (choice.winner.quality or 0.0) <= tier.max_kl:
            best = f"the best file that is {tier.ratio:g}x smaller has a KL of {choice.winner.quality:.3g}"
            raise self._broken(tier, best, choice.candidates)
        return choice

    def smallest(self, goal: Goal, progress: Progress = nothing) -> Recipe:
        """The recipe of the smallest file that keeps a quality, measured on this very cache; at worst it is lossless.

        Raises:
            UsageError: there is no model that could measure.
        """
        judge = self.judge
        if judge is None:
            raise UsageError(
                "a quality can be kept only where it can be measured: the model is needed",
                hint="-m MODEL gives it; --tier or --bits ask for a size instead",
            )

        def good(recipe: Recipe) -> bool:
            fidelity = judge.of_recipe(recipe)
            progress(1)
            return fidelity.kl_mean <= goal.max_kl and fidelity.top1 >= goal.min_top1

        exact = Candidate("lossless", Recipe("lossless"), self._sizer(Recipe("lossless")))
        found = smallest_for(self._sizer, good, self.klt, self._guess("kl", goal.max_kl), [exact])
        assert found is not None  # at worst it is the lossless file
        return found.recipe

    def at_bits(self, bits: float) -> Recipe:
        """The best recipe of at most so many bits a stored value, everything counted.

        Raises:
            PromiseError: even the smallest file is larger.
        """
        return self.choose(Tier(f"{bits:g} bits a value", self._raw_bits / bits, math.inf)).winner.recipe

    def klt_within(self, max_bytes: float, slack: float) -> Recipe:
        """Codec klt's largest file of at most so many bytes, or one that is smaller by a share of `slack`, unmeasured.

        Raises:
            PromiseError: even its smallest is larger, or there is no profile.
        """
        bits = 8 * max_bytes / self.source.stored_values
        found = None
        if self.klt is not None:
            found = largest_within(self._sizer, self.klt, max_bytes, self._guess("bits", bits), slack=slack)
        if found is None:
            raise PromiseError(f"codec klt makes no file of {max_bytes:.0f} bytes")
        return found.recipe

    @property
    def _raw_bits(self) -> float:
        """Bits of the captured trace over the values that are stored of it."""
        raw, _ = self.source.captured_bytes
        return 8 * raw / self.source.stored_values

    @cached_property
    def klt(self) -> Family | None:
        """Codec klt, or None if there is no profile for these rows: neighbouring layers may hold different ones."""
        if self.profile is None:
            return None
        try:
            for group in self.source.filtered(Recipe("lossless")).rows:
                self.profile.run(group.first_layer, group.layer_count)
        except CorruptError:
            return None
        return klt_family(self.profile.digest, embed=self._embed_profile)

    def _guess(self, what: str, value: float) -> int | None:
        return None if self.profile is None else self.profile.fineness_at(what, value)

    def size(self, recipe: Recipe) -> int:
        """Length in bytes of the recipe's file."""
        return self._sizer(recipe)

    def _broken(self, tier: Tier, why: str, tried: Sequence[Candidate]) -> PromiseError:
        helps = (
            "what helps: a longer trace (more --steps at capture), since rows are stored once however many snapshots"
        )
        helps += " share them" if self.profile else " share them; or a profile of the model: tsc calibrate makes one"
        judge = self.judge
        if judge is None or tier.max_kl == math.inf:
            return PromiseError(f"{tier.name} cannot be met: {why}", hint=helps)
        good = [one for one in tried if one.quality is not None and one.quality <= tier.max_kl]
        known = smallest_for(
            self._sizer, lambda recipe: judge.kl(recipe) <= tier.max_kl, self.klt, self._guess("kl", tier.max_kl), good
        )
        raw, _ = self.source.captured_bytes
        can = f"no file has a KL of at most {tier.max_kl:g}"
        if known is not None:
            best = rounded(raw / (known.file_bytes + QUALITY_BYTES))
            can = f"at most {best}x can be had at a KL of at most {tier.max_kl:g}"
        return PromiseError(f"{tier.name} cannot be met: {why}; {can}", hint=helps)

    def write(
        self,
        recipe: Recipe,
        sink: BinaryIO,
        *,
        tier: Tier | None,
        quality: Sequence[Mapping[str, Any]] = (),
        deterministic: bool = False,
        progress: Progress = nothing,
    ) -> Compressed:
        """Write the file.

        Raises:
            PromiseError: it does not keep the tier (what was chosen does; a recipe by hand may not).
        """
        trace = self.source.trace
        file_id = content_id(repr((recipe, trace.fingerprint, trace.info)).encode()) if deterministic else None
        header = Header("" if tier is None else tier.name, quality)
        found, length = write(
            self.source, recipe, sink, header=header, file_id=file_id, device=self._device, progress=progress
        )
        return Compressed(found, length)


def rounded(ratio: float) -> str:
    """A ratio that can be had, rounded down to three digits."""
    scale = 10.0 ** (2 - math.floor(math.log10(ratio)))
    return f"{math.floor(ratio * scale) / scale:g}"


def raw_row_bytes(trace: Trace) -> int:
    """Bytes of the stored rows: what `write` will report to its `progress` if all of them are needed."""
    total = 0
    for key in (block.key for block in trace.blocks):
        share = 1 if key.part is Part.JOINT else 2
        total += key.layer_count * key.row_count * trace.geometry.row_bytes[key.first_layer] // share
    return total


def compress(
    trace: Trace,
    path: str | os.PathLike[str],
    *,
    tier: str | None = None,
    quality: str | None = None,
    max_kl: float | None = None,
    recipe: Recipe | None = None,
    model: PreTrainedModel | None = None,
    profile: Profile | None = None,
    positions: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    allow_beyond_positions: bool = False,
) -> Compressed:
    """Write a captured trace as a small file.  Without a target, the smallest of quality "high".

    Args:
        tier: a promise of size, such as "219x"; the codec is chosen.
        quality: a promise of quality, such as "balanced"; max_kl: one in nats.
        recipe: the codec by hand instead, such as `Recipe("scalar", {"bits": 4})`.
        model: measures the KL of candidates and of the result; without it their relative error decides.
        profile: for codec klt; by default the one on this machine that fits the model, if there is one.
        positions, seed, allow_beyond_positions: of the measurement; see `verify`.
        overwrite: replace an existing file.
    Raises:
        PromiseError: the promise cannot be kept; nothing was written.
        UsageError: two targets; a quality without a model; a value is not finite; the model is another one.
    """
    if sum(target is not None for target in (tier, quality, max_kl, recipe)) > 1:
        raise UsageError("give one of a tier, a quality, a KL and a recipe")
    promise = None if tier is None else tier_of(tier)
    goal = Goal(f"KL {spelled(max_kl)}", max_kl) if max_kl is not None else goal_of(quality or "high")
    source, judge = Source(trace), None
    if model is not None:
        from tsc_cli.huggingface.adapter import ModelAdapter
        from tsc_cli.huggingface.fingerprint import fingerprint
        from tsc_cli.scoring.scorer import Judge

        adapter = ModelAdapter.of(model)
        fingerprint.require_same(trace.fingerprint, fingerprint.of(adapter))
        judge = Judge(source, adapter, positions=positions, seed=seed, beyond=allow_beyond_positions)
    compressor = Compressor(source, judge, profile=profile or profile_store.for_model(trace.fingerprint))
    if recipe is not None and recipe.needs_profile and compressor.profile is not None:
        recipe = replace(recipe, settings={"profile": compressor.profile.digest, **recipe.settings})
    if recipe is None:
        recipe = compressor.smallest(goal) if promise is None else compressor.choose(promise).winner.recipe
        promise = promise or Tier(goal.name, None, goal.max_kl)
    measured = [] if judge is None else [judge.record(recipe)]
    with atomic_write(path, overwrite=overwrite) as sink:
        return compressor.write(recipe, sink, tier=promise, quality=measured)
