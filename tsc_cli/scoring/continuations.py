"""What follows a snapshot: the tokens that its exact and its restored cache are both fed."""

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
    """Raise UsageError or LimitError unless so many positions can be measured: their logits stand in memory, twice."""
    if not 1 <= positions <= MOST_POSITIONS:
        raise UsageError(f"{positions} positions are not from 1 to {MOST_POSITIONS}")
    needed = 2 * 4 * adapter.vocabulary * positions
    require_memory(needed, f"the logits of {positions} positions take", "fewer --positions")


def needs_sample(trace: Trace, number: int) -> bool:
    """Whether the text that followed a snapshot is not known."""
    return not (number == 0 and len(trace.reference) > 1)


def reference_of(trace: Trace, number: int, sampled: Sequence[int]) -> tuple[str, list[int]]:
    """What the caches of a snapshot are fed.

    The first snapshot is followed by the source text if the file has it. Any other is followed by
    what the capturing run fed next (its later snapshots' tokens), then by tokens sampled after the
    last one.
    """
    if not needs_sample(trace, number):
        return "text", trace.reference
    return "sampled", trace.token_ids(-1)[len(trace.token_ids(number)) :] + list(sampled)


def followed(
    trace: Trace, adapter: ModelAdapter, number: int, reference: list[int], positions: int, *, beyond: bool = False
) -> list[int]:
    """What both caches of a snapshot are fed, and the last target: as much of the reference as the model has room for.

    Args:
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
    """`positions` + 1 tokens sampled from the exact model after the last snapshot; one run serves every snapshot.

    Fewer where the model has no room for them.
    """
    sampler = Sampler(temperature=1.0, seed=seed).after(tokens_before(trace))
    next_token = trace.views[-1].next_token
    if next_token is None:
        next_token = sampler(feed_last_again(adapter, caches.fork(exact), trace.token_ids(-1)))
    fed = min(positions, adapter.positions.room(len(trace.token_ids(-1)), beyond=beyond))
    return continuation(adapter, exact, next_token, fed + 1, sampler, progress)
