"""Choosing the next token: greedily, or by a draw seeded with all tokens before it."""

from __future__ import annotations

import copy
import hashlib
import math
import operator
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from formats.errors import UsageError
from formats.limits import MAX_INTEGER

if TYPE_CHECKING:
    from formats import Trace


@dataclass
class Sampler:
    """Chooses tokens of one sequence: greedy at temperature 0, otherwise sampled.

    Each draw is a hash of the seed, the sequence and every token that was fed before it, so that no
    generator state is lost between two runs. A run in parts, one append after the other, draws as
    the unbroken run does, and another text before the token gives another draw of the same seed.

    Attributes:
        sequence: its index in a batch, so that equal prompts in a batch draw independently.
    """

    temperature: float = 0.0
    seed: int = 0
    sequence: int = 0
    _history: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"the temperature must be a number from 0 on, not {self.temperature:g}")
        self._history = hashlib.blake2b(digest_size=8, person=b"tsc draw")
        self._history.update(_bytes((self.seed, self.sequence)))

    def fed(self, tokens: Iterable[int]) -> None:
        """Add the tokens that the model was fed since the last draw."""
        self._history.update(_bytes(tokens))

    def after(self, tokens: Iterable[int]) -> Sampler:
        """Return an independent sampler that goes on from here behind these tokens."""
        twin = copy.copy(self)
        twin._history = self._history.copy()
        twin.fed(tokens)
        return twin

    def __call__(self, logits: torch.Tensor) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        # on the CPU, so that a seed means the same draw on every device
        scores = logits.detach().to("cpu", torch.float64)
        best = scores.max()
        if not bool(torch.isfinite(best)):
            raise UsageError("no token can be drawn: the model's logits are not numbers")
        # at most 0, so that the smallest temperature makes -inf of them at worst
        gaps = scores - best
        weights = torch.where(gaps == 0, 1.0, torch.exp(gaps / self.temperature))
        steps = weights.cumsum(-1)
        # 53 bits: what a float64 holds, below 1
        drawn = int.from_bytes(self._history.digest(), "little") >> 11
        # `right`, so that a token whose weight is 0 is never the one
        return int(torch.searchsorted(steps, steps[-1] * (drawn * 2.0**-53), right=True))


def check_seed(seed: int) -> None:
    """Raise UsageError unless a seed can be written into a file and taken by every generator."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise UsageError(f"a seed is an integer, not {seed!r}") from None
    if not 0 <= number <= MAX_INTEGER:
        raise UsageError(f"the seed {number} is not from 0 to {MAX_INTEGER} (2^63 - 1)")


def tokens_before(trace: Trace, snapshot: int = -1, sequence: int = 0) -> list[int]:
    """Return the tokens fed to a sequence up to a snapshot: encoder's, then its own, unpadded."""
    trace = trace if trace.geometry.batch == 1 else trace.sequence(sequence)
    cross = next((layer for layer, spec in enumerate(trace.geometry.layers) if spec.kind == "cross"), None)
    encoder = [] if cross is None else trace.labels.tokens(trace.views[0].layers[cross])
    return encoder + trace.token_ids(snapshot)


def _bytes(numbers: Iterable[int]) -> bytes:
    return array("q", numbers).tobytes()
