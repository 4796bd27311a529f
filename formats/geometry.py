"""The shape of a model's cache: dtype, batch, and one `LayerSpec` a layer.  The MODEL record holds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from . import schema, strict_json
from .errors import CorruptError
from .limits import MAX_EXTENT, MAX_LAYERS
from .records import Part

SCHEMA = "tsc.model/1"
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
KINDS = ("full", "sliding")


@dataclass(frozen=True)
class LayerSpec:
    """One attention layer's cache.

    Attributes:
        kind: "full" keeps every row; "sliding" keeps the last `window - 1` rows.
        heads: KV heads.
        key_size, value_size: values of one head's key and value.
        window: the model's sliding window in tokens; None for full attention.
    """

    kind: str
    heads: int
    key_size: int
    value_size: int
    window: int | None = None

    def head_size(self, part: Part) -> int:
        return self.key_size if part is Part.KEYS else self.value_size


@dataclass(frozen=True)
class Geometry:
    """All layers of a cache, in the dtype in which the model ran."""

    dtype: str
    layers: tuple[LayerSpec, ...]
    batch: int = 1

    @property
    def item_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @cached_property
    def row_bytes(self) -> tuple[int, ...]:
        """For each layer the bytes of one token's row, keys and values together."""
        values = ((spec.heads * (spec.key_size + spec.value_size)) for spec in self.layers)
        return tuple(self.batch * count * self.item_bytes for count in values)

    def runs(self) -> Iterable[tuple[int, int, LayerSpec]]:
        """(first layer, count, spec) of each run of equal layers."""
        first = 0
        for spec, group in groupby(self.layers):
            count = len(list(group))
            yield first, count, spec
            first += count


def to_json(geometry: Geometry, fingerprint: Mapping[str, str]) -> bytes:
    layers = [
        {
            "count": count, "kind": spec.kind, "heads": spec.heads, "key_size": spec.key_size,
            "value_size": spec.value_size, **({"window": spec.window} if spec.window is not None else {}),
        }
        for _, count, spec in geometry.runs()
    ]  # fmt: skip
    return strict_json.dumps({
        "schema": SCHEMA, "dtype": geometry.dtype, "batch": geometry.batch, "layers": layers,
        "fingerprint": dict(fingerprint),
    })  # fmt: skip


def from_json(data: bytes) -> tuple[Geometry, dict[str, str]]:
    """Parse and check a MODEL record's payload.  Raises CorruptError."""
    where = "model record"
    found = schema.fields(strict_json.loads(data, where), where, ("schema", "dtype", "batch", "layers", "fingerprint"))
    if found["schema"] != SCHEMA:
        raise CorruptError(f"{where}: schema {SCHEMA} was expected")
    dtype = schema.one_of(found["dtype"], f"{where} dtype", DTYPE_BYTES)
    batch = schema.integer(found["batch"], f"{where} batch", 1, MAX_EXTENT)
    layers: list[LayerSpec] = []
    for entry in schema.items(found["layers"], f"{where} layers", MAX_LAYERS):
        count, spec = _layer(entry, f"{where} layers")
        if len(layers) + count > MAX_LAYERS:
            raise CorruptError(f"{where}: more than {MAX_LAYERS} layers")
        layers += [spec] * count
    if not layers:
        raise CorruptError(f"{where}: no layers")
    entries = schema.fields(found["fingerprint"], f"{where} fingerprint", (), found["fingerprint"])
    fingerprint = {key: schema.string(value, f"{where} fingerprint {key!r}") for key, value in entries.items()}
    return Geometry(dtype, tuple(layers), batch), fingerprint


def _layer(entry: Any, where: str) -> tuple[int, LayerSpec]:
    found = schema.fields(entry, where, ("count", "kind", "heads", "key_size", "value_size"), ("window",))
    kind = schema.one_of(found["kind"], f"{where} kind", KINDS)
    if (kind == "sliding") != ("window" in found):
        raise CorruptError(f"{where}: a sliding layer has a window, a full one has none")
    heads, key_size, value_size = (
        schema.integer(found[key], f"{where} {key}", 1, MAX_EXTENT) for key in ("heads", "key_size", "value_size")
    )
    window = schema.integer(found["window"], f"{where} window", 1, MAX_EXTENT) if "window" in found else None
    spec = LayerSpec(kind, heads, key_size, value_size, window)
    return schema.integer(found["count"], f"{where} count", 1, MAX_LAYERS), spec
