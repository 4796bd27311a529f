"""Texts for calibration: windows of given texts, of Python's library, and texts of the model."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from formats.errors import UsageError
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import feed, prefill
from tsc_cli.progress import Progress, nothing

from .effort import CONTEXT, OWN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# tokens of a batch of texts: each step reads all weights once for all of them
TOKENS_AT_ONCE = 64 * OWN
# differences of log-probabilities that are due to rounding
_ROUNDING, _ROUNDING_16_BIT = {torch.float32: 0.01, torch.float64: 0.01}, 0.5
# larger modules of Python's library that are not tables; every installation has most of them
_MODULES = (
    "typing",
    "subprocess",
    "tarfile",
    "inspect",
    "datetime",
    "logging/__init__",
    "unittest/mock",
    "socket",
    "ast",
    "asyncio/base_events",
    "configparser",
    "doctest",
    "difflib",
    "zipfile",
    "pickle",
    "http/client",
    "shutil",
    "enum",
    "optparse",
    "smtplib",
    "ssl",
    "dataclasses",
    "random",
    "threading",
    "gettext",
    "imaplib",
    "mailbox",
    "pdb",
)


def windows(texts: Sequence[Sequence[int]], count: int, size: int) -> list[list[int]]:
    """Cut at most `count` windows of `size` tokens from texts, which take turns.

    The windows of a text are spread evenly over it and overlap by half at most.  Texts that are
    shorter than a window are joined.  Longer texts give the windows that shorter ones have no room
    for.

    Raises:
        UsageError: all texts together are shorter than a window.
    """
    long = [list(text) for text in texts if len(text) >= size]
    joined = list(chain.from_iterable(text for text in texts if len(text) < size))
    if len(joined) >= size:
        long.append(joined)
    if not long:
        raise UsageError(
            f"the texts have {len(joined)} tokens together, fewer than a window of {size}", hint="longer texts"
        )
    room = [max(1, len(text) // (size // 2) - 1) for text in long]
    shares = [0] * len(long)
    for _ in range(min(count, sum(room))):
        shares[min((n for n in range(len(long)) if shares[n] < room[n]), key=lambda n: shares[n])] += 1
    by_text = [spaced_windows(text, share, size) for text, share in zip(long, shares, strict=True)]
    mixed = [window for turn in zip_longest(*by_text) for window in turn if window is not None]
    return mixed[:count]


def spaced_windows(text: Sequence[int], count: int, size: int) -> list[list[int]]:
    """Cut `count` windows of `size` tokens from a text, spread evenly over it."""
    last = len(text) - size
    starts = (last * index // max(count - 1, 1) for index in range(count))
    return [list(text[start : start + size]) for start in starts]


def library_texts() -> tuple[list[str], list[str]]:
    """Return prose and code of this Python: its reference documentation, and library modules."""
    from pydoc_data import topics

    folder = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in (folder / f"{name}.py" for name in _MODULES) if path.is_file()]
    code = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    return ["\n\n".join(topics.topics[name] for name in sorted(topics.topics))], code


@torch.no_grad()
def written(
    adapter: ModelAdapter,
    tokenizer: PreTrainedTokenizerBase | None,
    count: int,
    size: int,
    seed: int,
    progress: Progress = nothing,
    *,
    before: torch.Tensor | None = None,
    keep: Callable[[torch.Tensor], None] | None = None,
) -> list[list[int]]:
    """Let the model write `count` texts of `size` tokens, sampled at temperature 1 in batches.

    The random numbers of a text depend on the seed and its index only.

    Args:
        before: the last argument of `keep` in a call with the same arguments, which is continued.
        keep: called after each token of a batch with all texts, (count, size), -1 for tokens that
            are not written yet.
    """
    texts = torch.full((count, size), -1) if before is None else before.clone()
    progress(int((texts >= 0).sum()))
    together = max(1, TOKENS_AT_ONCE // size) if _takes_batches(adapter) else 1
    for first in range(0, count, together):
        batch = texts[first : first + together]  # a view
        done = int((batch[0] >= 0).sum())
        if done == size:
            continue
        draws = [_draws(adapter, tokenizer, seed, first + row, size) for row in range(len(batch))]
        start, uniform = (torch.stack(tensors) for tensors in zip(*draws, strict=True))
        cache, logits = prefill(adapter, torch.cat([start, batch[:, :done]], 1), chunk=CONTEXT)
        for column in range(done, size):
            if column > done:
                logits = feed(adapter, cache, batch[:, column - 1 : column], last_only=True)[:, -1]
            batch[:, column] = drawn_at(logits, uniform[:, column])
            if keep is not None:
                keep(texts)
            progress(len(batch))
    return texts.tolist()


def _draws(
    adapter: ModelAdapter, tokenizer: PreTrainedTokenizerBase | None, seed: int, index: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token before a text, (1,), and a random number for each token, (size,)."""
    digest = hashlib.sha256(f"text {index} of seed {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    start = torch.randint(adapter.config.get_text_config().vocab_size, (1,), generator=generator)
    for name in ("eos_token_id", "bos_token_id"):
        token = getattr(tokenizer, name, None)
        start = start if token is None else torch.tensor([token])
    return start, torch.rand(size, generator=generator, dtype=torch.float64)


def drawn_at(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return the tokens at which cumulative probabilities pass these numbers, (batch,).

    Args:
        logits: (batch, vocabulary).
        uniform: numbers from 0 to 1, (batch,).
    """
    sums = torch.softmax(logits.float().cpu(), -1).cumsum(-1)
    passed = torch.searchsorted(sums, uniform.float()[:, None] * sums[:, -1:], right=True)
    return passed[:, 0].clamp_max(sums.shape[-1] - 1)


def _takes_batches(adapter: ModelAdapter) -> bool:
    """Tell whether a model gives the same logits in a batch as one by one, apart from rounding."""
    vocabulary = adapter.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (2, 4), generator=torch.Generator().manual_seed(0))
    try:
        together = prefill(adapter, tokens, chunk=4)[1].float()
    except (RuntimeError, ValueError, IndexError):  # what a model's own code raises
        return False
    alone = torch.cat([prefill(adapter, sequence[None], chunk=4)[1].float() for sequence in tokens])
    error = float((torch.log_softmax(together, -1) - torch.log_softmax(alone, -1)).abs().max())
    return error <= _ROUNDING.get(adapter.dtype, _ROUNDING_16_BIT)
