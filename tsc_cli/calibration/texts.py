"""What a model is calibrated on: given texts, or what every machine has and what the model writes itself."""

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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT, CONTINUATION = 1024, 256  # tokens: rows are those of the context, gradients come from what follows it
OWN_SHARE = 1 / 3  # of the windows that the model writes, if no texts are given
OWN = 256  # tokens of a text that the model writes: longer ones take longer a token, and get no better
TOKENS_AT_ONCE = 64 * OWN  # tokens of the texts that are written together: each step reads all weights, for all of them
_SAME, _SAME_OTHERS = {torch.float32: 0.01, torch.float64: 0.01}, 0.5  # in a log-probability: rounding, no more
# modules of Python's library that are neither small nor tables; every installation has most of them
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
    """At most `count` windows of `size` tokens, spread evenly over each text, the texts taking turns.

    Texts that are shorter than a window are joined.  Windows overlap by half at most; what a short text cannot give is
    taken from longer ones.

    Raises:
        UsageError: all of them together are shorter.
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
    taken = [_spread(text, share, size) for text, share in zip(long, shares, strict=True)]
    mixed = [window for turn in zip_longest(*taken) for window in turn if window is not None]
    return mixed[:count]


def _spread(text: list[int], count: int, size: int) -> list[list[int]]:
    last = len(text) - size
    return [text[last * at // max(count - 1, 1) :][:size] for at in range(count)]


def library_texts() -> tuple[list[str], list[str]]:
    """(prose, code) of this Python: the topics of its reference documentation, and modules of its library."""
    from pydoc_data import topics

    folder = Path(sysconfig.get_path("stdlib"))
    found = [path for path in (folder / f"{name}.py" for name in _MODULES) if path.is_file()]
    code = [path.read_text(encoding="utf-8", errors="replace") for path in found]
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
    """`count` texts of `size` tokens that the model writes: sampled at temperature 1, a batch at a time.

    Each text has draws of its own, which depend on the seed and its number alone.

    Args:
        before: what `keep` was last given by a call with the same arguments: these tokens stand.
        keep: called after each token of a batch with all texts, (count, size), -1 where nothing is written yet.
    """
    texts = torch.full((count, size), -1) if before is None else before.clone()
    progress(int((texts >= 0).sum()))
    together = max(1, TOKENS_AT_ONCE // size) if _takes_batches(adapter) else 1
    for first in range(0, count, together):
        batch = texts[first : first + together]  # a view
        held = int((batch[0] >= 0).sum())
        if held == size:
            continue
        draws = [_draws(adapter, tokenizer, seed, first + row, size) for row in range(len(batch))]
        start, uniform = torch.stack([one for one, _ in draws]), torch.stack([some for _, some in draws])
        cache, logits = prefill(adapter, torch.cat([start, batch[:, :held]], 1), chunk=CONTEXT)
        for at in range(held, size):
            if at > held:
                logits = feed(adapter, cache, batch[:, at - 1 : at], last_only=True)[:, -1]
            batch[:, at] = drawn_at(logits, uniform[:, at])
            if keep is not None:
                keep(texts)
            progress(len(batch))
    return texts.tolist()


def _draws(
    adapter: ModelAdapter, tokenizer: PreTrainedTokenizerBase | None, seed: int, number: int, size: int
) -> tuple[torch.Tensor, ...]:
    """The token that a text begins after, (1,), and a number from 0 to 1 for each token of it, (size,)."""
    digest = hashlib.sha256(f"text {number} of seed {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    start = torch.randint(adapter.config.get_text_config().vocab_size, (1,), generator=generator)
    known = [getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id")]
    token = next((one for one in known if one is not None), None)
    if token is not None:
        start = torch.tensor([token])
    return start, torch.rand(size, generator=generator, dtype=torch.float64)


def drawn_at(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The tokens at which the sums of probabilities (batch, vocabulary) pass these numbers, (batch,)."""
    sums = torch.softmax(logits.float().cpu(), -1).cumsum(-1)
    passed = torch.searchsorted(sums, uniform.float()[:, None] * sums[:, -1:], right=True)
    return passed[:, 0].clamp_max(sums.shape[-1] - 1)


def _takes_batches(adapter: ModelAdapter) -> bool:
    """Whether a model gives the same for two sequences together as for each alone, but for rounding."""
    vocabulary = adapter.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (2, 4), generator=torch.Generator().manual_seed(0))
    try:
        together = prefill(adapter, tokens, chunk=4)[1].float()
    except (RuntimeError, ValueError, IndexError):  # what a model's own code raises
        return False
    alone = torch.cat([prefill(adapter, one[None], chunk=4)[1].float() for one in tokens])
    error = float((torch.log_softmax(together, -1) - torch.log_softmax(alone, -1)).abs().max())
    return error <= _SAME.get(adapter.dtype, _SAME_OTHERS)
