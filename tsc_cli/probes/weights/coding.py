"""The decisive figure: the bits a weight that coding a difference saves or costs at equal error.

Two measures. The estimate is that of a Gaussian source at equal mean squared error D: R(D) = 1/2
log2(s^2 / D) (Cover and Thomas, Elements of Information Theory, section 10.3.2), so that coding a
difference of variance d^2 in place of a weight of variance w^2 saves 1/2 log2(w^2 / d^2) bits
whatever D is. The measurement quantizes both uniformly with the same step, which gives both the
same error, and counts the symbols: the empirical entropy is what an arithmetic coder would need. It
holds for whatever distribution the weights have.

Both are honest to scales a row: rows (output channels) have steps of their own, as in weight
quantizers, and the coder knows how large a row of differences is, as well as it knows it of a row
of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tsc_cli.checkpoints.matrices import Matrix, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tsc_cli.checkpoints.matrices import Floats, Indexes

    Doubles = NDArray[np.float64]

CODED_VALUES = 1 << 24  # of a matrix; rows that hold so many, evenly spread, stand for larger ones
_BLOCK_VALUES = 1 << 18  # of rows that are quantized at once
# steps to the smaller root mean square of the two: fine enough that neither becomes nothing; it
# takes 4.05 bits then
PER_RMS = 4.0
# but no finer than this to the larger one: 8 bits, and finer steps are not what weights are stored
# with
PER_RMS_MOST = 64.0
_NOTHING = 1e-30  # the reciprocal of a step below this does not fit float32


@dataclass(frozen=True)
class Bits:
    """Bits per weight, of weights and of differences from a reference at the same error.

    Attributes:
        weight, delta: empirical entropies of the quantized values.
        estimate: bits saved by the Gaussian formula, mean over rows; None where a row of the two is
            zero in all rows.
    """

    weight: float
    delta: float
    estimate: float | None

    @property
    def saved(self) -> float:
        return self.weight - self.delta


def rows_for_bits(matrix: Matrix, sample: int | None = None) -> Indexes:
    """Choose the rows to count: all, or as many as `CODED_VALUES` allows, evenly spread."""
    outputs, inputs = matrix.shape
    asked = outputs if sample is None else min(sample, outputs)
    return spread(outputs, max(1, min(asked, CODED_VALUES // inputs)))


def coded(weight: Matrix, reference: Matrix, numbers: Indexes) -> Bits:
    """The bits of a matrix with and without a reference of the same shape.

    Args:
        numbers: of the rows that are counted, int64.
    Raises:
        CorruptError, StorageError: a matrix cannot be read, or is not finite.
    """
    tables = _Table(), _Table()
    estimates: list[Doubles] = []
    step = max(1, _BLOCK_VALUES // weight.shape[1])
    for start in range(0, len(numbers), step):
        rows = weight.rows(numbers[start : start + step])
        delta = rows - reference.rows(numbers[start : start + step])
        size, change = _rms(rows), _rms(delta)
        steps = np.maximum(np.minimum(size, change) / PER_RMS, np.maximum(size, change) / PER_RMS_MOST)
        tables[0].count(rows, size, steps)
        tables[1].count(delta, change, steps)
        both = (size > 0) & (change > 0)
        estimates.append(np.log2(size[both] / change[both]))
    gathered = np.concatenate(estimates)
    estimate = float(gathered.mean()) if gathered.size else None
    return Bits(tables[0].bits(), tables[1].bits(), estimate)


def _rms(rows: Floats) -> Doubles:
    """Root mean square of each row, float64 [n]; 0 below `_NOTHING`."""
    size: Doubles = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64) / rows.shape[1])
    return np.where(size < _NOTHING, 0.0, size)


class _Table:
    """Symbol counts by the size of a row in steps, which the coder is assumed to know."""

    def __init__(self) -> None:
        self.counts: dict[int, NDArray[np.int64]] = {}
        self.zeros = 0  # values of rows that are zero throughout: nothing to code

    def count(self, rows: Floats, size: Doubles, steps: Doubles) -> None:
        """Count float32 rows [n, m] of root mean squares `size` [n], quantized with `steps` [n]."""
        nonzero = size > 0
        self.zeros += int((~nonzero).sum()) * rows.shape[1]
        rows, size, steps = rows[nonzero], size[nonzero], steps[nonzero]
        kinds = np.rint(2 * np.log2(size / steps)).astype(np.int64)  # half an octave each
        for kind in np.unique(kinds).tolist():
            chosen = kinds == kind
            values = np.rint(rows[chosen] * (1 / steps[chosen]).astype(np.float32)[:, None])
            # no value of a row exceeds its root mean square times sqrt(m)
            reach = int(2 ** ((kind + 0.5) / 2) * rows.shape[1] ** 0.5) + 2
            symbols = np.clip(values, -reach, reach).astype(np.int64).reshape(-1) + reach
            counts = np.bincount(symbols, minlength=2 * reach + 1)
            self.counts[kind] = self.counts[kind] + counts if kind in self.counts else counts

    def bits(self) -> float:
        """Empirical entropy of the integers given their rows' kinds, bits a value."""
        total, bits = self.zeros, 0.0
        for counts in self.counts.values():
            occurring = counts[counts > 0].astype(np.float64)
            total += int(occurring.sum())
            bits += float((occurring * np.log2(occurring.sum() / occurring)).sum())
        return bits / total if total else 0.0
