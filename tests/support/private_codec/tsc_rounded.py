"""A package of somebody else's that brings a codec: the most significant bytes of every value.

`tests/formats/codecs/test_codec_registry.py` installs it; docs/codecs.md shows its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from formats.codecs import BlockContext, Codec
from formats.codecs.base import NO_CONTEXT
from formats.codecs.packing import LAYOUT, from_planes, layout_of, to_planes
from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView, expect
from formats.errors import CorruptError
from formats.settings import Settings, require
from formats.trace.blocks import BlockShape


@dataclass(frozen=True)
class RoundedSettings(Settings):
    """Attributes:
    octets: bytes of a value that are kept, the most significant ones.
    """

    octets: int = 2

    def __post_init__(self) -> None:
        require(1 <= self.octets <= 8, f"octets={self.octets} is not from 1 to 8")


class Rounded(Codec):
    """Payload: layout, I32 (1): bytes kept; planes: U8 (bytes kept, layers, batch, heads, rows, head size)."""

    id = 0x9A3D
    name = "rounded"
    Settings = RoundedSettings
    settings: RoundedSettings

    def encode(self, rows: Mapping[Part, torch.Tensor], context: BlockContext = NO_CONTEXT) -> dict[str, torch.Tensor]:
        ((_, tensor),) = rows.items()
        kept = min(self.settings.octets, tensor.element_size())
        planes = to_planes(tensor)[-kept:].contiguous()
        return {LAYOUT: torch.tensor([kept], dtype=torch.int32), "planes": planes.cpu()}

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, what: str) -> None:
        (kept,) = layout_of(tensors, 1, what)
        if not 1 <= kept <= shape.item_bytes:
            raise CorruptError(f"{what}: a rounded layout that no writer makes")
        expect(tensors, {LAYOUT: ("I32", (1,)), "planes": ("U8", (kept, *shape.tensor(part)))}, what)

    def decode(
        self,
        tensors: Mapping[str, TensorView],
        part: Part,
        shape: BlockShape,
        device: str | torch.device,
        context: BlockContext = NO_CONTEXT,
    ) -> dict[Part, torch.Tensor]:
        view = tensors["planes"]
        missing = bytes((shape.item_bytes - view.shape[0]) * len(view.data) // view.shape[0])
        whole = TensorView("U8", (shape.item_bytes, *view.shape[1:]), memoryview(missing + bytes(view.data)))
        return {part: from_planes(whole, getattr(torch, shape.dtype), device)}
