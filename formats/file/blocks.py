"""Handles of a file's row blocks, states and attention, which are read, checked and decoded on
demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from formats.codecs import Codec, codec_by_id
from formats.codecs.packing import from_planes
from formats.container.records import Part, RecordHeader
from formats.container.safetensors_buffer import TensorView, expect
from formats.errors import CorruptError
from formats.trace import states as state_blocks
from formats.trace.blocks import BlockShape
from formats.trace.states import StateKey
from formats.trace.views import BlockKey

if TYPE_CHECKING:
    import torch

    from formats.codecs.klt.profile_store import ProfileReference
    from formats.trace.geometry import Geometry


class Decoder(Protocol):
    """A decoder turns a block into tensors, and decodes the blocks its rows are predicted from."""

    def decoded(self, block: FileBlock, device: str | torch.device) -> Mapping[Part, torch.Tensor]:
        """Decode the rows of a block.

        Returns:
            For each part (keys, values, ...) a tensor (layers, batch, heads, rows, head size).
        """
        ...


class RecordSource(Protocol):
    """The part of an open file's interface that its blocks use; `reader.TraceFile` implements it.

    Attributes:
        path: The path of the file, for messages.
        geometry: The layers, shapes and dtype of the cache.
        decoder: The decoder that all blocks of the file share.
        profile: The profile (fitted codec data) that the rows are coded with; None without one.
        codec: The name of the row codec that the file's header states; "" if it is unknown.
    """

    @property
    def path(self) -> str: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def codec(self) -> str: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def profile(self) -> ProfileReference | None: ...

    def buffer(self, offset: int, header: RecordHeader) -> Mapping[str, TensorView]:
        """Read and check the record at a byte offset.

        Returns:
            The tensors of its payload, by name.

        Raises:
            CorruptError: The record is damaged.
        """
        ...

    def locating(self, offset: int, header: RecordHeader) -> AbstractContextManager[None]:
        """Return a context that adds the file and the record to errors raised inside it."""
        ...


@dataclass(frozen=True)
class FileBlock:
    """A block of rows of a file, which is read, checked and decoded on demand.

    Attributes:
        file: The file that holds the block.
        offset: The byte offset of the block's record.
        header: The header of that record.
    """

    file: RecordSource
    offset: int
    header: RecordHeader

    @property
    def key(self) -> BlockKey:
        """The part, layers and rows that the block holds."""
        h = self.header
        return BlockKey(Part(h.part), h.first_layer, h.layer_count, h.first, h.count)

    def tensors(self) -> tuple[Codec, Mapping[str, TensorView], BlockShape]:
        """Read and check the payload, without decoding it and without importing torch.

        Returns:
            The codec, the payload's tensors by name, and the shape of the decoded block.

        Raises:
            CorruptError: The record is damaged, or its codec does not fit it.
        """
        shape = BlockShape.of(self.key, self.file.geometry)
        codec = codec_by_id(self.header.codec, self.file.path, self.file.codec)
        tensors = self.file.buffer(self.offset, self.header)
        with self.file.locating(self.offset, self.header):
            if self.key.part not in codec.parts:
                raise CorruptError(f"codec {codec.name} does not write records of part {self.header.part}")
            codec.check(tensors, self.key.part, shape, "rows")
        return codec, tensors, shape

    def read(self, device: str | torch.device = "cpu") -> Mapping[Part, torch.Tensor]:
        """Decode the block onto a device; see `Decoder.decoded`."""
        return self.file.decoder.decoded(self, device)


@dataclass(frozen=True)
class FileStates:
    """States (recurrent or convolutional) of a file, which are read and decoded on demand.

    Attributes:
        file: The file that holds the states.
        offset: The byte offset of their record.
        header: The header of that record.
    """

    file: RecordSource
    offset: int
    header: RecordHeader

    @property
    def key(self) -> StateKey:
        """The state, layers and snapshots that the record holds."""
        h = self.header
        return StateKey(h.part, h.first_layer, h.layer_count, h.first, h.count)

    def tensors(self) -> tuple[Codec, Mapping[str, TensorView], BlockShape]:
        """Read and check the payload, without decoding it and without importing torch.

        Returns:
            The codec, the payload's tensors by name, and the shape of the decoded states.

        Raises:
            CorruptError: The record is damaged, or its codec does not fit it.
        """
        shape = state_blocks.block_shape(self.key, self.file.geometry)
        codec = codec_by_id(self.header.codec, self.file.path, self.file.codec)
        tensors = self.file.buffer(self.offset, self.header)
        with self.file.locating(self.offset, self.header):
            if not codec.codes_states:
                raise CorruptError(f"codec {codec.name} does not write states")
            codec.check(tensors, Part.VALUES, shape, "states")
        return codec, tensors, shape

    def read(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Decode the states onto a device.

        Returns:
            (layers, snapshots, batch, *shape of the state), in the state's dtype.
        """
        codec, tensors, shape = self.tensors()
        with self.file.locating(self.offset, self.header):
            values = codec.decode(tensors, Part.VALUES, shape, device)[Part.VALUES]
        key = self.key
        return state_blocks.from_values(values, self.file.geometry.layers[key.first_layer].states[key.number])


@dataclass(frozen=True)
class FileReceived:
    """The attention that rows received, in a record of a file that is read on demand.

    Attributes:
        file: The file that holds the record.
        offset: The byte offset of the record.
        header: The header of the record.
        heads: How many KV heads each of its layers has.
    """

    file: RecordSource
    offset: int
    header: RecordHeader
    heads: int

    @property
    def first_layer(self) -> int:
        """The first layer that the record covers."""
        return self.header.first_layer

    @property
    def layer_count(self) -> int:
        """How many consecutive layers the record covers."""
        return self.header.layer_count

    def check(self) -> TensorView:
        """Read the record and check its shape.

        Returns:
            The four byte planes of float32 numbers, uint8 (4, layers, KV heads, rows).

        Raises:
            CorruptError: The record is damaged, or its shape is another one.
        """
        tensors = self.file.buffer(self.offset, self.header)
        with self.file.locating(self.offset, self.header):
            expect(tensors, {"received": ("U8", (4, self.layer_count, self.heads, self.header.count))}, "attention")
        return tensors["received"]

    def read(self) -> torch.Tensor:
        """Return the attention of each row, float32 (layers, KV heads, rows), on the CPU."""
        import torch

        return from_planes(self.check(), torch.float32, "cpu")
