"""Uniform quantization in groups: the arithmetic that codecs scalar and delta share.

A group of values is stored as integers 0 to levels - 1, a scale and, if asymmetric, an offset:

    symmetric, odd levels 2h + 1:   value = (code - h) * scale,  scale = max|x| / h
    symmetric, even levels 2h:      value = (code - h) * scale,  scale = m / -h or more
    asymmetric:                     value = code * scale + offset,  offset = min,
                                    scale = (max - min) / (levels - 1)

Of 2h levels one side of zero has h and the other h - 1.  m is the value of the largest magnitude,
with its sign, as in ggml's q4_0, so that it is on the larger side; the scale is enlarged if the
smaller side would not cover its values.

Scales are rounded away from zero and offsets down, so that the grid covers its group and

    |x - value| <= |scale| / 2    (plus the rounding of the arithmetic and of the cache's dtype).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SCALE_DTYPES = {2: "float16", 4: "float32", 8: "float64"}  # by the bytes of a scale in a payload
FINE = 1024  # more levels than this need scales of more than 11 bits of precision


@dataclass(frozen=True)
class Grid:
    """How a tensor (..., n) is cut into groups along its last axis and quantized.

    Attributes:
        levels: the number of codes, 2 to 65,536.
        group: values that share a scale; 0 takes the whole axis.
        symmetric: zero is a level and there is no offset.
    """

    levels: int
    group: int
    symmetric: bool

    @property
    def middle(self) -> int:
        """The code of zero."""
        return self.levels // 2 if self.symmetric else 0

    def group_of(self, length: int) -> int:
        return min(self.group or length, length)

    def groups(self, length: int) -> int:
        return -(-length // self.group_of(length))


@dataclass(frozen=True)
class Quantized:
    """A quantized tensor.

    Attributes:
        codes: (..., n), int32.
        scales: (..., groups), in the dtype in which they are stored.
        offsets: the same of an asymmetric grid, else None.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None


def quantize(
    values: torch.Tensor, grid: Grid, *, ggml: bool = False, scale_dtype: torch.dtype | None = None
) -> Quantized:
    """Quantize finite values of shape (..., n), float32 or float64.

    Args:
        ggml: divide by the exact scale and store the nearest one, which gives ggml's numbers (of
            symmetric grids only); the error bound then grows by the rounding of the scale.
        scale_dtype: the dtype of the scales; by default the smallest that is precise enough.
    """
    import torch

    grouped = _grouped(values, grid)
    low, high = grouped.amin(-1), grouped.amax(-1)
    offsets = None
    if not grid.symmetric:
        offsets = _lowered(low, grid.levels)
        exact = (high - offsets.to(values.dtype)) / (grid.levels - 1)
        grouped = grouped - offsets.to(values.dtype)[..., None]
    elif grid.levels % 2:
        exact = torch.maximum(-low, high) / grid.middle
    else:
        exact = _even(low, high, grid.middle, clipped=ggml)
    smallest = torch.finfo(torch.float16).smallest_normal
    stored = torch.float16 if ggml else scale_dtype or _dtype_of(exact, grid.levels, smallest)
    scales = exact.to(stored) if ggml else _raised(exact, stored)
    divisors = exact if ggml else scales.to(values.dtype)
    codes = torch.where(divisors[..., None] == 0, 0.0, grouped / divisors[..., None])
    codes = codes.round_().add_(grid.middle).clamp_(0, grid.levels - 1).to(torch.int32)
    return Quantized(codes.flatten(-2)[..., : values.shape[-1]], scales, offsets)


def _even(low: torch.Tensor, high: torch.Tensor, middle: int, *, clipped: bool) -> torch.Tensor:
    """Return scales for an even number of levels; `clipped`, the smaller side may clip."""
    import torch

    negative_larger = -low >= high
    larger, smaller = torch.where(negative_larger, -low, high), torch.where(negative_larger, high, -low)
    size = larger / middle
    if not clipped:
        size = torch.maximum(size, smaller / (middle - 0.5))
    return torch.where(negative_larger, size, -size)


def dequantize(quantized: Quantized, grid: Grid, dtype: torch.dtype) -> torch.Tensor:
    """Return the values (..., n) of codes in `dtype`, float32 or float64."""
    length = quantized.codes.shape[-1]
    group = grid.group_of(length)
    values = (quantized.codes - grid.middle).to(dtype) * _spread(quantized.scales.to(dtype), group, length)
    if quantized.offsets is not None:
        values += _spread(quantized.offsets.to(dtype), group, length)
    return values


def _spread(of_groups: torch.Tensor, group: int, length: int) -> torch.Tensor:
    return of_groups.repeat_interleave(group, -1)[..., :length]


def _grouped(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Cut values into (..., groups, group), the last group filled with its last value."""
    import torch

    group = grid.group_of(values.shape[-1])
    missing = -values.shape[-1] % group
    if missing:
        values = torch.cat([values, values[..., -1:].expand(*values.shape[:-1], missing)], -1)
    return values.reshape(*values.shape[:-1], -1, group)


def _dtype_of(exact: torch.Tensor, levels: int, smallest: float = 0.0) -> torch.dtype:
    """Choose the smallest dtype that is precise enough for these numbers.

    Args:
        smallest: float16 is not used if the largest number is below this and not 0.
    """
    import torch

    largest = exact.abs().max()
    if levels <= FINE and (largest == 0 or smallest <= largest <= torch.finfo(torch.float16).max / 2):
        return torch.float16
    return torch.float32 if largest <= torch.finfo(torch.float32).max / 2 else torch.float64


def _raised(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round scales away from zero to the dtype in which they are stored."""
    import torch

    nearest = exact.to(dtype)
    if dtype == exact.dtype:
        return nearest
    # the bits of a float, read as an integer, grow with its magnitude
    return torch.where(nearest.to(exact.dtype).abs() < exact.abs(), _stepped(nearest, 1), nearest)


def _lowered(exact: torch.Tensor, levels: int) -> torch.Tensor:
    """Round offsets down to the dtype in which they are stored."""
    import torch

    dtype = _dtype_of(exact, levels)
    nearest = exact.to(dtype)
    if dtype == exact.dtype:
        return nearest
    least = _stepped(torch.full_like(nearest, -0.0), 1)
    below = torch.where(nearest > 0, _stepped(nearest, -1), torch.where(nearest < 0, _stepped(nearest, 1), least))
    return torch.where(nearest.to(exact.dtype) > exact, below, nearest)


def _stepped(values: torch.Tensor, steps: int) -> torch.Tensor:
    import torch

    integers = values.view({torch.float16: torch.int16, torch.float32: torch.int32}[values.dtype])
    return (integers + steps).view(values.dtype)
