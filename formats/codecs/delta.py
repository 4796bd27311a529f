"""Codec delta: quantized residuals of a step's rows against the rows that the decoder has.

A row of a step is coded as the residual against an earlier row, its *base*, where that leaves less
energy to code; otherwise it is coded by itself, as rows are that a growing cache appends.  The loop
is closed: residuals are differences to the decoded base, so that errors do not add up along a
chain.  Every row of every layer is checked: if its relative error |x - x'| / |x| (over its heads)
exceeds `max_delta_error`, the row is stored exactly and is a keyframe for the rows that build on
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView, dtype_name, expect, to_torch
from formats.errors import CorruptError
from formats.limits import MAX_CHAIN
from formats.settings import Settings, require
from formats.trace.blocks import BlockShape

from .base import NO_BASE, NO_CONTEXT, Bases, BlockContext, Codec, Fetch, Prediction
from .packing import (
    LAYOUT,
    from_bits,
    from_planes,
    layout_of,
    marked_bits,
    pack,
    packed_shape,
    to_bits,
    to_cache_dtype,
    to_planes,
    unpack,
    working_dtype,
)
from .uniform_quantizer import SCALE_DTYPES, Grid, Quantized, dequantize, quantize

if TYPE_CHECKING:
    import torch

_AUTO = 2.0  # times the median error of a record's rows: max_delta_error where it is not set


@dataclass(frozen=True)
class DeltaSettings(Settings):
    """The settings of codec delta.

    Attributes:
        bits: bits of a residual, 2 to 8.
        group: channels of a head that share a scale; 0 takes the whole head.
        max_delta_error: the largest relative error |x - x'| / |x| of a row; 0 calibrates it on the
            rows of each record, to twice the median error that they have when coded by themselves.
        kf: the longest chain of residuals; the next row is coded by itself.
        prefer_append_for_growing: code the rows that a growing cache appends by themselves, as
            published; false predicts each from the row before it where that helps (docs/claims.md).
        keyframe_bits: bits of the first snapshot's rows, 2 to 16 (codec scalar); 0 keeps them
            exactly.
    """

    bits: int = 4
    group: int = 64
    max_delta_error: float = 0.0
    kf: int = 64
    prefer_append_for_growing: bool = True
    keyframe_bits: int = 0

    def __post_init__(self) -> None:
        require(2 <= self.bits <= 8, f"bits={self.bits} is not from 2 to 8")
        require(0 <= self.group <= 1 << 20, f"group={self.group} is not from 0 to 1048576")
        require(self.max_delta_error >= 0, f"max_delta_error={self.max_delta_error} is negative")
        require(1 <= self.kf <= MAX_CHAIN, f"kf={self.kf} is not from 1 to {MAX_CHAIN}")
        require(self.keyframe_bits == 0 or 2 <= self.keyframe_bits <= 16, "keyframe_bits is neither 0 nor 2 to 16")

    @property
    def grid(self) -> Grid:
        return Grid(1 << self.bits, self.group, symmetric=True)


class Delta(Codec):
    """Codec 5.  Its payload, for R rows:

    layout: levels, group, bytes of a scale
    bases: I64 (R), row numbers or -1
    codes: U8 (layers, batch, heads, R, head size), packed by `packing.pack`
    scales: U8 planes (bytes, layers, batch, heads, R, groups)
    exact_rows: U8, a bit for each (layer, row)
    exact: U8 planes (bytes, exact rows, batch, heads, head size)
    """

    id = 5
    name = "delta"
    Settings = DeltaSettings
    settings: DeltaSettings

    @property
    def prediction(self) -> Prediction:
        s = self.settings
        return Prediction(s.kf, s.prefer_append_for_growing, s.keyframe_bits)

    @property
    def exact_beyond(self) -> float:
        return self.settings.max_delta_error

    def encode(self, rows: Mapping[Part, torch.Tensor], context: BlockContext = NO_CONTEXT) -> dict[str, torch.Tensor]:
        import torch

        ((_, tensor),) = rows.items()
        dtype = dtype_name(tensor.dtype)
        values = tensor.to(working_dtype(dtype))
        grid = self.settings.grid
        scale_dtype = _scale_dtype(values)
        count = tensor.shape[3]
        bases = context.bases or Bases(0, [NO_BASE] * count, _no_rows)
        limit = self.settings.max_delta_error or _calibrated(values, grid, scale_dtype)
        base_rows = list(bases.numbers)
        decoded = torch.empty_like(values)
        exact = torch.zeros(tensor.shape[0], count, dtype=torch.bool, device=tensor.device)
        waves = []
        for start, stop in _waves(base_rows, bases.first_row):
            wave = values[..., start:stop, :]
            predicted = _predicted(decoded, base_rows[start:stop], bases.first_row, bases.fetch)
            helps = _energy(wave - predicted).sum(0) < _energy(wave).sum(0)
            for row, useful in enumerate(helps.tolist(), start):
                base_rows[row] = base_rows[row] if useful else NO_BASE
            predicted = torch.where(helps[:, None], predicted, torch.zeros_like(predicted))
            quantized = quantize(wave - predicted, grid, scale_dtype=scale_dtype)
            restored = to_cache_dtype(predicted + dequantize(quantized, grid, values.dtype), dtype).to(values.dtype)
            inexact = _energy(wave - restored) > limit**2 * _energy(wave)
            exact[:, start:stop] = inexact
            decoded[..., start:stop, :] = torch.where(inexact[:, None, None, :, None], wave, restored)
            codes = torch.where(inexact[:, None, None, :, None], grid.middle, quantized.codes)
            waves.append((codes, quantized.scales.masked_fill(inexact[:, None, None, :, None], 0)))
        return {
            LAYOUT: torch.tensor([grid.levels, grid.group, scale_dtype.itemsize], dtype=torch.int32),
            "bases": torch.tensor(base_rows, dtype=torch.int64),
            "codes": pack(torch.cat([codes for codes, _ in waves], 3), grid.levels).cpu(),
            "scales": to_planes(torch.cat([scales for _, scales in waves], 3)).cpu(),
            "exact_rows": to_bits(exact),
            "exact": to_planes(tensor.permute(0, 3, 1, 2, 4)[exact]).cpu(),
        }

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, where: str) -> None:
        levels, group, scale_bytes = layout_of(tensors, 3, where)
        if not 2 <= levels <= 256 or not 0 <= group <= 1 << 20 or scale_bytes not in SCALE_DTYPES:
            raise CorruptError(f"{where}: a delta layout that no writer makes")
        *lead, size = shape.tensor(part)
        layers, batch, heads, rows = lead
        exact = marked_bits(tensors, "exact_rows", layers * rows, where)
        expect(
            tensors,
            {
                LAYOUT: ("I32", (3,)),
                "bases": ("I64", (rows,)),
                "codes": ("U8", packed_shape((*lead, size), levels)),
                "scales": ("U8", (scale_bytes, *lead, Grid(levels, group, True).groups(size))),
                "exact_rows": ("U8", (None,)),
                "exact": ("U8", (shape.item_bytes, exact, batch, heads, size)),
            },
            where,
        )
        for row, base in enumerate(tensors["bases"].integers(), shape.first_row):
            if not NO_BASE <= base < row:
                raise CorruptError(f"{where}: row {row} is predicted from row {base}, which is not before it")

    def decode(
        self,
        tensors: Mapping[str, TensorView],
        part: Part,
        shape: BlockShape,
        device: str | torch.device,
        context: BlockContext = NO_CONTEXT,
    ) -> dict[Part, torch.Tensor]:
        import torch

        fetch = context.fetch or _no_rows
        levels, group, scale_bytes = tensors[LAYOUT].integers()
        base_rows = list(tensors["bases"].integers())
        packed = to_torch(tensors["codes"], device).view(tensors["codes"].shape)
        scales = from_planes(tensors["scales"], getattr(torch, SCALE_DTYPES[scale_bytes]), device)
        quantized = Quantized(unpack(packed, levels, shape.spec.head_size(part)), scales, None)
        work = working_dtype(shape.dtype)
        result = dequantize(quantized, Grid(levels, group, symmetric=True), work)
        marks = from_bits(to_torch(tensors["exact_rows"], device), (shape.layers, shape.rows))
        exact = torch.zeros_like(result, dtype=getattr(torch, shape.dtype))
        exact.permute(0, 3, 1, 2, 4)[marks] = from_planes(tensors["exact"], exact.dtype, device)
        for start, stop in _waves(base_rows, shape.first_row):
            predicted = _predicted(result, base_rows[start:stop], shape.first_row, fetch)
            wave = to_cache_dtype(predicted + result[..., start:stop, :], shape.dtype)
            wave_rows = torch.where(marks[:, None, None, start:stop, None], exact[..., start:stop, :], wave)
            result[..., start:stop, :] = wave_rows.to(work)
        return {part: result.to(exact.dtype)}

    def bases(self, tensors: Mapping[str, TensorView]) -> Sequence[int]:
        return tensors["bases"].integers()


def _waves(numbers: Sequence[int], first_row: int) -> Iterator[tuple[int, int]]:
    """Yield runs [start, stop) of rows that are not predicted from rows of the same run."""
    start = 0
    for row, base in enumerate(numbers):
        if base >= first_row + start:
            yield start, row
            start = row
    yield start, len(numbers)


def _predicted(decoded: torch.Tensor, numbers: Sequence[int], first_row: int, fetch: Fetch) -> torch.Tensor:
    """Return the decoded base of each row of a wave, zeros for a row without one.

    Shape: (layers, batch, heads, rows, head size).
    """
    result = decoded.new_zeros(*decoded.shape[:3], len(numbers), decoded.shape[4])
    inside = [(row, base - first_row) for row, base in enumerate(numbers) if base >= first_row]
    outside = [(row, base) for row, base in enumerate(numbers) if NO_BASE < base < first_row]
    if inside:
        result[..., [row for row, _ in inside], :] = decoded[..., [base for _, base in inside], :]
    if outside:
        result[..., [row for row, _ in outside], :] = fetch([base for _, base in outside]).to(result.dtype)
    return result


def _energy(rows: torch.Tensor) -> torch.Tensor:
    """Return the squared norms of rows, (layers, rows)."""
    return rows.square().sum((1, 2, 4))


def _calibrated(values: torch.Tensor, grid: Grid, scale_dtype: torch.dtype) -> float:
    """Return twice the median relative error of rows that are coded by themselves.

    A row with a much larger error becomes a keyframe.
    """
    alone = dequantize(quantize(values, grid, scale_dtype=scale_dtype), grid, values.dtype)
    relative = (_energy(values - alone) / _energy(values).clamp(min=1e-30)).sqrt()
    return _AUTO * float(relative.median())


def _scale_dtype(values: torch.Tensor) -> torch.dtype:
    """Choose a dtype for scales of residuals, which are at most twice as large as the values."""
    import torch

    largest = float(values.abs().max())
    if largest <= torch.finfo(torch.float16).max / 2:
        return torch.float16
    return torch.float32 if largest <= torch.finfo(torch.float32).max / 8 else torch.float64


def _no_rows(numbers: Sequence[int]) -> torch.Tensor:
    raise ValueError(f"no rows to predict from: {list(numbers)[:4]}")  # pragma: no cover - never called
