"""What the model makes of the tokens of a file, put under the row numbers of that file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from formats import Trace
from formats.container.records import Part
from formats.errors import MismatchError, UsageError
from formats.limits import require_memory
from formats.trace.blocks import MemoryBlock
from formats.trace.row_store import needed_spans
from formats.trace.states import of_snapshot
from formats.trace.views import BlockKey, Labels, View
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.prompts import encoder_output_of
from tsc_cli.progress import Progress
from tsc_cli.session.replay import passes_to, replayed

if TYPE_CHECKING:
    from formats.trace.states import MemoryStates


@dataclass
class Column:
    """The rows of one layer that snapshots name.

    Attributes:
        numbers: their row numbers, ascending, (rows,).
        rows: by part, (batch, heads, rows, head size), on the CPU.
        first: the snapshot that names each row first, (rows,); -1 until it is filled.
    """

    numbers: torch.Tensor
    rows: dict[Part, torch.Tensor]
    first: torch.Tensor


@dataclass
class Recomputed:
    """The rows of a file as its model computes them here; `states` one entry a snapshot and group of layers."""

    columns: list[Column]
    states: list[MemoryStates] = field(default_factory=list)

    def under(self, trace: Trace) -> Trace:
        """The trace with these rows and states instead of its own, as they were before any codec."""
        blocks = [
            MemoryBlock(
                BlockKey(Part.JOINT, layer, 1, *span),
                {part: rows[None, :, :, at : at + span.rows] for part, rows in column.rows.items()},
            )
            for layer, column in enumerate(self.columns)
            for at, span in _placed(needed_spans(trace.views, layer))
        ]
        info = {key: value for key, value in trace.info.items() if key != "dequantized"}
        return replace(
            trace,
            blocks=blocks,
            states=list(self.states),
            kept=(),
            attention=(),
            info=info,
            tier="",
            codec="lossless",
            parameters={},
            lost_by="",
        )


def _placed(spans: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    at = 0
    for span in spans:
        yield at, span
        at += span.rows


def runs_of(trace: Trace) -> list[list[int]]:
    """The snapshots in groups each of which is one run: a snapshot's tokens are a beginning of the next one's."""
    runs: list[list[int]] = []
    for number, view in enumerate(trace.views):
        if runs and _goes_on(trace.labels, trace.geometry.batch, trace.views[runs[-1][-1]], view):
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _goes_on(labels: Labels, batch: int, one: View, other: View) -> bool:
    if len(one.history) == len(other.history) == 1 and one.history[0].first == other.history[0].first:
        return one.tokens_seen <= other.tokens_seen
    texts = [[labels.tokens(view.history, sequence) for view in (one, other)] for sequence in range(batch)]
    return all(after[: len(before)] == before for before, after in texts)


def passes(trace: Trace) -> int:
    """How many forward passes `recomputed` will report to its `progress`."""
    return sum(passes_to(trace, trace.views[run[-1]].tokens_seen) for run in runs_of(trace))


def recomputed(trace: Trace, adapter: ModelAdapter, progress: Progress) -> Recomputed:
    """Feed the tokens of the file again, as its header says that they were fed, and keep what its snapshots name.

    Every row is held once, beside the cache that grows.

    Args:
        trace: the whole batch, whose labels were checked; see `claims`.
    Raises:
        UsageError: the file does not hold what its encoder was fed; the model has no such
            positions.
        LimitError: the rows take more than the memory budget.
    """
    geometry, labels = trace.geometry, trace.labels
    found = Recomputed(_columns(trace))
    encoded = encoder_output_of(trace, adapter)
    for run in runs_of(trace):
        history = trace.views[run[-1]].history
        ids = torch.tensor([labels.tokens(history, sequence) for sequence in range(geometry.batch)])
        by_length: dict[int, list[int]] = {}
        for number in run:
            by_length.setdefault(trace.views[number].tokens_seen, []).append(number)
        for length, cache in replayed(trace, adapter, ids, list(by_length), encoded, progress, geometry.padding):
            _require_shape(trace, cache, adapter)
            rows = caches.rows_of(cache)
            for number in by_length.pop(length):
                _fill(found.columns, trace, number, rows)
                states = [{name: one.cpu() for name, one in held.items()} for held in caches.states_of(cache)]
                found.states += of_snapshot(number, states, geometry)
        if by_length:
            raise UsageError(
                f"snapshot {next(iter(by_length.values()))[0]} cannot be fed again as the header says that it was"
            )
    return found


def _require_shape(trace: Trace, cache: Any, adapter: ModelAdapter) -> None:
    """Raise MismatchError unless the layers of the file are those of the model's cache."""
    mine = caches.geometry_of(cache, adapter.name, trace.geometry.padding)
    if (mine.dtype, mine.batch, len(mine.layers)) != (
        trace.geometry.dtype,
        trace.geometry.batch,
        len(trace.geometry.layers),
    ):
        raise MismatchError(
            f"the file has {len(trace.geometry.layers)} layers of {trace.geometry.dtype}, "
            f"the model {len(mine.layers)} of {mine.dtype}"
        )
    for number, (spec, own) in enumerate(zip(trace.geometry.layers, mine.layers, strict=True)):
        if spec != own:
            raise MismatchError(f"layer {number} has another shape in the file than in the model")


def _columns(trace: Trace) -> list[Column]:
    geometry, dtype = trace.geometry, getattr(torch, trace.geometry.dtype)
    spans = [needed_spans(trace.views, layer) for layer in range(len(geometry.layers))]
    counts = [sum(span.rows for span in one) for one in spans]
    needed = sum(count * size for count, size in zip(counts, geometry.row_bytes, strict=True))
    needed += len(trace) * sum(geometry.state_bytes)
    require_memory(needed, "the recomputed rows take")
    return [
        Column(
            torch.tensor([row for span in one for row in range(span.first, span.stop)], dtype=torch.int64),
            {
                part: torch.empty(geometry.batch, spec.part_heads(part), count, spec.head_size(part), dtype=dtype)
                for part in spec.parts
            },
            torch.full((count,), -1, dtype=torch.int64),
        )
        for spec, one, count in zip(geometry.layers, spans, counts, strict=True)
    ]


def _fill(columns: list[Column], trace: Trace, number: int, exact: Sequence[Any]) -> None:
    """Put the rows of an exact cache where a snapshot names them, unless an earlier one did."""
    view = trace.views[number]
    for layer, (column, parts) in enumerate(zip(columns, exact, strict=True)):
        spec = trace.geometry.layers[layer]
        if not spec.parts:
            continue
        rows = torch.tensor([row for span in view.layers[layer] for row in range(span.first, span.stop)])
        at = torch.searchsorted(column.numbers, rows)
        new = column.first[at] < 0
        if not bool(new.any()):
            continue
        present = parts[0].shape[2]
        if spec.kind == "cross":
            source = torch.arange(len(rows))
        else:
            source = trace.row_positions(view, layer) - (view.tokens_seen - present)
        source = source[..., new]
        for part, tensor in zip(spec.parts, parts, strict=True):
            batch, heads, _, size = tensor.shape
            index = source.expand(heads, -1)[None, :, :, None].expand(batch, heads, -1, size)
            column.rows[part][:, :, at[new]] = tensor.cpu().gather(2, index)
        column.first[at[new]] = number
