"""Tiers: named promises about a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tier:
    """A promise and the codec that keeps it."""

    name: str
    codec: str
    promise: str
    recipe: str


TIERS: dict[str, Tier] = {
    "lossless": Tier(
        "lossless",
        codec="lossless",
        promise="every tensor bit-identical to the capture",
        recipe="each row once, byte planes + zstd; keyframe + appended rows along a trace",
    ),
}
