"""Running a model over a cache: chunked prefill, single steps, sampling, scoring."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from formats.errors import UnsupportedCacheError, UsageError

from .bridge import fork, new_cache
from .positions import require_room, switch_of

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

Progress = Callable[[int], None]  # called with the number of units done since the last call


def nothing(units: int) -> None:
    del units


@torch.no_grad()
def prefill(
    model: PreTrainedModel, token_ids: Sequence[int], *, chunk: int, progress: Progress = nothing
) -> tuple[DynamicCache, torch.Tensor]:
    """Feed a prompt to an empty cache, `chunk` tokens at a time so that activations stay bounded.

    LongRoPE turns keys by the longest position of a pass: a prompt beyond its switch is fed in one.

    Returns:
        the filled cache and the logits after the last token, (vocabulary,).
    Raises:
        UnsupportedCacheError: the model cannot be captured.
    """
    cache = new_cache(model)
    logits = torch.empty(0)
    switch = switch_of(model)
    if switch is not None and len(token_ids) > switch:
        chunk = len(token_ids)
    for start in range(0, len(token_ids), chunk):
        piece = token_ids[start : start + chunk]
        logits = feed(model, cache, piece, last_only=True)[-1]
        progress(len(piece))
    return cache, logits


@torch.no_grad()
def feed(
    model: PreTrainedModel, cache: DynamicCache, token_ids: Sequence[int], *, last_only: bool = False
) -> torch.Tensor:
    """Feed tokens in one forward pass; the cache grows by them.  Returns logits, (tokens or 1, vocabulary).

    Raises:
        UsageError: they do not fit into the model's positions; see `positions`.
        UnsupportedCacheError: the model does not return the cache that it was given.
    """
    require_room(model, cache.get_seq_length(), len(token_ids))
    ids = torch.tensor([list(token_ids)], device=next(model.parameters()).device)
    keep = {"logits_to_keep": 1} if last_only and _takes(model, "logits_to_keep") else {}
    output = model(input_ids=ids, past_key_values=cache, use_cache=True, **keep)
    returned = getattr(output, "past_key_values", None)
    if returned is not cache:
        raise UnsupportedCacheError(
            f"{type(model).__name__} keeps its cache as {type(returned).__name__}, which cannot be stored yet"
        )
    logits: torch.Tensor = output.logits[0]
    return logits[-1:] if last_only else logits


def feed_last_again(model: PreTrainedModel, cache: DynamicCache, tokens: Sequence[int]) -> torch.Tensor:
    """Logits after the last of the tokens that `cache` holds, (vocabulary,): its row is taken off and computed anew.

    Raises:
        UsageError: the cache cannot give up its last row.
    """
    try:
        cache.crop(-1)
    except RuntimeError as error:
        raise UsageError(
            "the cache cannot give up its last row: a sliding window has moved on",
            hint="resume greedily, or with a prompt",
        ) from error
    return feed(model, cache, tokens[-1:], last_only=True)[-1]


def _takes(model: PreTrainedModel, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


@dataclass
class Sampler:
    """Chooses the next token: greedy at temperature 0, otherwise sampled with a generator of its own."""

    temperature: float = 0.0
    seed: int = 0
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"the temperature must be a number from 0 on, not {self.temperature:g}")
        self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        # on the CPU, so that a seed means the same draw on every device
        probabilities = torch.softmax(logits.float().cpu() / self.temperature, -1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def continue_from(model: PreTrainedModel, cache: DynamicCache, next_token: int, choose: Sampler) -> Iterator[int]:
    """Yield `next_token` and what follows it, for ever; the cache grows by each token after it was yielded."""
    while True:
        yield next_token
        next_token = choose(feed(model, cache, [next_token], last_only=True)[-1])


def continuation(
    model: PreTrainedModel, cache: DynamicCache, next_token: int, count: int, choose: Sampler,
    progress: Progress = nothing,
) -> list[int]:  # fmt: skip
    """The next `count` tokens; `cache` itself is left as it is."""
    tokens = []
    for token in continue_from(model, fork(cache), next_token, choose):
        tokens.append(token)
        progress(1)
        if len(tokens) == count:
            break
    return tokens


def score(model: PreTrainedModel, cache: DynamicCache, token_ids: Sequence[int]) -> torch.Tensor:
    """Teacher-forced logits after each of the tokens, (tokens, vocabulary); `cache` itself is left as it is."""
    return feed(model, fork(cache), token_ids)
