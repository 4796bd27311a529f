"""Entropy coding of small integers with static tables: asymmetric numeral systems (Duda, arXiv 1311.2540).

The coder is constriction's `AnsCoder`: a stack of 32-bit words, a state of 64 bits, probabilities in units of 2**-24.
Every symbol says by its class which row of a table codes it.  Classes are integers that a reader knows before it
decodes; nothing that was computed in floating point chooses a table, so that every machine reads the same symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    def models(self) -> list[Any]:
        """constriction's model of each class."""
        import constriction  # its submodules are attributes, not modules that can be imported
        import numpy as np

        # constriction gives every symbol one unit and shares out the rest in proportion; given the rest itself, in
        # integers that a double holds exactly, nothing is left to rounding
        return [
            constriction.stream.model.Categorical(row.astype(np.float64) - 1, perfect=False) for row in self.frequencies
        ]


class RawBits:
    """Symbols of 0 to 16 bits that are all equally likely; the class is the number of bits."""

    @cached_property
    def models(self) -> list[Any]:
        import constriction

        sizes = [1 << bits for bits in range(1, MAX_RAW_BITS + 1)]
        return [None, *(constriction.stream.model.Uniform(size) for size in sizes)]


class Encoder:
    """Collects symbols in the order in which they are to be decoded."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tables | RawBits, Integers, Classes]] = []

    def put(self, tables: Tables | RawBits, symbols: Integers, classes: Classes) -> None:
        """Add symbols (n,), each coded by the row of its class (n,)."""
        self._batches.append((tables, symbols, classes))

    def words(self) -> Words:
        """The words, uint32 (words,), that code everything that was put."""
        import constriction

        coder = constriction.stream.stack.AnsCoder()  # last in, first out
        for tables, symbols, classes in reversed(self._batches):
            for number, places in reversed(_by_class(classes)):
                if tables.models[number] is not None:
                    coder.encode_reverse(symbols[places], tables.models[number])
        words: Words = coder.get_compressed()
        return words


class Decoder:
    """Gives symbols back in the order in which they were put.

    Args:
        words: uint32 (words,).
    Raises:
        CorruptError: they end in zero, which no writer makes.
    """

    def __init__(self, words: Words) -> None:
        import constriction
        import numpy as np

        if len(words) and words[-1] == 0:
            raise CorruptError("entropy-coded words that end in zero")
        self._coder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(words))

    def take(self, tables: Tables | RawBits, classes: Classes) -> Integers:
        """The next symbols (n,), which were put with the classes (n,).  Any words give symbols of the tables."""
        import numpy as np

        symbols = np.zeros(len(classes), dtype=np.int32)
        for number, places in _by_class(classes):
            if tables.models[number] is not None:
                symbols[places] = self._coder.decode(tables.models[number], len(places))
        return symbols

    def finish(self) -> None:
        """Raises CorruptError unless everything that was put has been taken."""
        if not self._coder.is_empty():
            raise CorruptError("entropy-coded words are left over")


def _by_class(classes: Classes) -> Sequence[tuple[int, npt.NDArray[np.intp]]]:
    """(class, places of its symbols in order) for every class that occurs, ascending."""
    return list(_places(classes))


def _places(classes: Classes) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
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
