"""Profiles of caches without a model, made by hand: what codec klt needs, in every shape that the format allows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from formats import LayerSpec
from formats.codecs.klt.group import Group
from formats.codecs.klt.profile import Profile, dumps
from formats.codecs.klt.rotary import Rotary
from formats.codecs.klt.shape import Shape
from formats.codecs.klt.tables import assumed
from tests.support.traces import FULL, SLIDING, UNEVEN

RARE = -300  # 32nds of an octave: of a value that is far livelier than its scale, so that integers are written apart


def group(
    first_layer: int,
    layers: Sequence[LayerSpec],
    rotary: Sequence[Rotary],
    *,
    rank: int = 8,
    bands: Sequence[int] = (2, 5, 8),
    before: Group | None = None,
    fewer: int = 0,
    lively: bool = True,
) -> Group:
    """A group whose basis is orthonormal but for rounding; the rest of it is random, and fits no cache well.

    Args:
        before: the group that coefficients are predicted from, all but `fewer` of its own.
        lively: some values go so far beyond their scale that integers are written apart.
    """
    spec, count = layers[0], len(layers)
    generator = torch.Generator().manual_seed(17 + first_layer)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def metric(size: int) -> torch.Tensor:
        square = noise(count, spec.heads, size, size)
        found = 0.1 * (square + square.mT) + 2 * torch.eye(size)
        return ((found / unit).half() * unit).float()

    unit = 2.0**3
    width = count * spec.heads * (spec.key_size + spec.value_size)
    scale = torch.linspace(96, -20, rank).round().to(torch.int16)
    residual = torch.full((width,), 32, dtype=torch.int16)
    residual[3::17] = RARE if lively else 32
    vectors = torch.linalg.qr(noise(width, rank))[0].T
    scaled = vectors * torch.exp2(scale.float() / 32)[:, None]
    step = float(scaled.abs().max()) / 2_000
    shape = Shape(
        first_layer, count, spec.heads, spec.key_size, spec.value_size, rank, 3, step, tuple(bands), tuple(rotary)
    )
    return Group(
        shape,
        1 + 0.1 * noise(width),
        noise(width),
        metric(spec.key_size),
        metric(spec.value_size),
        (scaled / step).round().to(torch.int16),
        scale,
        residual,
        0.1 * noise(6 + 2 * count * spec.heads),
        None if before is None else 0.2 * noise(rank, before.shape.rank - fewer),
    )


WIDE_PAIRS, TURNED_PAIRS, ONE_PAIR, NONE = Rotary((1.0, 0.01)), Rotary((0.5, 0.05), True), Rotary((0.7,)), Rotary(())


def dumped(*groups: Group) -> Profile:
    point = {"fineness": 100.0, "bits": 2.5, "kl": 0.01, "top1": 1.0}
    return dumps("sample", {"weights": "test"}, groups, assumed(), {"tokens": 12}, [point])


@cache
def one_group() -> Profile:
    """Layers 0 and 1 of 2 heads with 4 values each."""
    return dumped(group(0, (FULL, FULL), (WIDE_PAIRS, TURNED_PAIRS)))


@cache
def two_groups() -> Profile:
    """Layers 0 and 1, and layer 2, whose coefficients are predicted."""
    first = group(0, (FULL, FULL), (WIDE_PAIRS, NONE), rank=10, bands=(4, 10))
    return dumped(first, group(2, (FULL,), (ONE_PAIR,), rank=6, bands=(1, 6), before=first))


@cache
def every_layer() -> Profile:
    """Layers of three kinds; the last two groups predict theirs from groups that no record holds with them."""
    first = group(0, (FULL, FULL), (WIDE_PAIRS, WIDE_PAIRS))
    second = group(2, (UNEVEN,), (ONE_PAIR,), rank=9, bands=(9,), before=first)
    return dumped(first, second, group(3, (SLIDING,), (NONE,), rank=1, bands=(1,), before=second))


@cache
def chained() -> Profile:
    """Four groups of a layer each, predicted one from the other."""
    groups: list[Group] = []
    for layer, rank in enumerate((5, 9, 3, 7)):
        before = groups[-1] if groups else None
        fewer = 2 if layer == 2 else 0
        groups.append(
            group(layer, (FULL,), (TURNED_PAIRS,), rank=rank, bands=(rank,), before=before, fewer=fewer, lively=False)
        )
    return dumped(*groups)
