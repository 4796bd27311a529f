"""How many directions a matrix uses: its effective rank.

The participation ratio of the squared singular values, (sum s^2)^2 / sum s^4, is used: 1 for a
matrix of rank one, n for n equal singular values. It is the exponential of the Renyi entropy of
order 2 of their distribution. The better known exponential of the Shannon entropy (Roy and Vetterli
2007) needs the singular values themselves; the participation ratio needs inner products of rows
only, so that it can be estimated, without bias in either sum, from some of the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tsc_cli.checkpoints.matrices import Matrix, spread

if TYPE_CHECKING:
    from tsc_cli.checkpoints.matrices import Floats, Indexes

# matrices with a smaller side of up to this are taken whole, if they fit `SAMPLE_VALUES`
EXACT = 1024
SAMPLE_ROWS = 512
SAMPLE_VALUES = 1 << 22  # 16 MiB of float32


def rows_for_rank(matrix: Matrix, sample: int | None = None) -> Indexes:
    """Choose the rows to find the rank from: all, or as many as is affordable, evenly spread."""
    outputs, inputs = matrix.shape
    asked = outputs if sample is None else min(sample, outputs)
    if asked * inputs > SAMPLE_VALUES or min(asked, inputs) > EXACT:
        asked = max(min(asked, 2), min(asked, SAMPLE_ROWS, SAMPLE_VALUES // inputs))
    return spread(outputs, asked)


def effective_rank(rows: Floats, outputs: int) -> float | None:
    """The participation ratio of a matrix's squared singular values.

    Args:
        rows: float32 [n, inputs]: all rows of the matrix, or n of its `outputs`.
    Returns:
        from 1 to the smaller side; None for a matrix of zeros, and for one row out of many.
    """
    count = len(rows)
    scale = float(np.abs(rows).max(initial=0.0))
    if scale == 0.0 or (count < 2 and outputs > 1):
        return None
    rows = rows / np.float32(scale)  # keeps fourth powers in range
    if count == outputs and rows.shape[1] < count:
        rows = rows.T  # the same singular values, fewer inner products
    inner = rows @ rows.T
    energy = np.diagonal(inner).astype(np.float64)
    total = float(np.einsum("ij,ij->", inner, inner, dtype=np.float64))
    if count == outputs:
        return float(energy.sum() ** 2 / total)
    own = float((energy**2).sum())
    pairs = outputs * (outputs - 1) / (count * (count - 1))
    squares = own * outputs / count + (total - own) * pairs
    return min(float((energy.sum() * outputs / count) ** 2 / squares), float(min(outputs, rows.shape[1])))
