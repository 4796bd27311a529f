"""Fitting: from statistics to a group of a profile, with its metric, basis and scales."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from formats.container.records import Part

from .group import MAX_SCALE, SCALE_UNITS, Group
from .shape import MAX_BANDS, Shape
from .statistics import Statistics

_BANDS = (8, 24, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_NOISE = 0.25  # what rounding of the basis may add, as a share of the variance that it leaves
_ITERATIONS, _MORE = 3, 128  # subspace iterations, and extra columns
_PREDICTORS = 1024  # coefficients of the group before that are worth their bytes in the profile
_SMALL = 2048  # the largest width for which all eigenvectors are computed
_LARGEST = 32767  # the largest integer of a basis
_SMALLEST = 2.0**-40  # of the largest scale: smaller ones are rounding errors


@dataclass(frozen=True)
class Rank:
    """A limit on the number of coefficients of a basis.

    Attributes:
        most: the largest rank.
        energy: the share of the variance that is enough.
    """

    most: int
    energy: float = 1.0


def fit(statistics: Statistics, shape: Shape, rank: Rank, importance: torch.Tensor, before: Fitted | None) -> Fitted:
    """Fit the group of these statistics.

    Args:
        shape: the group's shape; its rank, step and bands are replaced.
        importance: weights of the regression (see `importance.fit`).
        before: the group before in the same run, from which coefficients are predicted.
    """
    count = max(1, statistics.tokens)
    metric = {part: statistics.metric(part) for part in (Part.KEYS, Part.VALUES)}
    exponent = math.ceil(math.log2(max(float(root.abs().max()) for root in metric.values())))
    unit = 2.0**exponent
    # everything that follows uses the metric as it is stored, which a reader will have
    metric = {part: (root / unit).half().float() * unit for part, root in metric.items()}
    offset = statistics.sums / count
    covariance = statistics.covariance / count - torch.outer(offset, offset)
    covariance = _weighted(_weighted(covariance, metric, shape).T, metric, shape)
    covariance = (covariance + covariance.T) / 2
    energy = float(covariance.diagonal().sum())
    values, vectors = leading(covariance, min(rank.most, statistics.width))
    kept = _held(values, vectors, covariance.diagonal(), _kept(values, energy, rank.energy))
    values, vectors = values[:kept], vectors[:, :kept]
    rest = _left(covariance.diagonal(), values, vectors)
    values, vectors = values.float(), vectors.float()
    predict, left = None, values
    if before is not None and statistics.cross is not None:
        cross = statistics.cross / count - torch.outer(offset, before.offset)
        predict, left = _prediction(_weighted(cross, metric, shape), vectors, values, before)
    exponents = _exponents(left)
    scales = torch.exp2(exponents.double() / SCALE_UNITS).float()
    scaled = (vectors * scales).T  # (rank, P)
    step = max(
        _step(float(rest.mean()), float(values[-1]), kept, statistics.width), float(scaled.abs().max()) / _LARGEST
    )
    basis = (scaled / step).round().clamp(-_LARGEST, _LARGEST).to(torch.int16)
    if predict is not None:
        predict = predict / scales[:, None]
    noise = kept * step**2 / 12
    bands = tuple(stop for stop in _BANDS if stop < kept)[: MAX_BANDS - 1]
    group = Group(
        replace(shape, rank=kept, metric_exponent=exponent, basis_step=step, bands=(*bands, kept)),
        statistics.origin + offset,
        _first_mean(statistics),
        metric[Part.KEYS],
        metric[Part.VALUES],
        basis,
        exponents.to(torch.int16),
        _exponents(rest + noise).to(torch.int16),
        importance,
        predict,
    )
    return Fitted(group, offset, metric, vectors, values)


@dataclass(frozen=True)
class Fitted:
    """A fitted group, and the intermediate results that the next group needs.

    Attributes:
        offset: the mean less the origin, (P,).
        metric: by part, (layers, heads, size, size).
        vectors: eigenvectors, (P, rank).
        values: eigenvalues, (rank,).
    """

    group: Group
    offset: torch.Tensor
    metric: Mapping[Part, torch.Tensor]
    vectors: torch.Tensor
    values: torch.Tensor

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything but the group, for a checkpoint."""
        state = {"offset": self.offset, "vectors": self.vectors, "values": self.values}
        return state | {f"metric_{part.name}": tensor for part, tensor in self.metric.items()}

    @classmethod
    def of(cls, group: Group, state: Mapping[str, torch.Tensor]) -> Fitted:
        """Restore a group from what `state` returned."""
        metric = {part: state[f"metric_{part.name}"] for part in (Part.KEYS, Part.VALUES)}
        return cls(group, state["offset"], metric, state["vectors"], state["values"])


def _first_mean(statistics: Statistics) -> torch.Tensor:
    if not statistics.firsts:
        return statistics.origin + statistics.sums / max(1, statistics.tokens)
    return statistics.first_sums / statistics.firsts


def _weighted(rows: torch.Tensor, metric: Mapping[Part, torch.Tensor], shape: Shape) -> torch.Tensor:
    """Apply the metric to the first axis of (P, any)."""
    weighted = []
    for part, block in ((Part.KEYS, rows[: shape.keys]), (Part.VALUES, rows[shape.keys :])):
        blocks = metric[part].flatten(0, 1)
        weighted.append(torch.bmm(blocks, block.reshape(len(blocks), blocks.shape[-1], -1)).reshape(block.shape))
    return torch.cat(weighted)


def leading(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the leading eigenvalues and eigenvectors of a symmetric matrix (P, P), in float64.

    In float32, eigenvalues below about 1e-7 of the largest would be rounding errors, different on
    every machine.  Wide matrices are decomposed by subspace iteration with a Rayleigh-Ritz step
    (Halko et al., arXiv 0909.4061), which takes a quarter of the time of a full decomposition.

    Returns:
        eigenvalues (count,), descending, and eigenvectors (P, count).
    """
    width = len(matrix)
    columns = min(width, count + _MORE)
    if width <= _SMALL or 2 * columns > width:
        values, vectors = torch.linalg.eigh(matrix.double())
        return values.flip(0)[:count].clamp_min(0), vectors.flip(1)[:, :count].contiguous()
    generator = torch.Generator(device=matrix.device).manual_seed(0)
    basis = torch.randn(width, columns, generator=generator, device=matrix.device)
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(matrix @ basis)[0]
    projected = (basis.T @ (matrix @ basis)).double()
    values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    return values.flip(0)[:count].clamp_min(0), (basis.double() @ vectors.flip(1)[:, :count]).contiguous()


def _kept(values: torch.Tensor, energy: float, share: float) -> int:
    """Count the leading values that add up to a share of the energy, without rounding errors."""
    sums = values.cumsum(0)
    enough = int((sums < share * energy).sum()) + 1
    sound = int((values > values[0] * _SMALLEST**2).sum())
    return max(1, min(enough, sound, len(values)))


def _held(values: torch.Tensor, vectors: torch.Tensor, variances: torch.Tensor, kept: int) -> int:
    """Count the rows, of the first `kept`, that the integers of a basis represent well.

    If the largest component needs a coarser step than `_step`, the smallest rows would be lost in
    its rounding; they are dropped, since random rows add error instead of removing it.
    """
    coarsest = float((vectors[:, :kept] * values[:kept].sqrt()).abs().max()) / _LARGEST
    rest = _left(variances, values[:kept], vectors[:, :kept])
    if _step(float(rest.mean()), float(values[kept - 1]), kept, len(variances)) >= coarsest:
        return kept
    # rounding: a quarter, or less
    sound = int((values[:kept] > len(variances) * coarsest**2 / 3).sum())
    return max(1, sound)


def _left(variances: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return the part of the variances (P,) that a basis leaves; float64, as it may be small."""
    return (variances - (vectors**2) @ values).clamp_min(0).float()


def _prediction(
    cross: torch.Tensor, vectors: torch.Tensor, values: torch.Tensor, before: Fitted
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the prediction of coefficients from those of the group before.

    Args:
        cross: covariance of this group's weighted vectors with the group before's unweighted ones.
    Returns:
        coefficients from those of the group before over their scales, (rank, rank before); the
        variances that are left, (rank,).
    """
    with_coefficients = _weighted(cross.T, before.metric, before.group.shape).T @ before.vectors
    joint = (vectors.T @ with_coefficients)[:, :_PREDICTORS]
    # decoded coefficients have an error, about as large as the last one
    ridge = before.values[:_PREDICTORS] + before.values[-1]
    weights = joint / ridge
    left = values - (joint * weights).sum(1)
    scales = torch.exp2(before.group.scale.double() / SCALE_UNITS).float()
    return weights * scales[:_PREDICTORS], left.clamp_min(float(values[-1]) * 1e-2)


def _exponents(variances: torch.Tensor) -> torch.Tensor:
    """Return the scales of values with these variances, in 32nds of an octave."""
    floor = float(variances.max()) * _SMALLEST**2 + 2.0**-120
    return (variances.double().clamp_min(floor).log2() * (SCALE_UNITS / 2)).round().clamp(-MAX_SCALE, MAX_SCALE).int()


def _step(rest: float, last: float, rank: int, width: int) -> float:
    """Return the step of a basis whose rounding adds a share of the variance that the basis leaves.

    If the basis leaves almost nothing, rounding may change its last row by a twentieth.
    """
    noise = rest / rank if rest > last * 1e-3 else last * 1e-2 / width
    return math.sqrt(12 * _NOISE * noise)
