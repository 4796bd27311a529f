"""What a file holds of rows, states and attention: read, checked and decoded when it is asked
for.
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
    """Decodes a block, and the blocks that its rows are predicted from."""

    def decoded(self, block: FileBlock, device: str | torch.device) -> Mapping[Part, torch.Tensor]: ...


class RecordSource(Protocol):
    """A file as its blocks need it, such as `reader.TraceFile`.

    Attributes:
        path: of the file, for messages.
        geometry: of the cache.
        decoder: of all blocks of the file.
        profile: that its rows are coded with, if they are.
        codec: what its header says of how rows were coded; "" if that is not known.
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
        """The tensors of the record at an offset.  Raises CorruptError."""
        ...

    def locating(self, offset: int, header: RecordHeader) -> AbstractContextManager[None]:
        """Names the file and the record in what is raised inside."""
        ...


@dataclass(frozen=True)
class FileBlock:
    """A block that is read, checked and decoded when it is asked for."""

    file: RecordSource
    offset: int
    header: RecordHeader

    @property
    def key(self) -> BlockKey:
        h = self.header
        return BlockKey(Part(h.part), h.first_layer, h.layer_count, h.first, h.count)

    def tensors(self) -> tuple[Codec, Mapping[str, TensorView], BlockShape]:
        """The checked payload; no torch."""
        shape = BlockShape.of(self.key, self.file.geometry)
        codec = codec_by_id(self.header.codec, self.file.path, self.file.codec)
        tensors = self.file.buffer(self.offset, self.header)
        with self.file.locating(self.offset, self.header):
            if self.key.part not in codec.parts:
                raise CorruptError(f"codec {codec.name} does not write records of part {self.header.part}")
            codec.check(tensors, self.key.part, shape, "rows")
        return codec, tensors, shape

    def read(self, device: str | torch.device = "cpu") -> Mapping[Part, torch.Tensor]:
        return self.file.decoder.decoded(self, device)


@dataclass(frozen=True)
class FileStates:
    """States that are read, checked and decoded when they are asked for."""

    file: RecordSource
    offset: int
    header: RecordHeader

    @property
    def key(self) -> StateKey:
        h = self.header
        return StateKey(h.part, h.first_layer, h.layer_count, h.first, h.count)

    def tensors(self) -> tuple[Codec, Mapping[str, TensorView], BlockShape]:
        """The checked payload; no torch."""
        shape = state_blocks.block_shape(self.key, self.file.geometry)
        codec = codec_by_id(self.header.codec, self.file.path, self.file.codec)
        tensors = self.file.buffer(self.offset, self.header)
        with self.file.locating(self.offset, self.header):
            if not codec.codes_states:
                raise CorruptError(f"codec {codec.name} does not write states")
            codec.check(tensors, Part.VALUES, shape, "states")
        return codec, tensors, shape

    def read(self, device: str | torch.device = "cpu") -> torch.Tensor:
        codec, tensors, shape = self.tensors()
        with self.file.locating(self.offset, self.header):
            values = codec.decode(tensors, Part.VALUES, shape, device)[Part.VALUES]
        key = self.key
        return state_blocks.from_values(values, self.file.geometry.layers[key.first_layer].states[key.number])


@dataclass(frozen=True)
class FileReceived:
    """Attention that is read when it is asked for."""

    file: RecordSource
    offset: int
    header: RecordHeader
    heads: int

    @property
    def first_layer(self) -> int:
        return self.header.first_layer

    @property
    def layer_count(self) -> int:
        return self.header.layer_count

    def check(self) -> TensorView:
        tensors = self.file.buffer(self.offset, self.header)
        with self.file.locating(self.offset, self.header):
            expect(tensors, {"received": ("U8", (4, self.layer_count, self.heads, self.header.count))}, "attention")
        return tensors["received"]

    def read(self) -> torch.Tensor:
        import torch

        return from_planes(self.check(), torch.float32, "cpu")
