"""Rotary position embedding (RoPE) of a layer: which pairs of channels turn, and how fast.

RoFormer (arXiv 2104.09864) turns pairs of a key's channels by angles proportional to the key's
position.  Turned back, a key no longer depends on its position, which suits a transform codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rotary:
    """The rotary embedding of a layer.

    Attributes:
        frequencies: radians a position, one for each pair of channels; the first
            `2 * len(frequencies)` channels of a head turn, the others stay (partial rotary).
        interleaved: a pair is channels 2i and 2i + 1 (GPT-J); else i and i + len(frequencies)
            (GPT-NeoX, Llama).
    """

    frequencies: tuple[float, ...]
    interleaved: bool = False

    @property
    def channels(self) -> int:
        """The number of channels of a head that turn."""
        return 2 * len(self.frequencies)

    def turn(self, keys: torch.Tensor, positions: torch.Tensor, *, back: bool = False) -> torch.Tensor:
        """Turn keys (..., rows, head size) to their positions (rows,), or back to position 0."""
        import torch

        if not self.frequencies:
            return keys
        rates = torch.tensor(self.frequencies, dtype=torch.float64)
        angles = positions.double().cpu()[:, None] * (-rates if back else rates)
        cos, sin = (part.to(keys.device, keys.dtype) for part in (angles.cos(), angles.sin()))
        turning, rest = keys[..., : self.channels], keys[..., self.channels :]
        if self.interleaved:
            real, imaginary = turning[..., 0::2], turning[..., 1::2]
            turned = torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], -1).flatten(-2)
        else:
            real, imaginary = turning.chunk(2, -1)
            turned = torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned
