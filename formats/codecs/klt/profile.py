"""A profile: the result of calibrating one model, for codec klt.

A profile is a safetensors buffer; one of its tensors holds a description as JSON.  It is read as
strictly as a .tsc file.  A file that was made with a profile names it by the SHA-256 of these
bytes.  docs/format.md describes every tensor.
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
_UNPACKED = 12  # bytes that a value of a basis takes while it is unpacked


@dataclass(eq=False)
class Profile:
    """A profile in memory.

    Attributes:
        name: the model's name.
        fingerprint: the model's fingerprint, as a .tsc file has it.
        shapes: the shapes of the groups, in the order of layers.
        info: how the profile was made (scalars): texts, tokens, date.
        curve: measured by calibration: [{"fineness", "bits", "kl", "top1"}].
        data: the stored bytes.
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
        """SHA-256 of the bytes in hexadecimal, by which files name the profile."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        return len(self.data)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The statistics of all groups, unpacked.

        Raises:
            CorruptError: a value is out of range.
            LimitError: they take more than the memory budget.
        """
        if _UNPACKED * sum(group.rank * group.width for group in self.shapes) > memory_budget():
            raise LimitError(f"the profile takes more than the budget of {memory_budget()} bytes")
        return tuple(unpacked(self._views, number, group) for number, group in enumerate(self.shapes))

    @cached_property
    def tables(self) -> CodeTables:
        """The entropy tables."""
        return tables_of(self._views)

    def fineness_at(self, quantity: str, value: float) -> int | None:
        """Interpolate the fineness that gives a measured quantity this value.

        Args:
            quantity: "kl" (nats) or "bits" (a stored value).
        Returns:
            None if calibration did not measure it.
        """
        points = [point for point in self.curve if point.get(quantity, 0) > 0 and "fineness" in point]
        if not points or not 0 < value < math.inf:
            return None
        points.sort(key=lambda point: abs(math.log(point[quantity] / value)))
        nearest, second = points[0], points[min(1, len(points) - 1)]
        distance = math.log(second[quantity] / nearest[quantity])
        share = math.log(value / nearest[quantity]) / distance if distance else 0.0
        return round(nearest["fineness"] + min(max(share, -1), 1) * (second["fineness"] - nearest["fineness"]))

    def run(self, first_layer: int, layer_count: int) -> list[int]:
        """Return the indices of the groups that make up these layers, in order.

        Raises:
            CorruptError: no sequence of groups covers exactly these layers.
        """
        groups, next_layer = [], first_layer
        for index, group in enumerate(self.shapes):
            if group.first_layer == next_layer < first_layer + layer_count:
                groups.append(index)
                next_layer += group.layer_count
        if next_layer != first_layer + layer_count:
            raise CorruptError(f"the profile has no layers {first_layer} to {first_layer + layer_count - 1}")
        return groups


def dumps(
    name: str,
    fingerprint: Mapping[str, str],
    groups: Sequence[Group],
    tables: CodeTables,
    info: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
) -> Profile:
    """Make a profile; it is read back from its bytes, so that all values are as stored."""
    import torch

    json = strict_json.dumps(
        {
            "schema": SCHEMA,
            "name": name,
            "fingerprint": dict(fingerprint),
            "info": dict(info),
            "curve": [dict(point) for point in curve],
            "groups": [shape.to_json(group.shape) for group in groups],
        }
    )
    json_tensor = torch.frombuffer(bytearray(json), dtype=torch.uint8)
    return loads(pack({DESCRIPTION: json_tensor, **packed(groups, tables)}))


def loads(data: bytes, where: str = "profile") -> Profile:
    """Read a profile; its statistics are unpacked on first use.  Raises CorruptError."""
    if len(data) > MAX_PROFILE_BYTES:
        raise CorruptError(f"{where}: more than {MAX_PROFILE_BYTES} bytes")
    views = parse(data, where)
    if DESCRIPTION not in views or views[DESCRIPTION].dtype != "U8":
        raise CorruptError(f"{where}: is a safetensors file, but not a profile")
    description = strict_json.fields(
        strict_json.loads(bytes(views[DESCRIPTION].data), where),
        where,
        ("schema", "name", "fingerprint", "info", "curve", "groups"),
    )
    if description["schema"] != SCHEMA:
        raise CorruptError(f"{where}: schema {SCHEMA} was expected")
    entries = strict_json.items(description["groups"], f"{where} groups", MAX_GROUPS)
    shapes = tuple(shape.from_json(entry, f"{where} groups") for entry in entries)
    if not shapes:
        raise CorruptError(f"{where}: no groups")
    if any(b.first_layer < a.first_layer + a.layer_count for a, b in pairwise(shapes)):
        raise CorruptError(f"{where}: groups are not in the order of layers")
    check(views, shapes, where)
    fingerprint = strict_json.fields(
        description["fingerprint"], f"{where} fingerprint", (), description["fingerprint"] or ()
    )
    return Profile(
        strict_json.string(description["name"], f"{where} name"),
        {key: strict_json.string(value, f"{where} fingerprint") for key, value in fingerprint.items()},
        shapes,
        strict_json.fields(description["info"], f"{where} info", (), description["info"] or ()),
        [
            {
                key: strict_json.number(value, f"{where} curve")
                for key, value in strict_json.fields(p, where, (), p).items()
            }
            for p in strict_json.items(description["curve"], f"{where} curve", 256)
        ],
        data,
        views,
    )
