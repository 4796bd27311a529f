"""Recall: does a restored cache still find what stands in its context?

A continuation that is new text asks little of single rows: most of its words follow from the last
few. A passage of the context said again, word for word, is predicted by finding it in the cache, so
that lost rows are missed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from formats.container import strict_json
from formats.errors import UsageError
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import score
from tsc_cli.progress import Progress, nothing

from .fidelity import Fidelity, compare

if TYPE_CHECKING:
    from transformers import Cache

PASSAGES = 3  # the beginning, the middle and the end of the context
_SINKS = 4  # the first tokens of a context, which every codec treats with care: no sample of the rest
_ENOUGH = 64  # predictions a passage; rather fewer passages than shorter ones


@dataclass(frozen=True)
class Recall:
    """Divergence from the exact cache while passages of the context are repeated.

    Attributes:
        starts: where the passages begin, in tokens from the beginning of the context.
        predicted: tokens predicted in each passage, one fewer than it holds.
        fidelity: over the predictions of all passages, the first ones included. There the model
            cannot know yet that it copies, and predicts as in any text; the exact cache is in the
            same position, so that they count too. `perplexity_exact` says how well the model copies
            at all: near 1 it does.
    """

    starts: tuple[int, ...]
    predicted: int
    fidelity: Fidelity

    def to_dict(self) -> dict[str, Any]:
        """For JSON; NaN becomes null."""
        facts = {
            "passages": len(self.starts),
            "passage_starts": list(self.starts),
            "passage_positions": self.predicted,
            **self.fidelity.to_dict(),
        }
        return strict_json.writable(facts)

    def record(self) -> dict[str, Any]:
        """Scalars only, for a quality record in the tier header: `recall_` before each key, the starts as text."""
        facts = self.to_dict() | {"passage_starts": ",".join(map(str, self.starts))}
        return {f"recall_{key}": value for key, value in facts.items()}


def passages(tokens: int, positions: int) -> tuple[tuple[int, ...], int]:
    """Which passages of a context of `tokens` tokens are repeated.

    They are spread evenly from behind the first 4 tokens to the end and do not overlap. There are
    up to three, fewer if the context has no room for three of min(`positions`, 64) predictions, and
    at least one.

    Args:
        positions: predictions wanted in each passage.
    Returns:
        where each passage begins, and how many tokens are predicted in each: one fewer than it
            holds.
    Raises:
        UsageError: there are fewer than 2 tokens, or no positions are wanted.
    """
    if tokens < 2 or positions < 1:
        raise UsageError(f"nothing can be recalled: {tokens} tokens of context, {positions} positions")
    skipped = min(_SINKS, tokens - 2)
    room = tokens - skipped
    count = max(1, min(PASSAGES, room // (min(positions, _ENOUGH) + 1)))
    length = min(positions + 1, room // count)
    starts = tuple(skipped + (room - length) * at // max(1, count - 1) for at in range(count))
    return starts, length - 1


def recall_passes(tokens: int, positions: int) -> int:
    """How many forward passes `measure_recall` will report to its `progress`."""
    return 2 * len(passages(tokens, positions)[0])


def measure_recall(
    adapter: ModelAdapter,
    exact: Cache,
    restored: Cache,
    token_ids: Sequence[int],
    positions: int,
    progress: Progress = nothing,
) -> Recall:
    """Repeat passages of the context to both caches, each passage to a copy of its own, and compare the predictions.

    The first token of a passage is fed right after the context, unpredicted; every further one is
    predicted from those before it. Held at once are the logits of all predictions of both caches:
    up to 3 times `positions` each.

    Args:
        exact, restored: caches of the same context; both are left as they are.
        token_ids: the context.
        positions: predictions wanted in each passage.
    Raises:
        UsageError: the context is shorter than 2 tokens, or no positions are wanted.
    """
    starts, predicted = passages(len(token_ids), positions)
    fed = [token_ids[start : start + predicted] for start in starts]
    targets = [token for start in starts for token in token_ids[start + 1 : start + predicted + 1]]
    logits = []
    for cache in (exact, restored):
        pieces = []
        for passage in fed:
            pieces.append(score(adapter, cache, passage))
            progress(1)
        logits.append(torch.cat(pieces))
    return Recall(starts, predicted, compare(logits[0], logits[1], targets))
