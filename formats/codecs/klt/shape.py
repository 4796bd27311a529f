"""The shape of a group of layers in a profile, and its JSON (docs/format.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from formats.container import strict_json
from formats.errors import CorruptError
from formats.limits import MAX_EXTENT, MAX_LAYERS

from .rotary import Rotary

MAX_RANK, MAX_BANDS = 1 << 14, 64
MAX_STEP = 2.0**100  # the largest step of a basis; its inverse is the smallest
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
    """The shape of a group of layers.

    P = layers x heads x (key size + value size) is the length of a token's vector in the group:
    first the keys, then the values, each (layers, heads, head size).

    Attributes:
        rank: the number of coefficients of the joint transform.
        metric_exponent: the metric is stored in units of 2 ** this, since float16 has no small
            numbers.
        basis_step: the value of an integer of the basis, before the division by the
            coefficient's scale.
        bands: the stops of the bands of coefficients that share an activity, ascending to `rank`.
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
        """How many of the P values are keys."""
        return self.layer_count * self.heads * self.key_size

    @property
    def width(self) -> int:
        """The length P of a token's vector."""
        return self.keys + self.layer_count * self.heads * self.value_size


def to_json(shape: Shape) -> dict[str, Any]:
    """Describe a shape; equal rotary embeddings are written once."""
    kinds = list(dict.fromkeys(shape.rotary))
    rotary = {
        "kinds": [{"frequencies": list(kind.frequencies), "interleaved": kind.interleaved} for kind in kinds],
        "layers": [kinds.index(layer) for layer in shape.rotary],
    }
    values = {name: getattr(shape, name) for name in _GROUP_FIELDS}
    return values | {"bands": list(shape.bands), "rotary": rotary}


def from_json(entry: Any, where: str) -> Shape:
    """Read the description of a shape.  Raises CorruptError."""
    values = strict_json.fields(entry, where, _GROUP_FIELDS)
    first_layer, layer_count, heads, key_size, value_size, rank = (
        strict_json.integer(values[name], f"{where} {name}", low, high)
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
        for stop in strict_json.items(values["bands"], f"{where} bands", MAX_BANDS)
    ]
    if bands != sorted(set(bands)) or bands[-1:] != [rank]:
        raise CorruptError(f"{where}: bands do not ascend to the rank")
    unit = strict_json.integer(values["metric_exponent"], f"{where} metric_exponent", -100, 100)
    step = strict_json.number(values["basis_step"], f"{where} basis_step")
    if not 1 / MAX_STEP <= step <= MAX_STEP:
        raise CorruptError(f"{where}: a basis step out of range")
    rotary = _rotary(values["rotary"], layer_count, key_size, where)
    return Shape(first_layer, layer_count, heads, key_size, value_size, rank, unit, step, tuple(bands), rotary)


def _rotary(entry: Any, layers: int, key_size: int, where: str) -> tuple[Rotary, ...]:
    rotary = strict_json.fields(entry, f"{where} rotary", ("kinds", "layers"))
    kinds = []
    for entry_of_kind in strict_json.items(rotary["kinds"], f"{where} rotary", layers):
        kind = strict_json.fields(entry_of_kind, f"{where} rotary", ("frequencies", "interleaved"))
        rates = [
            strict_json.number(rate, f"{where} frequencies")
            for rate in strict_json.items(kind["frequencies"], f"{where} frequencies", key_size // 2)
        ]
        if not isinstance(kind["interleaved"], bool) or any(abs(rate) > MAX_FREQUENCY for rate in rates):
            raise CorruptError(f"{where}: a rotary embedding that no model has")
        kinds.append(Rotary(tuple(rates), kind["interleaved"]))
    kind_of_layer = strict_json.items(rotary["layers"], f"{where} rotary", layers)
    if len(kind_of_layer) != layers:
        raise CorruptError(f"{where}: not one rotary embedding a layer")
    return tuple(kinds[strict_json.integer(index, f"{where} rotary", 0, len(kinds) - 1)] for index in kind_of_layer)
