"""The job of `tsc probe-weights`: measure differences between layers, or from another model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from formats.errors import UsageError
from tsc_cli.checkpoints.matrices import Matrix, workers
from tsc_cli.progress import Progress

from . import ratios
from .coding import coded, rows_for_bits
from .ranks import effective_rank, rows_for_rank
from .ratios import Survey, survey
from .stacks import MatrixType, Series, Stack

if TYPE_CHECKING:
    from collections.abc import Mapping

# bits a weight: what a factor, a choice of reference and layers that depend on layers have to be
# paid from
YES = 0.1


@dataclass(frozen=True)
class Entry:
    """Figures of one matrix against its reference; None for those that do not exist.

    Attributes:
        layer, expert: whose matrix W it is.
        reference: the layer of the reference R: the one before, or the same of another model.
        ratio: max|W - R| / max|R|, called r.
        best, best_reference: the least r over all other layers, and which gives it; not against
            another model.
        frobenius: |W - R|_F / |W|_F.
        cosine: of W and R as vectors.
        factor, left: the a that minimises |W - a R|_F, and what remains of |W|_F then.
        rank_weight, rank_delta: effective ranks of W and W - R.
        bits_weight, bits_delta: bits a weight of W and of W - R, quantized with the same step.
        bits_saved_estimate: what W - R saves for a Gaussian source.
        bits_saved_factor: what W - a R saves for a Gaussian source, -log2(left); None also where
            nothing is left.
        bits_saved_best: the same with the best of all other layers as the reference.
    """

    layer: int
    expert: int | None
    reference: int | None
    ratio: float | None = None
    best: float | None = None
    best_reference: int | None = None
    frobenius: float | None = None
    cosine: float | None = None
    factor: float | None = None
    left: float | None = None
    rank_weight: float | None = None
    rank_delta: float | None = None
    bits_weight: float | None = None
    bits_delta: float | None = None
    bits_saved_estimate: float | None = None
    bits_saved_factor: float | None = None
    bits_saved_best: float | None = None


@dataclass(frozen=True)
class TypeReport:
    """Every matrix of one type, in the order of layers and experts, each against its reference."""

    type: MatrixType
    entries: list[Entry]

    def values(self, name: str) -> list[float]:
        """A figure of all entries that have it."""
        return [value for entry in self.entries if (value := getattr(entry, name)) is not None]

    def mean(self, name: str) -> float | None:
        values = self.values(name)
        return float(np.mean(values)) if values else None

    @property
    def saved(self) -> float | None:
        """Bits a weight that coding differences saves, over the matrices with a reference."""
        weight, delta = self.mean("bits_weight"), self.mean("bits_delta")
        return None if weight is None or delta is None else weight - delta

    @property
    def weights(self) -> int:
        """How many weights the type stands for: those of experts that were not looked at, too."""
        rows, columns = self.type.series[0].shape
        times = self.type.experts / len(self.type.series) if self.type.experts else 1.0
        return int(rows * columns * len(self.entries) * times)


@dataclass(frozen=True)
class Verdict:
    """Yes or no, and the figures that it rests on.

    Attributes:
        saved: bits a weight that plain differences save, measured; mean over all weights.
        saved_best: bits that the best scaled reference among all layers saves, estimated; None
            against another model.
        yes_for: types for which alone the answer is yes.
    """

    yes: bool
    saved: float
    saved_best: float | None
    yes_for: list[str]


def probe(
    stack: Stack, against: Stack | None, sample: int | None, progress: Callable[[str, int], Any], threads: int = 0
) -> list[TypeReport]:
    """Measure every type of matrix, between layers or against the same layers of another model.

    Args:
        against: the other model's layers, checked with `check_same`.
        sample: how many rows of each matrix, evenly spread, stand for all.
        progress: opens a bar: (what, total) to a context that gives an `Progress`.
        threads: 0 for as many as the process may use.
    Raises:
        LimitError, CorruptError, StorageError: as `ratios.survey`.
    """
    reports = []
    with _pool(threads or workers()) as pool:
        for type_number, matrix_type in enumerate(stack.types):
            other_type = against.types[type_number] if against is not None else None
            with progress(
                f"{matrix_type.name} ({type_number + 1} of {len(stack.types)})", _work(matrix_type, other_type, sample)
            ) as advance:
                entries = []
                for series_index, series in enumerate(matrix_type.series):
                    if other_type is None:
                        entries += _layers(series, pool, advance, sample)
                    else:
                        entries += _other_model(series, other_type.series[series_index], pool, advance, sample)
                reports.append(TypeReport(matrix_type, entries))
    return reports


@contextmanager
def _pool(threads: int) -> Iterator[Executor]:
    """Open a pool of threads, which drops what has not started when there is an error."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def check_same(stack: Stack, other: Stack, path: str) -> None:
    """Raise UsageError unless two models have the same matrices; `path` is that of the other."""
    names = {matrix_type.name: matrix_type for matrix_type in other.types}
    for matrix_type in stack.types:
        if matrix_type.name not in names:
            raise UsageError(
                f"has no {matrix_type.name} matrices", path=path, hint="compare two models of one architecture"
            )
        theirs = {s.expert: s for s in names[matrix_type.name].series}
        for series in matrix_type.series:
            their_series = theirs.get(series.expert)
            if (
                their_series is None
                or list(their_series.layers) != list(series.layers)
                or their_series.shape != series.shape
            ):
                shapes = ["x".join(map(str, s.shape)) if s else "none" for s in (series, their_series)]
                counts = [len(s.layers) if s else 0 for s in (series, their_series)]
                raise UsageError(
                    f"{matrix_type.name} is {shapes[1]} in {counts[1]} layers, not {shapes[0]} in {counts[0]}",
                    path=path,
                    hint="compare two models of one architecture",
                )


def _work(matrix_type: MatrixType, other_type: MatrixType | None, sample: int | None) -> int:
    total = 0
    for series in matrix_type.series:
        rows, columns = series.shape
        rows = min(rows, sample or rows)
        count = len(series.layers)
        total += count * rows * columns if other_type else ratios.work(count, rows, columns)
        pairs = count if other_type else count - 1
        total += pairs * len(rows_for_bits(next(iter(series.layers.values())), sample)) * columns * _CODING
    return total


_CODING = 16  # counting symbols and ranks costs about this many comparisons a weight


def _layers(series: Series, pool: Executor, advance: Progress, sample: int | None) -> list[Entry]:
    """Each layer against the one before, and against all."""
    numbers = list(series.layers)
    matrices = list(series.layers.values())
    comparison = survey(matrices, pool, advance, sample)
    pairs = [(matrices[index], matrices[index - 1]) for index in range(1, len(matrices))]
    costs = [{}, *_costs(pairs, pool, advance, sample)]
    ratio, left = comparison.ratio(), comparison.left()
    for figures in (ratio, left):
        np.fill_diagonal(figures, np.nan)
    entries = []
    for index, layer in enumerate(numbers):
        best = None if np.isnan(ratio[index]).all() else int(np.nanargmin(ratio[index]))
        least = None if np.isnan(left[index]).all() else float(np.nanmin(left[index]))
        reference = index - 1 if index else None
        entries.append(
            Entry(
                layer,
                series.expert,
                None if reference is None else numbers[reference],
                best=None if best is None else float(ratio[index, best]),
                best_reference=None if best is None else numbers[best],
                bits_saved_best=_saved(least),
                **_distances(comparison, index, reference),
                **costs[index],
            )
        )
    return entries


def _other_model(series: Series, other: Series, pool: Executor, advance: Progress, sample: int | None) -> list[Entry]:
    """Each layer against the same of the other model."""
    pairs = [(series.layers[layer], other.layers[layer]) for layer in series.layers]
    surveys = [survey(pair, pool, advance, sample) for pair in pairs]
    costs = _costs(pairs, pool, advance, sample)
    return [
        Entry(layer, series.expert, layer, **_distances(comparison, 0, 1), **cost)
        for layer, comparison, cost in zip(series.layers, surveys, costs, strict=True)
    ]


def _distances(comparison: Survey, index: int, reference: int | None) -> dict[str, Any]:
    if reference is None:
        return {}
    figures: Mapping[str, Any] = {
        "ratio": comparison.ratio(),
        "frobenius": comparison.frobenius(),
        "cosine": comparison.cosine(),
        "factor": comparison.factor(),
        "left": comparison.left(),
    }
    values_here = {name: _number(values[index, reference]) for name, values in figures.items()}
    return {**values_here, "bits_saved_factor": _saved(values_here["left"])}


def _saved(left: float | None) -> float | None:
    return -float(np.log2(left)) + 0.0 if left else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _costs(
    pairs: Sequence[tuple[Matrix, Matrix]], pool: Executor, advance: Progress, sample: int | None
) -> list[dict[str, Any]]:
    """Bits and ranks of each pair of a matrix and its reference."""

    def cost(pair: tuple[Matrix, Matrix]) -> dict[str, Any]:
        weight, reference = pair
        bits = coded(weight, reference, rows_for_bits(weight, sample))
        numbers = rows_for_rank(weight, sample)
        outputs = weight.shape[0] if sample is None else min(sample, weight.shape[0])
        rows = weight.rows(numbers)
        delta = rows - reference.rows(numbers)
        nothing = bits.weight == bits.delta == 0  # two matrices of zeros
        return {
            "rank_weight": effective_rank(rows, outputs),
            "rank_delta": effective_rank(delta, outputs),
            "bits_weight": None if nothing else bits.weight,
            "bits_delta": None if nothing else bits.delta,
            "bits_saved_estimate": bits.estimate,
        }

    done = []
    for pair, pair_cost in zip(pairs, pool.map(cost, pairs), strict=True):
        advance(len(rows_for_bits(pair[0], sample)) * pair[0].shape[1] * _CODING)
        done.append(pair_cost)
    return done


def judged(reports: Sequence[TypeReport]) -> Verdict | None:
    """Whether differences save at least `YES` bits a weight; None where there are zeros only."""
    measured = [report for report in reports if report.saved is not None]
    if not measured:
        return None
    weights = [report.weights for report in measured]
    saved = float(np.average([report.saved for report in measured if report.saved is not None], weights=weights))
    best = [report.mean("bits_saved_best") for report in measured]
    saved_best = None
    if all(value is not None for value in best):
        saved_best = float(np.average([value for value in best if value is not None], weights=weights))
    yes_for = [
        report.type.name
        for report in measured
        if max(report.saved or 0.0, report.mean("bits_saved_best") or 0.0) >= YES
    ]
    return Verdict(max(saved, saved_best or 0.0) >= YES, saved, saved_best, yes_for)
