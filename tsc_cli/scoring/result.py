"""What was measured of one snapshot that came back out of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from formats.container import strict_json

from .fidelity import Fidelity
from .published import verdict
from .recall import Recall


@dataclass(frozen=True)
class Verified:
    """One snapshot's result.

    Attributes:
        snapshot: its number; `tokens` the tokens it holds.
        reference: "text" (what followed the prompt in the source) or "sampled" (from the exact
            model).
        identical: True if every tensor is bit-identical to the exact one.
        diverges_at: first greedy token that differs, or None if the `greedy` tokens tried are
            equal.
        recall: None if it was not asked for.
    """

    snapshot: int
    tokens: int
    reference: str
    exact: str
    identical: bool
    fidelity: Fidelity
    greedy: int
    diverges_at: int | None
    recall: Recall | None = None

    @property
    def verdict(self) -> str:
        """The word for the mean KL; see `published`."""
        return verdict(self.fidelity.kl_mean)

    def to_dict(self) -> dict[str, Any]:
        """The result without recall, scalars only; NaN becomes null."""
        facts = {
            "snapshot": self.snapshot,
            "tokens": self.tokens,
            "reference": self.reference,
            "exact": self.exact,
            "identical": self.identical,
            "verdict": self.verdict,
            **self.fidelity.to_dict(),
            "sufficient": self.fidelity.sufficient,
            "greedy_tokens": self.greedy,
            "greedy_diverges_at": self.diverges_at,
        }
        return strict_json.writable(facts)

    def record(self) -> dict[str, Any]:
        """Everything that was measured, scalars only, as a quality record in the tier header takes it."""
        return self.to_dict() | (self.recall.record() if self.recall else {})
