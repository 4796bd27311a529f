"""Candidates of rate control: recipes of one source, with the length and quality of their files."""

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

Measure = Callable[[Recipe], float]  # returns the error of a recipe's file: lower is better


@dataclass(frozen=True)
class Candidate:
    """A recipe that was tried.

    Attributes:
        label: the name of its family.
        recipe: the recipe.
        file_bytes: the length of its file.
        quality: its measured error, lower is better; None if it was not measured.
    """

    label: str
    recipe: Recipe
    file_bytes: int
    quality: float | None = None


@dataclass(frozen=True)
class Choice:
    """The result of rate control: the winner, and all candidates that were compared."""

    winner: Candidate
    candidates: list[Candidate]


class _ByteCounter:
    """A sink that only counts bytes."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes, /) -> None:
        self.count += len(data)


class Sizer:
    """The lengths of the files of recipes, for one source; every recipe is encoded once."""

    def __init__(self, source: Source, device: str | torch.device = "cpu") -> None:
        self.source = source
        self._device = device
        self._lengths: dict[str, int] = {}

    def __call__(self, recipe: Recipe) -> int:
        key = repr(recipe)
        if key not in self._lengths:
            sink = _ByteCounter()
            write(self.source, recipe, sink, device=self._device, secret=self.source.passing_secret)
            self._lengths[key] = sink.count
        return self._lengths[key]

    def known(self, recipe: Recipe) -> int | None:
        """Return the length if the recipe was encoded before, else None."""
        return self._lengths.get(repr(recipe))


def error_of(source: Source, device: str | torch.device) -> Measure:
    """Return a measure of the relative error of rows, for use without a model."""
    from tsc_cli.scoring.scorer import scratch_file

    def measure(recipe: Recipe) -> float:
        with scratch_file(source, recipe, device) as trace:
            return relative_error(source.trace, trace)

    return measure
