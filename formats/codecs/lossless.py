"""Bit-exact rows: byte planes, laid out so that zstd finds what is redundant.

All first bytes of the values, then all second bytes, and so on: the high bytes (sign and exponent) of neighbouring
values are alike while the low mantissa bytes are noise.  Keys go channel by channel, because a channel keeps its
scale along the tokens; values go token by token.  On one 1,024-token cache of the default model docs/codecs.md has
the measured sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ..records import Part
from ..tensor_buffer import TensorView, expect, to_torch
from .base import BlockShape

if TYPE_CHECKING:
    import torch

_BYTES = 5  # of the axes (layers, batch, heads, rows, head size, bytes)
# the order of axes in which a part is stored
_STORED_ORDER = {Part.KEYS: (5, 0, 1, 2, 4, 3), Part.VALUES: (5, 0, 1, 3, 2, 4)}


class Lossless:
    """Codec 1.  Payload: one U8 tensor named `planes`.

    Shapes: keys (item bytes, layers, batch, heads, head size, rows); values (item bytes, layers, batch, rows, heads,
    head size).  Plane 0 holds the least significant bytes.
    """

    id: ClassVar[int] = 1
    name: ClassVar[str] = "lossless"
    parts: ClassVar[tuple[Part, ...]] = (Part.KEYS, Part.VALUES)

    def encode(self, rows: Mapping[Part, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        ((part, tensor),) = rows.items()
        # flattened first: a dimension of extent 1 may have any stride, which a view of another item size refuses
        octets = tensor.reshape(-1).view(torch.uint8).view(*tensor.shape, tensor.element_size())
        return {"planes": octets.permute(_STORED_ORDER[part]).contiguous().cpu()}

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, what: str) -> None:
        expect(tensors, {"planes": ("U8", _stored_shape(part, shape))}, what)

    def decode(
        self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, device: str | torch.device
    ) -> dict[Part, torch.Tensor]:
        import torch

        planes = to_torch(tensors["planes"], device).view(_stored_shape(part, shape))
        # bytes are put together before values are put in order: moving whole values takes half the time
        octets = torch.empty(*planes.shape[1:], shape.item_bytes, dtype=torch.uint8, device=device)
        for significance, plane in enumerate(planes):
            octets[..., significance] = plane
        stored = octets.view(-1).view(getattr(torch, shape.dtype)).view(planes.shape[1:])
        order = [axis for axis in _STORED_ORDER[part] if axis != _BYTES]
        return {part: stored.permute([order.index(axis) for axis in range(_BYTES)])}


def _stored_shape(part: Part, shape: BlockShape) -> tuple[int, ...]:
    natural = (*shape.tensor(part), shape.item_bytes)
    return tuple(natural[axis] for axis in _STORED_ORDER[part])
