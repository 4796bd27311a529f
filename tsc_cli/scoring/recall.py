"""Recall: can the model still copy passages of its context with a restored cache?

New text depends little on single rows, as most of its words follow from the last few. A passage of
the context that is repeated word for word is predicted by finding it in the cache, so that lost
rows show here.
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
# first tokens of a context, which codecs keep exactly and which do not stand for the rest
_SINKS = 4
_ENOUGH = 64  # predictions a passage; fewer passages are better than shorter ones


@dataclass(frozen=True)
class Recall:
    """Divergence from the exact cache while passages of the context are repeated.

    Attributes:
        starts: where the passages begin, in tokens from the beginning of the context.
        predicted: tokens predicted in each passage, one fewer than it holds.
        fidelity: over the predictions of all passages. The first ones count too, although the model
            cannot know yet that it copies, since this holds for the exact cache as well.
            `perplexity_exact` says how well the model copies: perfectly at 1.
    """

    starts: tuple[int, ...]
    predicted: int
    fidelity: Fidelity

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON; NaN becomes null."""
        facts = {
            "passages": len(self.starts),
            "passage_starts": list(self.starts),
            "passage_positions": self.predicted,
            **self.fidelity.to_dict(),
        }
        return strict_json.writable(facts)

    def record(self) -> dict[str, Any]:
        """Return scalars with keys `recall_...`, for a quality record in the tier header."""
        facts = self.to_dict() | {"passage_starts": ",".join(map(str, self.starts))}
        return {f"recall_{key}": value for key, value in facts.items()}


def passages(tokens: int, positions: int) -> tuple[tuple[int, ...], int]:
    """Choose the passages of a context that are repeated.

    They are spread evenly from behind the first 4 tokens to the end and do not overlap. There are
    three, or fewer, but at least one, if the context has no room for three of min(`positions`, 64)
    predictions.

    Args:
        tokens: the length of the context.
        positions: predictions wanted in each passage.
    Returns:
        the passages' first tokens, and the predictions in each: one fewer than its tokens.
    Raises:
        UsageError: there are fewer than 2 tokens, or no positions are wanted.
    """
    if tokens < 2 or positions < 1:
        raise UsageError(f"nothing can be recalled: {tokens} tokens of context, {positions} positions")
    skipped = min(_SINKS, tokens - 2)
    room = tokens - skipped
    count = max(1, min(PASSAGES, room // (min(positions, _ENOUGH) + 1)))
    length = min(positions + 1, room // count)
    starts = tuple(skipped + (room - length) * passage // max(1, count - 1) for passage in range(count))
    return starts, length - 1


def recall_passes(tokens: int, positions: int) -> int:
    """Return how many forward passes `measure_recall` will report to its `progress`."""
    return 2 * len(passages(tokens, positions)[0])


def measure_recall(
    adapter: ModelAdapter,
    exact: Cache,
    restored: Cache,
    token_ids: Sequence[int],
    positions: int,
    progress: Progress = nothing,
) -> Recall:
    """Feed passages of the context again to copies of both caches, and compare the predictions.

    The first token of a passage is fed right after the context and not predicted; every further one
    is predicted from those before it. Memory holds the logits of all predictions of both caches: up
    to 3 times `positions` each.

    Args:
        exact: the exact cache of the context; it does not change.
        restored: a restored cache of the same context; it does not change.
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
