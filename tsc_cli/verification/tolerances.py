"""How far stored rows may be from recomputed ones: rounding, and the codec's own loss.

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
ROW = 1.5  # times the codec's error of the recomputed row, or of its head's rows together
HEAD = 1.25  # times the codec's error of the head's rows together
TELLING = 0.8  # of the distance between unrelated rows; a larger tolerance proves nothing
ALIKE = 0.3  # if it is larger: of the distance between unrelated coded rows, for a whole head
ALIKE_ROW = 2.0  # if it is larger: the same for the worst row
SHARED = 0.1  # of the codec's promise for each row, for a whole head: few rows are at that limit
MAX_PROMISE = 0.5  # a larger promise would excuse anything
FEW_ROWS = 8  # a head with fewer has no meaningful spread


@dataclass(frozen=True)
class Distances:
    """Norms of one part of one layer's rows, (batch, heads, rows), float64.

    Attributes:
        stored: of stored rows less recomputed ones.
        coded: of the recomputed rows after the codec, less the recomputed rows.
        size: of the recomputed rows.
        identical: whether they are bit for bit what is expected, boolean.
        apart: of stored rows less the recomputed rows after the codec; infinite where the codecs of
            the records differ.
        spread: the RMS distance of two unrelated rows of a head, (batch, heads); infinite where it
            is unknown.
        coded_spread: the same of the recomputed rows after the codec.
    """

    stored: torch.Tensor
    coded: torch.Tensor
    size: torch.Tensor
    identical: torch.Tensor
    apart: torch.Tensor
    spread: torch.Tensor
    coded_spread: torch.Tensor


@dataclass(frozen=True)
class Judged:
    """The distances compared with their tolerances, (batch, heads, rows) each.

    Attributes:
        share: distance over tolerance, of the row or of its head, whichever is larger; over 1 is
            wrong, 0 is identical.
        error: |stored - recomputed| in units of the rows' RMS.
        lost: the codec's loss in units of the rows' RMS.
        allowed: the row's tolerance in units of the rows' RMS.
        coarse: heads at which the codec loses so much that rows of another text would pass, (batch,
            heads); the share of their rows is infinite.
    """

    share: torch.Tensor
    error: torch.Tensor
    lost: torch.Tensor
    allowed: torch.Tensor
    coarse: torch.Tensor


def judge(distances: Distances, dtype: str, promise: float = 0.0) -> Judged:
    """Compare distances with their tolerances.

    Args:
        dtype: the dtype that the model computes in.
        promise: the share of its size by which the codec may miss a row before it keeps it exactly:
            rounding decides on which side a row comes to lie.
    """
    rounding = ROUNDING[dtype]
    size = torch.where(distances.size.isfinite(), distances.size, 0.0)
    head_size, head_loss = _rms(size), _rms(distances.coded)
    promise = min(promise, MAX_PROMISE)
    lost = torch.maximum(ROW * torch.maximum(distances.coded, head_loss), promise * size)
    allowed = lost + rounding.row * torch.maximum(size, head_size)
    allowed_head = HEAD * head_loss + (rounding.head + SHARED * promise) * head_size
    share = _share(distances.stored, allowed)
    coarse = torch.zeros(size.shape[:2], dtype=torch.bool)
    if size.shape[-1] >= FEW_ROWS:
        # a head that is wrong as a whole shows at its worst row
        by_head = _share(_rms(distances.stored), allowed_head)
        worst = share == share.amax(-1, keepdim=True)
        share = torch.where(worst, torch.maximum(share, by_head), share)
        coarse = allowed_head[..., 0] > TELLING * distances.spread
        # such rows must still be close to the recomputed ones after the codec
        limit = ALIKE * distances.coded_spread[..., None]
        near = (_rms(distances.apart) <= limit) & (distances.apart <= ALIKE_ROW / ALIKE * limit).all(-1, keepdim=True)
        coarse &= ~near[..., 0]
        coarse &= (head_loss[..., 0] > 0) | (promise > 0)
    share = torch.where(coarse[..., None], torch.inf, share)
    share = torch.where(distances.identical, 0.0, share)
    unit = torch.where(head_size > 0, head_size, 1.0)
    return Judged(share, distances.stored / unit, distances.coded / unit, allowed / unit, coarse)


def _rms(norms: torch.Tensor) -> torch.Tensor:
    return norms.square().mean(-1, keepdim=True).sqrt()


def _share(distance: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Return distance / allowed; 0 where the distance is 0, infinity where the result is NaN."""
    share = torch.where(distance == 0, 0.0, distance / allowed)
    return torch.where(share.isnan(), torch.inf, share)


def spread_of(rows: torch.Tensor) -> torch.Tensor:
    """Return the RMS distance of two unrelated rows of each head.

    Args:
        rows: (batch, heads, rows, size).
    Returns:
        (batch, heads), float64; infinite with fewer than two rows.
    """
    if rows.shape[2] < 2:
        return torch.full(rows.shape[:2], torch.inf, dtype=torch.float64)
    return (2 * rows.double().var(2, correction=0).sum(-1)).sqrt()
