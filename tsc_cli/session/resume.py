"""Resume: generation goes on from a snapshot, here or in transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from formats import Trace
from formats.errors import UsageError
from tsc_cli.huggingface import caches, restore
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import continue_from, encoder_placeholder, feed, feed_last_again, padding_arguments
from tsc_cli.huggingface.prompts import TokenIds, as_ids
from tsc_cli.huggingface.sampling import Sampler, tokens_before

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


def resume(
    trace: Trace,
    model: PreTrainedModel | ModelAdapter,
    *,
    snapshot: int = -1,
    prompt: Sequence[int] = (),
    sampler: Sampler | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    allow_model_mismatch: bool = False,
    allow_beyond_positions: bool = False,
    most: int | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow a snapshot, without end.

    Without a prompt the first token is the one that the capturing run chose, so that a greedy
    resume gives the same tokens as the uninterrupted run. If it chose none, or if tokens are
    sampled, the last token is fed again.

    Args:
        sampler: chooses the tokens; greedily by default.
        prompt: tokens to feed before generating, behind the snapshot's and a pending one
            (`Trace.pending_at`).
        allow_beyond_positions: go on beyond the positions that the model was made for.
        most: the number of tokens wanted; too many for the model's positions raise at once.
    Raises:
        MismatchError: the trace belongs to another model.
        UsageError: no position is left for the prompt or the next token; the first token is not
            known and the cache cannot give up its last row; or the trace is a batch.
    """
    adapter = ModelAdapter.of(model)
    sampler = (sampler or Sampler()).after(tokens_before(trace, snapshot))
    history = trace.token_ids(snapshot)
    recorded = trace.views[trace.index(snapshot)].next_token
    pending = list(trace.pending_at(snapshot))
    adapter.check_tokens(as_ids([*pending, *prompt]))
    fed = len([*pending, *prompt]) if prompt else 0
    _require_fit(adapter, len(history), fed, max((most or 1) - 1, 0), beyond=allow_beyond_positions)
    cache = restore.to_cache(trace, adapter, snapshot, tokenizer=tokenizer, allow_model_mismatch=allow_model_mismatch)
    if prompt:
        if pending:  # by itself, as the run that chose it would have fed it
            feed(adapter, cache, pending, last_only=True)
        logits = feed(adapter, cache, prompt, last_only=True)[-1]
        sampler.fed([*pending, *prompt])
        first = sampler(logits)
    elif recorded is not None and sampler.temperature == 0:
        first = recorded
    else:
        first = sampler(feed_last_again(adapter, cache, history))
    tokens = continue_from(adapter, cache, first, sampler)
    return _within(tokens, adapter, len(history) + fed, beyond=allow_beyond_positions)


def _within(tokens: Iterator[int], adapter: ModelAdapter, held: int, *, beyond: bool) -> Iterator[int]:
    """Yield the tokens until no position is left for the next one."""
    for count, token in enumerate(tokens, 1):
        yield token
        _require_fit(adapter, held, 0, count, beyond=beyond)


def _require_fit(adapter: ModelAdapter, held: int, prompt: int, steps: int, *, beyond: bool) -> None:
    adapter.positions.require_fit(prompt, steps, held=held, beyond=beyond, option="-n", unfed=1)


def generate_inputs(
    trace: Trace,
    model: PreTrainedModel | ModelAdapter,
    snapshot: int = -1,
    *,
    append: TokenIds | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    allow_model_mismatch: bool = False,
    into: Cache | None = None,
    allow_beyond_positions: bool = False,
) -> dict[str, Any]:
    """Return the arguments with which `model.generate(**generate_inputs(...))` goes on.

    Beside the cache, `generate` needs the tokens that it holds and one more, the masks of a batch,
    and for an encoder-decoder model a tensor in the shape of the encoder's output.

    Args:
        append: token ids to feed next, (tokens,) or (batch, tokens), behind pending ones
            (`Trace.pending_at`), which are always fed first; by default the tokens that the
            capturing run chose next.
        tokenizer, allow_model_mismatch, into: as `to_cache` takes them.
        allow_beyond_positions: go on beyond the positions that the model was made for; `generate`
            itself has no such limit.
    Raises:
        MismatchError: as `to_cache`.
        UsageError: the capturing run chose no token, and none is given; or `generate` would put a
            decoder's start token in front of a prompt that has none.
    """
    adapter = ModelAdapter.of(model)
    view = trace.views[trace.index(snapshot)]
    batch, padding = trace.geometry.batch, trace.geometry.padding
    upcoming = view.next_tokens if append is None else trace.pending_at(snapshot)
    pending = torch.tensor(upcoming, dtype=torch.int64).reshape(-1, 1) if upcoming else as_ids([])
    appended = as_ids([] if append is None else append)
    if appended.shape[0] not in (1, batch):
        raise UsageError(f"{appended.shape[0]} sequences to append to {batch}")
    following = torch.cat([pending.expand(batch, -1), appended.expand(batch, -1)], 1).to(adapter.device)
    if not following.numel():
        raise UsageError("the capturing run chose no next token", hint="append= gives the tokens to go on with")
    adapter.check_tokens(following)
    adapter.positions.require_fit(following.shape[1], 0, held=view.tokens_seen, beyond=allow_beyond_positions)
    cache = restore.to_cache(
        trace, adapter, snapshot, tokenizer=tokenizer, allow_model_mismatch=allow_model_mismatch, into=into
    )
    past = torch.tensor(
        [trace.labels.tokens(view.history, sequence) for sequence in range(batch)], device=adapter.device
    )
    if not caches.takes_several(cache) and following.shape[1] > 1:
        feed(adapter, cache, following[:, :-1], padding=padding, last_only=True)
        past, following = torch.cat([past, following[:, :-1]], 1), following[:, -1:]
    adapter.positions.settle()
    ids = torch.cat([past, following], 1)
    mask = padding_arguments(adapter, padding or (0,) * batch, 0, ids.shape[1])["attention_mask"]
    if isinstance(cache, EncoderDecoderCache):
        _require_start(adapter, ids)
        return {
            "decoder_input_ids": ids,
            "decoder_attention_mask": mask,
            adapter.generate_argument: cache,
            "encoder_outputs": BaseModelOutput(last_hidden_state=encoder_placeholder(adapter, cache)),
        }
    # states count no tokens: `generate` would feed all of them again
    if not caches.tokens_seen(cache):
        return {"input_ids": following, adapter.generate_argument: cache}
    return {"input_ids": ids, "attention_mask": mask, adapter.generate_argument: cache}


def _require_start(adapter: ModelAdapter, ids: torch.Tensor) -> None:
    start = getattr(adapter.model.generation_config, "decoder_start_token_id", None)
    if adapter.config.model_type != "whisper" and isinstance(start, int) and bool((ids[:, 0] != start).all()):
        raise UsageError(
            f"the decoder was not begun with its start token {start}, which generate would put in front",
            hint="resume goes on without it",
        )
