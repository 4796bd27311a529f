"""Uniform quantization in groups: the arithmetic that the scalar and the delta codec share.

A group of values is stored as integers 0 to levels - 1, a scale and, if asymmetric, an offset:

    symmetric, odd levels 2h + 1:   value = (code - h) * scale,  scale = max|x| / h
    symmetric, even levels 2h:      value = (code - h) * scale,  scale = m / -h, m the value of largest magnitude
                                    (signed, as in ggml's q4_0: one side has a level more, and m gets that side), or
                                    larger, so that the other side, which ends at h - 1, covers its values, too
    asymmetric:                     value = code * scale + offset,  offset = min, scale = (max - min) / (levels - 1)

Scales are rounded away from zero and offsets down, so that the grid covers its group and

    |x - value| <= |scale| / 2    (and the rounding of the arithmetic and of the dtype that the cache has).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FINE = 1024  # more levels than this need scales of more than 11 bits of precision


@dataclass(frozen=True)
class Grid:
    """How a tensor (..., n) is cut into groups along its last axis and quantized.

    Attributes:
        levels: integers that a value can become, 2 to 65,536.
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
    """Codes (..., n), int32; scales and offsets (..., groups) in the dtype in which they are stored."""

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None


def quantize(
    values: torch.Tensor, grid: Grid, *, ggml: bool = False, scale_dtype: torch.dtype | None = None
) -> Quantized:
    """Quantize finite values of shape (..., n), float32 or float64.

    Args:
        scale_dtype: of a symmetric grid; by default the smallest that holds the scales precisely enough.
        ggml: symmetric grids only: divide by the exact scale and store the nearest one, which gives ggml's very
            numbers; the bound then grows by the rounding of the scale.
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
    scales = exact.to(torch.float16) if ggml else _raised(exact, scale_dtype or _scale_dtype(exact, grid.levels))
    divisors = exact if ggml else scales.to(values.dtype)
    codes = torch.where(divisors[..., None] == 0, 0.0, grouped / divisors[..., None])
    codes = codes.round_().add_(grid.middle).clamp_(0, grid.levels - 1).to(torch.int32)
    return Quantized(codes.flatten(-2)[..., : values.shape[-1]], scales, offsets)


def _even(low: torch.Tensor, high: torch.Tensor, middle: int, *, clipped: bool) -> torch.Tensor:
    """Scales of a grid with a level more on one side; `clipped` as in ggml, where the other side may be cut off."""
    import torch

    down = -low >= high
    larger, other = torch.where(down, -low, high), torch.where(down, high, -low)
    size = larger / middle
    if not clipped:
        size = torch.maximum(size, other / (middle - 0.5))
    return torch.where(down, size, -size)


def dequantize(found: Quantized, grid: Grid, dtype: torch.dtype) -> torch.Tensor:
    """Values (..., n) in `dtype`, float32 or float64."""
    length = found.codes.shape[-1]
    group = grid.group_of(length)
    values = (found.codes - grid.middle).to(dtype) * _spread(found.scales.to(dtype), group, length)
    if found.offsets is not None:
        values += _spread(found.offsets.to(dtype), group, length)
    return values


def _spread(of_groups: torch.Tensor, group: int, length: int) -> torch.Tensor:
    return of_groups.repeat_interleave(group, -1)[..., :length]


def _grouped(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(..., groups, group); a last group that is not full repeats its last value, which changes no minimum."""
    import torch

    group = grid.group_of(values.shape[-1])
    missing = -values.shape[-1] % group
    if missing:
        values = torch.cat([values, values[..., -1:].expand(*values.shape[:-1], missing)], -1)
    return values.reshape(*values.shape[:-1], -1, group)


def _scale_dtype(exact: torch.Tensor, levels: int) -> torch.dtype:
    import torch

    largest = exact.abs().max()
    half = torch.finfo(torch.float16)
    if levels <= FINE and (largest == 0 or half.smallest_normal <= largest <= half.max / 2):
        return torch.float16
    return torch.float32 if largest <= torch.finfo(torch.float32).max / 2 else torch.float64


def _raised(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scales in the dtype in which they are stored, rounded away from zero."""
    import torch

    nearest = exact.to(dtype)
    if dtype == exact.dtype:
        return nearest
    # a float's bits grow with its magnitude: one more is the next one away from zero
    return torch.where(nearest.to(exact.dtype).abs() < exact.abs(), _stepped(nearest, 1), nearest)


def _lowered(exact: torch.Tensor, levels: int) -> torch.Tensor:
    """Offsets in the dtype in which they are stored, rounded down."""
    import torch

    largest = exact.abs().max()
    if levels <= FINE and largest <= torch.finfo(torch.float16).max / 2:
        dtype = torch.float16
    else:
        dtype = torch.float32 if largest <= torch.finfo(torch.float32).max / 2 else torch.float64
    nearest = exact.to(dtype)
    if dtype == exact.dtype:
        return nearest
    least = _stepped(torch.full_like(nearest, -0.0), 1)
    below = torch.where(nearest > 0, _stepped(nearest, -1), torch.where(nearest < 0, _stepped(nearest, 1), least))
    return torch.where(nearest.to(exact.dtype) > exact, below, nearest)


def _stepped(values: torch.Tensor, by: int) -> torch.Tensor:
    import torch

    integers = values.view({torch.float16: torch.int16, torch.float32: torch.int32}[values.dtype])
    return (integers + by).view(values.dtype)
