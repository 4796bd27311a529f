"""Replaying a captured run in the same passes, so that its caches come out exactly."""

from __future__ import annotations

import math
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
    """`tokens` tokens that were fed `chunk` at a time."""

    tokens: int
    chunk: int


def feeds_text(feeds: Sequence[Feed]) -> str:
    """Return the feeds as the tier header's `capture` object holds them: 1024/1024,64/1."""
    merged: list[Feed] = []
    for tokens, chunk in feeds:
        if merged and merged[-1].chunk == chunk == 1:
            merged[-1] = Feed(merged[-1].tokens + tokens, 1)
        else:
            merged.append(Feed(tokens, chunk))
    return ",".join(f"{tokens}/{chunk}" for tokens, chunk in merged)


def feeds_of(trace: Trace) -> list[Feed]:
    """Return the feeds of a trace; tokens that its header does not cover were fed one by one."""
    total = trace.views[-1].tokens_seen
    text = trace.info.get("feeds")
    if isinstance(text, str) and _TEXT.fullmatch(text):
        feeds = [Feed(*map(int, piece.split("/"))) for piece in text.split(",")]
        if sum(tokens for tokens, _ in feeds) == total and all(min(entry) > 0 for entry in feeds):
            return feeds
    first = trace.views[0].tokens_seen
    prompt = trace.info.get("prompt_tokens", first)
    prompt = int(prompt) if isinstance(prompt, int) and 0 < prompt <= first else first
    chunk = trace.info.get("chunk", 1024)
    feeds = [Feed(prompt, chunk if isinstance(chunk, int) and chunk > 0 else 1024)]
    return [*feeds, Feed(total - prompt, 1)] if total > prompt else feeds


def passes_to(trace: Trace, length: int) -> int:
    """Return how many passes feed the first `length` tokens again; the prompt counts as one."""
    (prompt, _), *feeds = feeds_of(trace)
    passes, done = min(length, 1), prompt
    for tokens, chunk in feeds:
        passes += math.ceil(min(tokens, max(length - done, 0)) / chunk)
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
    """Yield (length, a cache of so many tokens), as the capturing run had them.

    Args:
        tokens: ids of one sequence, or (batch, tokens).
        lengths: the lengths at which a copy of the cache is wanted, in any order.
        encoded: the encoder's output, (batch, tokens, width), or None.
        progress: called with 1 after the prompt and after each later pass.
        padding: tokens at the beginning of each sequence that are padding.
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
        for count, chunk in feeds[1:]:
            stop = min(done + count, total)
            while done < stop:
                piece = ids[:, done : min(done + chunk, stop)]
                feed(adapter, cache, piece, padding=padding, last_only=True)
                progress(1)
                done += piece.shape[1]
                if done in wanted:
                    yield done, caches.fork(cache)
