"""Entropy coding: what goes in comes out, at the size that the tables promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.entropy import TOTAL, Tables, quantized
from formats.errors import CorruptError


def _tables(seed: int, classes: int = 5, symbols: int = 9) -> Tables:
    return Tables(quantized(np.random.default_rng(seed).random((classes, symbols)) ** 6 + 1e-9))


@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8)), max_size=200))
@settings(deadline=None)
def test_every_sequence_comes_back(seed: int, pairs: list[tuple[int, int]]) -> None:
    tables = _tables(seed)
    classes = np.array([one for one, _ in pairs], dtype=np.uint8)
    symbols = np.array([other for _, other in pairs], dtype=np.int32)
    words = tables.encode(symbols, classes)
    assert words.dtype == np.uint32
    assert tables.decode(words, classes).tolist() == symbols.tolist()


def test_the_size_is_the_entropy() -> None:
    tables, random = _tables(3), np.random.default_rng(4)
    classes = random.integers(0, 5, 50_000).astype(np.uint8)
    symbols = np.empty(50_000, dtype=np.int32)
    for number in range(5):
        at = classes == number
        symbols[at] = random.choice(9, at.sum(), p=tables.frequencies[number] / TOTAL)
    bits = float(tables.bits[classes, symbols].sum())
    assert bits <= 32 * len(tables.encode(symbols, classes)) <= bits * 1.0005 + 64


def test_words_that_no_writer_makes_are_refused() -> None:
    tables = _tables(5)
    classes = np.zeros(100, dtype=np.uint8)
    words = tables.encode(np.arange(100, dtype=np.int32) % 9, classes)
    with pytest.raises(CorruptError, match="left over"):
        tables.decode(words, classes[:50])
    with pytest.raises(CorruptError, match="end in zero"):
        tables.decode(np.append(words, np.uint32(0)), classes)
    with pytest.raises(CorruptError, match="left over"):
        tables.decode(np.append(words, np.uint32(1)), classes)


@pytest.mark.parametrize("change", [lambda f: f.__setitem__((0, 0), 0), lambda f: f.__setitem__((1, 1), TOTAL)])
def test_tables_that_cannot_code_are_refused(change: object) -> None:
    frequencies = _tables(6).frequencies.copy()
    change(frequencies)  # type: ignore[operator]
    with pytest.raises(CorruptError):
        Tables(frequencies)


def test_frequencies_are_exact_and_never_zero() -> None:
    weights = np.zeros((2, 300))
    weights[0, 7] = weights[1, 0] = 1.0
    found = quantized(weights)
    assert found.min() == 1
    assert (found.sum(1) == TOTAL).all()
