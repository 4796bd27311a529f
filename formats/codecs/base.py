"""What a codec is: rows of a few layers to named tensors and back, and what the rest of the product asks of it."""

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


# given row numbers, the decoded rows of the block's layers and part, (layers, batch, heads, rows, head size)
Fetch = Callable[[Sequence[int]], "torch.Tensor"]
NO_BASE = -1


@dataclass(frozen=True)
class Bases:
    """For each row of a block the earlier row that predicts it, or NO_BASE.

    Attributes:
        first_row: the number of the block's first row.
        numbers: one row number a row, lower than its own.
        fetch: decoded rows outside the block, as the decoder will have them.
    """

    first_row: int
    numbers: Sequence[int]
    fetch: Fetch


@dataclass(frozen=True)
class Surroundings:
    """What a codec may know of a block beside its rows; most codecs need none of it.

    Attributes:
        first_layer: the number of the block's first layer.
        positions: position ids of the rows.
        end: one more than the last position of the trace, for an encoder.
        bases: rows that predict these, for an encoder.
        fetch: decoded rows outside the block, for a decoder.
        profile: gives what the file names as its profile, for a decoder; the codec knows its type.
    """

    first_layer: int = 0
    positions: Sequence[int] = ()
    end: int = 0
    bases: Bases | None = None
    fetch: Fetch | None = None
    profile: Callable[[], object] | None = None


ALONE = Surroundings()


@dataclass(frozen=True)
class Prediction:
    """How an encoder predicts rows from earlier ones.

    Attributes:
        longest_chain: rows of a chain of predictions; the next row of the chain stands by itself.
        append: rows that a growing cache appends stand by themselves; else the row before predicts them.
        keyframe_bits: of the first snapshot's rows, 2 to 16 (codec scalar); 0 keeps them exactly.
    """

    longest_chain: int
    append: bool
    keyframe_bits: int


class Codec(ABC):
    """Rows to tensors and back.  An id names a byte format for ever; another format gets another id.

    An instance holds the settings with which it encodes; what decoding needs is in the payload.

    Attributes:
        id: the literal integer in a record header.
        name: what a person calls it.
        Settings: the type of its settings, a frozen dataclass of scalars that all have a default.
        parts: the parts that one record holds each; (JOINT,) writes one record for keys and values.
        exact: every bit of every value comes back, NaNs included; other codecs are given finite values only.
        codes_states: it also codes states, given as the values of one layer.
        needs_profile: its setting `profile` names a profile of the model, without which rows cannot be decoded.
        needs_positions: decoding needs the position ids of the rows.
        groups_layers: an encoder is given all alike layers of a run at once, not as many as make a record.
        block_rows: rows of a block, at most.
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
    block_rows: ClassVar[int] = 4096  # a table a block costs the less the more rows share it

    settings: setting.Settings

    def __init__(self, settings: setting.Settings | None = None) -> None:
        self.settings = self.Settings() if settings is None else settings

    @property
    def prediction(self) -> Prediction | None:
        """How rows are to be predicted from earlier ones; None if each block stands by itself."""
        return None

    @property
    def exact_beyond(self) -> float:
        """The relative error beyond which a row, or a block of its channels, is kept exactly; 0 if none ever is."""
        return 0.0

    @abstractmethod
    def encode(self, rows: Mapping[Part, torch.Tensor], around: Surroundings = ALONE) -> dict[str, torch.Tensor]:
        """The payload tensors (on the CPU) of rows shaped (layers, batch, heads, rows, head size)."""

    @abstractmethod
    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, what: str) -> None:
        """Raise CorruptError unless `tensors` can be decoded to `shape`.  Needs no torch."""

    @abstractmethod
    def decode(
        self,
        tensors: Mapping[str, TensorView],
        part: Part,
        shape: BlockShape,
        device: str | torch.device,
        around: Surroundings = ALONE,
    ) -> dict[Part, torch.Tensor]:
        """The rows of checked tensors, in the cache's dtype, shaped as they were given to `encode`."""

    def bases(self, tensors: Mapping[str, TensorView]) -> Sequence[int]:
        """The numbers of the rows from which the rows of checked tensors are predicted; may hold NO_BASE."""
        del tensors
        return ()

    def coded_blocks(self, tensors: Mapping[str, TensorView]) -> tuple[int, int]:
        """Blocks of channels in checked tensors: how many there are, and how many are kept exactly; (0, 0) without."""
        del tensors
        return 0, 0
