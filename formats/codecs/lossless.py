"""Codec lossless: bit-exact rows as byte planes, laid out so that zstd finds redundancy.

A payload holds all first bytes of the values, then all second bytes, and so on: high bytes (sign
and exponent) of neighbouring values are alike, low mantissa bytes are noise.  Keys are stored
channel by channel, because a channel keeps its scale along the tokens, and values token by token.
docs/measurements.md has the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView, expect
from formats.trace.blocks import BlockShape

from .base import NO_CONTEXT, BlockContext, Codec
from .packing import from_planes, to_planes

if TYPE_CHECKING:
    import torch

# the order in which the axes (layers, batch, heads, rows, head size) are stored, after the bytes
_STORED_ORDER = {Part.KEYS: (0, 1, 2, 4, 3), Part.VALUES: (0, 1, 3, 2, 4), Part.INDEXER: (0, 1, 2, 4, 3)}


class Lossless(Codec):
    """Codec 1.  Its payload is one U8 tensor, `planes`; plane 0 has the least significant bytes.

    Keys: (item bytes, layers, batch, heads, head size, rows)
    Values: (item bytes, layers, batch, rows, heads, head size)
    """

    id = 1
    name = "lossless"
    exact = True
    codes_states = True

    def encode(self, rows: Mapping[Part, torch.Tensor], context: BlockContext = NO_CONTEXT) -> dict[str, torch.Tensor]:
        del context
        ((part, tensor),) = rows.items()
        return {"planes": to_planes(tensor.permute(_STORED_ORDER[part])).cpu()}

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, where: str) -> None:
        expect(tensors, {"planes": ("U8", (shape.item_bytes, *_stored_shape(part, shape)))}, where)

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
        # bytes are joined before the axes are reordered: moving whole values takes half the time
        stored = from_planes(tensors["planes"], getattr(torch, shape.dtype), device)
        order = _STORED_ORDER[part]
        return {part: stored.permute([order.index(axis) for axis in range(len(order))])}


def _stored_shape(part: Part, shape: BlockShape) -> tuple[int, ...]:
    natural = shape.tensor(part)
    return tuple(natural[axis] for axis in _STORED_ORDER[part])
