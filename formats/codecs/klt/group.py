"""The tensors of a profile: statistics of groups of layers, and entropy tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.container.reader import unframed
from formats.container.safetensors_buffer import TensorView, expect, to_torch
from formats.errors import CorruptError
from formats.limits import FREE_RAW, MAX_RATIO

from .ans import Tables
from .shape import MAX_BANDS, Shape
from .symbols import CLASSES

if TYPE_CHECKING:
    import torch

DESCRIPTION = "profile"  # the tensor that holds the JSON
TABLES = ("coefficients", "importance", "activity", "residual_activity")
MAX_BASIS = 1 << 30  # values of the bases of all groups together
SCALE_UNITS = 32  # scales and steps are 2 ** (n / 32)
MAX_SCALE = 100 * SCALE_UNITS  # either way; a float32 holds it and its inverse
_DTYPES = {"F32": "float32", "F16": "float16", "I16": "int16"}


@dataclass(frozen=True)
class Group:
    """The statistics of a group, float32 unless said otherwise.

    Attributes:
        shape: the group's shape.
        mean: the mean of a token's vector, (P,), over all tokens but first ones.
        first_mean: the mean over first tokens, which are attention sinks, (P,).
        metric_keys: the weighting of keys, (layers, heads, size, size), symmetric, in nats ** 0.5.
        metric_values: the weighting of values, likewise.
        basis: int16 (rank, P), of the weighted vectors; see `Shape.basis_step`.
        scale: int16 (rank,): 2 ** (scale / 32) is the root mean square of a coefficient.
        residual_scale: int16 (P,): the same for the residual of a weighted vector.
        importance: (6 + 2 x layers x heads,): see `importance.py`.
        predict: (rank, n), or None: predicts a coefficient from the first n decoded ones of the
            group before, both divided by their scales.
    """

    shape: Shape
    mean: torch.Tensor
    first_mean: torch.Tensor
    metric_keys: torch.Tensor
    metric_values: torch.Tensor
    basis: torch.Tensor
    scale: torch.Tensor
    residual_scale: torch.Tensor
    importance: torch.Tensor
    predict: torch.Tensor | None = None


@dataclass(frozen=True)
class CodeTables:
    """The entropy tables of a profile.

    Attributes:
        coefficients: a row for each class of scale, 256 symbols (see `symbols.py`).
        importance: one row, 256 symbols.
        activity: a row for each band of coefficients, 32 symbols.
        residual_activity: one row, 32 symbols.
    """

    coefficients: Tables
    importance: Tables
    activity: Tables
    residual_activity: Tables


def packed(groups: Sequence[Group], tables: CodeTables) -> dict[str, torch.Tensor]:
    """Return all tensors of a profile but its description, as they are stored."""
    import torch
    import zstandard

    tensors: dict[str, torch.Tensor] = {}
    for number, group in enumerate(groups):
        planes = _to_planes(group.basis)
        # the largest window that a reader allows; levels beyond 9 do not make noise smaller
        settings = zstandard.ZstdCompressionParameters.from_level(9, window_log=23)
        frame = zstandard.ZstdCompressor(compression_params=settings).compress(planes)
        tensors[f"{number}.basis"] = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
        for field_name in ("mean", "first_mean", "importance"):
            tensors[f"{number}.{field_name}"] = getattr(group, field_name).float().cpu()
        for field_name in ("metric_keys", "metric_values"):
            unit = 2.0**group.shape.metric_exponent
            tensors[f"{number}.{field_name}"] = (getattr(group, field_name) / unit).half().cpu()
        for field_name in ("scale", "residual_scale"):
            tensors[f"{number}.{field_name}"] = getattr(group, field_name).to(torch.int16).cpu()
        if group.predict is not None:
            tensors[f"{number}.predict"] = group.predict.half().cpu()
    for table in TABLES:
        tensors[f"tables.{table}"] = torch.from_numpy(getattr(tables, table).frequencies.astype("uint32"))
    return tensors


def check(views: Mapping[str, TensorView], shapes: Sequence[Shape], where: str) -> None:
    """Raise CorruptError unless a profile has exactly the tensors of groups of these shapes."""
    expected: dict[str, tuple[str, tuple[int | None, ...]]] = {DESCRIPTION: ("U8", (None,))}
    for name, classes, symbols in (
        ("coefficients", CLASSES, 256),
        ("importance", 1, 256),
        ("activity", MAX_BANDS, 32),
        ("residual_activity", 1, 32),
    ):
        expected[f"tables.{name}"] = ("U32", (classes, symbols))
    total = 0
    for number, shape in enumerate(shapes):
        layers, heads, rank, width = shape.layer_count, shape.heads, shape.rank, shape.width
        total += rank * width
        if rank > width or total > MAX_BASIS:
            raise CorruptError(f"{where}: a basis of {rank} x {width} values")
        expected |= {
            f"{number}.basis": ("U8", (None,)),
            f"{number}.mean": ("F32", (width,)),
            f"{number}.first_mean": ("F32", (width,)),
            f"{number}.importance": ("F32", (6 + 2 * layers * heads,)),
            f"{number}.metric_keys": ("F16", (layers, heads, shape.key_size, shape.key_size)),
            f"{number}.metric_values": ("F16", (layers, heads, shape.value_size, shape.value_size)),
            f"{number}.scale": ("I16", (rank,)),
            f"{number}.residual_scale": ("I16", (width,)),
        }
        if f"{number}.predict" in views and number:
            expected[f"{number}.predict"] = ("F16", (rank, None))
            extents = views[f"{number}.predict"].shape
            if len(extents) == 2 and extents[1] > shapes[number - 1].rank:
                raise CorruptError(f"{where}: a prediction from more coefficients than there are")
    expect(views, expected, where)


def tables_of(views: Mapping[str, TensorView]) -> CodeTables:
    """Return the tables in checked tensors."""
    import numpy as np

    def table(view: TensorView) -> Tables:
        return Tables(np.frombuffer(view.data, dtype="<u4").astype(np.uint32).reshape(view.shape))

    return CodeTables(*(table(views[f"tables.{name}"]) for name in TABLES))


def unpacked(views: Mapping[str, TensorView], number: int, shape: Shape) -> Group:
    """Return the statistics of a group in checked tensors.  Raises CorruptError."""
    import torch

    def tensor(name: str) -> torch.Tensor:
        view = views[f"{number}.{name}"]
        values = to_torch(view).view(getattr(torch, _DTYPES[view.dtype])).view(view.shape)
        if view.dtype == "I16":
            if bool((values < -MAX_SCALE).any() or (values > MAX_SCALE).any()):
                raise CorruptError(f"profile: {name} holds a scale out of range")
            return values
        if not bool(torch.isfinite(values).all()):
            raise CorruptError(f"profile: {name} holds a value that is not finite")
        return values.float()

    frame, raw = views[f"{number}.basis"].data, 2 * shape.rank * shape.width
    if raw > FREE_RAW and raw > MAX_RATIO * len(frame):
        raise CorruptError(f"profile: a basis of {raw} bytes in {len(frame)}")
    planes = unframed(frame, raw)
    return Group(
        shape,
        tensor("mean"),
        tensor("first_mean"),
        tensor("metric_keys") * 2.0**shape.metric_exponent,
        tensor("metric_values") * 2.0**shape.metric_exponent,
        _from_planes(planes, shape),
        tensor("scale"),
        tensor("residual_scale"),
        tensor("importance"),
        tensor("predict") if f"{number}.predict" in views else None,
    )


def _to_planes(values: torch.Tensor) -> bytes:
    """Pack int16 (rank, P) as zigzag (0, -1, 1, -2, ...): all low bytes, then all high bytes."""
    import torch

    wide = values.cpu().to(torch.int32)
    zigzag = (wide << 1) ^ (wide >> 31)
    return b"".join(((zigzag >> shift) & 255).to(torch.uint8).numpy().tobytes() for shift in (0, 8))


def _from_planes(planes: bytes, shape: Shape) -> torch.Tensor:
    """Unpack the basis that `_to_planes` packed."""
    import torch

    low, high = torch.frombuffer(bytearray(planes), dtype=torch.uint8).view(2, shape.rank, shape.width).short()
    zigzag = low | (high << 8)  # bit 15 may be set: the shift must be unsigned
    values: torch.Tensor = ((zigzag >> 1) & 0x7FFF) ^ -(zigzag & 1)
    return values
