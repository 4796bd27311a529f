"""The part of the second reader that decodes rows of codec 6.

As `second_reader`, written from docs/format.md alone. Symbols are decoded one by one with Python's integers, numbers
are float64 where the text allows float32, and nothing is done twice as fast as it could be.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tests.format_conformance.second_reader.codecs import (
    Array,
    Block,
    Part,
    Tables,
    corrupt,
    exactly,
    expect,
    narrow,
    need,
)
from tests.format_conformance.second_reader.profile import Group, Profile

PRECISION = 24
UNIT = 32  # a scale or a step n stands for 2 ** (n / 32)
ESCAPE = 255
FLOAT32_MAX = float(np.finfo(np.float32).max)


class Stream:
    """Entropy-coded symbols: words are taken from the end."""

    def __init__(self, words: Sequence[int]) -> None:
        need(not words or words[-1] != 0, "words: the last one is zero")
        self.words, self.state = list(words), 0
        self.refill()
        self.refill()

    def refill(self) -> None:
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def take(self, symbol: int, start: int, frequency: int) -> int:
        remainder = self.state % (1 << PRECISION) - start
        self.state = (self.state >> PRECISION) * frequency + remainder
        self.refill()
        return symbol

    def coded(self, starts: list[int]) -> int:
        """A symbol whose table has these cumulative frequencies, 2^24 the last."""
        symbol = bisect_right(starts, self.state % (1 << PRECISION)) - 1
        return self.take(symbol, starts[symbol], starts[symbol + 1] - starts[symbol])

    def raw(self, bits: int) -> int:
        shift = PRECISION - bits
        symbol = self.state % (1 << PRECISION) >> shift
        return self.take(symbol, symbol << shift, 1 << shift)

    def batch(self, tables: Array, classes: Sequence[int]) -> list[int]:
        """Symbols of these classes: those of a lower class first, those of one class in order."""
        starts = {number: [0, *accumulate(tables[number].tolist())] for number in set(classes)}
        found = [0] * len(classes)
        for at in sorted(range(len(classes)), key=lambda at: classes[at]):
            found[at] = self.coded(starts[classes[at]])
        return found

    def raw_batch(self, bits: Sequence[int]) -> list[int]:
        found = [0] * len(bits)
        for at in sorted(range(len(bits)), key=lambda at: bits[at]):
            found[at] = self.raw(bits[at]) if bits[at] else 0
        return found

    def finish(self) -> None:
        need(not self.words and self.state == 0, "words are left over")


@dataclass
class Decoded:
    """Rows as bits, [layers, batch, heads, rows, size], and every integer that was decoded, in order."""

    rows: dict[Part, Array]
    integers: list[int]


class Reader:
    def __init__(self, profile: Profile, words: Sequence[int], apart: Sequence[int], positions: Sequence[int]) -> None:
        self.profile, self.stream, self.apart = profile, Stream(words), list(apart)
        self.first = np.array([position == 0 for position in positions])
        self.positions = positions
        self.integers: list[int] = []

    def steps(self, fineness: int) -> None:
        finer = self.stream.batch(self.profile.table("importance"), [0] * len(self.positions))
        self.exponents = np.array([fineness + 8 * (symbol - 128) for symbol in finer])
        self.step = 2.0 ** (-self.exponents / UNIT)

    def coefficients(self, exponents: Iterable[int]) -> list[int]:
        """Integers whose spread is 2 ** (exponent / 32)."""
        low, classes = [], []
        for exponent in exponents:
            quarter = (exponent + 4) // 8
            bits = min(max((quarter - 16 + 3) // 4, 0), 16)
            low.append(bits)
            classes.append(min(max(quarter - 4 * bits, -24), 16) + 24)
        symbols = self.stream.batch(self.profile.table("coefficients"), classes)
        split = [at for at, symbol in enumerate(symbols) if symbol != ESCAPE]
        found = [(symbol - 127) << bits for symbol, bits in zip(symbols, low, strict=True)]
        for at, bits in zip(split, self.stream.raw_batch([low[at] for at in split]), strict=True):
            found[at] += bits
        escaped = [at for at, symbol in enumerate(symbols) if symbol == ESCAPE]
        need(len(escaped) <= len(self.apart), "apart: too few integers")
        for at in escaped:
            found[at] = self.apart.pop(0)
        self.integers += found
        return found

    def group(self, group: Group, rank: int, rest: bool, before: Array | None) -> tuple[Array, Array]:
        """Coefficients over their scales (tokens, coefficients) and weighted vectors (tokens, P)."""
        others = np.flatnonzero(~self.first)
        bands = sum(start < rank for start in (0, *group.bands[:-1]))
        symbols = self.stream.batch(self.profile.table("activity"), list(range(bands)) * len(others))
        activity = np.array(symbols, dtype=int).reshape(len(others), bands) - 16
        band = [sum(stop <= at for stop in group.bands) for at in range(rank)]
        exponents = self.exponents[others, None] + group.scale[:rank] + 16 * activity[:, band]
        integers = np.array(self.coefficients(exponents.ravel().tolist()), dtype=float).reshape(len(others), rank)
        found = np.zeros((len(self.first), rank))
        found[others] = integers * self.step[others, None] / 2.0 ** (group.scale[:rank] / UNIT)
        if before is not None and group.predict is not None:
            count = min(before.shape[1], group.predict.shape[1])
            predicted = before[:, :count] @ group.predict[:, :count].T
            predicted[self.first] = 0
            predicted[:, :rank] += found
            found = predicted
        weighted = in_range(in_range(found) @ (group.basis[: found.shape[1]] * group.basis_step))
        tokens = np.arange(len(self.first)) if rest else np.flatnonzero(self.first)
        if len(tokens):
            weighted[tokens] += self.rests(group, tokens)
        return found, in_range(weighted)

    def rests(self, group: Group, tokens: Array) -> Array:
        symbols = self.stream.batch(self.profile.table("residual_activity"), [0] * (len(tokens) * group.layers))
        activity = np.array(symbols).reshape(len(tokens), group.layers)[:, group.layer_of()]
        exponents = self.exponents[tokens, None] + group.residual_scale + 16 * (activity - 16)
        integers = np.zeros(activity.shape)
        integers[activity > 0] = self.coefficients(exponents[activity > 0].tolist())
        return integers * self.step[tokens, None]

    def rows(self, group: Group, weighted: Array, batch: int) -> dict[Part, list[Array]]:
        """For each layer, [batch, heads, rows, size]."""
        found: dict[Part, list[Array]] = {"keys": [], "values": []}
        at = 0
        for part, size, metric in (
            ("keys", group.key_size, group.metric_keys),
            ("values", group.value_size, group.metric_values),
        ):
            for layer in range(group.layers):
                heads = []
                for head in range(group.heads):
                    mean = np.where(self.first[:, None], group.first_mean[at : at + size], group.mean[at : at + size])
                    vectors = in_range(weighted[:, at : at + size] @ inverse(metric[layer, head]) + mean)
                    heads.append(self.turned(vectors, *group.rotary[layer]) if part == "keys" else vectors)
                    at += size
                tensor = np.stack(heads).reshape(group.heads, batch, -1, size).swapaxes(0, 1)
                found["keys" if part == "keys" else "values"].append(tensor)
        return found

    def turned(self, keys: Array, frequencies: Sequence[float], interleaved: bool) -> Array:
        """Keys (tokens, size) at their positions."""
        count = len(frequencies)
        angles = np.array(self.positions, dtype=float)[:, None] * np.array(frequencies)
        cos, sin = np.cos(angles), np.sin(angles)
        one, other = (
            np.arange(start, 2 * count, 2) if interleaved else np.arange(count) + start * count for start in (0, 1)
        )
        turned = keys.copy()
        turned[:, one] = keys[:, one] * cos - keys[:, other] * sin
        turned[:, other] = keys[:, other] * cos + keys[:, one] * sin
        return turned


def inverse(matrix: Array) -> Array:
    try:
        with np.errstate(all="ignore"):
            return in_range(np.linalg.inv(matrix))
    except np.linalg.LinAlgError:
        corrupt("profile: a metric without an inverse")


def in_range(values: Array) -> Array:
    """Values that float32 holds."""
    need(bool((np.abs(values) <= FLOAT32_MAX).all()), "rows that are not finite")
    return values


def check_layout(tables: Tables) -> tuple[int, list[int], list[bool]]:
    """Fineness, the coefficients of each group, and whether every token has a rest there."""
    exactly(tables, {"layout", "words", "apart"})
    for name, dtype in (("layout", "I32"), ("words", "U32"), ("apart", "I32")):
        need(len(tables[name].shape) == 1, f"{name}: shape")
        expect(tables[name], {dtype}, tables[name].shape, name)
    need(4 <= tables["layout"].shape[0] <= 2 + 2 * 256, "layout: length")
    fineness, groups, *numbers = tables["layout"].integers()
    need(-1024 <= fineness <= 2048 and groups >= 1 and 2 * groups == len(numbers), "layout: numbers")
    ranks, rests = numbers[:groups], numbers[groups:]
    need(all(0 <= rank <= 2**14 for rank in ranks), "layout: a number of coefficients")
    need(all(rest in (0, 1) for rest in rests), "layout: a rest")
    return fineness, ranks, [rest == 1 for rest in rests]


def decode_klt(
    tables: Tables, profile: Profile, first_layer: int, parts: tuple[Block, Block], positions: Sequence[int]
) -> Decoded:
    """The rows of a record.

    Args:
        parts: what keys and what values are.
        positions: of its rows.
    """
    fineness, ranks, rests = check_layout(tables)
    keys, values = parts
    groups = profile.groups_of(first_layer, keys.layers)
    need(len(groups) == len(ranks), "layout: groups")
    for group, rank in zip(groups, ranks, strict=True):
        sizes = (group.heads, group.key_size, group.value_size)
        need(rank <= group.rank and sizes == (keys.heads, keys.size, values.size), "rows do not fit the profile")
    words, apart = tables["words"].integers(), tables["apart"].integers()
    reader = Reader(profile, words, apart, list(positions) * keys.batch)
    reader.steps(fineness)
    rows: dict[Part, list[Array]] = {"keys": [], "values": []}
    before: Array | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        for group, rank, rest in zip(groups, ranks, rests, strict=True):
            before, weighted = reader.group(group, rank, rest, before)
            for part, tensors in reader.rows(group, weighted, keys.batch).items():
                rows[part] += tensors
    reader.stream.finish()
    need(not reader.apart, "apart: integers are left over")
    bits = {part: np.stack([narrow(t, keys.dtype) for t in tensors]) for part, tensors in rows.items()}
    return Decoded(bits, reader.integers)
