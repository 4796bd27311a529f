"""Rotary position embedding as a fact about a layer: which pairs of channels turn, and how fast.

RoFormer (arXiv 2104.09864) turns pairs of a key's channels by angles proportional to the key's position.  Turned back,
a key depends on its token and its context but no longer on where it stands, which is what a transform codec wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rotary:
    """Which channels of a head turn.

    Attributes:
        frequencies: radians a position, one a pair; the first `2 * len(frequencies)` channels of a head turn, the
            others stay (partial rotary).
        interleaved: a pair is channels 2i and 2i + 1 (GPT-J); else i and i + len(frequencies) (GPT-NeoX, Llama).
    """

    frequencies: tuple[float, ...]
    interleaved: bool = False

    @property
    def channels(self) -> int:
        return 2 * len(self.frequencies)

    def turn(self, keys: torch.Tensor, positions: torch.Tensor, *, back: bool = False) -> torch.Tensor:
        """Keys (..., rows, head size) turned to their positions (rows,), or back to position 0."""
        import torch

        if not self.frequencies:
            return keys
        rates = torch.tensor(self.frequencies, dtype=torch.float64)
        angles = positions.double().cpu()[:, None] * (-rates if back else rates)
        cos, sin = (part.to(keys.device, keys.dtype) for part in (angles.cos(), angles.sin()))
        turning, rest = keys[..., : self.channels], keys[..., self.channels :]
        if self.interleaved:
            one, other = turning[..., 0::2], turning[..., 1::2]
            turned = torch.stack([one * cos - other * sin, other * cos + one * sin], -1).flatten(-2)
        else:
            one, other = turning.chunk(2, -1)
            turned = torch.cat([one * cos - other * sin, other * cos + one * sin], -1)
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned
