"""Compression of a captured trace to a file that keeps a promise of size or quality."""

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

    from formats import Secret
    from formats.codecs.klt.profile import Profile
    from tsc_cli.huggingface.adapter import ModelAdapter
    from tsc_cli.scoring.scorer import Judge


@dataclass(frozen=True)
class Compressed:
    """The written file: its tier header and its length."""

    header: TierHeader
    file_bytes: int


class Compressor:
    """A compressor of one captured trace, which remembers the sizes and qualities of its files.

    Args:
        source: the trace.
        judge: measures the KL of candidates; without one the relative error of the rows decides.
        sizer: measures lengths of files; by default a new one.
        profile: the model's, for codec klt; None if there is none.
        embed_profile: put the profile into files of codec klt, and count it.
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
        """Choose the best recipe that keeps the tier.

        Raises:
            PromiseError: no recipe keeps the ratio and the KL; the message says what is possible.
        """
        measure = error_of(self.source, self._device) if self.judge is None else self.judge.kl
        try:
            enough = 0.0 if self.judge is None else TIERS["lossless"].max_kl  # only rounding
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
        """Find the recipe of the smallest file that keeps a quality, measured on this cache.

        Raises:
            UsageError: there is no model to measure with.
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
        best = smallest_for(self._sizer, good, self.klt, self._guess("kl", goal.max_kl), [exact])
        assert best is not None  # the lossless file is always good
        return best.recipe

    def at_bits(self, bits: float) -> Recipe:
        """Choose the best recipe whose file has at most so many bits for each stored value.

        Raises:
            PromiseError: even the smallest file is larger.
        """
        return self.choose(Tier(f"{bits:g} bits a value", self._raw_bits / bits, math.inf)).winner.recipe

    def klt_within(self, max_bytes: float, slack: float) -> Recipe:
        """Find codec klt's largest file of at most so many bytes; nothing is measured.

        Args:
            slack: a file may be smaller by this share, which saves trials.
        Raises:
            PromiseError: even the smallest file is larger, or there is no profile.
        """
        bits = 8 * max_bytes / self.source.stored_values
        largest = None
        if self.klt is not None:
            largest = largest_within(self._sizer, self.klt, max_bytes, self._guess("bits", bits), slack=slack)
        if largest is None:
            raise PromiseError(f"codec klt makes no file of {max_bytes:.0f} bytes")
        return largest.recipe

    @property
    def _raw_bits(self) -> float:
        """Bits of the captured trace for each value that is stored of it."""
        raw, _ = self.source.captured_bytes
        return 8 * raw / self.source.stored_values

    @cached_property
    def klt(self) -> Family | None:
        """Recipes of codec klt, or None if there is no profile that fits these rows."""
        if self.profile is None:
            return None
        try:
            for group in self.source.filtered(Recipe("lossless")).rows:
                self.profile.run(group.first_layer, group.layer_count)
        except CorruptError:
            return None
        return klt_family(self.profile.digest, embed=self._embed_profile)

    def _guess(self, quantity: str, value: float) -> int | None:
        return None if self.profile is None else self.profile.fineness_at(quantity, value)

    def size(self, recipe: Recipe) -> int:
        """Return the length of the recipe's file in bytes."""
        return self._sizer(recipe)

    def _broken(self, tier: Tier, why: str, tried: Sequence[Candidate]) -> PromiseError:
        """Return the error of a tier that cannot be met, with what is possible at its KL."""
        helps = (
            "what helps: a longer trace (more --steps at capture), since rows are stored once however many snapshots"
        )
        helps += " share them" if self.profile else " share them; or a profile of the model: tsc calibrate makes one"
        judge = self.judge
        if judge is None or tier.max_kl == math.inf:
            return PromiseError(f"{tier.name} cannot be met: {why}", hint=helps)
        good = [trial for trial in tried if trial.quality is not None and trial.quality <= tier.max_kl]
        smallest = smallest_for(
            self._sizer, lambda recipe: judge.kl(recipe) <= tier.max_kl, self.klt, self._guess("kl", tier.max_kl), good
        )
        raw, _ = self.source.captured_bytes
        possible = f"no file has a KL of at most {tier.max_kl:g}"
        if smallest is not None:
            best = rounded(raw / (smallest.file_bytes + QUALITY_BYTES))
            possible = f"at most {best}x can be had at a KL of at most {tier.max_kl:g}"
        return PromiseError(f"{tier.name} cannot be met: {why}; {possible}", hint=helps)

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

        Args:
            tier: the tier that the header promises.
            quality: measurements of fidelity for the header.
            deterministic: derive the file id from the trace and the recipe.
        Raises:
            PromiseError: the recipe does not keep the tier.
        """
        trace = self.source.trace
        file_id = content_id(repr((recipe, trace.fingerprint, trace.info)).encode()) if deterministic else None
        fields = Header("" if tier is None else tier.name, quality)
        header, length = write(
            self.source, recipe, sink, header=fields, file_id=file_id, device=self._device, progress=progress
        )
        return Compressed(header, length)


def rounded(ratio: float) -> str:
    """Round a possible ratio down to three digits."""
    scale = 10.0 ** (2 - math.floor(math.log10(ratio)))
    return f"{math.floor(ratio * scale) / scale:g}"


def raw_row_bytes(trace: Trace) -> int:
    """Count the bytes of all stored rows, which `write` reports to its `progress`."""
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
    model: PreTrainedModel | ModelAdapter | None = None,
    profile: Profile | None = None,
    positions: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    allow_beyond_positions: bool = False,
    key: Secret | None = None,
) -> Compressed:
    """Write a captured trace as a small file, by default the smallest of quality "high".

    Give at most one of `tier`, `quality`, `max_kl` and `recipe`.

    Args:
        tier: a promise of size, such as "219x".
        quality: a promise of quality, such as "balanced".
        max_kl: a promise of quality in nats.
        recipe: a codec with its settings, such as `Recipe("scalar", {"bits": 4})`.
        model: measures the KL of candidates and of the result; without it the relative error of
            rows decides.
        profile: for codec klt; by default the one on this machine that fits the model, if any.
        positions: how many positions are measured; see `verify`.
        seed: of the measurement.
        overwrite: replace an existing file.
        allow_beyond_positions: measure beyond the positions that the model was made for.
        key: encrypts the file; by default the secret of the trace, if it has one.
    Raises:
        PromiseError: the promise cannot be kept; nothing was written.
        UsageError: there are two targets, or a quality and no model; a value is not finite; the
            trace is of another model.
    """
    if sum(target is not None for target in (tier, quality, max_kl, recipe)) > 1:
        raise UsageError("give one of a tier, a quality, a KL and a recipe")
    promise = None if tier is None else tier_of(tier)
    goal = Goal(f"KL {spelled(max_kl)}", max_kl) if max_kl is not None else goal_of(quality or "high")
    # the trace's own copy, so that candidates are as long as the encrypted file
    source, judge = Source(trace if key is None else replace(trace, secret=key)), None
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
