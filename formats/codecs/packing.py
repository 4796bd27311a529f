"""How numbers are packed into a payload: the layout tensor, byte planes, bits, and small codes.

zstd entropy-codes bytes (Huffman, order 0).  As many codes as fit share a byte, so that a byte has
the joint distribution of its codes: five ternary codes in a byte cost their entropy, while a byte
for each would cost at least one bit each.  Alphabets of more than 256 take two byte planes, low
bytes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from formats.container.safetensors_buffer import TensorView, expect, to_torch
from formats.errors import CorruptError

if TYPE_CHECKING:
    import torch

LAYOUT = "layout"  # the payload tensor of the 32-bit integers that say how to decode the others


def layout_of(tensors: Mapping[str, TensorView], count: int, where: str) -> Sequence[int]:
    """Return the `count` integers of a payload's layout tensor.  Raises CorruptError."""
    if LAYOUT not in tensors:
        raise CorruptError(f"{where}: there is no tensor {LAYOUT!r}")
    expect({LAYOUT: tensors[LAYOUT]}, {LAYOUT: ("I32", (count,))}, where)
    return tensors[LAYOUT].integers()


def working_dtype(dtype: str) -> torch.dtype:
    """Return the dtype of a lossy codec's arithmetic."""
    import torch

    return torch.float64 if dtype == "float64" else torch.float32


def to_cache_dtype(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Convert values to the cache's dtype; those beyond its range become its largest number."""
    import torch

    wanted: torch.dtype = getattr(torch, dtype)
    limit = min(torch.finfo(wanted).max, torch.finfo(values.dtype).max)
    return values.clamp(-limit, limit).to(wanted)


def to_planes(values: torch.Tensor) -> torch.Tensor:
    """Split values into byte planes, uint8 (item bytes, ...), least significant first."""
    import torch

    octets = values.contiguous().reshape(-1).view(torch.uint8).view(*values.shape, values.element_size())
    return octets.movedim(-1, 0).contiguous()


def from_planes(view: TensorView, dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    """Join the byte planes that `to_planes` made."""
    import torch

    planes = to_torch(view, device).view(view.shape)
    octets = torch.empty(*planes.shape[1:], planes.shape[0], dtype=torch.uint8, device=device)
    for significance, plane in enumerate(planes):
        octets[..., significance] = plane
    return octets.reshape(-1).view(dtype).view(planes.shape[1:])


def to_bits(flags: torch.Tensor) -> torch.Tensor:
    """Pack booleans of any shape into uint8, the first in the least significant bit."""
    import torch

    octets = torch.nn.functional.pad(flags.reshape(-1).to(torch.uint8), (0, -flags.numel() % 8)).view(-1, 8)
    places = torch.arange(8, dtype=torch.uint8, device=flags.device)
    return (octets << places).sum(-1, dtype=torch.uint8).cpu()


def from_bits(bits: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Unpack the booleans that `to_bits` packed."""
    import torch

    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> places) & 1).reshape(-1)[: math.prod(shape)].view(*shape).bool()


def marked_bits(tensors: Mapping[str, TensorView], name: str, count: int, where: str) -> int:
    """Count the set bits of a tensor of `count` bits.

    Raises:
        CorruptError: there is no such tensor, or it has another length.
    """
    if name not in tensors:
        raise CorruptError(f"{where}: there is no tensor {name!r}")
    data = tensors[name].data
    if len(data) != -(-count // 8) or (count % 8 and data[-1] >> count % 8):
        raise CorruptError(f"{where}: {name!r} does not hold {count} bits")
    return int.from_bytes(data, "little").bit_count()


def codes_per_byte(levels: int) -> int:
    """Return how many codes of an alphabet of `levels` share a byte; 0 if one takes two bytes."""
    count = 0
    while levels ** (count + 1) <= 256:
        count += 1
    return count


def packed_shape(shape: tuple[int, ...], levels: int) -> tuple[int, ...]:
    """Return the shape of `pack(codes)` for codes of this shape."""
    per_byte = codes_per_byte(levels)
    if per_byte == 0:
        return (2, *shape)
    return (*shape[:-1], -(-shape[-1] // per_byte))


def pack(codes: torch.Tensor, levels: int) -> torch.Tensor:
    """Pack integers from 0 to levels - 1 into uint8, shaped as `packed_shape` says."""
    import torch

    per_byte = codes_per_byte(levels)
    if per_byte == 0:
        return torch.stack([codes & 255, codes >> 8]).to(torch.uint8)
    if per_byte == 1:
        return codes.to(torch.uint8)
    missing = -codes.shape[-1] % per_byte
    padded = torch.nn.functional.pad(codes, (0, missing)).to(torch.uint8)
    digits = padded.reshape(*padded.shape[:-1], -1, per_byte)
    packed: torch.Tensor = digits[..., -1].clone()
    for place in range(per_byte - 2, -1, -1):
        packed = packed * levels + digits[..., place]
    return packed


def unpack(packed: torch.Tensor, levels: int, length: int) -> torch.Tensor:
    """Unpack the codes that `pack` packed, int32; `length` is the extent of their last axis."""
    import torch

    per_byte = codes_per_byte(levels)
    if per_byte == 0:
        planes = packed.to(torch.int32)
        return planes[0] + planes[1] * 256
    rest, digits = packed.to(torch.int32), []
    for _ in range(per_byte - 1):
        digits.append(rest % levels)
        rest = rest // levels
    digits.append(rest)
    return torch.stack(digits, -1).flatten(-2)[..., :length]
