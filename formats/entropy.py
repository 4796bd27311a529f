"""Entropy coding of small integers with static tables: asymmetric numeral systems (Duda, arXiv 1311.2540).

The coder is constriction's `AnsCoder`: a stack of 32-bit words, a state of 64 bits, probabilities in units of 2**-24.
Every symbol says by its class which table codes it.  Classes are integers that a reader knows before it decodes;
nothing that was computed in floating point chooses a table, so that every machine reads the same symbols.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .errors import CorruptError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PRECISION = 24
TOTAL = 1 << PRECISION


class Tables:
    """Frequencies of symbols, one row a class.

    Args:
        frequencies: uint32 (classes, symbols), at least 1 each, every row with the sum 2**24.
    Raises:
        CorruptError: they are not.
    """

    def __init__(self, frequencies: npt.NDArray[np.uint32]) -> None:
        import numpy as np

        if frequencies.ndim != 2 or not frequencies.size or frequencies.min() < 1:
            raise CorruptError("an entropy table with a symbol that cannot be coded")
        if (frequencies.sum(1, dtype=np.uint64) != TOTAL).any():
            raise CorruptError(f"an entropy table whose frequencies do not add up to 2**{PRECISION}")
        self.frequencies = frequencies

    @cached_property
    def bits(self) -> npt.NDArray[np.float32]:
        """What a symbol costs, in bits, (classes, symbols)."""
        import numpy as np

        return (PRECISION - np.log2(self.frequencies)).astype(np.float32)

    @cached_property
    def _models(self) -> list[Any]:
        import constriction  # its submodules are attributes, not modules that can be imported
        import numpy as np

        # constriction gives every symbol one unit and shares out the rest in proportion; given the rest itself, in
        # integers that a double holds exactly, nothing is left to rounding
        return [
            constriction.stream.model.Categorical(row.astype(np.float64) - 1, perfect=False) for row in self.frequencies
        ]

    def encode(self, symbols: npt.NDArray[np.int32], classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
        """The words, uint32 (words,), that code symbols (n,), each by the table of its class (n,)."""
        import constriction

        coder = constriction.stream.stack.AnsCoder()
        for number, places in reversed(list(_by_class(classes))):
            coder.encode_reverse(symbols[places], self._models[number])
        words: npt.NDArray[np.uint32] = coder.get_compressed()
        return words

    def decode(self, words: npt.NDArray[np.uint32], classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """The symbols (n,) of the classes (n,).

        Raises:
            CorruptError: the words are not what `encode` gives for any symbols of these classes.
        """
        import constriction
        import numpy as np

        if len(words) and words[-1] == 0:
            raise CorruptError("entropy-coded words that end in zero, which no writer makes")
        coder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(words))
        symbols = np.empty(len(classes), dtype=np.int32)
        for number, places in _by_class(classes):
            symbols[places] = coder.decode(self._models[number], len(places))
        if not coder.is_empty():
            raise CorruptError("entropy-coded words are left over")
        return symbols


def _by_class(classes: npt.NDArray[np.uint8]) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """(class, places of its symbols in order) for every class that occurs, ascending."""
    import numpy as np

    order = np.argsort(classes, kind="stable")
    counts = np.bincount(classes)
    stops = np.cumsum(counts)
    for number in np.flatnonzero(counts):
        yield int(number), order[stops[number] - counts[number] : stops[number]]


def quantized(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.uint32]:
    """Frequencies in proportion to weights (classes, symbols), each at least 1, every row with the sum 2**24."""
    import numpy as np

    share = weights / weights.sum(1, keepdims=True)
    found = np.floor(share * (TOTAL - weights.shape[1])).astype(np.int64) + 1
    rows = np.arange(len(found))
    found[rows, found.argmax(1)] += TOTAL - found.sum(1)
    frequencies: npt.NDArray[np.uint32] = found.astype(np.uint32)
    return frequencies
