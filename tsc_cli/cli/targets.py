"""The target of `tsc compress`: a tier, a quality, a KL or top-1 share, a size, or a codec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.errors import UsageError
from tsc_cli.text_format import spelled

if TYPE_CHECKING:
    from tsc_cli.scoring.published import Goal, Tier


@dataclass(frozen=True)
class Target:
    """What is asked for: a tier, a goal, a size in bits, or (with --codec) none of them."""

    name: str
    tier: Tier | None = None
    goal: Goal | None = None
    bits: float | None = None
    default: bool = False

    @classmethod
    def of(
        cls,
        tier: str | None,
        quality: str | None,
        max_kl: float | None,
        min_top1: float | None,
        bits: float | None,
        codec: str | None,
    ) -> Target:
        from tsc_cli.scoring.published import Goal, goal_of, tier_of

        goals = quality is not None, max_kl is not None or min_top1 is not None
        given = {"--tier": tier is not None, "--quality": goals[0], "--max-kl or --min-top1": goals[1]}
        given |= {"--bits": bits is not None, "--codec": codec is not None}
        if sum(given.values()) > 1:
            named = " and ".join(name for name, is_given in given.items() if is_given)
            raise UsageError(f"{named} cannot be combined: give one of them")
        if codec is not None:
            return cls(codec)
        if tier is not None:
            return cls(tier, tier_of(tier))
        if bits is not None:
            return cls(f"{spelled(bits)}bits", bits=bits)
        if goals[1]:
            asked = (("kl", max_kl), ("top1-", min_top1))
            name = "-".join(f"{word}{spelled(value)}" for word, value in asked if value is not None)
            return cls(name, goal=Goal(name, float("inf") if max_kl is None else max_kl, min_top1 or 0.0))
        name = "high" if quality is None else quality
        return cls(name, goal=goal_of(name), default=quality is None)

    @property
    def promise(self) -> Tier | None:
        """What the file's header states."""
        from tsc_cli.scoring.published import Tier as Promise

        if self.tier is not None or (self.goal is None and self.bits is None):
            return self.tier
        return Promise(self.name, None, float("inf") if self.goal is None else self.goal.max_kl)
