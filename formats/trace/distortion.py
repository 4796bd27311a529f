"""The error of decoded rows relative to the captured rows, which is measured without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .trace import Trace

if TYPE_CHECKING:
    import torch


def relative_error(exact: Trace, decoded: Trace, snapshot: int = -1) -> float:
    """Compute the mean relative squared error |x - x'|^2 / |x|^2 of one snapshot.

    The error of each layer's keys and of its values is computed as a whole, and the mean is taken
    over them.  Where rows were evicted, so that the shapes differ, the error counts as 1.

    Args:
        exact: The trace as captured.
        decoded: The same trace after compression.
        snapshot: The index of the snapshot; negative indices count from the end.

    Returns:
        0 for equal rows, and about 1 at worst.
    """
    errors: list[float] = []
    for layer in range(len(exact.geometry.layers)):  # layer by layer, since two whole caches may exceed memory
        original, restored = (trace.snapshot(snapshot, layers=[layer]) for trace in (exact, decoded))
        errors.append(_error(original.keys[0], restored.keys[0]))
        errors.append(_error(original.values[0], restored.values[0]))
    return sum(errors) / len(errors)


def _error(exact: torch.Tensor, decoded: torch.Tensor) -> float:
    """Compute |x - x'|^2 / |x|^2 of two tensors in float64: 1 if shapes differ, 0 if x is 0."""
    if exact.shape != decoded.shape:
        return 1.0
    norm = float(exact.double().square().sum())
    return float((exact.double() - decoded.double()).square().sum()) / norm if norm else 0.0
