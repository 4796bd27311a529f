"""k-means: seeds are drawn in proportion to squared distance, and iterations bring centroids to the means."""

from __future__ import annotations

import torch

from formats.codecs import codebook

CLUSTERS = 8


def clustered(books: int, seed: int) -> torch.Tensor:
    """(books, vectors, 2): one cluster of 993 vectors and seven of one, far from each other."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.zeros(1000, 2)
    centres[-(CLUSTERS - 1) :, 0] = 100.0 * torch.arange(1, CLUSTERS)
    return centres + 0.001 * torch.randn(books, 1000, 2, generator=generator)


def cluster_of(vectors: torch.Tensor) -> list[list[int]]:
    """The cluster of each vector (books, count, 2), ascending."""
    return (vectors[..., 0] / 100).round().long().sort(-1).values.tolist()


def test_seeds_are_spread_by_squared_distance() -> None:
    """Without an iteration, the centroids are the seeds: drawn alike from all vectors, few would be outliers."""
    seeds = codebook.kmeans(clustered(books=20, seed=0), CLUSTERS, seed=1, iterations=0)
    assert cluster_of(seeds) == [list(range(CLUSTERS))] * 20


def test_seeds_follow_the_seed_and_are_vectors() -> None:
    vectors = clustered(books=2, seed=0)
    one, same, other = (codebook.kmeans(vectors, 3, seed=seed, iterations=0) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    for book in range(2):
        assert all((vectors[book] == seed).all(-1).any() for seed in one[book])


def test_centroids_are_the_means_of_their_clusters() -> None:
    vectors = clustered(books=1, seed=3)
    centroids = codebook.kmeans(vectors, CLUSTERS, seed=0, iterations=2)
    codes = codebook.nearest(vectors[0], centroids[0])
    assert cluster_of(centroids) == [list(range(CLUSTERS))]
    for code in range(CLUSTERS):
        torch.testing.assert_close(centroids[0, code], vectors[0, codes == code].mean(0))


def test_a_centroid_without_vectors_stays_where_it_is() -> None:
    vectors = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    assert codebook.kmeans(vectors, 3, seed=0, iterations=2).tolist() == [[[0.0, 0.0]] * 3]
