"""The parts of one sequence of a batch: its rows, states, labels and views, without padding."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.container.records import Part

from .blocks import Block
from .geometry import Geometry
from .states import StateKey, States
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


def sequence_labels(labels: Labels, number: int, padding: int) -> Labels:
    """The labels of one sequence: its own token ids, and positions that count from the end of its
    padding.

    Args:
        padding: tokens that were put before the text.
    """
    tokens = labels.tokens([Span(0, len(labels))], number)
    return Labels(array("q", tokens), array("q", (max(at - padding, 0) for at in labels.positions)))


def sequence_views(views: Sequence[View], number: int, padding: int, geometry: Geometry, labels: Labels) -> list[View]:
    """The views of one sequence, without the rows of its padding.

    Args:
        labels: of the whole batch.
    """
    cross = {layer for layer, spec in enumerate(geometry.layers) if spec.kind == "cross"}
    return [_view(view, number, padding, cross, labels) for view in views]


def _view(view: View, number: int, padding: int, cross: set[int], labels: Labels) -> View:
    # neighbouring layers mostly name the same rows
    short: dict[tuple[Span, ...], tuple[Span, ...]] = {}
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
