"""Codec scalar: uniform scalar quantization in KIVI's layout, or in ggml's q8_0 or q4_0.

KIVI (arXiv 2402.02750) quantizes keys per channel, because a key channel keeps its scale along the
tokens, and values per token.  `levels` may be any number, not only a power of two: as the codes are
entropy-coded, it tunes the size of a file finely.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView, dtype_name, expect, to_torch
from formats.errors import CorruptError
from formats.settings import Settings, Value, require
from formats.trace.blocks import BlockShape

from .base import NO_CONTEXT, BlockContext, Codec
from .packing import (
    LAYOUT,
    from_planes,
    layout_of,
    pack,
    packed_shape,
    to_cache_dtype,
    to_planes,
    unpack,
    working_dtype,
)
from .uniform_quantizer import SCALE_DTYPES, Grid, Quantized, dequantize, quantize

if TYPE_CHECKING:
    import torch

AXES = ("token", "channel")
GGML = {"": 0, "q8_0": 255, "q4_0": 16}  # levels of each preset
MAX_LEVELS = 1 << 16


@dataclass(frozen=True)
class ScalarSettings(Settings):
    """The settings of codec scalar.

    Attributes:
        bits: 2 to 16; levels = 2 ** bits.
        levels: 2 to 65,536; overrides `bits` unless it is 0.
        values_levels: levels of the values, unless it is 0; errors of keys cost more, so that
            values may have fewer.
        keys: the axis along which neighbouring keys share a scale: "channel" takes the tokens of
            one channel (KIVI's "per channel"), "token" the channels of one head of one token.
        values: the same for values.
        group: neighbours that share a scale; 0 takes all of a record.
        symmetric: no offset, zero is a level.
        hadamard: rotate every head before it is quantized.
        format: "q8_0" or "q4_0" gives ggml's numbers and overrides all settings above.
    """

    bits: int = 4
    levels: int = 0
    values_levels: int = 0
    keys: str = "channel"
    values: str = "token"
    group: int = 64
    symmetric: bool = False
    hadamard: bool = False
    format: str = ""

    def __post_init__(self) -> None:
        require(2 <= self.bits <= 16, f"bits={self.bits} is not from 2 to 16")
        for name in ("levels", "values_levels"):
            count = getattr(self, name)
            require(count == 0 or 2 <= count <= MAX_LEVELS, f"{name}={count} is not from 2 to 65536")
        require(0 <= self.group <= 1 << 20, f"group={self.group} is not from 0 to 1048576")
        require(self.keys in AXES, f"keys={self.keys} is neither token nor channel")
        require(self.values in AXES, f"values={self.values} is neither token nor channel")
        require(self.format in GGML, f"format={self.format} is neither q8_0 nor q4_0")

    def described(self) -> dict[str, Value]:
        if self.format:
            return {"format": self.format}
        unused = {"format", "bits" if self.levels else "levels", "" if self.values_levels else "values_levels"}
        return {name: value for name, value in super().described().items() if name not in unused}

    def grid(self, part: Part) -> Grid:
        if self.format:
            return Grid(GGML[self.format], 32, symmetric=True)
        levels = self.levels or 1 << self.bits
        if part is Part.VALUES:
            levels = self.values_levels or levels
        return Grid(levels, self.group, self.symmetric)

    def axis(self, part: Part) -> str:
        if self.format:
            return "token"
        return self.values if part is Part.VALUES else self.keys


class Scalar(Codec):
    """Codec 2.  Its payload:

    layout: levels, group, symmetric, axis (0 token, 1 channel), hadamard, bytes of a scale, bytes
    of
        an offset (0: none)
    codes: U8, packed by `packing.pack`; the quantized axis is the last one: (layers, batch, heads,
        rows, head size) for "token", (layers, batch, heads, head size, rows) for "channel"
    scales, offsets: U8 byte planes (bytes, ..., groups)

    A value's error is at most half a scale; with `hadamard`, that bounds the rotated values.
    """

    id = 2
    name = "scalar"
    Settings = ScalarSettings
    codes_states = True
    settings: ScalarSettings

    def encode(self, rows: Mapping[Part, torch.Tensor], context: BlockContext = NO_CONTEXT) -> dict[str, torch.Tensor]:
        import torch

        del context
        ((part, tensor),) = rows.items()
        values = tensor.to(working_dtype(dtype_name(tensor.dtype)))
        settings, grid, axis = self.settings, self.settings.grid(part), self.settings.axis(part)
        rotated = settings.hadamard and not settings.format
        if rotated:
            values = hadamard(values)
        if axis == "channel":
            values = values.transpose(-1, -2)
        quantized = quantize(values, grid, ggml=bool(settings.format))
        offsets = {} if quantized.offsets is None else {"offsets": to_planes(quantized.offsets).cpu()}
        offset_bytes = 0 if quantized.offsets is None else quantized.offsets.element_size()
        layout = [
            grid.levels,
            grid.group,
            grid.symmetric,
            AXES.index(axis),
            rotated,
            quantized.scales.element_size(),
            offset_bytes,
        ]
        return {
            LAYOUT: torch.tensor(layout, dtype=torch.int32),
            "codes": pack(quantized.codes, grid.levels).cpu(),
            "scales": to_planes(quantized.scales).cpu(),
            **offsets,
        }

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, where: str) -> None:
        levels, group, symmetric, axis, rotated, scale_bytes, offset_bytes = layout_of(tensors, 7, where)
        if (
            not 2 <= levels <= MAX_LEVELS
            or not 0 <= group <= 1 << 20
            or {symmetric, axis, rotated} - {0, 1}
            or scale_bytes not in SCALE_DTYPES
            or (offset_bytes != 0) == symmetric
            or (offset_bytes and offset_bytes not in SCALE_DTYPES)
        ):
            raise CorruptError(f"{where}: a scalar layout that no writer makes")
        stored = _stored_shape(part, shape, axis)
        groups = (*stored[:-1], Grid(levels, group, bool(symmetric)).groups(stored[-1]))
        shapes: dict[str, tuple[str, tuple[int | None, ...]]] = {
            LAYOUT: ("I32", (7,)),
            "codes": ("U8", packed_shape(stored, levels)),
            "scales": ("U8", (scale_bytes, *groups)),
        }
        if offset_bytes:
            shapes["offsets"] = ("U8", (offset_bytes, *groups))
        expect(tensors, shapes, where)

    def decode(
        self,
        tensors: Mapping[str, TensorView],
        part: Part,
        shape: BlockShape,
        device: str | torch.device,
        context: BlockContext = NO_CONTEXT,
    ) -> dict[Part, torch.Tensor]:
        import torch

        del context
        levels, group, symmetric, axis, rotated, scale_bytes, offset_bytes = tensors[LAYOUT].integers()
        stored = _stored_shape(part, shape, axis)
        packed = to_torch(tensors["codes"], device).view(tensors["codes"].shape)
        offsets = None
        if offset_bytes:
            offsets = from_planes(tensors["offsets"], getattr(torch, SCALE_DTYPES[offset_bytes]), device)
        quantized = Quantized(
            unpack(packed, levels, stored[-1]),
            from_planes(tensors["scales"], getattr(torch, SCALE_DTYPES[scale_bytes]), device),
            offsets,
        )
        values = dequantize(quantized, Grid(levels, group, bool(symmetric)), working_dtype(shape.dtype))
        if axis == AXES.index("channel"):
            values = values.transpose(-1, -2)
        if rotated:
            values = hadamard(values)
        return {part: to_cache_dtype(values, shape.dtype)}


def _stored_shape(part: Part, shape: BlockShape, axis: int) -> tuple[int, ...]:
    *lead, rows, size = shape.tensor(part)
    return (*lead, size, rows) if axis == AXES.index("channel") else (*lead, rows, size)


def hadamard(rows: torch.Tensor) -> torch.Tensor:
    """Multiply rows (..., head size) by the normalized block Hadamard matrix, its own inverse.

    This spreads an outlier channel over all channels, as in QuaRot (arXiv 2404.00456) and
    llama.cpp.  If the head size is not a power of two, blocks of its largest power-of-two divisor
    are rotated (80 = 5 blocks of 16).
    """
    import torch

    size = rows.shape[-1]
    block = size & -size
    matrix = torch.ones(1, 1, dtype=rows.dtype, device=rows.device)
    while matrix.shape[0] < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    rotated: torch.Tensor = rows.reshape(*rows.shape[:-1], -1, block) @ (matrix / block**0.5)
    return rotated.reshape(rows.shape)
