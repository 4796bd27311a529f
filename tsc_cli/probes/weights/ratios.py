"""Compare all pairs of layers: largest difference, largest value, and inner products.

r = max|W_l - W_m| / max|W_m| is the published measure (docs/probes.md). The inner products give the
rest for every pair at once: Frobenius norms, cosines, and what the best scalar factor leaves. All
layers are read side by side, a block of rows at a time, so that each weight is read once and memory
does not depend on the size of the matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from formats.errors import LimitError
from formats.limits import MIB, memory_budget
from tsc_cli.checkpoints.matrices import Matrix, spread
from tsc_cli.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tsc_cli.checkpoints.matrices import Floats

    Doubles = NDArray[np.float64]

BLOCK_BYTES = 256 * MIB  # of all layers' blocks of rows together
# of all layers' values that are compared at once: they stay in the processor's second cache
_CHUNK_BYTES = MIB


@dataclass(frozen=True)
class Survey:
    """What L matrices of one shape are to each other.

    Attributes:
        peak: max|W_l|, float64 [L].
        apart: max|W_l - W_m|, float64 [L, L].
        inner: sum of W_l * W_m, float64 [L, L].
    """

    peak: Doubles
    apart: Doubles
    inner: Doubles

    def ratio(self) -> Doubles:
        """r of l (row) with reference m (column), float64 [L, L]; NaN for a reference of zeros."""
        return _over(self.apart, self.peak[None, :])

    def frobenius(self) -> Doubles:
        """|W_l - W_m|_F / |W_l|_F, float64 [L, L]; NaN where W_l is zero throughout."""
        energy = np.diagonal(self.inner)
        difference = np.maximum(energy[:, None] + energy[None, :] - 2 * self.inner, 0)
        # equal matrices are at a distance of 0, not of what rounding leaves
        return np.sqrt(_over(np.where(self.apart == 0, 0.0, difference), energy[:, None]))

    def cosine(self) -> Doubles:
        """Cosine similarity, float64 [L, L]; NaN where one of the two is zero throughout."""
        norm = np.sqrt(np.diagonal(self.inner))
        return np.clip(_over(self.inner, norm[:, None] * norm[None, :]), -1, 1)

    def factor(self) -> Doubles:
        """The a that minimises |W_l - a W_m|_F, float64 [L, L]; NaN where the reference is zero."""
        return _over(self.inner, np.diagonal(self.inner)[None, :])

    def left(self) -> Doubles:
        """What that leaves: min |W_l - a W_m|_F / |W_l|_F, float64 [L, L], from 0 to 1."""
        return np.sqrt(np.maximum(1 - self.cosine() ** 2, 0))


def _over(above: Doubles, below: Doubles) -> Doubles:
    """above / below, NaN where below is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    out = np.full(shape, np.nan)
    np.divide(above, below, out=out, where=np.broadcast_to(below, shape) != 0)
    return out


def work(matrices: int, rows: int, inputs: int) -> int:
    """What `survey` will report to `advance` in all: values compared."""
    return matrices * (matrices - 1) // 2 * rows * inputs


def block_bytes() -> int:
    """Bytes that the blocks may take: `BLOCK_BYTES`, or a quarter of a smaller memory."""
    return min(BLOCK_BYTES, memory_budget() // 4)


def survey(
    matrices: Sequence[Matrix], pool: Executor, advance: Progress, sample: int | None = None, budget: int | None = None
) -> Survey:
    """Compare L matrices of one shape [outputs, inputs], pair by pair.

    Args:
        pool: does the reading and the arithmetic.
        advance: told the values that were compared.
        sample: how many rows, evenly spread, stand for all.
        budget: bytes that the blocks may take.
    Raises:
        LimitError: one row of each matrix takes more than that.
        CorruptError, StorageError: a matrix cannot be read, or is not finite.
    """
    count, (outputs, inputs) = len(matrices), matrices[0].shape
    numbers = spread(outputs, sample)
    budget = block_bytes() if budget is None else budget
    step = min(budget // (count * inputs * 4), len(numbers))
    if not step:
        raise LimitError(
            f"one row of {inputs} weights in each of {count} layers takes {count * inputs * 4} bytes, more than the "
            f"{budget} that a block may take",
            path=matrices[0].tensor.path,
            hint="leave this type of matrix out with --types, or raise TSC_MEMORY_BUDGET if it is set",
        )
    peak, apart, inner = np.zeros(count), np.zeros((count, count)), np.zeros((count, count))
    block = np.empty((count, step * inputs), np.float32)
    for start in range(0, len(numbers), step):
        chosen = numbers[start : start + step]
        width = len(chosen) * inputs

        def read(layer: int, chosen: NDArray[np.int64] = chosen, width: int = width) -> None:
            block[layer, :width] = matrices[layer].rows(chosen).reshape(-1)

        list(pool.map(read, range(count)))
        chunk = max(2048, _CHUNK_BYTES // (4 * count))
        pieces = [block[:, start_value : min(start_value + chunk, width)] for start_value in range(0, width, chunk)]
        for piece, (highest, distance, products) in zip(pieces, pool.map(_compare, pieces), strict=True):
            np.maximum(peak, highest, out=peak)
            np.maximum(apart, distance, out=apart)
            inner += products  # in the order of the pieces: the same sum with any number of threads
            advance(work(count, 1, piece.shape[1]))
    return Survey(peak, np.maximum(apart, apart.T), inner)


def _compare(values: Floats) -> tuple[Doubles, Doubles, Doubles]:
    """peak [L], apart [L, L] (above the diagonal) and inner [L, L] of float32 values [L, n]."""
    count, width = values.shape
    apart = np.zeros((count, count))
    scratch = np.empty((count, width), np.float32)
    for layer in range(count - 1):
        difference = scratch[: count - 1 - layer]
        np.subtract(values[layer + 1 :], values[layer], out=difference)
        # two passes that find both ends are faster than absolute values and one
        apart[layer, layer + 1 :] = np.maximum(difference.max(axis=1), -difference.min(axis=1))
    peak = np.maximum(values.max(axis=1), -values.min(axis=1)).astype(np.float64)
    exact = values.astype(np.float64)  # a small difference of large norms survives
    return peak, apart, exact @ exact.T
