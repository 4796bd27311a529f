"""What a model is calibrated on: given texts, or what every machine has and what the model writes itself."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from formats.errors import UsageError

from .bridge import new_cache
from .generation import Progress, nothing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTEXT, CONTINUATION = 1024, 256  # tokens: rows are those of the context, gradients come from what follows it
OWN_SHARE = 1 / 3  # of the windows that the model writes, if no texts are given
OWN = 256  # tokens of a text that the model writes: longer ones take longer a token, and get no better
_BATCH = 64  # of these at once
# modules of Python's library that are neither small nor tables; every installation has most of them
_MODULES = (
    "typing", "subprocess", "tarfile", "inspect", "datetime", "logging/__init__", "unittest/mock", "socket", "ast",
    "asyncio/base_events", "configparser", "doctest", "difflib", "zipfile", "pickle", "http/client", "shutil", "enum",
    "optparse", "smtplib", "ssl", "dataclasses", "random", "threading", "gettext", "imaplib", "mailbox", "pdb",
)  # fmt: skip


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
    model: PreTrainedModel, tokenizer: Any, count: int, size: int, seed: int, progress: Progress = nothing
) -> Iterator[list[int]]:
    """`count` texts of `size` tokens that the model writes: sampled at temperature 1, a batch at a time."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    starts = [getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id")]
    start = next((token for token in starts if token is not None), None)
    for first in range(0, count, _BATCH):
        rows = min(_BATCH, count - first)
        tokens = torch.randint(vocabulary, (rows, 1), generator=generator)
        if start is not None:
            tokens = torch.full((rows, 1), start)
        cache, texts = new_cache(model), [tokens]
        while len(texts) <= size:
            logits = model(input_ids=tokens.to(device), past_key_values=cache, use_cache=True).logits[:, -1]
            tokens = torch.multinomial(torch.softmax(logits.float().cpu(), -1), 1, generator=generator)
            texts.append(tokens)
            progress(rows)
        yield from torch.cat(texts[1:], 1).tolist()
