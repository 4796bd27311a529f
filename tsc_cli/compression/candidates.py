"""What rate control compares: recipes of one source, how long their files are and how good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import write
from formats.trace.distortion import relative_error

if TYPE_CHECKING:
    import torch

Measure = Callable[[Recipe], float]  # the quality of a recipe's file, lower is better


@dataclass(frozen=True)
class Candidate:
    """A recipe that was tried.

    Attributes:
        quality: what `measure` said of it, lower is better; None if it was not measured.
    """

    label: str
    recipe: Recipe
    file_bytes: int
    quality: float | None = None


@dataclass(frozen=True)
class Choice:
    """What rate control found: the winner and everything that it was compared with."""

    winner: Candidate
    candidates: list[Candidate]


class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes, /) -> None:
        self.count += len(data)


class Sizer:
    """Lengths of the files that recipes give of one source; every recipe is encoded once."""

    def __init__(self, source: Source, device: str | torch.device = "cpu") -> None:
        self.source = source
        self._device = device
        self._known: dict[str, int] = {}

    def __call__(self, recipe: Recipe) -> int:
        key = repr(recipe)
        if key not in self._known:
            sink = _Counter()
            write(self.source, recipe, sink, device=self._device, secret=self.source.passing_secret)
            self._known[key] = sink.count
        return self._known[key]

    def known(self, recipe: Recipe) -> int | None:
        """The length, if the recipe was encoded before."""
        return self._known.get(repr(recipe))


def error_of(source: Source, device: str | torch.device) -> Measure:
    """Measures the relative error of the rows of a recipe's file, where no model can measure the KL."""

    from tsc_cli.scoring.scorer import scratch_file

    def measure(recipe: Recipe) -> float:
        with scratch_file(source, recipe, device) as trace:
            return relative_error(source.trace, trace)

    return measure
