"""What a codec is: rows of a few layers to named tensors and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from ..geometry import Geometry, LayerSpec
from ..records import Part
from ..tensor_buffer import TensorView
from ..views import BlockKey

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BlockShape:
    """The extents of a block: layers of one spec, batch, rows."""

    dtype: str
    item_bytes: int
    layers: int
    batch: int
    rows: int
    spec: LayerSpec

    @classmethod
    def of(cls, key: BlockKey, geometry: Geometry) -> BlockShape:
        spec = geometry.layers[key.first_layer]
        return cls(geometry.dtype, geometry.item_bytes, key.layer_count, geometry.batch, key.row_count, spec)

    def tensor(self, part: Part) -> tuple[int, int, int, int, int]:
        """(layers, batch, heads, rows, head size) of one part."""
        return self.layers, self.batch, self.spec.heads, self.rows, self.spec.head_size(part)


class Codec(Protocol):
    """Rows to tensors and back.  An id names a byte format for ever; another format gets another id.

    Attributes:
        id: the literal integer in a record header.
        name: what a person calls it.
        parts: the parts that one record holds each; (KEYS, VALUES) writes two records a block, (JOINT,) one.
    """

    id: ClassVar[int]
    name: ClassVar[str]
    parts: ClassVar[tuple[Part, ...]]

    def encode(self, rows: Mapping[Part, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The payload tensors (on the CPU) of rows shaped (layers, batch, heads, rows, head size)."""
        ...

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, what: str) -> None:
        """Raise CorruptError unless `tensors` can be decoded to `shape`.  Needs no torch."""
        ...

    def decode(
        self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, device: str | torch.device
    ) -> dict[Part, torch.Tensor]:
        """The rows of checked tensors."""
        ...
