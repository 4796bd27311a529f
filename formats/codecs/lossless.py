"""Bit-exact rows: byte planes, laid out so that zstd finds what is redundant.

All first bytes of the values, then all second bytes, and so on: the high bytes (sign and exponent) of neighbouring
values are alike while the low mantissa bytes are noise.  Keys go channel by channel, because a channel keeps its
scale along the tokens; values go token by token.  docs/measurements.md has the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView, expect
from formats.trace.blocks import BlockShape

from .base import ALONE, Codec, Surroundings
from .packing import from_planes, to_planes

if TYPE_CHECKING:
    import torch

# of the axes (layers, batch, heads, rows, head size), the order in which a part is stored, behind the bytes
_STORED_ORDER = {Part.KEYS: (0, 1, 2, 4, 3), Part.VALUES: (0, 1, 3, 2, 4), Part.INDEXER: (0, 1, 2, 4, 3)}


class Lossless(Codec):
    """Codec 1.  Payload: one U8 tensor named `planes`.

    Shapes: keys (item bytes, layers, batch, heads, head size, rows); values (item bytes, layers, batch, rows, heads,
    head size).  Plane 0 holds the least significant bytes.
    """

    id = 1
    name = "lossless"
    exact = True
    codes_states = True

    def encode(self, rows: Mapping[Part, torch.Tensor], around: Surroundings = ALONE) -> dict[str, torch.Tensor]:
        del around
        ((part, tensor),) = rows.items()
        return {"planes": to_planes(tensor.permute(_STORED_ORDER[part])).cpu()}

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, what: str) -> None:
        expect(tensors, {"planes": ("U8", (shape.item_bytes, *_stored_shape(part, shape)))}, what)

    def decode(
        self,
        tensors: Mapping[str, TensorView],
        part: Part,
        shape: BlockShape,
        device: str | torch.device,
        around: Surroundings = ALONE,
    ) -> dict[Part, torch.Tensor]:
        import torch

        del around
        # bytes are put together before values are put in order: moving whole values takes half the time
        stored = from_planes(tensors["planes"], getattr(torch, shape.dtype), device)
        order = _STORED_ORDER[part]
        return {part: stored.permute([order.index(axis) for axis in range(len(order))])}


def _stored_shape(part: Part, shape: BlockShape) -> tuple[int, ...]:
    natural = shape.tensor(part)
    return tuple(natural[axis] for axis in _STORED_ORDER[part])
