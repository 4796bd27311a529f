"""Blocks of rows: what a trace holds, and the extents that a codec needs beside the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from formats.container.records import Part

from .geometry import Geometry, LayerSpec
from .views import BlockKey

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BlockShape:
    """The extents of a block: layers of one spec, batch, rows; `first_row` is the number of its
    first row.
    """

    dtype: str
    item_bytes: int
    layers: int
    batch: int
    rows: int
    spec: LayerSpec
    first_row: int = 0

    @classmethod
    def of(cls, key: BlockKey, geometry: Geometry) -> BlockShape:
        spec = geometry.layers[key.first_layer]
        return cls(
            geometry.dtype, geometry.item_bytes, key.layer_count, geometry.batch, key.row_count, spec, key.first_row
        )

    def tensor(self, part: Part) -> tuple[int, int, int, int, int]:
        """(layers, batch, heads, rows, head size) of one part."""
        return self.layers, self.batch, self.spec.part_heads(part), self.rows, self.spec.head_size(part)


class Block(Protocol):
    """A rectangle of rows that can be had as tensors."""

    @property
    def key(self) -> BlockKey: ...

    def read(self, device: str | torch.device = "cpu") -> Mapping[Part, torch.Tensor]:
        """The rows by part (never JOINT): (layers, batch, heads, rows, head size) in the dtype of
        the trace.
        """
        ...


@dataclass(frozen=True)
class MemoryBlock:
    """A block whose rows are at hand."""

    key: BlockKey
    rows: Mapping[Part, torch.Tensor]

    def read(self, device: str | torch.device = "cpu") -> Mapping[Part, torch.Tensor]:
        return {part: tensor.to(device) for part, tensor in self.rows.items()}
