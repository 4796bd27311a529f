"""The lower half of the second reader: how it refuses, and what the tensors of a ROWS or STATES record stand for.

As `second_reader`, written from docs/format.md alone. Values of the cache are kept as the bits that they are stored
as, unsigned integers of the dtype's width, so that equal means equal to the last bit. Arithmetic is numpy's, one
operation of the text at a time.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NoReturn

import numpy as np

ITEM_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
TENSOR_TYPES = {  # all that payloads and profiles use
    "U8": ("B", 1),
    "U16": ("H", 2),
    "I16": ("h", 2),
    "F16": ("e", 2),
    "I32": ("i", 4),
    "U32": ("I", 4),
    "F32": ("f", 4),
    "I64": ("q", 8),
}
FLOATS = {2: "float16", 4: "float32", 8: "float64"}  # by bytes of an item
EXACT_KINDS = {0: None, 1: "float16", 2: "bfloat16", 3: "float32", 4: "float64"}
KNOWN_CODECS = range(1, 7)
CHAIN = 64  # records that are followed from one to the next

Part = Literal["keys", "values", "indexer"]
Array = np.ndarray[Any, np.dtype[Any]]
Fetch = Callable[[list[int]], Array]  # the decoded rows of these numbers: bits, [layers, batch, heads, numbers, size]


class Refused(Exception):
    """The file is refused; the message is one line and begins with "corrupt:", "unsupported:" or "budget:"."""


def corrupt(reason: str) -> NoReturn:
    raise Refused(f"corrupt: {reason}")


def need(condition: bool, reason: str) -> None:
    if not condition:
        corrupt(reason)


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: list[int]
    data: memoryview

    def integers(self) -> array[int]:
        code, size = TENSOR_TYPES[self.dtype]
        values = array(code)
        assert values.itemsize == size
        values.frombytes(self.data)
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def octets(self) -> Array:
        return np.frombuffer(self.data, dtype=np.uint8).reshape(self.shape)

    def values(self) -> Array:
        """Numbers of any dtype."""
        return np.frombuffer(self.data, dtype=f"<{TENSOR_TYPES[self.dtype][0]}").reshape(self.shape)


Tables = dict[str, Tensor]


def expect(tensor: Tensor, dtypes: set[str], shape: list[int], what: str) -> Tensor:
    need(tensor.dtype in dtypes, f"{what}: dtype")
    need(tensor.shape == shape, f"{what}: shape")
    return tensor


def exactly(tables: Tables, names: set[str]) -> None:
    need(tables.keys() == names, f"table: tensors {sorted(tables)} instead of {sorted(names)}")


@dataclass(frozen=True)
class Block:
    """What MODEL and the record header say of the rows of a ROWS record, or of the states of a STATES record."""

    dtype: str
    part: Part
    layers: int
    batch: int
    heads: int
    size: int  # of a head
    first: int
    rows: int

    @property
    def shape(self) -> list[int]:
        return [self.layers, self.batch, self.heads, self.rows, self.size]

    @property
    def bytes(self) -> int:
        return ITEM_SIZES[self.dtype] * math.prod(self.shape)


def decode(codec: int, tables: Tables, block: Block, fetch: Fetch) -> Array:
    """The values of a record as bits, [layers, batch, heads, rows, size]."""
    if codec == 1:
        return decode_lossless(tables, block)
    if codec == 2:
        return decode_scalar(tables, block)
    if codec in (3, 4):
        return decode_codebook(codec, tables, block)
    return decode_delta(tables, block, fetch)


# Numbers: the dtypes of a cache


def working(dtype: str) -> type[np.floating[Any]]:
    """In which arithmetic is done."""
    return np.float64 if dtype == "float64" else np.float32


@cache
def float8_grid(dtype: str) -> Array:
    """The finite numbers of an 8-bit dtype that are not negative, ascending: entry c is what byte c stands for."""
    exponent_bits, bias, top = (4, 7, 0x7E) if dtype == "float8_e4m3fn" else (5, 15, 0x7B)
    mantissa_bits = 7 - exponent_bits
    values = []
    for byte in range(top + 1):
        exponent, mantissa = byte >> mantissa_bits, byte & (1 << mantissa_bits) - 1
        fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
        values.append(fraction * 2.0 ** (max(exponent, 1) - bias))
    return np.array(values, dtype=np.float32)


def widen(bits: Array, dtype: str, target: type[np.floating[Any]]) -> Array:
    """The numbers that bits stand for."""
    if dtype == "bfloat16":
        values = (bits.astype(np.uint32) << 16).view(np.float32)
    elif dtype in FLOATS.values():
        values = bits.view(np.dtype(dtype))
    else:
        grid = float8_grid(dtype)
        beyond = [np.inf if dtype == "float8_e5m2" and at == 0x7C else np.nan for at in range(len(grid), 128)]
        positive = np.concatenate([grid, np.array(beyond, dtype=np.float32)])
        values = np.concatenate([positive, -positive])[bits]
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(target)


def largest(dtype: str) -> float:
    if dtype == "bfloat16":
        return float(np.uint32(0x7F7F0000).view(np.float32))
    return float(np.finfo(dtype).max if dtype in FLOATS.values() else float8_grid(dtype)[-1])


def narrow(values: Array, dtype: str) -> Array:
    """Bits of the results of arithmetic: what is beyond the range is the largest number, ties go to the even one."""
    limit = values.dtype.type(largest(dtype))
    values = np.clip(values, -limit, limit)
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16  # no carry out of a finite number's bits: it was clipped
        return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    if dtype in FLOATS.values():
        return values.astype(dtype).view(f"u{ITEM_SIZES[dtype]}")
    grid = float8_grid(dtype).astype(np.float64)
    sizes = np.abs(np.nan_to_num(values.astype(np.float64)))
    above = np.searchsorted(grid, sizes).clip(0, len(grid) - 1)
    below = (above - 1).clip(0)
    up, down = grid[above] - sizes, sizes - grid[below]
    chosen = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return np.where(np.isnan(values), 0x7F, chosen | np.signbit(values) * 0x80).astype(np.uint8)


# Codec 1


def decode_lossless(tables: Tables, block: Block) -> Array:
    exactly(tables, {"planes"})
    layers, batch, heads, rows, size = block.shape
    if block.part != "values":
        return planes(tables["planes"], [layers, batch, heads, size, rows], block.dtype, "planes").swapaxes(3, 4)
    return planes(tables["planes"], [layers, batch, rows, heads, size], block.dtype, "planes").swapaxes(2, 3)


# Common to codecs 2 to 5


def planes(tensor: Tensor, shape: list[int], dtype: str, what: str) -> Array:
    """The bits of a tensor that is stored as byte planes."""
    item = ITEM_SIZES[dtype]
    octets = expect(tensor, {"U8"}, [item, *shape], what).octets()
    return np.ascontiguousarray(np.moveaxis(octets, 0, -1)).view(f"<u{item}")[..., 0]


def layout(tables: Tables, *ranges: Sequence[int]) -> list[int]:
    """The integers of `layout`, each of which is in its range."""
    need("layout" in tables, "no tensor layout")
    numbers = expect(tables["layout"], {"I32"}, [len(ranges)], "layout").integers()
    for at, (number, allowed) in enumerate(zip(numbers, ranges, strict=True)):
        need(number in allowed, f"layout: {number} at {at}")
    return list(numbers)


def unpack(tensor: Tensor, shape: list[int], levels: int) -> Array:
    """Packed codes, as integers of this shape."""
    per_byte = 0
    while levels ** (per_byte + 1) <= 256:
        per_byte += 1
    if not per_byte:
        return planes(tensor, shape, "float16", "codes").astype(np.int64)  # of 16 bits, as float16 is
    *outer, last = shape
    left = expect(tensor, {"U8"}, [*outer, -(-last // per_byte)], "codes").octets().astype(np.int64)
    digits = []
    for _ in range(per_byte - 1):
        digits.append(left % levels)
        left = left // levels
    return np.stack([*digits, left], -1).reshape(*outer, -1)[..., :last]


def group_size(count: int, group: int) -> int:
    return min(group, count) if group else count


def spread(tensor: Tensor, shape: list[int], group: int, item: int, dtype: str, what: str) -> Array:
    """A number for each group, repeated for each of its values."""
    *outer, last = shape
    size = group_size(last, group)
    bits = planes(tensor, [*outer, -(-last // size)], FLOATS[item], what)
    return np.repeat(widen(bits, FLOATS[item], working(dtype)), size, -1)[..., :last]


def dequantize(tables: Tables, shape: list[int], levels: int, group: int, items: tuple[int, int], dtype: str) -> Array:
    """Values on uniform grids; `items` are the bytes of a scale and of an offset, 0 where the grid is symmetric."""
    codes = unpack(tables["codes"], shape, levels)
    scales = spread(tables["scales"], shape, group, items[0], dtype, "scales")
    with np.errstate(all="ignore"):
        if not items[1]:
            return (codes - levels // 2).astype(scales.dtype) * scales
        offsets = spread(tables["offsets"], shape, group, items[1], dtype, "offsets")
        return codes.astype(scales.dtype) * scales + offsets


def marks(tensor: Tensor, count: int, what: str) -> Array:
    """A boolean for each of `count` bits."""
    octets = expect(tensor, {"U8"}, [-(-count // 8)], what).octets()
    bits = np.unpackbits(octets, bitorder="little").astype(bool)
    need(not bits[count:].any(), f"{what}: bits behind the last")
    return bits[:count]


# Codec 2: scalar


def decode_scalar(tables: Tables, block: Block) -> Array:
    flag = range(2)
    levels, group, symmetric, axis, rotated, scale_item, offset_item = layout(
        tables, range(2, 65_537), range(2**20 + 1), flag, flag, flag, (2, 4, 8), (0, 2, 4, 8)
    )
    need((offset_item == 0) == (symmetric == 1), "layout: bytes of an offset")
    exactly(tables, {"layout", "codes", "scales"} | (set() if symmetric else {"offsets"}))
    layers, batch, heads, rows, size = block.shape
    shape = [layers, batch, heads, size, rows] if axis else block.shape
    values = dequantize(tables, shape, levels, group, (scale_item, offset_item), block.dtype)
    if axis:
        values = values.swapaxes(3, 4)
    return narrow(rotate(values) if rotated else values, block.dtype)


def rotate(values: Array) -> Array:
    """Each run of d channels times the Walsh-Hadamard matrix over the root of d.

    A matrix of Sylvester's order is the Kronecker product of smaller ones, so that of a long run, as heads of states
    have, no large one is made.
    """
    size = values.shape[-1]
    length, inner = size & -size, 1
    turned = values
    while inner < length:
        step = min(length // inner, 1024)
        matrix = np.ones((1, 1))
        while len(matrix) < step:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        matrix = (matrix / math.sqrt(step)).astype(values.dtype)
        with np.errstate(all="ignore"):
            rows = turned.reshape(-1, step, inner).swapaxes(1, 2).reshape(-1, step) @ matrix
        turned = rows.reshape(-1, inner, step).swapaxes(1, 2)
        inner *= step
    return turned.reshape(values.shape)


# Codecs 3 and 4: vq and pq


def decode_codebook(codec: int, tables: Tables, block: Block) -> Array:
    width, subs, centroids, books, by_channel, kind = layout(
        tables, range(1, 257), range(1, 257 if codec == 4 else 2), range(2, 257), (1, block.layers), range(2), range(5)
    )
    need(width % subs == 0, "layout: sub-vectors do not divide the block")
    names = {"layout", "codes", "codebooks", "means", "scales"}
    exactly(tables, names | ({"exact_blocks", "exact"} if kind else set()))
    layers, batch, heads, rows, size = block.shape
    count = -(-size // width)
    codes = expect(tables["codes"], {"U8"}, [layers, batch, heads, rows, count, subs], "codes").octets()
    need(not (codes >= centroids).any(), "codes: no such centroid")
    shape = [books, subs, centroids, width // subs]
    codebooks = widen(planes(tables["codebooks"], shape, "float16", "codebooks"), "float16", working(block.dtype))
    norm_dtype = "float64" if block.dtype == "float64" else "bfloat16"
    norm_shape = [layers, batch, heads, 1, size if by_channel else 1]
    means, scales = (
        widen(planes(tables[name], norm_shape, norm_dtype, name), norm_dtype, working(block.dtype))
        for name in ("means", "scales")
    )
    of_layer = np.minimum(np.arange(layers), books - 1).reshape(-1, 1, 1, 1, 1, 1)
    found = codebooks[of_layer, np.arange(subs), codes]  # ..., blocks, sub-vectors, width / sub-vectors
    with np.errstate(all="ignore"):
        bits = narrow(found.reshape(layers, batch, heads, rows, -1)[..., :size] * scales + means, block.dtype)
    exact_dtype = EXACT_KINDS[kind]
    if exact_dtype is None:
        return bits
    marked = marks(tables["exact_blocks"], layers * batch * heads * rows * count, "exact_blocks")
    exact = planes(tables["exact"], [int(marked.sum()), width], exact_dtype, "exact")
    if exact_dtype != block.dtype:
        exact = narrow(widen(exact, exact_dtype, working(block.dtype)), block.dtype)
    padded = np.zeros((layers, batch, heads, rows, count * width), bits.dtype)
    padded[..., :size] = bits
    blocks = padded.reshape(-1, width)
    blocks[marked] = exact
    return blocks.reshape(padded.shape)[..., :size]


# Codec 5: delta


def decode_delta(tables: Tables, block: Block, fetch: Fetch) -> Array:
    levels, group, scale_item = layout(tables, range(2, 257), range(2**20 + 1), (2, 4, 8))
    exactly(tables, {"layout", "bases", "codes", "scales", "exact_rows", "exact"})
    layers, batch, heads, rows, size = block.shape
    residuals = dequantize(tables, block.shape, levels, group, (scale_item, 0), block.dtype)
    marked = marks(tables["exact_rows"], layers * rows, "exact_rows").reshape(layers, rows)
    exact = planes(tables["exact"], [int(marked.sum()), batch, heads, size], block.dtype, "exact")
    bases = list(expect(tables["bases"], {"I64"}, [rows], "bases").integers())
    for row, base in enumerate(bases, block.first):
        need(-1 <= base < row, "bases: not an earlier row")
    elsewhere = sorted({base for base in bases if 0 <= base < block.first})
    fetched = dict(zip(elsewhere, np.moveaxis(fetch(elsewhere), 3, 0), strict=True)) if elsewhere else {}
    result = np.zeros(block.shape, exact.dtype)
    result.swapaxes(2, 3).swapaxes(1, 2)[marked] = exact  # [layers, rows, batch, heads, size] of the same memory
    for at, base in enumerate(bases):
        if base >= block.first:
            bits = result[:, :, :, base - block.first]
        else:
            bits = fetched[base] if base >= 0 else np.zeros_like(result[:, :, :, at])
        with np.errstate(all="ignore"):
            values = widen(bits, block.dtype, working(block.dtype)) + residuals[:, :, :, at]
        coded = ~marked[:, at]
        result[coded, :, :, at] = narrow(values, block.dtype)[coded]
    return result
