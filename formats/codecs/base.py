"""What a codec is: rows of a few layers to named tensors and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView, expect, to_torch
from formats.errors import CorruptError
from formats.trace.blocks import BlockShape

if TYPE_CHECKING:
    import torch


# given row numbers, the decoded rows of the block's layers and part, (layers, batch, heads, rows, head size)
Fetch = Callable[[Sequence[int]], "torch.Tensor"]


@dataclass(frozen=True)
class Bases:
    """For each row of a block the earlier row that predicts it, or -1.

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
    """What a codec may know of a block beside its rows; most need nothing of it.

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


class Codec(Protocol):
    """Rows to tensors and back.  An id names a byte format for ever; another format gets another id.

    An instance holds the settings with which it encodes; what decoding needs is in the payload.

    Attributes:
        id: the literal integer in a record header.
        name: what a person calls it.
        parts: the parts that one record holds each; (JOINT,) writes one record for keys and values.
        exact: every bit of every value comes back, NaNs included; other codecs are given finite values only.
        settings: a frozen dataclass of scalars.
    """

    id: ClassVar[int]
    name: ClassVar[str]
    parts: ClassVar[tuple[Part, ...]]
    exact: ClassVar[bool]

    @property
    def settings(self) -> Any: ...

    def encode(self, rows: Mapping[Part, torch.Tensor], around: Surroundings = ALONE) -> dict[str, torch.Tensor]:
        """The payload tensors (on the CPU) of rows shaped (layers, batch, heads, rows, head size)."""
        ...

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, what: str) -> None:
        """Raise CorruptError unless `tensors` can be decoded to `shape`.  Needs no torch."""
        ...

    def decode(
        self,
        tensors: Mapping[str, TensorView],
        part: Part,
        shape: BlockShape,
        device: str | torch.device,
        around: Surroundings = ALONE,
    ) -> dict[Part, torch.Tensor]:
        """The rows of checked tensors."""
        ...


LAYOUT = "layout"  # the payload tensor that holds what decoding needs to know, as 32-bit integers


def layout_of(tensors: Mapping[str, TensorView], count: int, what: str) -> Sequence[int]:
    """The `count` integers of a payload's layout tensor.  Raises CorruptError."""
    if LAYOUT not in tensors:
        raise CorruptError(f"{what}: there is no tensor {LAYOUT!r}")
    expect({LAYOUT: tensors[LAYOUT]}, {LAYOUT: ("I32", (count,))}, what)
    return tensors[LAYOUT].integers()


def working_dtype(dtype: str) -> torch.dtype:
    """The dtype of a lossy codec's arithmetic."""
    import torch

    return torch.float64 if dtype == "float64" else torch.float32


def to_cache_dtype(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """`values` in the cache's dtype; what a grid's last step put beyond its range becomes its largest number."""
    import torch

    wanted: torch.dtype = getattr(torch, dtype)
    limit = min(torch.finfo(wanted).max, torch.finfo(values.dtype).max)
    return values.clamp(-limit, limit).to(wanted)


def to_planes(values: torch.Tensor) -> torch.Tensor:
    """Byte planes, uint8 (item bytes, ...), least significant first: high bytes are alike, low ones are noise."""
    import torch

    octets = values.contiguous().reshape(-1).view(torch.uint8).view(*values.shape, values.element_size())
    return octets.movedim(-1, 0).contiguous()


def from_planes(view: TensorView, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    """The inverse of `to_planes`."""
    import torch

    planes = to_torch(view, device).view(view.shape)
    octets = torch.empty(*planes.shape[1:], planes.shape[0], dtype=torch.uint8, device=device)
    for significance, plane in enumerate(planes):
        octets[..., significance] = plane
    return octets.reshape(-1).view(dtype).view(planes.shape[1:])


def to_bits(flags: torch.Tensor) -> torch.Tensor:
    """Booleans of any shape as a string of bits in uint8, the first in the least significant bit."""
    import torch

    octets = torch.nn.functional.pad(flags.reshape(-1).to(torch.uint8), (0, -flags.numel() % 8)).view(-1, 8)
    places = torch.arange(8, dtype=torch.uint8, device=flags.device)
    return (octets << places).sum(-1, dtype=torch.uint8).cpu()


def from_bits(bits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The inverse of `to_bits`."""
    import torch

    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> places) & 1).reshape(-1)[: math.prod(shape)].view(*shape).bool()


def marked_bits(tensors: Mapping[str, TensorView], name: str, count: int, what: str) -> int:
    """How many of the `count` bits of a tensor are set.  Raises CorruptError if bits beyond them are."""
    if name not in tensors:
        raise CorruptError(f"{what}: there is no tensor {name!r}")
    data = tensors[name].data
    if len(data) != -(-count // 8) or (count % 8 and data[-1] >> count % 8):
        raise CorruptError(f"{what}: {name!r} does not hold {count} bits")
    return int.from_bytes(data, "little").bit_count()
