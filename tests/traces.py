"""Small traces without a model: random rows in every shape that a cache can have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from formats import Geometry, LayerSpec, Recorder, Snapshot, Trace, TraceBuilder
from formats.timeline import Rows

FULL = LayerSpec("full", heads=2, key_size=4, value_size=4)
UNEVEN = LayerSpec("full", heads=1, key_size=6, value_size=3)
SLIDING = LayerSpec("sliding", heads=1, key_size=4, value_size=2, window=5)


def random_rows(spec: LayerSpec, rows: int, dtype: str, batch: int = 1, seed: int = 0) -> Rows:
    """Keys and values with random bits, so that NaNs, infinities, denormals and signed zeros occur."""
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)

    def bits(size: int) -> torch.Tensor:
        count = batch * spec.heads * rows * size * kind.itemsize
        octets = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
        return octets.view(kind).view(batch, spec.heads, rows, size)

    return bits(spec.key_size), bits(spec.value_size)


def finite_rows(spec: LayerSpec, rows: int, dtype: str, batch: int = 1, seed: int = 0) -> Rows:
    """Keys and values as codecs that are not exact take them: no NaN, no infinity, channels of different scales."""
    generator = torch.Generator().manual_seed(seed)

    def values(size: int) -> torch.Tensor:
        noise = torch.randn(batch, spec.heads, rows, size, dtype=torch.float64, generator=generator)
        return (noise * torch.linspace(0.5, 4, size) + 1).to(getattr(torch, dtype))

    return values(spec.key_size), values(spec.value_size)


def growing_trace(
    layers: Sequence[LayerSpec] = (FULL, FULL, UNEVEN, SLIDING),
    *,
    dtype: str = "bfloat16",
    batch: int = 1,
    lengths: Sequence[int] = (7, 8, 9, 12),
    keyframe_interval: int | None = None,
    fingerprint: dict[str, str] | None = None,
    rows: Callable[..., Rows] = random_rows,
) -> Trace:
    """A trace of a cache that grows to each of `lengths` tokens; token t has id 3 t + 1."""
    geometry = Geometry(dtype, tuple(layers), batch)
    builder = TraceBuilder(geometry, fingerprint or {"weights": "test"})
    recorder = Recorder(builder, geometry, keyframe_interval=keyframe_interval)
    whole = [rows(spec, lengths[-1], dtype, batch, seed) for seed, spec in enumerate(layers)]
    fed = 0
    for length in lengths:
        cache = []
        for spec, (keys, values) in zip(layers, whole, strict=True):
            first = max(0, length - spec.window + 1) if spec.window else 0
            cache.append((keys[:, :, first:length], values[:, :, first:length]))
        recorder.snapshot([3 * token + 1 for token in range(fed, length)], cache, [3 * length + 1])
        fed = length
    recorder.finish()
    return builder.trace


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shape, dtype and bits; NaNs are equal to themselves and -0.0 is not 0.0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def same_snapshots(a: Snapshot, b: Snapshot) -> bool:
    """Equal labels, positions of rows and bits of all rows."""
    labels = [(s.token_ids, s.positions, s.next_token, len(s.keys), len(s.row_positions)) for s in (a, b)]
    return (
        labels[0] == labels[1]
        and all(map(torch.equal, a.row_positions, b.row_positions))
        and all(map(same_bits, a.keys + a.values, b.keys + b.values))
    )


def octets(tensor: torch.Tensor) -> bytes:
    """Little-endian bytes in natural order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
