"""One sequence of a batch, as a trace of its own: without padding, with its own positions."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from formats.container.records import Part
from formats.errors import UsageError

from .states import StateKey, States
from .trace import Block, Trace
from .views import BlockKey, Labels, Span, View

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SequenceBlock:
    """The rows of one sequence of a block."""

    whole: Block
    number: int

    @property
    def key(self) -> BlockKey:
        return self.whole.key

    def read(self, device: str | torch.device = "cpu") -> Mapping[Part, torch.Tensor]:
        rows = self.whole.read(device)
        return {part: tensor[:, self.number : self.number + 1] for part, tensor in rows.items()}


@dataclass(frozen=True)
class SequenceStates:
    """The states of one sequence."""

    whole: States
    number: int

    @property
    def key(self) -> StateKey:
        return self.whole.key

    def read(self, device: str | torch.device = "cpu") -> torch.Tensor:
        return self.whole.read(device)[:, :, self.number : self.number + 1]


def sequence(trace: Trace, number: int) -> Trace:
    """Sequence `number` of a batch; its rows are read when they are asked for.

    Raises:
        UsageError: no such sequence.
    """
    batch = trace.geometry.batch
    if not 0 <= number < batch:
        raise UsageError(f"there is no sequence {number}", hint=f"the batch has sequences 0 to {batch - 1}")
    padding = trace.geometry.padding[number] if trace.geometry.padding else 0
    rows = trace.labels.tokens([Span(0, len(trace.labels))], number)
    cross = {number for number, spec in enumerate(trace.geometry.layers) if spec.kind == "cross"}
    labels = Labels(array("q", rows), array("q", (max(at - padding, 0) for at in trace.labels.positions)))
    facts = {key: value for key, value in trace.info.items() if key != "sequences"}
    if isinstance(facts.get("prompt_tokens"), int):
        facts["prompt_tokens"] -= padding
    return replace(
        trace, geometry=replace(trace.geometry, batch=1, padding=()), labels=labels, info=facts,
        views=[_view(view, number, padding, cross, trace.labels) for view in trace.views],
        blocks=[SequenceBlock(block, number) for block in trace.blocks],
        states=[SequenceStates(states, number) for states in trace.states],
        tier=trace.tier if trace.tier == "lossless" else "", quality=[], attention=(), captured_bytes=None,
        stored_bytes=None,
    )  # fmt: skip


def _view(view: View, number: int, padding: int, cross: set[int], labels: Labels) -> View:
    short: dict[tuple[Span, ...], tuple[Span, ...]] = {}  # neighbouring layers mostly name the same rows
    layers = []
    for layer, spans in enumerate(view.layers):
        if spans not in short:
            short[spans] = _behind(spans, padding, labels)
        layers.append(spans if layer in cross else short[spans])
    return View(_behind(view.history, padding, labels), tuple(layers), view.next_tokens[number : number + 1])


def _behind(spans: tuple[Span, ...], padding: int, labels: Labels) -> tuple[Span, ...]:
    """The spans without rows of padding, which stand at the first positions."""
    found = []
    for span in spans:
        skipped = sum(
            labels.positions[row] < padding for row in range(span.first, min(span.stop, span.first + padding))
        )
        if skipped < span.rows:
            found.append(Span(span.first + skipped, span.rows - skipped))
    return tuple(found)
