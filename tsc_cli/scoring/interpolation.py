"""Interpolation between measured points of bits and KL, without torch for a fast `tsc plan`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def bits_at_kl(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Interpolate the bits a value at a KL, linear in the logarithms.

    Args:
        points: (KL in nats, bits a value), KL ascending.
    Returns:
        None for a KL outside of the points.
    """
    for (low, more), (high, fewer) in pairwise(points):
        if low <= kl <= high and high > low:
            share = math.log(kl / low) / math.log(high / low)
            return math.exp(math.log(more) + share * math.log(fewer / more))
    return None
