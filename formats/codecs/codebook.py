"""Codebooks of blocks of channels, trained by k-means, several at once.

The same seed gives the same codebooks on the same device.  k-means++: Arthur and Vassilvitskii,
SODA 2007.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.settings import Settings, require

if TYPE_CHECKING:
    import torch

NORMALIZE = ("head", "channel")
MAX_CENTROIDS = 256
MAX_BLOCK = 256
_CHUNK = 1 << 16  # vectors whose distances to all centroids are in memory at once


@dataclass(frozen=True)
class CodebookSettings(Settings):
    """The settings that vq and pq have in common.

    Attributes:
        block: channels of one head that are coded together.
        centroids: entries of a codebook, 2 to 256.
        fallback: keep a block exactly if its relative error exceeds `threshold`.
        threshold: the limit of a block's relative error |x - x'| / |x|.
        normalize: subtract the mean and divide by the standard deviation of each "head", or of each
            "channel" of a head.
        shared: use one codebook for all layers of a record instead of one for each.
        samples: the most vectors on which a codebook is trained.
        iterations: iterations of k-means.
        seed: the seed of the samples and of k-means++.
    """

    block: int = 8
    centroids: int = 256
    fallback: bool = True
    threshold: float = 0.05
    normalize: str = "head"
    shared: bool = False
    samples: int = 8192
    iterations: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.block <= MAX_BLOCK, f"block={self.block} is not from 1 to {MAX_BLOCK}")
        require(2 <= self.centroids <= MAX_CENTROIDS, f"centroids={self.centroids} is not from 2 to 256")
        require(self.threshold >= 0, f"threshold={self.threshold} is negative")
        require(self.normalize in NORMALIZE, f"normalize={self.normalize} is neither head nor channel")
        require(1 <= self.samples <= 1 << 24, f"samples={self.samples} is not from 1 to 16777216")
        require(0 <= self.iterations <= 10_000, f"iterations={self.iterations} is not from 0 to 10000")
        require(0 <= self.seed < 1 << 63, f"seed={self.seed} is not from 0 to 2^63 - 1")


def train(blocks: torch.Tensor, sub_vectors: int, settings: CodebookSettings) -> torch.Tensor:
    """Train codebooks (books, sub-vectors, centroids, size) on blocks of channels.

    Args:
        blocks: (layers, batch, heads, rows, N, block), normalized, float32.
    """
    import torch

    layers = 1 if settings.shared else blocks.shape[0]
    vectors = blocks.reshape(layers, -1, sub_vectors, blocks.shape[-1] // sub_vectors)
    count = vectors.shape[1]
    if count > settings.samples:
        generator = torch.Generator().manual_seed(settings.seed)
        chosen = torch.randperm(count, generator=generator)[: settings.samples].to(vectors.device)
        vectors = vectors[:, chosen]
    books = vectors.transpose(1, 2).flatten(0, 1).contiguous()
    trained = kmeans(books, settings.centroids, seed=settings.seed, iterations=settings.iterations)
    return trained.view(layers, sub_vectors, *trained.shape[1:])


def assign(blocks: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    """Return the codes of blocks, (layers, batch, heads, rows, N, sub-vectors), int64."""
    import torch

    layers, (count, subs) = blocks.shape[0], books.shape[:2]
    vectors = blocks.reshape(layers, -1, subs, blocks.shape[-1] // subs)
    codes = torch.empty(vectors.shape[:3], dtype=torch.int64, device=blocks.device)
    for layer in range(layers):
        for sub in range(subs):
            codes[layer, :, sub] = nearest(vectors[layer, :, sub], books[layer if count > 1 else 0, sub])
    return codes.view(*blocks.shape[:-1], subs)


def look_up(codes: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    """Return the normalized channels of codes, (layers, batch, heads, rows, N * block)."""
    import torch

    layers, (count, subs, _, size) = codes.shape[0], books.shape
    channels = torch.empty(*codes.shape, size, dtype=books.dtype, device=books.device)
    for layer in range(layers):
        for sub in range(subs):
            channels[layer, ..., sub, :] = books[layer if count > 1 else 0, sub][codes[layer, ..., sub]]
    return channels.flatten(-3)


def kmeans(vectors: torch.Tensor, centroids: int, *, seed: int, iterations: int) -> torch.Tensor:
    """Find centroids (books, centroids, size) of vectors (books, count, size).

    If there are fewer vectors than centroids, some centroids are equal.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
    means = _seed(vectors, centroids, generator)
    for _ in range(iterations):
        sums = torch.zeros_like(means)
        counts = torch.zeros(means.shape[:2], dtype=means.dtype, device=means.device)
        for book, members in enumerate(vectors):
            closest = nearest(members, means[book])
            sums[book].index_add_(0, closest, members)
            counts[book] = torch.bincount(closest, minlength=centroids).to(means.dtype)
        # a centroid that no vector is closest to stays where it is
        means = torch.where(counts[..., None] > 0, sums / counts.clamp(min=1)[..., None], means)
    return means


def _seed(vectors: torch.Tensor, centroids: int, generator: torch.Generator) -> torch.Tensor:
    """Draw the first centroids by k-means++, with probability proportional to squared distance."""
    import torch

    books, count, _ = vectors.shape
    draws = torch.rand(books, centroids, generator=generator, dtype=torch.float64).to(vectors.device)
    book_indices = torch.arange(books, device=vectors.device)
    first = (draws[:, 0] * count).long().clamp(max=count - 1)
    chosen = [vectors[book_indices, first]]
    distances = (vectors - chosen[0][:, None]).square().sum(-1)
    for centroid in range(1, centroids):
        cumulative = distances.double().cumsum(-1)
        wanted = draws[:, centroid, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp(max=count - 1)
        chosen.append(vectors[book_indices, drawn])
        distances = torch.minimum(distances, (vectors - chosen[-1][:, None]).square().sum(-1))
    return torch.stack(chosen, 1)


def nearest(vectors: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Return the index of the centroid (of (centroids, size)) nearest to each vector, int64."""
    import torch

    norms = centroids.square().sum(-1)
    doubled = 2 * centroids.T
    pieces = [torch.argmin(torch.addmm(norms, piece, doubled, alpha=-1), -1) for piece in torch.split(vectors, _CHUNK)]
    return torch.cat(pieces)
