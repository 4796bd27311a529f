"""The measured fidelity of one restored snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from formats.container import strict_json

from .fidelity import Fidelity
from .published import verdict
from .recall import Recall


@dataclass(frozen=True)
class Verified:
    """The measured fidelity of one snapshot.

    Attributes:
        snapshot: its number in the trace.
        tokens: how many tokens it holds.
        reference: "text" (what followed the prompt in the source) or "sampled" (from the exact
            model).
        exact: where the exact cache came from: "recomputed", "file" or "capture".
        identical: True if every tensor is bit-identical to the exact one.
        greedy: how many greedy tokens were compared.
        diverges_at: the first greedy token that differs, or None if all are equal.
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
        """Return the result without recall, scalars only; NaN becomes null."""
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
        """Return all measurements, scalars only, as a quality record for the tier header."""
        return self.to_dict() | (self.recall.record() if self.recall else {})
