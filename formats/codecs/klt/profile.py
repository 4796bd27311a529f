"""A profile: what calibration learned about one model, as codec klt uses it.

It is a safetensors buffer with a JSON description as one of its tensors, read as strictly as a .tsc file.  A file that
was made with a profile names it by the SHA-256 of these bytes.  docs/format.md describes every tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from formats.container import schema, strict_json
from formats.container.reader import unframed
from formats.container.safetensors_buffer import TensorView, expect, parse, to_torch
from formats.errors import CorruptError, LimitError
from formats.limits import FREE_RAW, MAX_EXTENT, MAX_LAYERS, MAX_PROFILE_BYTES, MAX_RATIO, memory_budget

from .ans import Tables
from .rotary import Rotary
from .symbols import CLASSES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

SCHEMA = "tsc.profile/1"
DESCRIPTION = "profile"  # the tensor that holds the JSON
MAX_GROUPS, MAX_RANK, MAX_BANDS = 256, 1 << 14, 64
MAX_BASIS = 1 << 30  # values of the bases of all groups together
SCALE_UNITS = 32  # scales and steps are 2 ** (n / 32)
MAX_SCALE = 100 * SCALE_UNITS  # either way; a float32 holds it and its inverse
MAX_STEP = 2.0**100  # of a basis, and its inverse the least
MAX_FREQUENCY = 1024  # radians a position
_UNPACKED = 12  # bytes of a value of a basis while it is unpacked
_GROUP_FIELDS = (
    "first_layer",
    "layer_count",
    "heads",
    "key_size",
    "value_size",
    "rank",
    "metric_exponent",
    "basis_step",
    "bands",
    "rotary",
)


@dataclass(frozen=True)
class Shape:
    """What a group of layers is: everything about it but its statistics.

    P = layers x heads x (key size + value size) is the length of a token's vector in the group: first the keys, then
    the values, each (layers, heads, head size).

    Attributes:
        rank: coefficients of the joint transform.
        metric_exponent: the metric is stored in units of 2 ** this, since float16 has no small numbers.
        basis_step: what an integer of the basis stands for, before it is divided by the coefficient's scale.
        bands: where the bands of coefficients stop that share an activity, ascending, the last one at `rank`.
        rotary: the rotary embedding of each layer.
    """

    first_layer: int
    layer_count: int
    heads: int
    key_size: int
    value_size: int
    rank: int
    metric_exponent: int
    basis_step: float
    bands: tuple[int, ...]
    rotary: tuple[Rotary, ...]

    @property
    def keys(self) -> int:
        return self.layer_count * self.heads * self.key_size

    @property
    def width(self) -> int:
        """P."""
        return self.keys + self.layer_count * self.heads * self.value_size


@dataclass(frozen=True)
class Group:
    """The statistics of a group, float32 unless said otherwise.

    Attributes:
        mean, first_mean: of a token's vector, (P,): of all tokens but the first, and of the first, an attention sink.
        metric_keys, metric_values: (layers, heads, size, size), symmetric: the weighting, in nats ** 0.5 a unit.
        basis: int16 (rank, P), of the weighted vectors; see `Shape.basis_step`.
        scale: int16 (rank,): 2 ** (scale / 32) is the root mean square of a coefficient.
        residual_scale: int16 (P,): the same for what the basis leaves of a weighted vector.
        importance: (6 + 2 x layers x heads,): see `importance.py`.
        predict: (rank, n), or None: a coefficient from the first n decoded ones of the group before, both divided by
            their scales.
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
    """How symbols are coded.

    Attributes:
        coefficients: a row a class of scale, 256 symbols (see `symbols.py`).
        importance: one row.
        activity: a row a band number, for coefficients; residual_activity: one row.
    """

    coefficients: Tables
    importance: Tables
    activity: Tables
    residual_activity: Tables


TABLES = ("coefficients", "importance", "activity", "residual_activity")


@dataclass(eq=False)
class Profile:
    """A profile in memory.

    Attributes:
        name: of the model.
        fingerprint: of the model, as a .tsc file holds it.
        shapes: of the groups, in the order of layers.
        info: how it was made (scalars): texts, tokens, date.
        curve: measured by calibration: [{"fineness", "bits", "kl", "top1"}].
        data: the bytes that it is stored as.
    """

    name: str
    fingerprint: dict[str, str]
    shapes: tuple[Shape, ...]
    info: dict[str, Any]
    curve: list[dict[str, float]]
    data: bytes = field(repr=False)
    _views: Mapping[str, TensorView] = field(repr=False, default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hexadecimal: what files call the profile."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        return len(self.data)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The statistics, unpacked.  Raises CorruptError, or LimitError if they take more than the memory budget."""
        if _UNPACKED * sum(shape.rank * shape.width for shape in self.shapes) > memory_budget():
            raise LimitError(f"the profile takes more than the budget of {memory_budget()} bytes")
        return tuple(_group(self._views, number, shape) for number, shape in enumerate(self.shapes))

    @cached_property
    def tables(self) -> CodeTables:
        return CodeTables(*(Tables(_numpy(self._views[f"tables.{name}"], "<u4")) for name in TABLES))

    def run(self, first_layer: int, layer_count: int) -> list[int]:
        """The numbers of the groups that make up these layers, in order.  Raises CorruptError if none do."""
        found, at = [], first_layer
        for number, shape in enumerate(self.shapes):
            if shape.first_layer == at < first_layer + layer_count:
                found.append(number)
                at += shape.layer_count
        if at != first_layer + layer_count:
            raise CorruptError(f"the profile has no layers {first_layer} to {first_layer + layer_count - 1}")
        return found


def dumps(
    name: str,
    fingerprint: Mapping[str, str],
    groups: Sequence[Group],
    tables: CodeTables,
    info: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
) -> Profile:
    """The profile of these statistics, as it is read back from the bytes that it is stored as."""
    import torch
    import zstandard

    from formats.container.safetensors_buffer import pack

    described = strict_json.dumps(
        {
            "schema": SCHEMA,
            "name": name,
            "fingerprint": dict(fingerprint),
            "info": dict(info),
            "curve": [dict(point) for point in curve],
            "groups": [_described(group.shape) for group in groups],
        }
    )
    tensors = {DESCRIPTION: torch.frombuffer(bytearray(described), dtype=torch.uint8)}
    for number, group in enumerate(groups):
        planes = _to_planes(group.basis)
        # the largest window that a reader allows; levels beyond 9 gain nothing on noise
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
    return loads(pack(tensors))


def loads(data: bytes, what: str = "profile") -> Profile:
    """Read a profile.  Statistics are unpacked when they are asked for.  Raises CorruptError."""
    if len(data) > MAX_PROFILE_BYTES:
        raise CorruptError(f"{what}: more than {MAX_PROFILE_BYTES} bytes")
    views = parse(data, what)
    if DESCRIPTION not in views or views[DESCRIPTION].dtype != "U8":
        raise CorruptError(f"{what}: is a safetensors file, but not a profile")
    found = schema.fields(
        strict_json.loads(bytes(views[DESCRIPTION].data), what),
        what,
        ("schema", "name", "fingerprint", "info", "curve", "groups"),
    )
    if found["schema"] != SCHEMA:
        raise CorruptError(f"{what}: schema {SCHEMA} was expected")
    entries = schema.items(found["groups"], f"{what} groups", MAX_GROUPS)
    shapes = tuple(_shape(entry, f"{what} groups") for entry in entries)
    if not shapes:
        raise CorruptError(f"{what}: no groups")
    if any(b.first_layer < a.first_layer + a.layer_count for a, b in pairwise(shapes)):
        raise CorruptError(f"{what}: groups are not in the order of layers")
    _expect(views, shapes, what)
    fingerprint = schema.fields(found["fingerprint"], f"{what} fingerprint", (), found["fingerprint"] or ())
    return Profile(
        schema.string(found["name"], f"{what} name"),
        {key: schema.string(value, f"{what} fingerprint") for key, value in fingerprint.items()},
        shapes,
        schema.fields(found["info"], f"{what} info", (), found["info"] or ()),
        [
            {key: schema.number(value, f"{what} curve") for key, value in schema.fields(p, what, (), p).items()}
            for p in schema.items(found["curve"], f"{what} curve", 256)
        ],
        data,
        views,
    )


def _described(shape: Shape) -> dict[str, Any]:
    rotary = [{"frequencies": list(one.frequencies), "interleaved": one.interleaved} for one in shape.rotary]
    kinds: list[dict[str, Any]] = []
    for one in rotary:
        if one not in kinds:
            kinds.append(one)
    facts = {name: getattr(shape, name) for name in _GROUP_FIELDS}
    return facts | {"bands": list(shape.bands), "rotary": {"kinds": kinds, "layers": [kinds.index(r) for r in rotary]}}


def _shape(entry: Any, where: str) -> Shape:
    found = schema.fields(entry, where, _GROUP_FIELDS)
    first_layer, layer_count, heads, key_size, value_size, rank = (
        schema.integer(found[name], f"{where} {name}", low, high)
        for name, low, high in (
            ("first_layer", 0, MAX_LAYERS),
            ("layer_count", 1, MAX_LAYERS),
            ("heads", 1, MAX_EXTENT),
            ("key_size", 1, MAX_EXTENT),
            ("value_size", 1, MAX_EXTENT),
            ("rank", 1, MAX_RANK),
        )
    )
    bands = [
        schema.integer(stop, f"{where} bands", 1, rank)
        for stop in schema.items(found["bands"], f"{where} bands", MAX_BANDS)
    ]
    if bands != sorted(set(bands)) or bands[-1:] != [rank]:
        raise CorruptError(f"{where}: bands do not ascend to the rank")
    unit = schema.integer(found["metric_exponent"], f"{where} metric_exponent", -100, 100)
    step = schema.number(found["basis_step"], f"{where} basis_step")
    if not 1 / MAX_STEP <= step <= MAX_STEP:
        raise CorruptError(f"{where}: a basis step out of range")
    rotary = _rotary(found["rotary"], layer_count, key_size, where)
    return Shape(first_layer, layer_count, heads, key_size, value_size, rank, unit, step, tuple(bands), rotary)


def _rotary(entry: Any, layers: int, key_size: int, where: str) -> tuple[Rotary, ...]:
    found = schema.fields(entry, f"{where} rotary", ("kinds", "layers"))
    kinds = []
    for kind in schema.items(found["kinds"], f"{where} rotary", layers):
        one = schema.fields(kind, f"{where} rotary", ("frequencies", "interleaved"))
        rates = [
            schema.number(rate, f"{where} frequencies")
            for rate in schema.items(one["frequencies"], f"{where} frequencies", key_size // 2)
        ]
        if not isinstance(one["interleaved"], bool) or any(abs(rate) > MAX_FREQUENCY for rate in rates):
            raise CorruptError(f"{where}: a rotary embedding that no model has")
        kinds.append(Rotary(tuple(rates), one["interleaved"]))
    numbers = schema.items(found["layers"], f"{where} rotary", layers)
    if len(numbers) != layers:
        raise CorruptError(f"{where}: not one rotary embedding a layer")
    return tuple(kinds[schema.integer(n, f"{where} rotary", 0, len(kinds) - 1)] for n in numbers)


def _expect(views: Mapping[str, TensorView], shapes: Sequence[Shape], what: str) -> None:
    wanted: dict[str, tuple[str, tuple[int | None, ...]]] = {DESCRIPTION: ("U8", (None,))}
    for name, classes, symbols in (
        ("coefficients", CLASSES, 256),
        ("importance", 1, 256),
        ("activity", MAX_BANDS, 32),
        ("residual_activity", 1, 32),
    ):
        wanted[f"tables.{name}"] = ("U32", (classes, symbols))
    total = 0
    for number, shape in enumerate(shapes):
        layers, heads, rank, width = shape.layer_count, shape.heads, shape.rank, shape.width
        total += rank * width
        if rank > width or total > MAX_BASIS:
            raise CorruptError(f"{what}: a basis of {rank} x {width} values")
        wanted |= {
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
            wanted[f"{number}.predict"] = ("F16", (rank, None))
            if len(found := views[f"{number}.predict"].shape) == 2 and found[1] > shapes[number - 1].rank:
                raise CorruptError(f"{what}: a prediction from more coefficients than there are")
    expect(views, wanted, what)


_DTYPES = {"F32": "float32", "F16": "float16", "I16": "int16"}


def _group(views: Mapping[str, TensorView], number: int, shape: Shape) -> Group:
    import torch

    def tensor(name: str) -> torch.Tensor:
        view = views[f"{number}.{name}"]
        found = to_torch(view).view(getattr(torch, _DTYPES[view.dtype])).view(view.shape)
        if view.dtype == "I16":
            if bool((found < -MAX_SCALE).any() or (found > MAX_SCALE).any()):
                raise CorruptError(f"profile: {name} holds a scale out of range")
            return found
        if not bool(torch.isfinite(found).all()):
            raise CorruptError(f"profile: {name} holds a value that is not finite")
        return found.float()

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
    """int16 (rank, P) as zigzag (0, -1, 1, -2, ...), low bytes first, then high bytes: of a tail these are all zero."""
    import torch

    wide = values.cpu().to(torch.int32)
    zigzag = (wide << 1) ^ (wide >> 31)
    return b"".join(((zigzag >> shift) & 255).to(torch.uint8).numpy().tobytes() for shift in (0, 8))


def _from_planes(planes: bytes, shape: Shape) -> torch.Tensor:
    import torch

    low, high = torch.frombuffer(bytearray(planes), dtype=torch.uint8).view(2, shape.rank, shape.width).short()
    zigzag = low | (high << 8)  # bit 15 may be set: shifts below are on the unsigned value
    values: torch.Tensor = ((zigzag >> 1) & 0x7FFF) ^ -(zigzag & 1)
    return values


def _numpy(view: TensorView, dtype: str) -> npt.NDArray[np.uint32]:
    import numpy as np

    return np.frombuffer(view.data, dtype=dtype).astype(np.uint32).reshape(view.shape)
