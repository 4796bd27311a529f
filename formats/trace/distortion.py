"""How far decoded rows are from the captured ones: what can be told without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .trace import Trace

if TYPE_CHECKING:
    import torch


def relative_error(exact: Trace, decoded: Trace, snapshot: int = -1) -> float:
    """Mean over layers, keys and values of |x - x'|^2 / |x|^2 in one snapshot, 0 to about 1.

    A layer some of whose rows were evicted counts as an error of 1.
    """
    errors: list[float] = []
    for layer in range(len(exact.geometry.layers)):  # one at a time: two whole caches may not fit
        one, other = (trace.snapshot(snapshot, layers=[layer]) for trace in (exact, decoded))
        for a, b in ((one.keys[0], other.keys[0]), (one.values[0], other.values[0])):
            errors.append(_error(a, b))
    return sum(errors) / len(errors)


def _error(exact: torch.Tensor, decoded: torch.Tensor) -> float:
    if exact.shape != decoded.shape:
        return 1.0
    norm = float(exact.double().square().sum())
    return float((exact.double() - decoded.double()).square().sum()) / norm if norm else 0.0
