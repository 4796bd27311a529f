"""What a file says of itself, held against what can be known of it: labels, codec, tier and measured quality."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from formats import Trace
from formats.codecs import codec_by_name, codec_name, is_exact
from formats.codecs.klt import profile_store
from formats.encode.recipe import Recipe, recipe_of
from formats.errors import TscError
from formats.file.blocks import FileBlock, FileStates
from formats.settings import require
from formats.trace.eviction import FILTERS
from formats.trace.views import View

if TYPE_CHECKING:
    from formats.codecs.klt.profile_store import ProfileReference
    from tsc_cli.scoring.result import Verified

NOISE = 4.0  # standard errors that a stated figure may be better than the measured one


def labels(trace: Trace) -> Iterator[str]:
    """A line for each snapshot whose rows do not say that they are those of its tokens, in order.

    A cache that was fed tokens one after the other has them at positions 0, 1, 2 and so on, and a
    layer the last of them, or, after an eviction, some of them.
    """
    known: dict[tuple[Any, ...], str | None] = {}  # neighbouring layers mostly share one object
    for number, view in enumerate(trace.views):
        history = _positions(trace, view)
        wrong = next((at for at, position in enumerate(history) if at != position), None)
        if wrong is not None:
            yield f"snapshot {number}: token {wrong} has position {history[wrong]}, where {wrong} follows"
            continue
        for layer, spec in enumerate(trace.geometry.layers):
            if not spec.parts or spec.kind == "cross":
                continue
            maps = tuple(id(one) for one in trace.kept if one.covers(layer))
            key = (view.history, view.layers[layer], spec.window, maps and layer)
            if key not in known:
                known[key] = _wrong_rows(trace, view, layer)
            found = known[key]
            if found is not None:
                yield f"snapshot {number}, layer {layer}: {found}"
                break


def _positions(trace: Trace, view: View) -> list[int]:
    return [trace.labels.positions[row] for span in view.history for row in range(span.first, span.stop)]


def _wrong_rows(trace: Trace, view: View, layer: int) -> str | None:
    spec, seen = trace.geometry.layers[layer], view.tokens_seen
    places = trace.row_positions(view, layer)
    held = places.shape[-1]
    if spec.window is not None or held == seen:
        due = min(seen, spec.window - 1) if spec.window is not None else seen
        if held != due:
            return f"{held} rows after {seen} tokens, where {due} are kept"
        expected = torch.arange(seen - held, seen)
        wrong = (places != expected).reshape(-1, held).any(0)
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            return f"row {at} has position {int(places.reshape(-1, held)[0, at])}, where {int(expected[at])} follows"
    elif not bool((places.diff(dim=-1) > 0).all()) or int(places.max()) >= seen:
        return "the rows that are left of it do not follow on one another"
    if any(one.covers(layer) for one in trace.kept):
        return None  # slots hold other rows than their numbers say
    rows = [row for span in view.layers[layer] for row in range(span.first, span.stop)]
    for sequence in range(trace.labels.width):
        history = trace.labels.tokens(view.history, sequence)
        of_rows = trace.labels.tokens(view.layers[layer], sequence)
        for row, position, token in zip(rows, places.tolist(), of_rows, strict=True):
            if history[position] != token:
                return f"row {row} is that of another token than the one at its position {position}"
    return None


def recipe(trace: Trace) -> Recipe | None:
    """How the header says that the rows were coded, less what was evicted before; None if nothing was lost.

    Raises:
        UsageError: no codec has such parameters. UnsupportedFileError: its profile is not on this
            machine.
    """
    evict, _, codec = trace.codec.rpartition("+")
    if is_exact(codec):
        return None
    of_filter = {one.name for one in fields(FILTERS[evict])} if evict in FILTERS else set()
    given = {key: str(value) for key, value in trace.parameters.items() if key not in of_filter}
    rounds = given.get("iterations", "0")
    require(len(rounds) < 5 and rounds.isdecimal(), f"iterations={rounds} would never end")  # nothing else is endless
    profile = _profile(trace)
    if profile is not None and "profile" in given:
        given["profile"] = profile_store.remember(profile.load()).digest  # a file may hold its own
    return recipe_of(codec, "", given)


def lost_before(trace: Trace) -> str:
    """What rows lost by before a file without loss had them; "" if that was no more than an eviction."""
    _, _, codec = trace.lost_by.rpartition("+")
    explained = is_exact(codec) or codec == "eviction" or trace.lost_by == trace.codec
    return "" if explained or not all(map(is_exact, codecs_of(trace))) else trace.lost_by


def promise(recipe: Recipe | None) -> float:
    """The share of its size by which a codec may miss a row before it keeps it exactly; 0 if it keeps none so."""
    return 0.0 if recipe is None else codec_by_name(recipe.codec, recipe.settings).exact_beyond


def _profile(trace: Trace) -> ProfileReference | None:
    """The profile by which a file is decoded."""
    return next((block.file.profile for block in trace.blocks if isinstance(block, FileBlock)), None)


def codecs_of(trace: Trace) -> set[str]:
    """The codecs of a file's records, by name."""
    return {
        codec_name(one.header.codec)
        for one in (*trace.blocks, *trace.states)
        if isinstance(one, FileBlock | FileStates)
    }


def codec(trace: Trace, written: Iterable[str]) -> Iterator[str]:
    """A line for each thing that the header says of the codec and that is not so.

    Args:
        written: the codecs of the records that its recipe writes.
    """
    name = trace.codec or "lossless"
    other = codecs_of(trace) - set(written)
    if other:
        yield f"the header says codec {name} and records are coded by {', '.join(sorted(other))}"
    profile, stated = _profile(trace), trace.parameters.get("profile")
    if profile is not None and isinstance(stated, str) and not profile.digest.startswith(stated):
        yield f"the header says profile {stated[:12]} and the file is decoded by {profile.digest[:12]}"
    if trace.tier == "lossless" and not is_exact(name):
        yield f"the header says tier lossless and codec {name}"


def refused(error: TscError) -> str:
    return f"the header's codec and parameters make no file: {error.message}"


def quality(stated: Sequence[Mapping[str, Any]], results: Sequence[Verified]) -> Iterator[str]:
    """A line for each stated figure that is better than the measured one beyond noise."""
    measured = {result.snapshot: result for result in results}
    for record in stated:
        result = measured.get(record.get("snapshot", -1))
        if result is None:
            continue
        found, where = result.fidelity, f"snapshot {result.snapshot}: the header states"
        kl, top1 = _number(record.get("kl_mean"), math.inf), _number(record.get("top1"), -math.inf)
        if found.kl_mean - kl > _noise(found.kl_mean_se):
            yield f"{where} a KL of {kl:.3g}, {found.kl_mean:.3g} +- {found.kl_mean_se:.2g} was measured"
        if top1 - found.top1 > _noise(found.top1_se):
            yield f"{where} a top-1 share of {top1:.4f}, {found.top1:.4f} +- {found.top1_se:.2g} was measured"


def unmeasured(stated: Sequence[Mapping[str, Any]], results: Sequence[Verified]) -> list[int]:
    """Snapshots whose quality the header states and nothing measured."""
    known = {result.snapshot for result in results}
    return sorted({n for n in (record.get("snapshot") for record in stated) if type(n) is int and n not in known})


def _noise(standard_error: float) -> float:
    return max(NOISE * standard_error, 1e-6) if math.isfinite(standard_error) else math.inf


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise
