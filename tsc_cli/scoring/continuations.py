"""The tokens behind a snapshot, which its exact and its restored cache are both fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from formats import Trace
from formats.errors import UsageError
from formats.limits import require_memory
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import continuation, feed_last_again
from tsc_cli.huggingface.sampling import Sampler, tokens_before
from tsc_cli.progress import Progress, nothing

if TYPE_CHECKING:
    from transformers import Cache


MOST_POSITIONS = 1 << 16


def check_positions(adapter: ModelAdapter, positions: int) -> None:
    """Raise UsageError or LimitError unless memory holds the logits of both caches."""
    if not 1 <= positions <= MOST_POSITIONS:
        raise UsageError(f"{positions} positions are not from 1 to {MOST_POSITIONS}")
    needed = 2 * 4 * adapter.vocabulary * positions
    require_memory(needed, f"the logits of {positions} positions take", "fewer --positions")


def needs_sample(trace: Trace, number: int) -> bool:
    """Return whether tokens must be sampled, as the text behind the snapshot is not known."""
    return not (number == 0 and len(trace.reference) > 1)


def reference_of(trace: Trace, number: int, sampled: Sequence[int]) -> tuple[str, list[int]]:
    """Return ("text" or "sampled", the tokens behind a snapshot).

    Behind the first snapshot is the source text if the file has it. Behind any other are the tokens
    of the later snapshots, then those sampled after the last one.
    """
    if not needs_sample(trace, number):
        return "text", trace.reference
    return "sampled", trace.token_ids(-1)[len(trace.token_ids(number)) :] + list(sampled)


def followed(
    trace: Trace, adapter: ModelAdapter, number: int, reference: list[int], positions: int, *, beyond: bool = False
) -> list[int]:
    """Return the tokens that both caches are fed and the last target, as far as there is room.

    Args:
        number: the snapshot's.
        reference: from `reference_of`.
        beyond: go on beyond the positions that the model was made for.
    Raises:
        UsageError: nothing can follow the snapshot.
    """
    held = len(trace.token_ids(number))
    count = min(positions, adapter.positions.room(held, beyond=beyond))
    if count < 1:
        more = not beyond and adapter.positions.room(held, beyond=True) > 0
        raise UsageError(
            f"nothing can be measured: snapshot {number} takes all positions of the model with its {held} tokens",
            hint="--allow-beyond-positions measures there all the same, and an earlier snapshot has room"
            if more
            else "capture fewer tokens: --context",
        )
    return reference[: count + 1]


def sample_after(
    trace: Trace,
    adapter: ModelAdapter,
    exact: Cache,
    positions: int,
    seed: int,
    progress: Progress = nothing,
    *,
    beyond: bool = False,
) -> list[int]:
    """Return tokens sampled from the exact model after the last snapshot, for all snapshots.

    Args:
        exact: the exact cache of the last snapshot.
        positions: one fewer than the tokens wanted; fewer come where the model has no room.
    """
    sampler = Sampler(temperature=1.0, seed=seed).after(tokens_before(trace))
    next_token = trace.views[-1].next_token
    if next_token is None:
        next_token = sampler(feed_last_again(adapter, caches.fork(exact), trace.token_ids(-1)))
    fed = min(positions, adapter.positions.room(len(trace.token_ids(-1)), beyond=beyond))
    return continuation(adapter, exact, next_token, fed + 1, sampler, progress)
