"""Resume: go on generating from a snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from formats import Trace

from . import bridge
from .generation import Sampler, continue_from, feed, feed_last_again

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resume(
    trace: Trace, model: PreTrainedModel, *, snapshot: int = -1, prompt: Sequence[int] = (),
    choose: Sampler | None = None, tokenizer: Any = None, force: bool = False,
) -> Iterator[int]:  # fmt: skip
    """Yield the tokens that follow a snapshot, for ever: stop taking them to stop.

    Without a prompt the first token is the one that the capturing run chose, so that a greedy resume gives the same
    tokens as the uninterrupted run.  If it chose none, or if tokens are sampled, the last token is fed again.

    Args:
        prompt: tokens to feed after the snapshot's, before generating.
    Raises:
        MismatchError: the trace belongs to another model.
        UsageError: the first token is not known and the cache cannot give up its last row.
    """
    choose = choose or Sampler()
    cache = bridge.to_cache(trace, model, snapshot, tokenizer=tokenizer, force=force)
    recorded = trace.views[trace.index(snapshot)].next_token
    if prompt:
        first = choose(feed(model, cache, prompt, last_only=True)[-1])
    elif recorded is not None and choose.temperature == 0:
        first = recorded
    else:
        first = choose(feed_last_again(model, cache, trace.token_ids(snapshot)))
    return continue_from(model, cache, first, choose)
