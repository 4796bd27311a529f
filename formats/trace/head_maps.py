"""Eviction that differs from head to head: which rows each KV head kept.

A view names the same row numbers for all heads of a layer.  Where heads keep different tokens, the
rows that a head kept are moved together: row numbers `first` to `first + slots - 1` become *slots*,
and slot j of head h holds the j-th row that this head kept of the `rows` rows from `first` on.  All
heads of a layer keep the same number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.container.safetensors_buffer import TensorView, expect
from formats.errors import CorruptError

from .geometry import Geometry
from .spans import meets
from .views import BlockKey, Span, View

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class HeadMap:
    """The rows that the heads of some layers kept of one span.

    Attributes:
        span: the rows that there were.
        slots: how many of them every head kept.
        bitmap: bits, a row each, least significant first; (layers, heads, ceil(rows / 8)) bytes,
            row-major.
    """

    first_layer: int
    layer_count: int
    heads: int
    span: Span
    slots: int
    bitmap: bytes

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.layer_count)

    def covers(self, layer: int) -> bool:
        return self.first_layer <= layer < self.first_layer + self.layer_count

    def rows(self, layer: int, head: int) -> list[int]:
        """Row numbers that the head kept, ascending: slot j held the j-th of them."""
        return [self.span.first + at for at in _set_bits(self._bits(layer, head))]

    def _bits(self, layer: int, head: int) -> bytes:
        width = -(-self.span.rows // 8)
        at = ((layer - self.first_layer) * self.heads + head) * width
        return self.bitmap[at : at + width]


def of_mask(first_layer: int, span: Span, mask: torch.Tensor) -> HeadMap:
    """From booleans (layers, heads, rows), the same number of them set in each row of the last
    axis.
    """
    import numpy as np

    bits = np.packbits(mask.cpu().numpy(), axis=-1, bitorder="little")
    return HeadMap(first_layer, mask.shape[0], mask.shape[1], span, int(mask[0, 0].sum()), bits.tobytes())


def to_tensors(head_map: HeadMap) -> dict[str, torch.Tensor]:
    import torch

    shape = (head_map.layer_count, head_map.heads, -(-head_map.span.rows // 8))
    return {"kept": torch.frombuffer(bytearray(head_map.bitmap), dtype=torch.uint8).view(shape)}


def from_tensors(
    tensors: Mapping[str, TensorView], first_layer: int, layer_count: int, span: Span, heads: int, what: str
) -> HeadMap:
    """Check a KEPT payload.  Raises CorruptError."""
    width = -(-span.rows // 8)
    expect(tensors, {"kept": ("U8", (layer_count, heads, width))}, what)
    bitmap = bytes(tensors["kept"].data)
    counts = set()
    for at in range(0, len(bitmap), width):
        bits = int.from_bytes(bitmap[at : at + width], "little")
        if bits >> span.rows:
            raise CorruptError(f"{what}: rows beyond the span are marked")
        counts.add(bits.bit_count())
    if len(counts) != 1 or counts == {0}:
        raise CorruptError(f"{what}: every head must keep the same number of rows, at least one")
    return HeadMap(first_layer, layer_count, heads, span, counts.pop(), bitmap)


def check(head_maps: Sequence[HeadMap], views: Sequence[View], blocks: Sequence[BlockKey], geometry: Geometry) -> None:
    """No two maps overlap, and no evicted row that is not a slot is named or stored.  Raises
    CorruptError.
    """
    by_layer: list[list[HeadMap]] = [[] for _ in geometry.layers]
    for head_map in head_maps:
        for layer in head_map.layers:
            if any(meets(head_map.span, [other.span]) for other in by_layer[layer]):
                raise CorruptError(f"two maps say what layer {layer} kept of the same rows")
            by_layer[layer].append(head_map)
    for block in blocks:
        for layer in block.layers:
            _check_slots(block.span, by_layer[layer], layer)
    for view in views:
        for layer, maps in enumerate(by_layer):
            for span in view.layers[layer] if maps else ():
                _check_slots(span, maps, layer)


def _check_slots(span: Span, maps: Sequence[HeadMap], layer: int) -> None:
    for head_map in maps:
        if span.first < head_map.span.stop and head_map.span.first + head_map.slots < span.stop:
            raise CorruptError(f"rows of layer {layer} that were evicted are stored or named")


def _set_bits(bits: bytes) -> Iterator[int]:
    for at, octet in enumerate(bits):
        while octet:
            yield 8 * at + (octet & -octet).bit_length() - 1
            octet &= octet - 1
