"""A profile: what calibration learned about one model, as codec klt uses it.

It is a safetensors buffer with a JSON description as one of its tensors, read as strictly as a .tsc file.  A file that
was made with a profile names it by the SHA-256 of these bytes.  docs/format.md describes every tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from formats.container import strict_json
from formats.container.safetensors_buffer import TensorView, pack, parse
from formats.errors import CorruptError, LimitError
from formats.limits import MAX_PROFILE_BYTES, memory_budget

from . import shape
from .group import DESCRIPTION, CodeTables, Group, check, packed, tables_of, unpacked
from .shape import Shape

SCHEMA = "tsc.profile/1"
MAX_GROUPS = 256
_UNPACKED = 12  # bytes of a value of a basis while it is unpacked


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
        if _UNPACKED * sum(one.rank * one.width for one in self.shapes) > memory_budget():
            raise LimitError(f"the profile takes more than the budget of {memory_budget()} bytes")
        return tuple(unpacked(self._views, number, one) for number, one in enumerate(self.shapes))

    @cached_property
    def tables(self) -> CodeTables:
        return tables_of(self._views)

    def fineness_at(self, what: str, value: float) -> int | None:
        """The fineness at which calibration measured about this "kl" or these "bits" a value; None if it did not."""
        points = [point for point in self.curve if point.get(what, 0) > 0 and "fineness" in point]
        if not points or not 0 < value < math.inf:
            return None
        points.sort(key=lambda point: abs(math.log(point[what] / value)))
        near, other = points[0], points[min(1, len(points) - 1)]
        between = math.log(other[what] / near[what])
        share = math.log(value / near[what]) / between if between else 0.0
        return round(near["fineness"] + min(max(share, -1), 1) * (other["fineness"] - near["fineness"]))

    def run(self, first_layer: int, layer_count: int) -> list[int]:
        """The numbers of the groups that make up these layers, in order.  Raises CorruptError if none do."""
        found, at = [], first_layer
        for number, one in enumerate(self.shapes):
            if one.first_layer == at < first_layer + layer_count:
                found.append(number)
                at += one.layer_count
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

    described = strict_json.dumps(
        {
            "schema": SCHEMA,
            "name": name,
            "fingerprint": dict(fingerprint),
            "info": dict(info),
            "curve": [dict(point) for point in curve],
            "groups": [shape.to_json(group.shape) for group in groups],
        }
    )
    description = torch.frombuffer(bytearray(described), dtype=torch.uint8)
    return loads(pack({DESCRIPTION: description, **packed(groups, tables)}))


def loads(data: bytes, what: str = "profile") -> Profile:
    """Read a profile.  Statistics are unpacked when they are asked for.  Raises CorruptError."""
    if len(data) > MAX_PROFILE_BYTES:
        raise CorruptError(f"{what}: more than {MAX_PROFILE_BYTES} bytes")
    views = parse(data, what)
    if DESCRIPTION not in views or views[DESCRIPTION].dtype != "U8":
        raise CorruptError(f"{what}: is a safetensors file, but not a profile")
    found = strict_json.fields(
        strict_json.loads(bytes(views[DESCRIPTION].data), what),
        what,
        ("schema", "name", "fingerprint", "info", "curve", "groups"),
    )
    if found["schema"] != SCHEMA:
        raise CorruptError(f"{what}: schema {SCHEMA} was expected")
    entries = strict_json.items(found["groups"], f"{what} groups", MAX_GROUPS)
    shapes = tuple(shape.from_json(entry, f"{what} groups") for entry in entries)
    if not shapes:
        raise CorruptError(f"{what}: no groups")
    if any(b.first_layer < a.first_layer + a.layer_count for a, b in pairwise(shapes)):
        raise CorruptError(f"{what}: groups are not in the order of layers")
    check(views, shapes, what)
    fingerprint = strict_json.fields(found["fingerprint"], f"{what} fingerprint", (), found["fingerprint"] or ())
    return Profile(
        strict_json.string(found["name"], f"{what} name"),
        {key: strict_json.string(value, f"{what} fingerprint") for key, value in fingerprint.items()},
        shapes,
        strict_json.fields(found["info"], f"{what} info", (), found["info"] or ()),
        [
            {
                key: strict_json.number(value, f"{what} curve")
                for key, value in strict_json.fields(point, what, (), point).items()
            }
            for point in strict_json.items(found["curve"], f"{what} curve", 256)
        ],
        data,
        views,
    )
