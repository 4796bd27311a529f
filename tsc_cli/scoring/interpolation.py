"""Bits at a KL, between the points that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def at_kl(points: Sequence[tuple[float, float]], kl: float) -> float | None:
    """Bits at a KL, between two of the points (KL ascending, bits), or None outside them."""
    for (low, more), (high, fewer) in pairwise(points):
        if low <= kl <= high and high > low:
            share = math.log(kl / low) / math.log(high / low)
            return math.exp(math.log(more) + share * math.log(fewer / more))
    return None
