"""The rows and states that a model computes of a file's tokens, by the file's row numbers."""

from __future__ import annotations

from collections.abc import Sequence
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
    """The recomputed rows of one layer that snapshots name.

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
    """The rows and states of a file as its model computes them here.

    Attributes:
        columns: the rows of each layer.
        states: an entry for each snapshot and group of layers.
    """

    columns: list[Column]
    states: list[MemoryStates] = field(default_factory=list)

    def as_trace(self, trace: Trace) -> Trace:
        """Return the trace with these rows and states instead of its own, before any codec."""
        blocks = []
        for layer, column in enumerate(self.columns):
            offset = 0
            for span in needed_spans(trace.views, layer):
                stop = offset + span.rows
                parts = {part: rows[None, :, :, offset:stop] for part, rows in column.rows.items()}
                blocks.append(MemoryBlock(BlockKey(Part.JOINT, layer, 1, *span), parts))
                offset = stop
        info = {key: value for key, value in trace.info.items() if key != "dequantized"}
        return replace(
            trace,
            blocks=blocks,
            states=list(self.states),
            head_maps=(),
            attention=(),
            info=info,
            tier="",
            codec="lossless",
            parameters={},
            lost_by="",
        )


def runs_of(trace: Trace) -> list[list[int]]:
    """Return the snapshots grouped into runs, in which each one's tokens begin the next one's."""
    runs: list[list[int]] = []
    for number, view in enumerate(trace.views):
        if runs and _continues(trace.labels, trace.geometry.batch, trace.views[runs[-1][-1]], view):
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _continues(labels: Labels, batch: int, earlier: View, later: View) -> bool:
    if len(earlier.history) == len(later.history) == 1 and earlier.history[0].first == later.history[0].first:
        return earlier.tokens_seen <= later.tokens_seen
    texts = [[labels.tokens(view.history, sequence) for view in (earlier, later)] for sequence in range(batch)]
    return all(after[: len(before)] == before for before, after in texts)


def passes(trace: Trace) -> int:
    """Return how many forward passes `recomputed` will report to its `progress`."""
    return sum(passes_to(trace, trace.views[run[-1]].tokens_seen) for run in runs_of(trace))


def recomputed(trace: Trace, adapter: ModelAdapter, progress: Progress) -> Recomputed:
    """Feed the tokens of a file in the passes that its header states, and keep the named rows.

    Memory holds every row once, beside the cache that grows.

    Args:
        trace: the whole batch, after a check by `header_claims.labels`.
    Raises:
        UsageError: the file does not hold what its encoder was fed; the model has no such
            positions.
        LimitError: the rows take more than the memory budget.
    """
    geometry, labels = trace.geometry, trace.labels
    result = Recomputed(_columns(trace))
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
                _fill(result.columns, trace, number, rows)
                states = [{name: state.cpu() for name, state in by_name.items()} for by_name in caches.states_of(cache)]
                result.states += of_snapshot(number, states, geometry)
        if by_length:
            raise UsageError(
                f"snapshot {next(iter(by_length.values()))[0]} cannot be fed again as the header says that it was"
            )
    return result


def _require_shape(trace: Trace, cache: Any, adapter: ModelAdapter) -> None:
    """Raise MismatchError unless the layers of the file are those of the model's cache."""
    model_geometry = caches.geometry_of(cache, adapter.name, trace.geometry.padding)
    if (model_geometry.dtype, model_geometry.batch, len(model_geometry.layers)) != (
        trace.geometry.dtype,
        trace.geometry.batch,
        len(trace.geometry.layers),
    ):
        raise MismatchError(
            f"the file has {len(trace.geometry.layers)} layers of {trace.geometry.dtype}, "
            f"the model {len(model_geometry.layers)} of {model_geometry.dtype}"
        )
    for layer, (spec, model_spec) in enumerate(zip(trace.geometry.layers, model_geometry.layers, strict=True)):
        if spec != model_spec:
            raise MismatchError(f"layer {layer} has another shape in the file than in the model")


def _columns(trace: Trace) -> list[Column]:
    geometry, dtype = trace.geometry, getattr(torch, trace.geometry.dtype)
    spans = [needed_spans(trace.views, layer) for layer in range(len(geometry.layers))]
    counts = [sum(span.rows for span in layer_spans) for layer_spans in spans]
    needed = sum(count * size for count, size in zip(counts, geometry.row_bytes, strict=True))
    needed += len(trace) * sum(geometry.state_bytes)
    require_memory(needed, "the recomputed rows take")
    return [
        Column(
            torch.tensor([row for span in layer_spans for row in range(span.first, span.stop)], dtype=torch.int64),
            {
                part: torch.empty(geometry.batch, spec.part_heads(part), count, spec.head_size(part), dtype=dtype)
                for part in spec.parts
            },
            torch.full((count,), -1, dtype=torch.int64),
        )
        for spec, layer_spans, count in zip(geometry.layers, spans, counts, strict=True)
    ]


def _fill(columns: list[Column], trace: Trace, snapshot: int, exact: Sequence[Any]) -> None:
    """Copy the rows of a snapshot's exact cache into the columns, but for those of earlier ones."""
    view = trace.views[snapshot]
    for layer, (column, parts) in enumerate(zip(columns, exact, strict=True)):
        spec = trace.geometry.layers[layer]
        if not spec.parts:
            continue
        rows = torch.tensor([row for span in view.layers[layer] for row in range(span.first, span.stop)])
        places = torch.searchsorted(column.numbers, rows)
        new = column.first[places] < 0
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
            column.rows[part][:, :, places[new]] = tensor.cpu().gather(2, index)
        column.first[places[new]] = snapshot
