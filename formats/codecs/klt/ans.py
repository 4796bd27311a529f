"""Entropy coding of small integers with static tables, by asymmetric numeral systems.

(Duda, arXiv 1311.2540.)

The coder is constriction's `AnsCoder`: a stack of 32-bit words, a state of 64 bits, probabilities
in units of 2**-24.  Every symbol has a class, which is the row of the table that codes it.  Classes
are integers that a reader knows before it decodes; they never depend on floating-point arithmetic,
so that every machine reads the same symbols.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from formats.errors import CorruptError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int32]
    Classes = npt.NDArray[np.uint8]
    Words = npt.NDArray[np.uint32]

PRECISION = 24
TOTAL = 1 << PRECISION
MAX_RAW_BITS = 16


class Tables:
    """Frequencies of symbols, with a row for each class.

    Args:
        frequencies: uint32 (classes, symbols), at least 1 each, every row with the sum 2**24.
    Raises:
        CorruptError: a frequency is 0, or a sum differs.
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
        """The cost of each symbol in bits, float32 (classes, symbols)."""
        import numpy as np

        return (PRECISION - np.log2(self.frequencies)).astype(np.float32)

    @cached_property
    def models(self) -> list[Any]:
        """constriction's model of each class."""
        import constriction  # its submodules are attributes, not modules that can be imported
        import numpy as np

        # constriction gives every symbol one unit and shares out the rest in proportion: given the
        # rest itself, in integers that a double holds exactly, it rounds nothing
        return [
            constriction.stream.model.Categorical(row.astype(np.float64) - 1, perfect=False) for row in self.frequencies
        ]


class RawBits:
    """A table of equally likely symbols of 0 to 16 bits; the class is the number of bits."""

    @cached_property
    def models(self) -> list[Any]:
        import constriction

        sizes = [1 << bits for bits in range(1, MAX_RAW_BITS + 1)]
        return [None, *(constriction.stream.model.Uniform(size) for size in sizes)]


class Encoder:
    """An encoder, which is given symbols in the order in which they will be decoded."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tables | RawBits, Integers, Classes]] = []

    def put(self, tables: Tables | RawBits, symbols: Integers, classes: Classes) -> None:
        """Add symbols (n,), each of which is coded by the row of its class (n,)."""
        self._batches.append((tables, symbols, classes))

    def words(self) -> Words:
        """Return the words, uint32 (words,), that code all symbols that were put."""
        import constriction

        coder = constriction.stream.stack.AnsCoder()  # last in, first out
        for tables, symbols, classes in reversed(self._batches):
            for row, indices in reversed(_by_class(classes)):
                if tables.models[row] is not None:
                    coder.encode_reverse(symbols[indices], tables.models[row])
        words: Words = coder.get_compressed()
        return words


class Decoder:
    """A decoder, which returns symbols in the order in which they were put.

    Args:
        words: uint32 (words,).
    Raises:
        CorruptError: the words end in zero, which no writer makes.
    """

    def __init__(self, words: Words) -> None:
        import constriction
        import numpy as np

        if len(words) and words[-1] == 0:
            raise CorruptError("entropy-coded words that end in zero")
        self._coder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(words))

    def take(self, tables: Tables | RawBits, classes: Classes) -> Integers:
        """Return the next symbols (n,), which were put with the classes (n,).

        Damaged words give wrong symbols, but always symbols of the tables.
        """
        import numpy as np

        symbols = np.zeros(len(classes), dtype=np.int32)
        for row, indices in _by_class(classes):
            if tables.models[row] is not None:
                symbols[indices] = self._coder.decode(tables.models[row], len(indices))
        return symbols

    def finish(self) -> None:
        """Raise CorruptError unless all symbols that were put have been taken."""
        if not self._coder.is_empty():
            raise CorruptError("entropy-coded words are left over")


def _by_class(classes: Classes) -> list[tuple[int, npt.NDArray[np.intp]]]:
    """List (class, indices of its symbols in order) for every class that occurs, ascending."""
    import numpy as np

    order = np.argsort(classes, kind="stable")
    counts = np.bincount(classes)
    stops = np.cumsum(counts)
    return [(int(row), order[stops[row] - counts[row] : stops[row]]) for row in np.flatnonzero(counts)]


def quantized(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.uint32]:
    """Return frequencies in proportion to weights (classes, symbols), as `Tables` takes them."""
    import numpy as np

    share = weights / weights.sum(1, keepdims=True)
    units = np.floor(share * (TOTAL - weights.shape[1])).astype(np.int64) + 1
    rows = np.arange(len(units))
    units[rows, units.argmax(1)] += TOTAL - units.sum(1)
    frequencies: npt.NDArray[np.uint32] = units.astype(np.uint32)
    return frequencies
