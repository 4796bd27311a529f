"""Needles: a code stated early in a long text and asked for at its end.  Does a restored cache
still know it?

The text around the code is the caller's; only the fact and the question are written here.  Their
wording is that of a plain continuation, so that models without a chat template can be asked, and
small ones find the answer: the question ends with the words that the code follows in the text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from formats.errors import UsageError
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.caches import fork
from tsc_cli.huggingface.generation import continue_from, feed
from tsc_cli.huggingface.sampling import Sampler

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedTokenizerBase

FACT = "\n\nThe secret code of the {noun} is {code}.\n\n"
QUESTION = "\n\nQuestion: What is the secret code of the {noun}? Answer: The secret code of the {noun} is"
NOUNS = (
    "lamp",
    "river",
    "garden",
    "tiger",
    "piano",
    "bridge",
    "castle",
    "window",
    "rocket",
    "forest",
    "market",
    "violin",
    "mirror",
    "island",
    "engine",
    "ladder",
    "basket",
    "harbor",
    "candle",
    "tunnel",
)
CODES = range(1000, 10_000)

LENGTH = (800, 1200)  # tokens of a context, the fact included
DEPTH = (0.05, 0.40)  # where the fact begins, as a share of the context
APART = 500  # tokens at least between the end of the fact and the question
# tokens in which the digits must have come: one each at most, and room for what is around them
TRIES = 8


@dataclass(frozen=True)
class Needle:
    """One context with a fact in it, and the question for the fact.

    Attributes:
        context: token ids to be captured.
        question: token ids to be fed to the restored cache, right after the context.
        answer: the four digits that the question is to be answered with.
        start: where the fact begins, in tokens from the beginning of the context.
    """

    context: list[int]
    question: list[int]
    answer: str
    start: int


def needles(texts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[Needle]:
    """Build `count` needles; the same arguments give the same ones.

    A context is a stretch of one text, 800 to 1,200 tokens with the fact, which begins between 5%
    and 40% of it and ends at least 500 tokens before its end.  The texts are taken in turn, the
    stretches of each spread evenly over it (they overlap if it is short).  No code is used twice,
    and none occurs in the text around it.

    Args:
        texts: token ids of texts without special tokens, at least 1,200 each.
        tokenizer: of the model; turns strings into token ids and back.
    Raises:
        UsageError: no needle or more than 9,000 are wanted, there is no text, one is too short, or
            codes run out.
    """
    if not 1 <= count <= len(CODES) or not texts:
        raise UsageError(f"{count} needles in {len(texts)} texts cannot be had")
    for number, text in enumerate(texts):
        if len(text) < LENGTH[1]:
            raise UsageError(f"text {number + 1} has {len(text)} tokens, too few for contexts of {LENGTH[1]}")
    draw = random.Random(seed)
    codes = [str(code) for code in draw.sample(CODES, len(CODES))]
    found = []
    for number in range(count):
        round_, which = divmod(number, len(texts))
        text, rounds = texts[which], len(range(which, count, len(texts)))
        first = (len(text) - LENGTH[1]) * round_ // max(1, rounds - 1)
        around = list(text[first : first + draw.randint(*LENGTH)])
        code = _unused(codes, str(tokenizer.decode(around)))
        found.append(_needle(tokenizer, around, NOUNS[number % len(NOUNS)], code, draw.uniform(*DEPTH)))
    return found


def _unused(codes: list[str], text: str) -> str:
    """Take the last of `codes` that does not occur in a text."""
    for at in reversed(range(len(codes))):
        if codes[at] not in text:
            return codes.pop(at)
    raise UsageError("the text holds every code that is left")


def _needle(tokenizer: PreTrainedTokenizerBase, around: list[int], noun: str, code: str, depth: float) -> Needle:
    """The needle whose context is as long as `around`: the room that the fact takes is cut off the
    end.
    """
    fact = _encode(tokenizer, FACT.format(noun=noun, code=code))
    size = len(around)
    start = min(int(depth * size), size - APART - len(fact))
    context = around[:start] + fact + around[start : size - len(fact)]
    return Needle(context, _encode(tokenizer, QUESTION.format(noun=noun)), code, start)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def answers(adapter: ModelAdapter, tokenizer: PreTrainedTokenizerBase, cache: Cache, needle: Needle) -> bool:
    """True if the number that the model says greedily after the question is the code, white space
    aside.

    Text is compared, not tokens, since tokenizers cut digits in different ways.  It ends with the
    first token that cannot belong to the code, so that a wrong answer is seldom longer than one
    token.

    Args:
        cache: of the needle's context, exact or restored; it is left as it is.
    """
    twin, choose = fork(cache), Sampler()
    first = choose(feed(adapter, twin, needle.question, last_only=True)[-1])
    said: list[int] = []
    for token in islice(continue_from(adapter, twin, first, choose), TRIES):
        said.append(token)
        text = str(tokenizer.decode(said)).lstrip()
        if len(text) > len(needle.answer):
            return text.startswith(needle.answer) and not text[len(needle.answer)].isdigit()
        if not needle.answer.startswith(text):
            return False
    return str(tokenizer.decode(said)).strip() == needle.answer
