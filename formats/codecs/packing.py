"""Small integers in bytes: several codes a byte, in the base of their alphabet.

zstd entropy-codes bytes (Huffman, order 0).  As many codes as fit share a byte, so that a byte's distribution is the
joint one of its codes: five ternary codes cost their entropy, where one code a byte would cost at least one bit each.
Alphabets of more than 256 take two byte planes, low bytes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def codes_per_byte(levels: int) -> int:
    """How many codes of an alphabet of `levels` share a byte; 0 if one takes two bytes."""
    count = 0
    while levels ** (count + 1) <= 256:
        count += 1
    return count


def packed_shape(shape: tuple[int, ...], levels: int) -> tuple[int, ...]:
    """The shape of `pack(codes)` for codes of this shape: the last axis shrinks, or planes come first."""
    per_byte = codes_per_byte(levels)
    if per_byte == 0:
        return (2, *shape)
    return (*shape[:-1], -(-shape[-1] // per_byte))


def pack(codes: torch.Tensor, levels: int) -> torch.Tensor:
    """Integers from 0 to levels - 1 as uint8."""
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
    """The inverse of `pack`, as int32; `length` is the extent of the codes' last axis.

    Any byte gives codes below `levels`, but for those of an alphabet that does not fill its bytes: `largest` tells.
    """
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
