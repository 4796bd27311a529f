"""Entropy coding: what goes in comes out, at the size that the tables promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.codecs.klt.ans import TOTAL, Decoder, Encoder, RawBits, Tables, quantized
from formats.errors import CorruptError


def _tables(seed: int, classes: int = 5, symbols: int = 9) -> Tables:
    return Tables(quantized(np.random.default_rng(seed).random((classes, symbols)) ** 6 + 1e-9))


def _encode(tables: Tables | RawBits, symbols: np.ndarray, classes: np.ndarray) -> np.ndarray:
    encoder = Encoder()
    encoder.put(tables, symbols, classes)
    return encoder.words()


def _decode(tables: Tables | RawBits, words: np.ndarray, classes: np.ndarray) -> np.ndarray:
    decoder = Decoder(words)
    symbols = decoder.take(tables, classes)
    decoder.finish()
    return symbols


@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8)), max_size=200))
@settings(deadline=None)
def test_every_sequence_comes_back(seed: int, pairs: list[tuple[int, int]]) -> None:
    tables = _tables(seed)
    classes = np.array([one for one, _ in pairs], dtype=np.uint8)
    symbols = np.array([other for _, other in pairs], dtype=np.int32)
    words = _encode(tables, symbols, classes)
    assert words.dtype == np.uint32
    assert _decode(tables, words, classes).tolist() == symbols.tolist()


@given(st.lists(st.integers(0, 16), max_size=60), st.integers(0, 2**32))
@settings(deadline=None)
def test_raw_bits_and_tables_share_one_stream(widths: list[int], seed: int) -> None:
    tables, random = _tables(seed % 1000), np.random.default_rng(seed)
    bits = np.array(widths, dtype=np.uint8)
    low = np.array([int(random.integers(0, 1 << width)) for width in widths], dtype=np.int32)
    classes = random.integers(0, 5, 40).astype(np.uint8)
    symbols = random.integers(0, 9, 40).astype(np.int32)
    encoder = Encoder()
    encoder.put(tables, symbols, classes)
    encoder.put(RawBits(), low, bits)
    encoder.put(tables, symbols[:7], classes[:7])
    decoder = Decoder(encoder.words())
    assert decoder.take(tables, classes).tolist() == symbols.tolist()
    assert decoder.take(RawBits(), bits).tolist() == low.tolist()
    assert decoder.take(tables, classes[:7]).tolist() == symbols[:7].tolist()
    decoder.finish()


def test_the_size_is_the_entropy() -> None:
    tables, random = _tables(3), np.random.default_rng(4)
    classes = random.integers(0, 5, 50_000).astype(np.uint8)
    symbols = np.empty(50_000, dtype=np.int32)
    for number in range(5):
        at = classes == number
        symbols[at] = random.choice(9, at.sum(), p=tables.frequencies[number] / TOTAL)
    bits = float(tables.bits[classes, symbols].sum())
    assert bits <= 32 * len(_encode(tables, symbols, classes)) <= bits * 1.0005 + 64


def test_words_that_no_writer_makes_are_refused() -> None:
    tables = _tables(5)
    classes = np.zeros(100, dtype=np.uint8)
    words = _encode(tables, np.arange(100, dtype=np.int32) % 9, classes)
    with pytest.raises(CorruptError, match="left over"):
        _decode(tables, words, classes[:50])
    with pytest.raises(CorruptError, match="end in zero"):
        _decode(tables, np.append(words, np.uint32(0)), classes)
    with pytest.raises(CorruptError, match="left over"):
        _decode(tables, np.append(words, np.uint32(1)), classes)


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
