"""TSC's own codec: what a step changed, quantized against what the decoder has.

The rows of a step are coded as residuals against earlier rows (their *bases*) where that leaves less to code, or by
themselves where nothing predicts them (a cache that grows appends rows).  The loop is closed: a residual is taken to
the decoded base, so that errors do not pile up along a chain.  Every row of every layer is checked: if its relative
error |x - x'| / |x| (over its heads) exceeds `max_delta_error`, the row is stored exactly, and is a keyframe for what
builds on it.
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

from .base import ALONE, NO_BASE, Bases, Codec, Fetch, Prediction, Surroundings
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
from .uniform_quantizer import Grid, Quantized, dequantize, quantize

if TYPE_CHECKING:
    import torch

_SCALE_DTYPES = {2: "float16", 4: "float32", 8: "float64"}
_AUTO = 2.0  # max_delta_error is this many times the median error of the record's rows


@dataclass(frozen=True)
class DeltaSettings(Settings):
    """How steps are coded.

    Attributes:
        bits: of a residual, 2 to 8.
        group: channels of a head that share a scale; 0 takes the head.
        max_delta_error: largest relative error |x - x'| / |x| of a row; 0 calibrates it on the rows of each record,
            to twice the median error that they have by themselves.
        kf: longest chain of residuals; the next row of the chain stands by itself.
        prefer_append_for_growing: code the rows that a growing cache appends by themselves, as published; false
            predicts each from the row before it where that helps (keys: mostly; values: rarely; docs/claims.md).
        keyframe_bits: of the first snapshot's rows, 2 to 16 (codec scalar); 0 keeps them exactly.
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
    """Codec 5.  Payload, for R rows:

    layout: levels, group, bytes of a scale;  bases: I64 (R), row numbers or -1
    codes: U8 (layers, batch, heads, R, head size) as `packing.pack` puts them;  scales: U8 planes (bytes, layers,
    batch, heads, R, groups);  exact_rows: U8, a bit for each (layer, row);  exact: U8 planes (bytes, exact rows,
    batch, heads, head size)
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

    def encode(self, rows: Mapping[Part, torch.Tensor], around: Surroundings = ALONE) -> dict[str, torch.Tensor]:
        import torch

        ((_, tensor),) = rows.items()
        dtype = dtype_name(tensor.dtype)
        values = tensor.to(working_dtype(dtype))
        grid = self.settings.grid
        scale_dtype = _scale_dtype(values)
        count = tensor.shape[3]
        bases = around.bases or Bases(0, [NO_BASE] * count, _no_rows)
        limit = self.settings.max_delta_error or _calibrated(values, grid, scale_dtype)
        numbers = list(bases.numbers)
        decoded = torch.empty_like(values)
        exact = torch.zeros(tensor.shape[0], count, dtype=torch.bool, device=tensor.device)
        waves = []
        for start, stop in _waves(numbers, bases.first_row):
            wave = values[..., start:stop, :]
            predicted = _predicted(decoded, numbers[start:stop], bases.first_row, bases.fetch)
            helps = _energy(wave - predicted).sum(0) < _energy(wave).sum(0)
            for at, useful in enumerate(helps.tolist(), start):
                numbers[at] = numbers[at] if useful else NO_BASE
            predicted = torch.where(helps[:, None], predicted, torch.zeros_like(predicted))
            found = quantize(wave - predicted, grid, scale_dtype=scale_dtype)
            result = to_cache_dtype(predicted + dequantize(found, grid, values.dtype), dtype).to(values.dtype)
            missed = _energy(wave - result) > limit**2 * _energy(wave)
            exact[:, start:stop] = missed
            decoded[..., start:stop, :] = torch.where(missed[:, None, None, :, None], wave, result)
            codes = torch.where(missed[:, None, None, :, None], grid.middle, found.codes)
            waves.append((codes, found.scales.masked_fill(missed[:, None, None, :, None], 0)))
        return {
            LAYOUT: torch.tensor([grid.levels, grid.group, scale_dtype.itemsize], dtype=torch.int32),
            "bases": torch.tensor(numbers, dtype=torch.int64),
            "codes": pack(torch.cat([codes for codes, _ in waves], 3), grid.levels).cpu(),
            "scales": to_planes(torch.cat([scales for _, scales in waves], 3)).cpu(),
            "exact_rows": to_bits(exact),
            "exact": to_planes(tensor.permute(0, 3, 1, 2, 4)[exact]).cpu(),
        }

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, what: str) -> None:
        levels, group, scale_bytes = layout_of(tensors, 3, what)
        if not 2 <= levels <= 256 or not 0 <= group <= 1 << 20 or scale_bytes not in _SCALE_DTYPES:
            raise CorruptError(f"{what}: a delta layout that no writer makes")
        *lead, size = shape.tensor(part)
        layers, batch, heads, rows = lead
        exact = marked_bits(tensors, "exact_rows", layers * rows, what)
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
            what,
        )
        for row, base in enumerate(tensors["bases"].integers(), shape.first_row):
            if not NO_BASE <= base < row:
                raise CorruptError(f"{what}: row {row} is predicted from row {base}, which is not before it")

    def decode(
        self,
        tensors: Mapping[str, TensorView],
        part: Part,
        shape: BlockShape,
        device: str | torch.device,
        around: Surroundings = ALONE,
    ) -> dict[Part, torch.Tensor]:
        import torch

        fetch = around.fetch or _no_rows
        levels, group, scale_bytes = tensors[LAYOUT].integers()
        numbers = list(tensors["bases"].integers())
        packed = to_torch(tensors["codes"], device).view(tensors["codes"].shape)
        scales = from_planes(tensors["scales"], getattr(torch, _SCALE_DTYPES[scale_bytes]), device)
        found = Quantized(unpack(packed, levels, shape.spec.head_size(part)), scales, None)
        work = working_dtype(shape.dtype)
        result = dequantize(found, Grid(levels, group, symmetric=True), work)
        marks = from_bits(to_torch(tensors["exact_rows"], device), (shape.layers, shape.rows))
        exact = torch.zeros_like(result, dtype=getattr(torch, shape.dtype))
        exact.permute(0, 3, 1, 2, 4)[marks] = from_planes(tensors["exact"], exact.dtype, device)
        for start, stop in _waves(numbers, shape.first_row):
            predicted = _predicted(result, numbers[start:stop], shape.first_row, fetch)
            wave = to_cache_dtype(predicted + result[..., start:stop, :], shape.dtype)
            chosen = torch.where(marks[:, None, None, start:stop, None], exact[..., start:stop, :], wave)
            result[..., start:stop, :] = chosen.to(work)
        return {part: result.to(exact.dtype)}

    def bases(self, tensors: Mapping[str, TensorView]) -> Sequence[int]:
        return tensors["bases"].integers()


def _waves(numbers: Sequence[int], first_row: int) -> Iterator[tuple[int, int]]:
    """Runs [start, stop) of a block's rows none of which is predicted from another row of its run."""
    start = 0
    for at, base in enumerate(numbers):
        if base >= first_row + start:
            yield start, at
            start = at
    yield start, len(numbers)


def _predicted(decoded: torch.Tensor, numbers: Sequence[int], first_row: int, fetch: Fetch) -> torch.Tensor:
    """The predictions of a wave, (layers, batch, heads, rows, head size): decoded bases, zero without one."""
    result = decoded.new_zeros(*decoded.shape[:3], len(numbers), decoded.shape[4])
    inside = [(at, base - first_row) for at, base in enumerate(numbers) if base >= first_row]
    outside = [(at, base) for at, base in enumerate(numbers) if NO_BASE < base < first_row]
    if inside:
        result[..., [at for at, _ in inside], :] = decoded[..., [base for _, base in inside], :]
    if outside:
        result[..., [at for at, _ in outside], :] = fetch([base for _, base in outside]).to(result.dtype)
    return result


def _energy(rows: torch.Tensor) -> torch.Tensor:
    """Squared norms, (layers, rows)."""
    return rows.square().sum((1, 2, 4))


def _calibrated(values: torch.Tensor, grid: Grid, scale_dtype: torch.dtype) -> float:
    """Twice the median relative error of the rows by themselves: a row that does much worse is a keyframe."""
    alone = dequantize(quantize(values, grid, scale_dtype=scale_dtype), grid, values.dtype)
    relative = (_energy(values - alone) / _energy(values).clamp(min=1e-30)).sqrt()
    return _AUTO * float(relative.median())


def _scale_dtype(values: torch.Tensor) -> torch.dtype:
    """A dtype that holds the scale of any residual of these values, which are at most twice as large."""
    import torch

    largest = float(values.abs().max())
    if largest <= torch.finfo(torch.float16).max / 2:
        return torch.float16
    return torch.float32 if largest <= torch.finfo(torch.float32).max / 8 else torch.float64


def _no_rows(numbers: Sequence[int]) -> torch.Tensor:
    raise ValueError(f"no rows to predict from: {list(numbers)[:4]}")  # pragma: no cover - nothing asks
