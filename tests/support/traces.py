"""Small traces without a model: random rows in every shape that a cache can have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from formats import Geometry, LayerSpec, Recorder, Snapshot, Trace, TraceBuilder
from formats.container.records import Part
from formats.trace.geometry import StateSpec
from formats.trace.recorder import Rows

FULL = LayerSpec("full", heads=2, key_size=4, value_size=4)
UNEVEN = LayerSpec("full", heads=1, key_size=6, value_size=3)
SLIDING = LayerSpec("sliding", heads=1, key_size=4, value_size=2, window=5)
CONV = StateSpec("conv.0", (6, 3), "bfloat16")
RECURRENT = StateSpec("recurrent.0", (2, 4, 3), "float32")
STATES = LayerSpec("none", states=(CONV, RECURRENT))
HYBRID = LayerSpec("full", 2, 4, 4, states=(CONV,))
NOTHING = LayerSpec("none")
INDEXED = LayerSpec("full", 1, 6, 3, index_size=5)
CROSS = LayerSpec("cross", 2, 4, 4)
EVERYTHING = (STATES, STATES, NOTHING, HYBRID, INDEXED, INDEXED, SLIDING, FULL, CROSS)


def random_rows(spec: LayerSpec, rows: int, dtype: str, batch: int = 1, seed: int = 0) -> Rows:
    """Keys and values with random bits, so that NaNs, infinities, denormals and signed zeros occur."""
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)

    def bits(heads: int, size: int) -> torch.Tensor:
        count = batch * heads * rows * size * kind.itemsize
        octets = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
        return octets.view(kind).view(batch, heads, rows, size)

    return tuple(bits(spec.part_heads(part), spec.head_size(part)) for part in spec.parts)


def random_state(state: StateSpec, batch: int, seed: int) -> torch.Tensor:
    """(batch, *shape), random bits."""
    spec = LayerSpec("full", 1, state.size * state.heads, 1)
    return random_rows(spec, 1, state.dtype, batch, seed)[0].view(batch, *state.shape)


def finite_rows(spec: LayerSpec, rows: int, dtype: str, batch: int = 1, seed: int = 0) -> Rows:
    """Keys and values as codecs that are not exact take them: no NaN, no infinity, channels of different scales."""
    generator = torch.Generator().manual_seed(seed)

    def values(part: Part) -> torch.Tensor:
        size = spec.head_size(part)
        noise = torch.randn(batch, spec.part_heads(part), rows, size, dtype=torch.float64, generator=generator)
        return (noise * torch.linspace(0.5, 4, size) + 1).to(getattr(torch, dtype))

    return tuple(values(part) for part in spec.parts)


def finite_state(state: StateSpec, batch: int, seed: int) -> torch.Tensor:
    """(batch, *shape), as codecs that are not exact take it."""
    noise = torch.randn(batch, *state.shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(getattr(torch, state.dtype))


def full_trace(
    layers: Sequence[LayerSpec] = EVERYTHING,
    *,
    dtype: str = "bfloat16",
    batch: int = 1,
    lengths: Sequence[int] = (7, 8, 9, 12),
    padding: Sequence[int] = (),
    encoder: int = 3,
    finite: bool = False,
) -> Trace:
    """A trace with everything that layers can hold; token t of sequence s has id 100 s + t."""
    rows, states = (finite_rows, finite_state) if finite else (random_rows, random_state)
    geometry = Geometry(dtype, tuple(layers), batch, tuple(padding))
    builder = TraceBuilder(geometry, {"weights": "test"}, batch)
    recorder = Recorder(builder, geometry, label_width=batch)
    recorder.encoder([90 * token for token in range(encoder) for _ in range(batch)])
    whole = [
        rows(spec, encoder if spec.kind == "cross" else lengths[-1], dtype, batch, seed)
        for seed, spec in enumerate(layers)
    ]
    fed = 0
    for number, length in enumerate(lengths):
        cache = []
        for spec, parts in zip(layers, whole, strict=True):
            first = max(0, length - spec.window + 1) if spec.window else 0
            cache.append(tuple(part[:, :, first:length] for part in parts))
        held = [
            {state.name: states(state, batch, 100 * number + 10 * layer + at) for at, state in enumerate(spec.states)}
            for layer, spec in enumerate(layers)
        ]
        tokens = [100 * sequence + token for token in range(fed, length) for sequence in range(batch)]
        recorder.snapshot(tokens, cache, [100 * sequence + length for sequence in range(batch)], held)
        fed = length
    recorder.finish()
    return builder.trace


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
    return torch.equal(*(one.reshape(-1).contiguous().view(torch.uint8) for one in (a, b)))


def same_snapshots(a: Snapshot, b: Snapshot) -> bool:
    """Equal labels, positions of rows and bits of all rows."""
    labels = [(s.token_ids, s.positions, s.next_token, len(s.keys), len(s.row_positions)) for s in (a, b)]
    return (
        labels[0] == labels[1]
        and all(map(torch.equal, a.row_positions, b.row_positions))
        and all(map(same_bits, a.keys + a.values, b.keys + b.values))
        and all(
            (x is y) if x is None or y is None else same_bits(x, y)
            for x, y in zip(a.indexer_keys, b.indexer_keys, strict=True)
        )
        and all(
            x.keys() == y.keys() and all(same_bits(x[name], y[name]) for name in x)
            for x, y in zip(a.states, b.states, strict=True)
        )
    )


def octets(tensor: torch.Tensor) -> bytes:
    """Little-endian bytes in natural order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
