"""The groups of layers that share a basis in a profile."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from formats.codecs.klt.group import MAX_BASIS
from formats.codecs.klt.profile import MAX_GROUPS
from formats.codecs.klt.shape import Shape
from formats.errors import UsageError
from formats.limits import require_memory
from formats.trace.geometry import Geometry

if TYPE_CHECKING:
    from formats.codecs.klt.rotary import Rotary

# values of a token in one joint basis: the covariance takes 4 * WIDEST ** 2 bytes, 0.6 GB
WIDEST = 12_000


def plan(geometry: Geometry, rotary: Sequence[Rotary]) -> list[Shape]:
    """Divide the runs of equal layers into groups of at most `WIDEST` values, or of one layer.

    Args:
        rotary: the rotary embedding of each layer.
    Returns:
        shapes whose rank, step and bands are still to be fitted.
    """
    shapes = []
    for first, count, spec in geometry.runs():
        if not spec.parts:
            continue
        width = spec.heads * (spec.key_size + spec.value_size)
        groups = -(-count // max(1, WIDEST // width))
        most_layers = -(-count // groups)
        for layer in range(first, first + count, most_layers):
            layers = min(most_layers, first + count - layer)
            shapes.append(
                Shape(
                    first_layer=layer,
                    layer_count=layers,
                    heads=spec.heads,
                    key_size=spec.key_size,
                    value_size=spec.value_size,
                    rank=1,
                    metric_exponent=0,
                    basis_step=1.0,
                    bands=(1,),
                    rotary=tuple(rotary[layer : layer + layers]),
                )
            )
    return shapes


def check_size(shapes: Sequence[Shape], rank: int) -> None:
    """Check that the statistics fit into memory and the bases into a profile.

    Raises:
        UsageError: the rank is too high.
        LimitError: the model is too wide for this machine.
    """
    width = sum(shape.width for shape in shapes)
    if len(shapes) > MAX_GROUPS or sum(min(rank, shape.width) * shape.width for shape in shapes) > MAX_BASIS:
        raise UsageError(
            f"{len(shapes)} bases of rank {rank} for {width} values a token are more than a profile holds",
            hint=f"--rank {MAX_BASIS // width}",
        )
    widths = [0, *(shape.width for shape in shapes)]
    needed = sum(4 * width * (width + before) for before, width in pairwise(widths))
    require_memory(needed, "the statistics of this model take")


def continues_run(shapes: Sequence[Shape], index: int, geometry: Geometry) -> bool:
    """Tell whether a group continues the run of equal layers of the group before."""
    return index > 0 and all(first != shapes[index].first_layer for first, _, _ in geometry.runs())
