"""How far stored rows may be from recomputed ones: rounding, and what the codec loses by itself.

The figures behind the constants were measured on the default model; docs/verification.md has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rounding:
    """What other kernels, chunks and machines may change, as a share of the rows' RMS.

    Attributes:
        row: of the rows of one head, at the worst token.
        head: of the rows of one head together, root mean square.
    """

    row: float
    head: float


# of the dtype that the model computes in
ROUNDING = {
    "float64": Rounding(1e-10, 3e-11),
    "float32": Rounding(1e-4, 3e-5),
    "float16": Rounding(5e-2, 1.5e-2),
    "bfloat16": Rounding(0.2, 0.07),
}
ROW = 1.5  # times the error that the codec makes of the recomputed row, or of its head's rows together
HEAD = 1.25  # times the error that the codec makes of the head's rows together
TELLING = 0.8  # of the distance between unrelated rows; where more is allowed, that proves nothing
ALIKE = 0.3  # there: of the distance between unrelated rows as the codec leaves them, for a head's rows together
ALIKE_ROW = 2.0  # and for the worst row
SHARED = 0.1  # of what the codec promises of each row, for a head: few rows are at that limit
MOST_PROMISED = 0.5  # more would excuse anything
FEW = 8  # rows of a head whose spread says nothing of it


@dataclass(frozen=True)
class Distances:
    """Norms of one part of one layer's rows, (batch, heads, rows), float64.

    Attributes:
        stored: of stored rows less recomputed ones.
        own: of what the codec makes of the recomputed rows, less these.
        size: of the recomputed rows.
        identical: whether they are bit for bit what is expected, boolean.
        apart: of stored rows less what the codec makes of the recomputed ones; infinite where
            records differ in kind.
        spread, own_spread: the RMS distance of two unrelated rows of a head, and of two of what the
            codec makes, (batch, heads); infinite where nobody knows.
    """

    stored: torch.Tensor
    own: torch.Tensor
    size: torch.Tensor
    identical: torch.Tensor
    apart: torch.Tensor
    spread: torch.Tensor
    own_spread: torch.Tensor


@dataclass(frozen=True)
class Judged:
    """The distances as shares of what they may be, and in units of the rows' RMS; (batch, heads, rows) each.

    Attributes:
        share: the larger one of the row's own and its head's; over 1 is wrong, and 0 what is
            identical.
        coarse: heads at which the codec loses so much that rows of another text would pass, (batch,
            heads); the share of their rows is infinite.
    """

    share: torch.Tensor
    error: torch.Tensor
    own: torch.Tensor
    allowed: torch.Tensor
    coarse: torch.Tensor


def judge(distances: Distances, dtype: str, promise: float = 0.0) -> Judged:
    """Hold distances against what they may be.

    Args:
        dtype: that the model computes in.
        promise: the share of its size by which the codec may miss a row before it keeps it exactly:
            rounding decides on which side a row comes to lie.
    """
    rounding = ROUNDING[dtype]
    size = torch.where(distances.size.isfinite(), distances.size, 0.0)
    of_head, own_of_head = _rms(size), _rms(distances.own)
    promise = min(promise, MOST_PROMISED)
    lost = torch.maximum(ROW * torch.maximum(distances.own, own_of_head), promise * size)
    allowed = lost + rounding.row * torch.maximum(size, of_head)
    allowed_head = HEAD * own_of_head + (rounding.head + SHARED * promise) * of_head
    share = _share(distances.stored, allowed)
    coarse = torch.zeros(size.shape[:2], dtype=torch.bool)
    if size.shape[-1] >= FEW:
        # a head that is wrong as a whole shows at its worst row
        by_head = _share(_rms(distances.stored), allowed_head)
        worst = share == share.amax(-1, keepdim=True)
        share = torch.where(worst, torch.maximum(share, by_head), share)
        coarse = allowed_head[..., 0] > TELLING * distances.spread
        # what is left of such rows must still be what the codec leaves of the recomputed ones
        limit = ALIKE * distances.own_spread[..., None]
        near = (_rms(distances.apart) <= limit) & (distances.apart <= ALIKE_ROW / ALIKE * limit).all(-1, keepdim=True)
        coarse &= ~near[..., 0]
        coarse &= (own_of_head[..., 0] > 0) | (promise > 0)
    share = torch.where(coarse[..., None], torch.inf, share)
    share = torch.where(distances.identical, 0.0, share)
    unit = torch.where(of_head > 0, of_head, 1.0)
    return Judged(share, distances.stored / unit, distances.own / unit, allowed / unit, coarse)


def _rms(norms: torch.Tensor) -> torch.Tensor:
    return norms.square().mean(-1, keepdim=True).sqrt()


def _share(found: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """found / allowed; nothing is within anything, and what is not a number is within nothing."""
    share = torch.where(found == 0, 0.0, found / allowed)
    return torch.where(share.isnan(), torch.inf, share)


def spread_of(rows: torch.Tensor) -> torch.Tensor:
    """The RMS distance of two unrelated rows of each head, (batch, heads), for rows (batch, heads, rows, size)."""
    if rows.shape[2] < 2:
        return torch.full(rows.shape[:2], torch.inf, dtype=torch.float64)
    return (2 * rows.double().var(2, correction=0).sum(-1)).sqrt()
