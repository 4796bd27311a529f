"""Energies and bits: what is left of a signal when something that is known is taken away."""

from __future__ import annotations

import torch

# of a channel's energy: a float32 has 24 bits, so that no more than these can be saved
DEEPEST = 2.0**-48


def energies(rows: torch.Tensor, *, centred: bool = True) -> torch.Tensor:
    """Energy of every channel without its mean: (..., tokens, heads, size) -> (heads, size)."""
    flat = rows.flatten(0, -3)
    if centred:
        flat = flat - flat.mean(0)
    return flat.square().sum(0)


def ratios(signal: torch.Tensor, left: torch.Tensor) -> list[float | None]:
    """Residual energy over signal energy for every head, (heads, size) each; None for no signal."""
    whole = signal.sum(-1)
    return [
        float(rest / energy) if energy > 0 else None
        for rest, energy in zip(left.sum(-1).tolist(), whole.tolist(), strict=True)
    ]


def bits(signal: torch.Tensor, left: torch.Tensor, raw: torch.Tensor | None = None) -> list[float | None]:
    """Bits a value that coding the residual saves: mean over channels of 1/2 log2(signal / left).

    Fine quantization of any source: halving its standard deviation saves a bit a value. Negative:
    it costs bits. Channels that are constant are left out.

    Args:
        signal, left: energies, (heads, size).
        raw: energy of the channels with their means, against which a channel counts as constant.
    Returns:
        for each head; None if all its channels are constant.
    """
    base = signal if raw is None else raw
    varies = (signal > base * DEEPEST) & (signal > 0)
    rest_energy = torch.maximum(left, signal * DEEPEST)
    gain = 0.5 * torch.log2(
        torch.where(varies, signal / rest_energy.clamp(min=torch.finfo(rest_energy.dtype).tiny), 1.0)
    )
    counts = varies.sum(-1)
    return [
        float(total / count) if count else None
        for total, count in zip(gain.sum(-1).tolist(), counts.tolist(), strict=True)
    ]
