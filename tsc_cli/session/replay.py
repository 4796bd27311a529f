"""How the tokens of a trace were fed, so that a run can be made again exactly: in which passes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import Tokens, feed, prefill

if TYPE_CHECKING:
    from formats import Trace

_TEXT = re.compile(r"\d{1,9}/\d{1,9}(,\d{1,9}/\d{1,9})*")


class Feed(NamedTuple):
    """`tokens` that were fed `chunk` at a time."""

    tokens: int
    chunk: int


def feeds_text(feeds: Sequence[Feed]) -> str:
    """As the tier header's `capture` object holds it, such as 1024/1024,64/1."""
    merged: list[Feed] = []
    for fed in feeds:
        if merged and merged[-1].chunk == fed.chunk == 1:
            merged[-1] = Feed(merged[-1].tokens + fed.tokens, 1)
        else:
            merged.append(fed)
    return ",".join(f"{fed.tokens}/{fed.chunk}" for fed in merged)


def feeds_of(trace: Trace) -> list[Feed]:
    """The feeds of a trace whose tokens are known; what its header does not say was fed one by one."""
    total = trace.views[-1].tokens_seen
    text = trace.info.get("feeds")
    if isinstance(text, str) and _TEXT.fullmatch(text):
        feeds = [Feed(*map(int, piece.split("/"))) for piece in text.split(",")]
        if sum(fed.tokens for fed in feeds) == total and all(min(fed) > 0 for fed in feeds):
            return feeds
    first = trace.views[0].tokens_seen
    prompt = trace.info.get("prompt_tokens", first)
    prompt = int(prompt) if isinstance(prompt, int) and 0 < prompt <= first else first
    chunk = trace.info.get("chunk", 1024)
    feeds = [Feed(prompt, chunk if isinstance(chunk, int) and chunk > 0 else 1024)]
    return [*feeds, Feed(total - prompt, 1)] if total > prompt else feeds


def passes_to(trace: Trace, length: int) -> int:
    """Passes that it takes to feed the first `length` tokens again; the prompt counts as one."""
    passes, done = 0, 0
    for number, fed in enumerate(feeds_of(trace)):
        if done >= length:
            break
        tokens = min(fed.tokens, length - done)
        passes += 1 if number == 0 else -(-tokens // fed.chunk)
        done += tokens
    return passes


def replayed(
    trace: Trace,
    adapter: ModelAdapter,
    tokens: Tokens,
    lengths: Sequence[int],
    encoded: Any,
    progress: Any,
    padding: Sequence[int] = (),
) -> Iterator[tuple[int, Any]]:
    """(length, a cache of so many tokens) for each of the lengths, as the capturing run had them, in order.

    Args:
        tokens: of one sequence, or (batch, tokens), with `padding` at the beginning of each
            sequence.
    """
    wanted = set(lengths)
    feeds = feeds_of(trace)
    ids = tokens if isinstance(tokens, torch.Tensor) else torch.tensor([list(tokens)])
    total = ids.shape[1]
    first = min(feeds[0].tokens, total)
    cache, _ = prefill(adapter, ids[:, :first], chunk=feeds[0].chunk, padding=padding, encoded=encoded)
    progress(1)
    if first in wanted:
        yield first, caches.fork(cache)
    done = first
    with torch.no_grad():
        for fed in feeds[1:]:
            stop = min(done + fed.tokens, total)
            while done < stop:
                piece = ids[:, done : min(done + fed.chunk, stop)]
                feed(adapter, cache, piece, padding=padding, last_only=True)
                progress(1)
                done += piece.shape[1]
                if done in wanted:
                    yield done, caches.fork(cache)
