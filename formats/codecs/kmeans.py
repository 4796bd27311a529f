"""k-means with k-means++ seeding, for several codebooks at once; deterministic by seed on one device.

k-means++ is Arthur and Vassilvitskii, SODA 2007.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 16  # vectors whose distances to all centroids are held at once


def train(vectors: torch.Tensor, centroids: int, *, seed: int, iterations: int) -> torch.Tensor:
    """Centroids (books, centroids, size) of vectors (books, count, size).

    With fewer vectors than centroids some centroids are repeated.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device draws the same
    chosen = _seed(vectors, centroids, generator)
    for _ in range(iterations):
        sums = torch.zeros_like(chosen)
        counts = torch.zeros(chosen.shape[:2], dtype=chosen.dtype, device=chosen.device)
        for book, members in enumerate(vectors):
            nearest = assign(members, chosen[book])
            sums[book].index_add_(0, nearest, members)
            counts[book] = torch.bincount(nearest, minlength=centroids).to(chosen.dtype)
        # a centroid that lost all its vectors stays where it is
        chosen = torch.where(counts[..., None] > 0, sums / counts.clamp(min=1)[..., None], chosen)
    return chosen


def _seed(vectors: torch.Tensor, centroids: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++: each next centroid is a vector drawn with probability proportional to its squared distance."""
    import torch

    books, count, _ = vectors.shape
    draws = torch.rand(books, centroids, generator=generator, dtype=torch.float64).to(vectors.device)
    lines = torch.arange(books, device=vectors.device)
    first = (draws[:, 0] * count).long().clamp(max=count - 1)
    chosen = [vectors[lines, first]]
    distances = (vectors - chosen[0][:, None]).square().sum(-1)
    for number in range(1, centroids):
        cumulative = distances.double().cumsum(-1)
        wanted = draws[:, number, None] * cumulative[:, -1:]
        at = torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp(max=count - 1)
        chosen.append(vectors[lines, at])
        distances = torch.minimum(distances, (vectors - chosen[-1][:, None]).square().sum(-1))
    return torch.stack(chosen, 1)


def assign(vectors: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """The index of the nearest of (centroids, size) for each of (count, size), int64."""
    import torch

    norms = centroids.square().sum(-1)
    doubled = 2 * centroids.T
    pieces = [torch.argmin(torch.addmm(norms, piece, doubled, alpha=-1), -1) for piece in torch.split(vectors, _CHUNK)]
    return torch.cat(pieces)
