"""The Walsh-Hadamard rotation of a head: it spreads an outlier channel over all channels before scalar quantization.

QuaRot (arXiv 2404.00456) and llama.cpp rotate likewise.  The matrix is orthogonal and symmetric, so that the
rotation is its own inverse.  A head size that is no power of two is rotated in blocks of its largest power-of-two
divisor (80 = 5 blocks of 16).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def hadamard(rows: torch.Tensor) -> torch.Tensor:
    """`rows` (..., head size) times the normalized block Hadamard matrix."""
    import torch

    size = rows.shape[-1]
    block = size & -size
    matrix = torch.ones(1, 1, dtype=rows.dtype, device=rows.device)
    while matrix.shape[0] < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    rotated: torch.Tensor = rows.reshape(*rows.shape[:-1], -1, block) @ (matrix / block**0.5)
    return rotated.reshape(rows.shape)
