"""Needles lie where they should, and a cache that lost one does not answer."""

from __future__ import annotations

from typing import Any

import pytest

from formats.errors import UsageError
from tests.support import models
from tests.tsc_cli.scoring.test_recall import Copier, filled, without
from tsc_cli.bench.needle import APART, CODES, FACT, NOUNS, QUESTION, Needle, answers, needles
from tsc_cli.huggingface.adapter import ModelAdapter

COUNT = 40


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return models.byte_tokenizer()


@pytest.fixture(scope="module")
def texts(tokenizer: Any) -> list[list[int]]:
    """Words without sense, one of which is a number that no needle may have."""
    words = [f"word{number % 7} of {1234 if number % 9 == 0 else number % 50}," for number in range(600)]
    return [tokenizer.encode(" ".join(words[first:])) for first in (0, 100)]


@pytest.fixture(scope="module")
def found(tokenizer: Any, texts: list[list[int]]) -> list[Needle]:
    return needles(texts, tokenizer, COUNT, seed=1)


def test_the_same_seed_gives_the_same_needles(tokenizer: Any, texts: list[list[int]], found: list[Needle]) -> None:
    assert needles(texts, tokenizer, COUNT, seed=1) == found
    assert needles(texts, tokenizer, COUNT, seed=2) != found


def test_a_fact_lies_early_and_once(tokenizer: Any, found: list[Needle]) -> None:
    assert len(found) == COUNT
    for number, needle in enumerate(found):
        noun = NOUNS[number % len(NOUNS)]
        fact = FACT.format(noun=noun, code=needle.answer)
        length = len(tokenizer.encode(fact))
        assert 800 <= len(needle.context) <= 1200
        assert 0.049 * len(needle.context) < needle.start <= 0.40 * len(needle.context)
        assert len(needle.context) - needle.start - length >= APART
        assert tokenizer.decode(needle.context[needle.start :][:length]) == fact
        text = tokenizer.decode(needle.context)
        assert text.count(needle.answer) == 1
        assert text.count(f"code of the {noun}") == 1
        assert "Question" not in text
        assert tokenizer.decode(needle.question) == QUESTION.format(noun=noun)
        assert needle.answer not in QUESTION.format(noun=noun)


def test_codes_have_four_digits_and_differ(found: list[Needle]) -> None:
    codes = [needle.answer for needle in found]
    assert len(set(codes)) == COUNT
    assert all(code.isdecimal() and int(code) in CODES for code in codes)
    assert "1234" not in codes


def test_a_code_that_the_text_holds_is_not_taken(tokenizer: Any) -> None:
    text = tokenizer.encode(" ".join(map(str, range(1000, 1300))))[:1200]
    held = {str(code) for code in range(1000, 1240)}
    taken = {needle.answer for needle in needles([text], tokenizer, 400, seed=0)}
    assert len(taken) == 400
    assert not taken & {code for code in held if code in tokenizer.decode(text[:800])}


def test_an_exact_cache_answers_and_one_without_the_fact_does_not(tokenizer: Any, found: list[Needle]) -> None:
    model = Copier()
    for needle in found[:4]:
        cache = filled(model, needle.context)
        assert answers(ModelAdapter(model), tokenizer, cache, needle)
        assert cache.get_seq_length() == len(needle.context)
        digits = needle.start + tokenizer.decode(needle.context[needle.start :]).index(needle.answer)
        assert not answers(ModelAdapter(model), tokenizer, without(cache, digits, digits + 4), needle)
        assert not answers(ModelAdapter(model), tokenizer, without(cache, digits + 3, digits + 4), needle)
        # what stands after the fact is no part of it
        assert answers(ModelAdapter(model), tokenizer, without(cache, digits + 40, digits + 240), needle)


def test_what_cannot_be_built_is_refused(tokenizer: Any, texts: list[list[int]]) -> None:
    with pytest.raises(UsageError, match="text 2 has 1199 tokens"):
        needles([texts[0], texts[1][:1199]], tokenizer, 2, seed=0)
    for count, given in ((0, texts), (9001, texts), (1, [])):
        with pytest.raises(UsageError, match="cannot be had"):
            needles(given, tokenizer, count, seed=0)
