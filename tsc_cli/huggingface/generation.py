"""Running a model over a cache: chunked prefill, single steps, sampling, scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from formats.errors import UsageError
from tsc_cli.progress import Progress, nothing

from .adapter import ModelAdapter
from .caches import encoded_rows, fork, new_cache, rows_of, states_of, takes_several, tokens_seen
from .sampling import Sampler

if TYPE_CHECKING:
    from transformers import Cache

Tokens = Sequence[int] | torch.Tensor  # of one sequence, or (batch, tokens)


@torch.no_grad()
def prefill(
    adapter: ModelAdapter,
    token_ids: Tokens,
    *,
    chunk: int,
    padding: Sequence[int] = (),
    encoded: torch.Tensor | None = None,
    progress: Progress = nothing,
) -> tuple[Cache, torch.Tensor]:
    """Feed a prompt to an empty cache, `chunk` tokens at a time so that activations stay bounded.

    It is fed in one pass where several would mean another cache: to models with states, and where
    LongRoPE or dynamic NTK scaling turn keys by the longest position of a pass.

    Args:
        token_ids: of one sequence, or of several, (batch, tokens).
        padding: tokens at the beginning of each sequence that are padding.
        encoded: what the encoder made of its input, (batch, tokens, width), for an encoder-decoder
            model.
    Returns:
        the filled cache and the logits after the last token, (vocabulary,) or (batch, vocabulary).
    Raises:
        UnsupportedCacheError: the model cannot be captured.
        NotFiniteError: the logits are NaN or infinite.
    """
    cache = new_cache(adapter)
    ids = _as_tensor(adapter, token_ids)
    logits = torch.empty(0)
    longest, length = adapter.positions.one_pass_beyond, ids.shape[1]
    if (longest is not None and length > longest) or not takes_several(cache):
        chunk = length
    for start in range(0, length, chunk):
        piece = ids[:, start : start + chunk]
        logits = _run(adapter, cache, piece, start, padding, encoded, last_only=True)[:, -1]
        adapter.require_finite(logits)
        progress(piece.shape[1])
    return cache, logits if isinstance(token_ids, torch.Tensor) else logits[0]


@torch.no_grad()
def feed(
    adapter: ModelAdapter,
    cache: Cache,
    token_ids: Tokens,
    *,
    padding: Sequence[int] = (),
    encoded: torch.Tensor | None = None,
    last_only: bool = False,
    finite: bool = True,
) -> torch.Tensor:
    """Feed tokens, in one forward pass if the cache allows it; the cache grows by them.

    Args:
        encoded: the encoder's output; by default zeros, which do where its rows are cached.
        finite: refuse logits that are NaN or infinite; False where a lossy cache is measured.
    Returns:
        logits, (tokens or 1, vocabulary); of token ids (batch, tokens), (batch, tokens or 1,
        vocabulary).
    Raises:
        UsageError: they do not fit into the model's positions; see `positions`.
        NotFiniteError: the logits are NaN or infinite.
        UnsupportedCacheError: the model does not return the cache that it was given.
    """
    ids, seen = _as_tensor(adapter, token_ids), tokens_seen(cache)
    padding = padding if seen else ()  # states alone count no tokens, and have padding behind them
    passes = [ids] if takes_several(cache) else list(torch.split(ids, 1, dim=1))
    parts: list[torch.Tensor] = []
    for piece in passes:
        logits = _run(adapter, cache, piece, seen, padding, encoded, last_only=last_only)
        if finite:
            adapter.require_finite(logits)
        parts = [logits] if last_only else [*parts, logits]
        seen += piece.shape[1]
    joined = torch.cat(parts, 1)
    return joined if isinstance(token_ids, torch.Tensor) else joined[0]


def _as_tensor(adapter: ModelAdapter, token_ids: Tokens) -> torch.Tensor:
    """Return the ids as (batch, tokens) on the model's device."""
    ids = token_ids if isinstance(token_ids, torch.Tensor) else torch.tensor([list(token_ids)])
    return ids.to(adapter.device)


def _run(
    adapter: ModelAdapter,
    cache: Cache,
    ids: torch.Tensor,
    seen: int,
    padding: Sequence[int],
    encoded: torch.Tensor | None,
    *,
    last_only: bool,
) -> torch.Tensor:
    """Run one forward pass and return its logits, (batch, tokens or 1, vocabulary)."""
    adapter.positions.require_room(seen, ids.shape[1])
    adapter.positions.settle()
    arguments: dict[str, Any] = {}
    if last_only and adapter.takes("logits_to_keep"):
        arguments["logits_to_keep"] = 1
    if any(padding):
        arguments |= padding_arguments(adapter, padding, seen, ids.shape[1])
    if isinstance(cache, EncoderDecoderCache):
        arguments["decoder_input_ids"] = ids
        hidden = encoder_placeholder(adapter, cache) if encoded is None else encoded
        arguments["encoder_outputs"] = BaseModelOutput(last_hidden_state=hidden)
    else:
        arguments["input_ids"] = ids
    logits = adapter.run(cache, **arguments)
    return logits[:, -1:] if last_only else logits


def padding_arguments(adapter: ModelAdapter, padding: Sequence[int], seen: int, count: int) -> dict[str, torch.Tensor]:
    """Return `attention_mask`, (batch, seen + count), and `position_ids`, (batch, count)."""
    device = adapter.device
    pads = torch.tensor(list(padding), device=device)[:, None]
    columns = torch.arange(seen + count, device=device)[None]
    arguments = {"attention_mask": (columns >= pads).long()}
    if adapter.takes("position_ids"):
        arguments["position_ids"] = (columns[:, seen:] - pads).clamp(min=0)
    return arguments


def encoder_placeholder(adapter: ModelAdapter, cache: Cache) -> torch.Tensor:
    """Return zeros in the shape of the encoder's output: cached rows replace its values."""
    batch = next(rows[0].shape[0] for rows in rows_of(cache) if rows)
    shape = batch, encoded_rows(cache), adapter.config.hidden_size
    return torch.zeros(shape, dtype=adapter.dtype, device=adapter.device)


@torch.no_grad()
def encode(adapter: ModelAdapter, **inputs: Any) -> torch.Tensor:
    """Return the encoder's output, (batch, tokens, width)."""
    moved = {
        name: value.to(adapter.device, adapter.dtype) if value.is_floating_point() else value.to(adapter.device)
        for name, value in inputs.items()
    }
    hidden: torch.Tensor = adapter.model.get_encoder()(**moved).last_hidden_state
    return hidden


def feed_last_again(adapter: ModelAdapter, cache: Cache, tokens: Sequence[int]) -> torch.Tensor:
    """Remove the cache's last row, feed its token again and return the logits, (vocabulary,).

    Raises:
        UsageError: the cache cannot give up its last row.
    """
    try:
        if any(states_of(cache)):
            raise RuntimeError("states cannot be turned back")
        cache.crop(-1)
    except RuntimeError as error:
        raise UsageError(
            "the cache cannot give up its last token: a sliding window has moved on, or states were replaced",
            hint="resume greedily, or with a prompt",
        ) from error
    return feed(adapter, cache, tokens[-1:], last_only=True)[-1]


def continue_from(adapter: ModelAdapter, cache: Cache, next_token: int, choose: Sampler) -> Iterator[int]:
    """Yield `next_token` and all that follow it; the cache grows by each after it was yielded."""
    while True:
        yield next_token
        logits = feed(adapter, cache, [next_token], last_only=True)[-1]
        choose.fed([next_token])
        next_token = choose(logits)


def continuation(
    adapter: ModelAdapter, cache: Cache, next_token: int, count: int, choose: Sampler, progress: Progress = nothing
) -> list[int]:
    """Return the next `count` tokens; `cache` itself does not change."""
    tokens = []
    for token in continue_from(adapter, fork(cache), next_token, choose):
        tokens.append(token)
        progress(1)
        if len(tokens) == count:
            break
    return tokens


def score(adapter: ModelAdapter, cache: Cache, token_ids: Sequence[int], *, finite: bool = True) -> torch.Tensor:
    """Return teacher-forced logits after each of the tokens, (tokens, vocabulary).

    `cache` itself does not change.

    Args:
        finite: refuse logits that are NaN or infinite; False where a lossy cache is measured.
    """
    return feed(adapter, fork(cache), token_ids, finite=finite)
