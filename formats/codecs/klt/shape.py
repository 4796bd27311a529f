"""The shape of a group of layers in a profile, and the JSON that describes it.  docs/format.md has the fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from formats.container import strict_json
from formats.errors import CorruptError
from formats.limits import MAX_EXTENT, MAX_LAYERS

from .rotary import Rotary

MAX_RANK, MAX_BANDS = 1 << 14, 64
MAX_STEP = 2.0**100  # of a basis, and its inverse the least
MAX_FREQUENCY = 1024  # radians a position
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


def to_json(shape: Shape) -> dict[str, Any]:
    rotary = [{"frequencies": list(one.frequencies), "interleaved": one.interleaved} for one in shape.rotary]
    kinds: list[dict[str, Any]] = []
    for one in rotary:
        if one not in kinds:
            kinds.append(one)
    facts = {name: getattr(shape, name) for name in _GROUP_FIELDS}
    return facts | {"bands": list(shape.bands), "rotary": {"kinds": kinds, "layers": [kinds.index(r) for r in rotary]}}


def from_json(entry: Any, where: str) -> Shape:
    found = strict_json.fields(entry, where, _GROUP_FIELDS)
    first_layer, layer_count, heads, key_size, value_size, rank = (
        strict_json.integer(found[name], f"{where} {name}", low, high)
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
        strict_json.integer(stop, f"{where} bands", 1, rank)
        for stop in strict_json.items(found["bands"], f"{where} bands", MAX_BANDS)
    ]
    if bands != sorted(set(bands)) or bands[-1:] != [rank]:
        raise CorruptError(f"{where}: bands do not ascend to the rank")
    unit = strict_json.integer(found["metric_exponent"], f"{where} metric_exponent", -100, 100)
    step = strict_json.number(found["basis_step"], f"{where} basis_step")
    if not 1 / MAX_STEP <= step <= MAX_STEP:
        raise CorruptError(f"{where}: a basis step out of range")
    rotary = _rotary(found["rotary"], layer_count, key_size, where)
    return Shape(first_layer, layer_count, heads, key_size, value_size, rank, unit, step, tuple(bands), rotary)


def _rotary(entry: Any, layers: int, key_size: int, where: str) -> tuple[Rotary, ...]:
    found = strict_json.fields(entry, f"{where} rotary", ("kinds", "layers"))
    kinds = []
    for kind in strict_json.items(found["kinds"], f"{where} rotary", layers):
        one = strict_json.fields(kind, f"{where} rotary", ("frequencies", "interleaved"))
        rates = [
            strict_json.number(rate, f"{where} frequencies")
            for rate in strict_json.items(one["frequencies"], f"{where} frequencies", key_size // 2)
        ]
        if not isinstance(one["interleaved"], bool) or any(abs(rate) > MAX_FREQUENCY for rate in rates):
            raise CorruptError(f"{where}: a rotary embedding that no model has")
        kinds.append(Rotary(tuple(rates), one["interleaved"]))
    numbers = strict_json.items(found["layers"], f"{where} rotary", layers)
    if len(numbers) != layers:
        raise CorruptError(f"{where}: not one rotary embedding a layer")
    return tuple(kinds[strict_json.integer(n, f"{where} rotary", 0, len(kinds) - 1)] for n in numbers)
