"""Checks of what a file states of itself: labels, codec, tier and measured quality."""

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
    """Yield a line for each snapshot whose row labels are not those of its tokens.

    A cache that was fed tokens one after the other has them at positions 0, 1, 2 and so on, and a
    layer the last of them, or, after an eviction, some of them.
    """
    checked: dict[tuple[Any, ...], str | None] = {}  # most neighbouring layers share one object
    for number, view in enumerate(trace.views):
        history = _positions(trace, view)
        wrong = next((token for token, position in enumerate(history) if token != position), None)
        if wrong is not None:
            yield f"snapshot {number}: token {wrong} has position {history[wrong]}, where {wrong} follows"
            continue
        for layer, spec in enumerate(trace.geometry.layers):
            if not spec.parts or spec.kind == "cross":
                continue
            maps = tuple(id(head_map) for head_map in trace.head_maps if head_map.covers(layer))
            key = (view.history, view.layers[layer], spec.window, maps and layer)
            if key not in checked:
                checked[key] = _wrong_rows(trace, view, layer)
            if (error := checked[key]) is not None:
                yield f"snapshot {number}, layer {layer}: {error}"
                break


def _positions(trace: Trace, view: View) -> list[int]:
    return [trace.labels.positions[row] for span in view.history for row in range(span.first, span.stop)]


def _wrong_rows(trace: Trace, view: View, layer: int) -> str | None:
    """Describe the first wrong label of a layer's rows, or return None."""
    spec, seen = trace.geometry.layers[layer], view.tokens_seen
    positions = trace.row_positions(view, layer)
    count = positions.shape[-1]
    if spec.window is not None or count == seen:
        due = min(seen, spec.window - 1) if spec.window is not None else seen
        if count != due:
            return f"{count} rows after {seen} tokens, where {due} are kept"
        expected = torch.arange(seen - count, seen)
        wrong = (positions != expected).reshape(-1, count).any(0)
        if bool(wrong.any()):
            index = int(wrong.nonzero()[0])
            position = int(positions.reshape(-1, count)[0, index])
            return f"row {index} has position {position}, where {int(expected[index])} follows"
    elif not bool((positions.diff(dim=-1) > 0).all()) or int(positions.max()) >= seen:
        return "the rows that are left of it do not follow on one another"
    if any(head_map.covers(layer) for head_map in trace.head_maps):
        return None  # after eviction, rows stand under other rows' numbers
    rows = [row for span in view.layers[layer] for row in range(span.first, span.stop)]
    for sequence in range(trace.labels.width):
        history = trace.labels.tokens(view.history, sequence)
        row_tokens = trace.labels.tokens(view.layers[layer], sequence)
        for row, position, token in zip(rows, positions.tolist(), row_tokens, strict=True):
            if history[position] != token:
                return f"row {row} is that of another token than the one at its position {position}"
    return None


def recipe(trace: Trace) -> Recipe | None:
    """Return the header's recipe without eviction; None for an exact codec.

    Raises:
        UsageError: no codec has such parameters.
        UnsupportedFileError: its profile is not on this machine.
    """
    evict, _, codec = trace.codec.rpartition("+")
    if is_exact(codec):
        return None
    of_filter = {setting.name for setting in fields(FILTERS[evict])} if evict in FILTERS else set()
    settings = {key: str(value) for key, value in trace.parameters.items() if key not in of_filter}
    # the only setting by which a file could stall the check
    rounds = settings.get("iterations", "0")
    require(len(rounds) < 5 and rounds.isdecimal(), f"iterations={rounds} would never end")
    profile = _profile(trace)
    if profile is not None and "profile" in settings:
        # a file may hold its own
        settings["profile"] = profile_store.remember(profile.load()).digest
    return recipe_of(codec, "", settings)


def lost_before(trace: Trace) -> str:
    """Return what made the rows of an exactly coded file lossy, other than eviction, or ""."""
    _, _, codec = trace.lost_by.rpartition("+")
    explained = is_exact(codec) or codec == "eviction" or trace.lost_by == trace.codec
    return "" if explained or not all(map(is_exact, codecs_of(trace))) else trace.lost_by


def promise(recipe: Recipe | None) -> float:
    """Return the relative error beyond which the codec keeps a row exactly; 0 if it never does."""
    return 0.0 if recipe is None else codec_by_name(recipe.codec, recipe.settings).exact_beyond


def _profile(trace: Trace) -> ProfileReference | None:
    """Return the profile by which a file is decoded, or None."""
    return next((block.file.profile for block in trace.blocks if isinstance(block, FileBlock)), None)


def codecs_of(trace: Trace) -> set[str]:
    """Return the names of the codecs of a file's records."""
    return {
        codec_name(record.header.codec)
        for record in (*trace.blocks, *trace.states)
        if isinstance(record, FileBlock | FileStates)
    }


def codec(trace: Trace, written: Iterable[str]) -> Iterator[str]:
    """Yield a line for each false statement of the header about the codec.

    Args:
        written: the codecs of the records that its recipe writes.
    """
    name = trace.codec or "lossless"
    unexpected = codecs_of(trace) - set(written)
    if unexpected:
        yield f"the header says codec {name} and records are coded by {', '.join(sorted(unexpected))}"
    profile, stated = _profile(trace), trace.parameters.get("profile")
    if profile is not None and isinstance(stated, str) and not profile.digest.startswith(stated):
        yield f"the header says profile {stated[:12]} and the file is decoded by {profile.digest[:12]}"
    if trace.tier == "lossless" and not is_exact(name):
        yield f"the header says tier lossless and codec {name}"


def refused(error: TscError) -> str:
    return f"the header's codec and parameters make no file: {error.message}"


def quality(stated: Sequence[Mapping[str, Any]], results: Sequence[Verified]) -> Iterator[str]:
    """Yield a line for each stated figure that is better than the measured one beyond noise."""
    measured = {result.snapshot: result for result in results}
    for record in stated:
        result = measured.get(record.get("snapshot", -1))
        if result is None:
            continue
        fidelity, where = result.fidelity, f"snapshot {result.snapshot}: the header states"
        kl, top1 = _number(record.get("kl_mean"), math.inf), _number(record.get("top1"), -math.inf)
        if fidelity.kl_mean - kl > _noise(fidelity.kl_mean_se):
            yield f"{where} a KL of {kl:.3g}, {fidelity.kl_mean:.3g} +- {fidelity.kl_mean_se:.2g} was measured"
        if top1 - fidelity.top1 > _noise(fidelity.top1_se):
            yield f"{where} a top-1 share of {top1:.4f}, {fidelity.top1:.4f} +- {fidelity.top1_se:.2g} was measured"


def unmeasured(stated: Sequence[Mapping[str, Any]], results: Sequence[Verified]) -> list[int]:
    """Return the snapshots whose quality the header states and that were not measured."""
    snapshots = {number for number in (record.get("snapshot") for record in stated) if type(number) is int}
    return sorted(snapshots - {result.snapshot for result in results})


def _noise(standard_error: float) -> float:
    return max(NOISE * standard_error, 1e-6) if math.isfinite(standard_error) else math.inf


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise
