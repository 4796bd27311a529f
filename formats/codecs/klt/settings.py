"""The settings with which codec klt encodes."""

from __future__ import annotations

from dataclasses import dataclass

from formats.settings import require

FINENESS = (-1024, 2048)


@dataclass(frozen=True)
class KltSettings:
    """How rows are coded.

    Attributes:
        profile: SHA-256 of the profile, or a beginning of it; whoever knows the model fills it in.
        fineness: the step is 2 ** (-fineness / 32) nats ** 0.5 of weighted error; 32 more halve it.
        importance: how far the steps of rows follow their predicted importance, 0 to 1.
        price: squared steps of error that a bit is worth.
        rest: what the basis leaves is coded, "yes", not, "no", or "auto", where it is worth its bits.
    """

    profile: str = ""
    fineness: int = 360
    importance: float = 1.0
    price: float = 0.06
    rest: str = "auto"

    def __post_init__(self) -> None:
        low, high = FINENESS
        require(low <= self.fineness <= high, f"fineness={self.fineness} is not from {low} to {high}")
        require(0 <= self.importance <= 2, f"importance={self.importance} is not from 0 to 2")
        require(0 <= self.price <= 1, f"price={self.price} is not from 0 to 1")
        require(self.rest in ("auto", "yes", "no"), f"rest={self.rest} is not auto, yes or no")
