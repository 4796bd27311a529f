"""The interface of a codec, which turns rows of a few layers into named tensors and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from formats import settings as setting
from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView
from formats.trace.blocks import BlockShape

if TYPE_CHECKING:
    import torch


# row numbers -> decoded rows of a block's layers and part, (layers, batch, heads, rows, head size)
Fetch = Callable[[Sequence[int]], "torch.Tensor"]
NO_BASE = -1


@dataclass(frozen=True)
class Bases:
    """The earlier rows from which the rows of a block are predicted.

    Attributes:
        first_row: the number of the block's first row.
        numbers: for each row the number of its base, lower than its own, or NO_BASE.
        fetch: gives decoded rows outside the block, as the decoder will have them.
    """

    first_row: int
    numbers: Sequence[int]
    fetch: Fetch


@dataclass(frozen=True)
class BlockContext:
    """What a codec may know of a block besides its rows; most codecs ignore it.

    Attributes:
        first_layer: the number of the block's first layer.
        positions: position ids of the rows.
        end: one more than the last position of the trace, for an encoder.
        bases: rows that predict these, for an encoder.
        fetch: gives decoded rows outside the block, for a decoder.
        profile: gives the profile that the file names, for a decoder; the codec knows its type.
    """

    first_layer: int = 0
    positions: Sequence[int] = ()
    end: int = 0
    bases: Bases | None = None
    fetch: Fetch | None = None
    profile: Callable[[], object] | None = None


NO_CONTEXT = BlockContext()


@dataclass(frozen=True)
class Prediction:
    """How an encoder predicts rows from earlier ones.

    Attributes:
        longest_chain: the most rows in a chain of predictions; the next row is coded by itself.
        append: appended rows of a growing cache are coded by themselves; if false, each is
            predicted from the row before it.
        keyframe_bits: bits of the first snapshot's rows, 2 to 16 (codec scalar); 0 keeps them
            exactly.
    """

    longest_chain: int
    append: bool
    keyframe_bits: int


class Codec(ABC):
    """A codec turns rows into tensors and back.

    An id names one byte format for ever; another format gets another id.  An instance holds the
    settings with which it encodes; the payload holds everything that decoding needs.

    Attributes:
        id: the integer in a record header.
        name: the codec's name in recipes and file headers.
        Settings: the type of its settings, a frozen dataclass of scalars that all have a default.
        parts: the parts that get a record each; (JOINT,) writes one record for keys and values.
        exact: every bit of every value comes back, NaNs included; other codecs are given finite
            values only.
        codes_states: it also codes states, given as the values of one layer.
        needs_profile: decoding needs the profile of the model that its setting `profile` names.
        needs_positions: decoding needs the position ids of the rows.
        groups_layers: an encoder is given a whole run of equal layers at once, even if that is more
            than a record usually holds.
        block_rows: the most rows of a block.
    """

    id: ClassVar[int]
    name: ClassVar[str]
    Settings: ClassVar[type[setting.Settings]] = setting.Settings
    parts: ClassVar[tuple[Part, ...]] = (Part.KEYS, Part.VALUES, Part.INDEXER)
    exact: ClassVar[bool] = False
    codes_states: ClassVar[bool] = False
    needs_profile: ClassVar[bool] = False
    needs_positions: ClassVar[bool] = False
    groups_layers: ClassVar[bool] = False
    # the tables of a block cost less per row if many rows share them
    block_rows: ClassVar[int] = 4096

    settings: setting.Settings

    def __init__(self, settings: setting.Settings | None = None) -> None:
        self.settings = self.Settings() if settings is None else settings

    @property
    def prediction(self) -> Prediction | None:
        """How rows are predicted from earlier ones; None if each block is coded by itself."""
        return None

    @property
    def exact_beyond(self) -> float:
        """The relative error beyond which a row or block is kept exactly; 0 for never."""
        return 0.0

    @abstractmethod
    def encode(self, rows: Mapping[Part, torch.Tensor], context: BlockContext = NO_CONTEXT) -> dict[str, torch.Tensor]:
        """Encode rows (layers, batch, heads, rows, head size) as payload tensors on the CPU."""

    @abstractmethod
    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, where: str) -> None:
        """Raise CorruptError unless `tensors` can be decoded to `shape`; this needs no torch.

        Args:
            where: the record, for messages.
        """

    @abstractmethod
    def decode(
        self,
        tensors: Mapping[str, TensorView],
        part: Part,
        shape: BlockShape,
        device: str | torch.device,
        context: BlockContext = NO_CONTEXT,
    ) -> dict[Part, torch.Tensor]:
        """Decode checked tensors to rows in the cache's dtype, shaped as `encode` got them."""

    def bases(self, tensors: Mapping[str, TensorView]) -> Sequence[int]:
        """Return the number of the base of each row in checked tensors, which may be NO_BASE."""
        del tensors
        return ()

    def coded_blocks(self, tensors: Mapping[str, TensorView]) -> tuple[int, int]:
        """Count the blocks of channels in checked tensors: (all, those that are kept exactly)."""
        del tensors
        return 0, 0
