"""Entropy tables from counts of symbols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import importance, symbols
from .ans import Encoder, RawBits, Tables, quantized
from .group import TABLES, CodeTables
from .shape import MAX_BANDS

if TYPE_CHECKING:
    from .ans import Classes, Integers

    Weights = npt.NDArray[np.float64]

_PRIOR = 30.0  # the weight of the assumed distribution, in symbols
_STEPS_SPREAD = 8.0
_ACTIVITY_SPREAD = 1.5


def assumed() -> CodeTables:
    """Return Laplacian tables, to start with: most transform coefficients are Laplacian."""
    spreads = 2.0 ** ((np.arange(symbols.CLASSES) + symbols.LOWEST) / 4)
    coefficients = np.stack([_laplacian(2 * symbols.REACH + 2, symbols.REACH, spread) for spread in spreads])
    coefficients[:, symbols.ESCAPE] = 1e-6
    steps = _laplacian(256, importance.SYMBOL_ZERO, _STEPS_SPREAD)[None]
    activity = _laplacian(symbols.ACTIVITIES, symbols.ACTIVITY_ZERO, _ACTIVITY_SPREAD)[None]
    left_out = activity.copy()
    left_out[0, 0] = 1.0
    weights = (coefficients, steps, activity.repeat(MAX_BANDS, 0), left_out)
    return CodeTables(*(Tables(quantized(table)) for table in weights))


def _laplacian(count: int, middle: int, spread: float) -> Weights:
    """Return the probabilities of integers 0 to count - 1, rounded from a Laplacian.

    Args:
        middle: its mean.
        spread: its standard deviation.
    """
    scale = spread / np.sqrt(2)
    distance = np.abs(np.arange(count) - middle)
    outer = np.exp(-(distance - 0.5) / scale) - np.exp(-(distance + 0.5) / scale)
    weights: Weights = np.where(distance == 0, 2 * (1 - np.exp(-0.5 / scale)), outer) / 2 + 1e-12
    return weights


class Counter(Encoder):
    """An encoder that counts symbols instead of coding them."""

    def __init__(self, tables: CodeTables) -> None:
        super().__init__()
        self._names = {id(getattr(tables, name)): name for name in TABLES}
        self._prior = {name: getattr(tables, name).frequencies for name in TABLES}
        self._counts = {name: np.zeros(prior.shape) for name, prior in self._prior.items()}

    def put(self, tables: Tables | RawBits, symbols: Integers, classes: Classes) -> None:
        if isinstance(tables, Tables):
            counts = self._counts[self._names[id(tables)]]
            flat = classes.astype(np.int64) * counts.shape[1] + symbols
            counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)

    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the counts, for a checkpoint."""
        return self._counts

    def load(self, state: Mapping[str, npt.NDArray[np.float64]]) -> None:
        """Restore a checkpoint."""
        self._counts = {name: state[name].copy() for name in TABLES}

    def fitted(self) -> CodeTables:
        """Return tables of the counts, with the starting tables as a prior."""
        fitted = []
        for name in TABLES:
            prior = self._prior[name] / self._prior[name].sum(1, keepdims=True)
            fitted.append(Tables(quantized(self._counts[name] + _PRIOR * prior)))
        return CodeTables(*fitted)
