"""Recompute: are the rows of a file those of its tokens?

Checksums find damage, not lies: a valid file may hold the cache of another text under its tokens.
So the tokens are fed to the model again as the header says that they were, and every stored row and
state is compared with what comes out: bit-identical, or within what rounding and the file's own
codec explain (see `tolerances`). What the codec explains is found by coding the recomputed rows by
the header's recipe: where the run is repeated exactly, the very same records come out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from formats import Trace
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.errors import UsageError
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.progress import Progress, nothing
from tsc_cli.scoring.scorer import scratch_file

from . import header_claims
from .distances import of_rows, of_states
from .recomputed_rows import recomputed
from .tolerances import ROUNDING, Distances, Judged, judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Entry:
    """The worst of what a snapshot is the first to hold.

    Attributes:
        part: "keys", "values", "indexer keys", or the name of a state; sequence, head, row: where,
            None for a state.
        error, own, allowed: |stored - recomputed|, what the codec loses of the recomputed row, and
            what is allowed, each over the RMS of the rows of the head.
        share: of what is allowed, by the row alone or its head as a whole; over 1 is wrong, 0 is
            bit-identical.
        coarse: the codec loses so much that rows of another text would pass as well.
    """

    snapshot: int
    layer: int
    part: str
    sequence: int | None
    head: int | None
    row: int | None
    error: float
    own: float
    allowed: float
    share: float
    coarse: bool

    def __str__(self) -> str:
        place = f"snapshot {self.snapshot}, layer {self.layer}, {self.part}"
        place += f", sequence {self.sequence}" if self.sequence else ""
        place += "" if self.head is None else f", head {self.head}"
        if self.coarse and self.error <= self.allowed:
            return f"{place}: the codec loses so much ({self.own:.3g} of the RMS) that rows of another text would pass"
        what = "it" if self.row is None else f"row {self.row}"
        return f"{place}: {what} is {self.error:.3g} of the RMS away, {self.allowed:.3g} is allowed"


@dataclass
class Compared:
    """One snapshot: what it holds that no earlier one does.

    Attributes:
        tensors: rows of layers and states that were compared; identical: those that are
            bit-identical to the recomputed ones, or to what the codec makes of them.
        worst: the entry of the largest share; first_wrong: the first one in order that is over 1;
            wrong: layers and parts that have such.
    """

    snapshot: int
    tensors: int = 0
    identical: int = 0
    worst: Entry | None = None
    first_wrong: Entry | None = None
    wrong: int = 0

    @property
    def verdict(self) -> str:
        if self.first_wrong is not None:
            return "WRONG"
        return "identical" if self.identical == self.tensors else "within tolerance"

    def add(self, entry: Entry) -> None:
        if self.worst is None or (entry.share, entry.error) > (self.worst.share, self.worst.error):
            self.worst = entry


@dataclass
class Findings:
    """What `recompute` found: a line for each lie, and each snapshot."""

    lies: list[str] = field(default_factory=list)
    snapshots: list[Compared] = field(default_factory=list)


def recompute(
    trace: Trace,
    model: PreTrainedModel | ModelAdapter,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress = nothing,
) -> Findings:
    """Compare everything that a file stores with a new prefill of its tokens.

    Args:
        trace: the whole of it, all sequences of a batch.
        progress: called with the number of passes done; `recomputed_rows.passes` says how many
            there will be.
    Raises:
        MismatchError: another model.
        UsageError: it cannot be fed again: the file does not hold what its encoder was fed; or its
            rows lost something before its own codec had them, of which nothing is known but the
            name.
    """
    adapter = ModelAdapter.of(model)
    if lost_by := header_claims.lost_before(trace):
        raise UsageError(
            f"holds rows that were lossy before they came into it ({lost_by}): no prefill gives these",
            path=trace.path,
            hint="tsc verify without --recompute measures them",
        )
    fingerprint.require_same(trace.fingerprint, fingerprint.of(adapter, tokenizer))
    found = Findings(list(header_claims.labels(trace)))
    if found.lies:  # rows of which it is not known what they are cannot be compared
        return found
    try:
        recipe = header_claims.recipe(trace)
    except UsageError as error:
        return Findings([header_claims.refused(error)])
    exact = recomputed(trace, adapter, progress)
    under = exact.under(trace)
    with _coded(under, recipe, adapter.device) as own:
        found.lies += header_claims.codec(trace, {"lossless"} if own is None else header_claims.codecs_of(own))
        table = {number: Compared(number) for number in range(len(trace))}
        dtype = coarser(trace.geometry.dtype, adapter.dtype_name)
        promise = header_claims.promise(recipe)
        for layer, part, distances, first, numbers in of_rows(trace, own, exact):
            _enter(table, layer, part, judge(distances, dtype, promise), distances, first, numbers)
        for layer, part, distances in of_states(trace, own, exact):
            every = torch.arange(len(trace))
            _enter(table, layer, part, judge(distances, dtype), distances, every, None)
    found.snapshots = [table[number] for number in sorted(table)]
    wrong = [one for one in found.snapshots if one.first_wrong is not None]
    if wrong:
        found.lies.insert(0, str(wrong[0].first_wrong))
        if (count := sum(one.wrong for one in wrong)) > 1:
            found.lies.insert(1, f"and {count - 1} more of layers and parts, in {len(wrong)} snapshots")
    return found


def coarser(*dtypes: str) -> str:
    """The dtype of the largest rounding; of layers of states alone, the states may be finer than the model computes."""
    return max((dtype for dtype in dtypes if dtype in ROUNDING), key=lambda dtype: ROUNDING[dtype].row)


def _enter(
    table: Mapping[int, Compared],
    layer: int,
    part: str,
    judged: Judged,
    distances: Distances,
    first: torch.Tensor,
    numbers: torch.Tensor | None,
) -> None:
    """Put one part of one layer into the table; `first` is the snapshot of each row, `numbers` its number."""
    for snapshot in sorted(set(first.tolist())):
        at = (first == snapshot).nonzero()[:, 0]
        share, compared = judged.share[..., at], table[snapshot]

        def entry(place: torch.Tensor, at: torch.Tensor = at, snapshot: int = snapshot) -> Entry:
            sequence, head, row = (int(one) for one in place)
            where = sequence, head, int(at[row])
            return Entry(
                snapshot,
                layer,
                part,
                sequence,
                None if numbers is None else head,
                None if numbers is None else int(numbers[where[2]]),
                float(judged.error[where]),
                float(judged.own[where]),
                float(judged.allowed[where]),
                float(judged.share[where]),
                bool(judged.coarse[where[:2]]),
            )

        compared.tensors += len(at)
        compared.identical += int(distances.identical[..., at].all(0).all(0).sum())
        worst = share.amax()
        error = torch.where(share == worst, judged.error[..., at], -1.0).nan_to_num(torch.inf)
        compared.add(entry((error == error.amax()).nonzero()[0]))
        wrong = ~(share <= 1)
        if bool(wrong.any()):
            compared.wrong += 1
            row = int(wrong.any(0).any(0).nonzero()[0])
            found = entry(torch.tensor([*wrong[..., row].nonzero()[0].tolist(), row]))
            compared.first_wrong = compared.first_wrong or found


def _coded(
    trace: Trace, recipe: Recipe | None, device: torch.device
) -> contextlib.AbstractContextManager[Trace | None]:
    """What the recipe makes of the recomputed rows, or None if it loses nothing."""
    return contextlib.nullcontext() if recipe is None else scratch_file(Source(trace), recipe, device)
