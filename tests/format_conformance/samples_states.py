"""Small valid files, put together by hand: states, cross-attention, indexer keys, padded batches.

Nothing of `formats` is used, so that these files say what the text says, whatever the product writes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from tests.format_conformance.craft import HEADER, LABELS, MODEL, ROWS, STATES, VIEWS, Craft, Piece, spell

ITEMS = {"float32": 4, "float16": 2, "bfloat16": 2}
PART_NUMBERS = {"keys": 1, "values": 2, "indexer": 3}

Array = np.ndarray[Any, np.dtype[Any]]
Run = dict[str, Any]  # as in MODEL
Spans = Sequence[tuple[int, int]]  # first row, number of rows


class Moment(NamedTuple):
    """A snapshot: the rows of its history, and of groups of layers (first layer, layers, rows)."""

    history: Spans
    groups: Sequence[tuple[int, int, Spans]]
    next_token: int = -1


def conv(*shape: int) -> Run:
    return {"name": "conv", "shape": list(shape), "dtype": "bfloat16"}


def recurrent(*shape: int) -> Run:
    return {"name": "recurrent", "shape": list(shape), "dtype": "float32"}


def full(count: int, heads: int = 2, key_size: int = 4, value_size: int = 3, **more: Any) -> Run:
    return {"count": count, "kind": "full", "heads": heads, "key_size": key_size, "value_size": value_size} | more


def none(count: int, *states: Run) -> Run:
    return {"count": count, "kind": "none"} | ({"states": list(states)} if states else {})


def planes(bits: Array) -> tuple[str, list[int], bytes]:
    """U8 `[bytes of a value, *shape]`."""
    octets = bits.astype(bits.dtype.newbyteorder("<"))[..., None].view(np.uint8)
    return "U8", [bits.itemsize, *bits.shape], np.moveaxis(octets, -1, 0).tobytes()


def exact_bits(values: Array, dtype: str) -> Array:
    """The bits of numbers that the dtype holds as they are."""
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    if dtype == "bfloat16":
        assert not (bits & 0xFFFF).any()
        return (bits >> 16).astype(np.uint16)
    return bits if dtype == "float32" else single.astype(np.float16).view(np.uint16)


def lossless(part: str, bits: Array) -> tuple[int, dict[str, Any]]:
    """Codec and tensors; bits `[layers, batch, heads, rows, size]`."""
    return 1, {"planes": planes(bits.swapaxes(2, 3) if part == "values" else bits.swapaxes(3, 4))}


@dataclass
class Grid:
    """Codec 2 with numbers that every float of the cache holds as they are: codes times a power of two."""

    levels: int
    axis: int
    group: int

    def values(self, shape: Sequence[int], random: np.random.Generator) -> tuple[Array, dict[str, Any]]:
        """Values `[layers, batch, heads, rows, size]` and the tensors that stand for them; symmetric."""
        layers, batch, heads, rows, size = shape
        turned = [layers, batch, heads, size, rows] if self.axis else list(shape)
        group = min(self.group or turned[-1], turned[-1])
        codes = random.integers(0, self.levels, turned)
        scales = 2.0 ** random.integers(-4, 5, [*turned[:-1], -(-turned[-1] // group)])
        found = (codes - self.levels // 2) * np.repeat(scales, group, -1)[..., : turned[-1]]
        layout = struct.pack("<7i", self.levels, self.group, 1, self.axis, 0, 2, 0)
        tensors = {
            "layout": ("I32", [7], layout),
            "codes": self.packed(codes),
            "scales": planes(exact_bits(scales, "")),
        }
        return found.swapaxes(3, 4) if self.axis else found, tensors

    def packed(self, codes: Array) -> tuple[str, list[int], bytes]:
        together = max(p for p in range(1, 9) if self.levels**p <= 256)
        *outer, last = codes.shape
        padded = np.zeros([*outer, -(-last // together), together], np.int64)
        padded.reshape(*outer, -1)[..., :last] = codes
        octets = (padded * self.levels ** np.arange(together)).sum(-1)
        return "U8", list(octets.shape), octets.astype(np.uint8).tobytes()


@dataclass
class Sample:
    """A file in the making, and what it holds: little-endian values by snapshot and layer."""

    dtype: str
    runs: list[Run]
    moments: list[Moment]
    token_ids: Array  # [rows], or [rows, batch]
    batch: int = 1
    padding: list[int] | None = None
    offsets: list[int] | None = None
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(13))
    pieces: list[Piece] = field(default_factory=list)
    labels_cut: int | None = None  # two LABELS records, the second one from this row

    def __post_init__(self) -> None:
        self.layers = [run for run in self.runs for _ in range(run["count"])]
        self.rows: dict[tuple[int, str], dict[int, Array]] = {}  # layer and part: [batch, heads, size] by row number
        self.of_states: dict[tuple[int, int], dict[int, Array]] = {}  # layer and state: [batch, ...] by snapshot

    def add_rows(self, first_layer: int, layers: int, first: int, count: int, indexer: Grid | None = None) -> None:
        """Rows of alike layers, lossless, with random bits; indexer keys in codec 2 where a grid is given."""
        run = self.layers[first_layer]
        sizes = {"keys": (run["heads"], run["key_size"]), "values": (run["heads"], run["value_size"])}
        if "index_size" in run:
            sizes["indexer"] = (1, run["index_size"])
        for part, (heads, size) in sizes.items():
            shape = [layers, self.batch, heads, count, size]
            if part == "indexer" and indexer:
                values, tensors = indexer.values(shape, self.random)
                codec, bits = 2, exact_bits(values, self.dtype)
            else:
                bits = self.random.integers(0, 256 ** ITEMS[self.dtype], shape).astype(f"u{ITEMS[self.dtype]}")
                codec, tensors = lossless(part, bits)
            piece = Piece(ROWS, b"", codec, PART_NUMBERS[part], first_layer, layers, first, count)
            piece.set_tensors(tensors)
            self.pieces.append(piece)
            for layer in range(layers):
                stored = self.rows.setdefault((first_layer + layer, part), {})
                stored.update({first + row: bits[layer, :, :, row] for row in range(count)})

    def add_states(
        self, first_layer: int, layers: int, part: int, first: int, count: int, grid: Grid | None = None
    ) -> None:
        """One state of alike layers at some snapshots, in codec 1, or in codec 2 where a grid is given."""
        spec = self.layers[first_layer]["states"][part]
        shape, item = spec["shape"], ITEMS[spec["dtype"]]
        heads = shape[0] if len(shape) > 2 else 1
        whole = [layers, self.batch, heads, count, math.prod(shape) // heads]
        if grid:
            values, tensors = grid.values(whole, self.random)
            codec, bits = 2, exact_bits(values, spec["dtype"])
        else:
            bits = self.random.integers(0, 256**item, whole).astype(f"u{item}")
            codec, tensors = lossless("values", bits)
        piece = Piece(STATES, b"", codec, part, first_layer, layers, first, count)
        piece.set_tensors(tensors)
        self.pieces.append(piece)
        for layer in range(layers):
            stored = self.of_states.setdefault((first_layer + layer, part), {})
            stored.update({first + at: bits[layer, :, :, at] for at in range(count)})

    def tensors(self, number: int, part: str) -> list[bytes]:
        """The keys, values or indexer keys of each layer: `[batch, heads, rows, size]`, empty where there are none."""
        found = [b""] * len(self.layers)
        for first, layers, spans in self.moments[number].groups:
            for layer in range(first, first + layers):
                stored = self.rows.get((layer, part), {})
                rows = [stored[row] for begin, count in spans for row in range(begin, begin + count) if stored]
                found[layer] = np.stack(rows, 2).tobytes() if rows else b""
        return found

    def states(self, number: int) -> list[list[bytes]]:
        """All states of each layer: `[batch, *shape]`."""
        return [
            [self.of_states[layer, part][number].tobytes() for part in range(len(run.get("states", ())))]
            for layer, run in enumerate(self.layers)
        ]

    def history(self, number: int, sequence: int = 0) -> list[int]:
        rows = [row for begin, count in self.moments[number].history for row in range(begin, begin + count)]
        ids = self.token_ids if self.token_ids.ndim == 1 else self.token_ids[:, sequence]
        return [int(ids[row]) for row in rows]

    def raw_bytes(self, number: int) -> int:
        of_rows = sum(len(octets) for part in PART_NUMBERS for octets in self.tensors(number, part))
        return of_rows + sum(len(octets) for states in self.states(number) for octets in states)

    def labels(self) -> list[Piece]:
        total = len(self.token_ids)
        cuts = [0, *([] if self.labels_cut is None else [self.labels_cut]), total]
        pieces = []
        for begin, stop in pairwise(cuts):
            piece = Piece(LABELS, b"", first=begin, count=stop - begin)
            ids, offsets = self.token_ids[begin:stop], np.array(self.offsets or [0] * total)[begin:stop]
            tensors = {
                "position_offsets": ("I64", [stop - begin], offsets.astype("<i8").tobytes()),
                "token_ids": ("U16", list(ids.shape), ids.astype("<u2").tobytes()),
            }
            piece.set_tensors(tensors)
            pieces.append(piece)
        return pieces

    def views(self) -> Piece:
        lines = []
        for number, moment in enumerate(self.moments):
            for first, layers, spans in [(-1, 1, moment.history), *moment.groups]:
                lines += [(number, first, layers, *span) for span in spans]
        table, tokens = np.array(lines, "<i8"), np.array([moment.next_token for moment in self.moments], "<i8")
        if self.token_ids.ndim == 2:
            tokens = np.repeat(tokens[:, None], self.batch, 1)
        piece = Piece(VIEWS, b"", count=len(self.moments))
        piece.set_tensors(
            {
                "spans": ("I64", [len(lines), 5], table.tobytes()),
                "next_tokens": ("I64", list(tokens.shape), tokens.tobytes()),
            }
        )
        return piece

    def craft(self) -> Craft:
        model = {"schema": "tsc.model/1", "dtype": self.dtype, "batch": self.batch, "layers": self.runs}
        model |= {"fingerprint": {"weights": "test"}} | ({"padding": self.padding} if self.padding else {})
        raw = [self.raw_bytes(number) for number in range(len(self.moments))]
        header = {"schema": "tsc.header/1", "tier": "", "created_by": "test", "raw_bytes_trace": sum(raw)}
        header |= {"raw_bytes_final": raw[-1], "ratio_trace": 1.0, "ratio_final": 1.0, "capture": {}, "quality": []}
        header |= {"codec": "", "parameters": {}}
        records = [Piece(MODEL, spell(model)), *self.pieces, *self.labels(), self.views(), Piece(HEADER, spell(header))]
        return Craft(bytes(range(16)), records)


def counted(rows: int, *batch: int) -> Array:
    """Token ids that no two rows share, nor two sequences."""
    return 3 * np.arange(rows * math.prod(batch)).reshape(rows, *batch) + 1


def pure() -> Sample:
    """No layer has rows. 0 MODEL; 1 to 3 STATES of conv, 4 to 7 of recurrent; 8 LABELS (6 rows); 9 VIEWS; 10 HEADER."""
    moments = [Moment([(0, rows)], [], 40 + rows) for rows in (4, 5, 6)]
    sample = Sample("bfloat16", [none(3, conv(4, 3), recurrent(2, 4, 3))], moments, counted(6))
    for record in ((0, 2, 0, 0, 3), (2, 1, 0, 0, 1), (2, 1, 0, 1, 2)):
        sample.add_states(*record)
    for record in ((0, 3, 1, 0, 1), (0, 1, 1, 1, 2), (1, 2, 1, 1, 1), (1, 2, 1, 2, 1)):
        sample.add_states(*record)
    return sample


def hybrid() -> Sample:
    """Layers: 0, 1 none with states; 2 full; 3 dummy; 4 none with a state; 5 full with a state; 6 sliding.

    0 MODEL; 1, 2 ROWS of layer 2; 3, 4 of layer 5; 5, 6 of layer 6 (rows 1 to 5); 7 to 10 STATES of layers 0 and 1
    (conv, recurrent), 4, 5; 11 LABELS (6 rows); 12 VIEWS; 13 HEADER.
    """
    window = {"kind": "sliding", "window": 4}
    runs = [
        none(2, conv(4, 3), recurrent(2, 4, 3)),
        full(1),
        none(1),
        none(1, recurrent(5)),
        full(1, heads=1, states=[conv(2, 1, 2, 1, 1, 2)]),
        full(1) | window,
    ]
    moments = [
        Moment([(0, rows)], [(2, 1, [(0, rows)]), (5, 1, [(0, rows)]), (6, 1, [(rows - 3, 3)])]) for rows in (4, 5, 6)
    ]
    sample = Sample("bfloat16", runs, moments, counted(6))
    sample.add_rows(2, 1, 0, 6)
    sample.add_rows(5, 1, 0, 6)
    sample.add_rows(6, 1, 1, 5)
    sample.add_states(0, 2, 0, 0, 3, Grid(16, 1, 0))
    sample.add_states(0, 2, 1, 0, 3, Grid(256, 0, 4))
    sample.add_states(4, 1, 0, 0, 3, Grid(5, 0, 3))
    sample.add_states(5, 1, 0, 0, 3, Grid(200, 1, 2))
    return sample


def encoder_decoder() -> Sample:
    """Layers 0, 1 full, 2, 3 cross with other rows: 0 to 4 of the encoder's tokens, then 5 to 8 of the decoder's.

    0 MODEL; 1, 2 ROWS of layers 0 and 1; 3, 4 of layers 2 and 3; 5 LABELS; 6 VIEWS; 7 HEADER.
    """
    moments = [Moment([(5, rows)], [(0, 2, [(5, rows)]), (2, 2, [(0, 5)])], 7) for rows in (2, 4)]
    runs = [full(2), full(2) | {"kind": "cross"}]
    sample = Sample("float32", runs, moments, counted(9), offsets=[0] * 5 + [-5] * 4)
    sample.add_rows(0, 2, 5, 4)
    sample.add_rows(2, 2, 0, 5)
    return sample


def indexed() -> Sample:
    """Layers 0, 1 full and 3 sliding with indexer keys, 2 full without.

    0 MODEL; 1 to 3 ROWS of layers 0 and 1 (keys, values, indexer keys); 4, 5 of layer 2; 6 to 8 of layer 3; 9 LABELS
    (6 rows); 10 VIEWS; 11 HEADER.
    """
    sliding = full(1, heads=1, index_size=6) | {"kind": "sliding", "window": 6}
    moments = [Moment([(0, rows)], [(0, 3, [(0, rows)]), (3, 1, [(max(0, rows - 5), 5)])]) for rows in (5, 6)]
    sample = Sample("float16", [full(2, heads=1, index_size=5), full(1), sliding], moments, counted(6))
    sample.add_rows(0, 2, 0, 6)
    sample.add_rows(2, 1, 0, 6)
    sample.add_rows(3, 1, 0, 6, Grid(16, 0, 4))
    return sample


def padded() -> Sample:
    """A batch of 3 sequences with padding and tokens of their own.

    0 MODEL; 1, 2 ROWS of layers 0 and 1; 3 STATES of layer 2; 4, 5 LABELS (4 and 2 rows); 6 VIEWS; 7 HEADER.
    """
    moments = [Moment([(0, rows)], [(0, 2, [(0, rows)])]) for rows in (5, 6)]
    sample = Sample("bfloat16", [full(2), none(1, recurrent(2, 2))], moments, counted(6, 3), 3, [0, 2, 1], labels_cut=4)
    sample.add_rows(0, 2, 0, 6)
    sample.add_states(2, 1, 0, 0, 2)
    return sample


SAMPLES: dict[str, Callable[[], Sample]] = {
    "by hand, pure": pure,
    "by hand, hybrid": hybrid,
    "by hand, encoder and decoder": encoder_decoder,
    "by hand, indexed": indexed,
    "by hand, padded": padded,
}


@cache
def file_bytes(name: str) -> bytes:
    return SAMPLES[name]().craft().build()
