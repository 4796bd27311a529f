"""Recompute: are the rows of a file those of its tokens?

A file with correct checksums may still hold the cache of another text under its tokens. So the
tokens are fed to the model again in the passes that the header states, and every stored row and
state is compared with the result: it must be bit-identical, or within the tolerance for rounding
and the codec's loss (see `tolerances`). That loss is found by coding the recomputed rows by the
header's recipe; where the run is repeated exactly, this gives the same records.
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
    """One compared row or state; errors are in units of the RMS of its head's rows.

    Attributes:
        snapshot: the first one that holds it.
        part: "keys", "values", "indexer keys", or the name of a state.
        sequence: its index in the batch.
        head: its head; None for a state.
        row: its row number; None for a state.
        error: |stored - recomputed|.
        own: the codec's loss of the recomputed row.
        allowed: the tolerance.
        share: distance over tolerance of the row or its head, whichever is larger; over 1 is wrong,
            0 is bit-identical.
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
        subject = "it" if self.row is None else f"row {self.row}"
        return f"{place}: {subject} is {self.error:.3g} of the RMS away, {self.allowed:.3g} is allowed"


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
    """The result of `recompute`.

    Attributes:
        lies: a line for each false statement of the file.
        snapshots: the comparison of each snapshot.
    """

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
    findings = Findings(list(header_claims.labels(trace)))
    if findings.lies:  # rows without true labels cannot be compared
        return findings
    try:
        recipe = header_claims.recipe(trace)
    except UsageError as error:
        return Findings([header_claims.refused(error)])
    exact = recomputed(trace, adapter, progress)
    with _coded(exact.as_trace(trace), recipe, adapter.device) as coded:
        findings.lies += header_claims.codec(trace, {"lossless"} if coded is None else header_claims.codecs_of(coded))
        table = {number: Compared(number) for number in range(len(trace))}
        dtype = coarser(trace.geometry.dtype, adapter.dtype_name)
        promise = header_claims.promise(recipe)
        for layer, part, distances, first, numbers in of_rows(trace, coded, exact):
            _enter(table, layer, part, judge(distances, dtype, promise), distances, first, numbers)
        for layer, part, distances in of_states(trace, coded, exact):
            _enter(table, layer, part, judge(distances, dtype), distances, torch.arange(len(trace)), None)
    findings.snapshots = list(table.values())
    wrong = [snapshot for snapshot in findings.snapshots if snapshot.first_wrong is not None]
    if wrong:
        findings.lies.insert(0, str(wrong[0].first_wrong))
        if (count := sum(snapshot.wrong for snapshot in wrong)) > 1:
            findings.lies.insert(1, f"and {count - 1} more of layers and parts, in {len(wrong)} snapshots")
    return findings


def coarser(*dtypes: str) -> str:
    """Return the dtype of the largest rounding: states may be finer than the model's dtype."""
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
    """Add one part of one layer to the table.

    Args:
        first: the first snapshot that holds each row, (rows,).
        numbers: the number of each row, (rows,); None for states.
    """
    for snapshot in sorted(set(first.tolist())):
        columns = (first == snapshot).nonzero()[:, 0]
        share, compared = judged.share[..., columns], table[snapshot]

        def entry(place: torch.Tensor, columns: torch.Tensor = columns, snapshot: int = snapshot) -> Entry:
            sequence, head, column = (int(index) for index in place)
            where = sequence, head, int(columns[column])
            return Entry(
                snapshot,
                layer,
                part,
                sequence,
                None if numbers is None else head,
                None if numbers is None else int(numbers[where[2]]),
                float(judged.error[where]),
                float(judged.lost[where]),
                float(judged.allowed[where]),
                float(judged.share[where]),
                bool(judged.coarse[where[:2]]),
            )

        compared.tensors += len(columns)
        compared.identical += int(distances.identical[..., columns].all(0).all(0).sum())
        worst = share.amax()
        error = torch.where(share == worst, judged.error[..., columns], -1.0).nan_to_num(torch.inf)
        compared.add(entry((error == error.amax()).nonzero()[0]))
        wrong = ~(share <= 1)
        if bool(wrong.any()):
            compared.wrong += 1
            row = int(wrong.any(0).any(0).nonzero()[0])
            first_wrong = entry(torch.tensor([*wrong[..., row].nonzero()[0].tolist(), row]))
            compared.first_wrong = compared.first_wrong or first_wrong


def _coded(
    trace: Trace, recipe: Recipe | None, device: torch.device
) -> contextlib.AbstractContextManager[Trace | None]:
    """Return a context with the recomputed rows after the codec, or None for an exact codec."""
    return contextlib.nullcontext() if recipe is None else scratch_file(Source(trace), recipe, device)
