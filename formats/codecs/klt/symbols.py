"""Symbols of quantized coefficients: their classes, and rate-distortion-optimized quantization.

A coefficient of scale 2 ** (s / 32), quantized with the step 2 ** (-f / 32), gives integers whose
spread follows from s and f alone: its class is the quarter octave of that ratio.  So one set of
tables serves every coefficient, every step and every model, and the class is computed from
integers.  Large integers are split: their low bits are sent raw, their high bits have a spread that
the tables cover.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.errors import CorruptError

from .ans import MAX_RAW_BITS, Decoder, Encoder, RawBits, Tables

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


LOWEST, HIGHEST = -24, 16  # quarter octaves: spreads from 1/64 to 16 steps
CLASSES = HIGHEST - LOWEST + 1
REACH = 127  # larger integers are escaped: they are stored in the tensor `apart`
ESCAPE = 2 * REACH + 1
PER_CLASS = 8  # 32nds of an octave
ACTIVITY_ZERO, ACTIVITIES = 16, 32  # symbols of an activity; 0: the residual is not coded
PER_ACTIVITY = 16  # half octaves
_RAW = RawBits()


@dataclass(frozen=True)
class Classes:
    """The classes of coefficients, uint8 (tokens, coefficients).

    Attributes:
        table: the row of the table that codes the high bits.
        low: the number of low bits.
    """

    table: npt.NDArray[np.uint8]
    low: npt.NDArray[np.uint8]


def classes_of(exponents: npt.NDArray[np.int32]) -> Classes:
    """Return the classes of coefficients whose spread is 2 ** (exponent / 32) steps."""
    import numpy as np

    quarter = (exponents + PER_CLASS // 2) >> 3
    low = np.clip(-((HIGHEST - quarter) // 4), 0, MAX_RAW_BITS)
    table = np.clip(quarter - 4 * low, LOWEST, HIGHEST) - LOWEST
    return Classes(table.astype(np.uint8), low.astype(np.uint8))


def by_band(activity: npt.NDArray[np.int32], stops: Sequence[int], count: int) -> npt.NDArray[np.int32]:
    """Spread the activities of bands over their coefficients.

    Args:
        activity: half octaves, (tokens, bands).
        stops: where each band stops.
        count: how many coefficients are wanted.
    Returns:
        32nds of an octave, (tokens, count).
    """
    import numpy as np

    bands = np.searchsorted(np.asarray(stops), np.arange(count), side="right")
    spread: npt.NDArray[np.int32] = (activity * PER_ACTIVITY)[:, bands]
    return spread


def quantize(
    scaled: npt.NDArray[np.float32], classes: Classes, bits: npt.NDArray[np.float32], price: float
) -> npt.NDArray[np.int32]:
    """Round coefficients to the nearest integer, or to one nearer to zero if that is cheaper.

    Args:
        scaled: coefficients in steps, of any shape.
        bits: the cost of each symbol of each class, in bits.
        price: squared steps of error that a bit is worth.
    """
    import numpy as np

    integers: npt.NDArray[np.int32] = np.rint(np.clip(scaled, -(2.0**30), 2.0**30)).astype(np.int32)
    if not price:
        return integers
    open_to_choice = (integers != 0) & (classes.low == 0) & (np.abs(integers) <= REACH)
    exact, near = scaled[open_to_choice], integers[open_to_choice]
    table = classes.table[open_to_choice]

    def cost(choice: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        total: npt.NDArray[np.float32] = (exact - choice) ** 2 + price * bits[table, choice + REACH]
        return total

    best, least = near, cost(near)
    for choice in (near - np.sign(near), np.where(np.abs(near) <= 2, 0, near)):
        price_of = cost(choice)
        best, least = np.where(price_of < least, choice, best), np.minimum(price_of, least)
    integers[open_to_choice] = best
    return integers


def put(encoder: Encoder, tables: Tables, integers: npt.NDArray[np.int32], classes: Classes) -> list[int]:
    """Add integers (n,) to a stream; return those that are escaped."""
    import numpy as np

    coarse = integers >> classes.low
    escaped = np.abs(coarse) > REACH
    symbols = np.where(escaped, ESCAPE, coarse + REACH).astype(np.int32)
    encoder.put(tables, symbols, classes.table)
    split = (classes.low > 0) & ~escaped
    low = classes.low[split]
    encoder.put(_RAW, integers[split] & ((1 << low.astype(np.int32)) - 1), low)
    return [int(value) for value in integers[escaped]]


def take(decoder: Decoder, tables: Tables, classes: Classes, apart: MutableSequence[int]) -> npt.NDArray[np.int32]:
    """Take integers (n,) from a stream; escaped ones are removed from the front of `apart`.

    Raises:
        CorruptError: `apart` is too short.
    """
    import numpy as np

    symbols = decoder.take(tables, classes.table)
    escaped = symbols == ESCAPE
    split = (classes.low > 0) & ~escaped
    low = classes.low[split]
    integers = (symbols - REACH) << classes.low
    integers[split] += decoder.take(_RAW, low)
    count = int(escaped.sum())
    if count > len(apart):
        raise CorruptError("too few integers are written apart")
    integers[escaped] = apart[:count]
    del apart[:count]
    result: npt.NDArray[np.int32] = integers.astype(np.int32)
    return result


def activity(spread: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Return activity symbols, from 1 on, of spreads: the mean |c| / scale of a token's band."""
    import numpy as np

    usual = 0.65  # Gaussian coefficients have 0.80, these have longer tails
    halves = np.rint(2 * np.log2(np.maximum(spread, 1e-9) / usual))
    symbols = np.clip(halves, -8, ACTIVITIES - 1 - ACTIVITY_ZERO) + ACTIVITY_ZERO
    result: npt.NDArray[np.int32] = symbols.astype(np.int32)
    return result
