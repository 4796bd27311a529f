"""The shape of a model's cache: dtype, batch, and one `LayerSpec` a layer.  The MODEL record holds
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

from formats.container import strict_json
from formats.container.records import Part
from formats.errors import CorruptError
from formats.limits import MAX_EXTENT, MAX_LAYERS

SCHEMA = "tsc.model/1"
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
KINDS = ("full", "sliding", "cross", "none")
MAX_STATES = 16  # of a layer
MAX_STATE_RANK = 6


@dataclass(frozen=True)
class StateSpec:
    """A tensor that a layer keeps and replaces with every token: of a convolution, or of linear
    attention.

    Attributes:
        name: as the file's readers shall know it, such as "recurrent.0".
        shape: of one sequence.
        dtype: its own; recurrent states are often float32 in a bfloat16 model.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def heads(self) -> int:
        """The extent that codecs treat as heads."""
        return self.shape[0] if len(self.shape) >= 3 else 1

    @property
    def size(self) -> int:
        """The values of one such head."""
        return math.prod(self.shape) // self.heads

    @property
    def item_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        """Of one sequence at one moment."""
        return math.prod(self.shape) * self.item_bytes


@dataclass(frozen=True)
class LayerSpec:
    """One layer's cache.

    Attributes:
        kind: "full" keeps every row; "sliding" keeps the last `window - 1` rows; "cross" keeps the
            rows of an encoder's tokens; "none" keeps no rows.
        heads: KV heads; 0 if there are no rows.
        key_size, value_size: values of one head's key and value.
        window: the model's sliding window in tokens; None for other kinds.
        index_size: values of a row's indexer key; 0 if it has none.
        states: what the layer replaces with every token.
    """

    kind: str
    heads: int = 0
    key_size: int = 0
    value_size: int = 0
    window: int | None = None
    index_size: int = 0
    states: tuple[StateSpec, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What a row consists of."""
        if self.kind == "none":
            return ()
        return (Part.KEYS, Part.VALUES, Part.INDEXER) if self.index_size else (Part.KEYS, Part.VALUES)

    def part_heads(self, part: Part) -> int:
        return 1 if part is Part.INDEXER else self.heads

    def head_size(self, part: Part) -> int:
        return {Part.KEYS: self.key_size, Part.VALUES: self.value_size, Part.INDEXER: self.index_size}[part]


@dataclass(frozen=True)
class Geometry:
    """All layers of a cache, in the dtype in which the model ran.

    Attributes:
        dtype: of the rows.
        batch: sequences, which have the same number of rows.
        padding: rows at the beginning of each sequence that are padding; empty if none has any.
    """

    dtype: str
    layers: tuple[LayerSpec, ...]
    batch: int = 1
    padding: tuple[int, ...] = ()

    @property
    def item_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @cached_property
    def row_bytes(self) -> tuple[int, ...]:
        """For each layer the bytes of one token's row in all sequences, all parts together."""
        values = (spec.heads * (spec.key_size + spec.value_size) + spec.index_size for spec in self.layers)
        return tuple(self.batch * count * self.item_bytes for count in values)

    @cached_property
    def state_bytes(self) -> tuple[int, ...]:
        """For each layer the bytes of its states at one moment, in all sequences."""
        return tuple(self.batch * sum(state.bytes for state in spec.states) for spec in self.layers)

    def values(self, raw_bytes: int) -> int:
        """How many numbers a snapshot of so many bytes holds; states may have another dtype than
        rows.
        """
        states = self.batch * sum(state.bytes // state.item_bytes for spec in self.layers for state in spec.states)
        return states + (raw_bytes - sum(self.state_bytes)) // self.item_bytes

    @cached_property
    def without_rows(self) -> frozenset[int]:
        """The numbers of the layers that keep no rows."""
        return frozenset(number for number, spec in enumerate(self.layers) if not spec.parts)

    @property
    def rows_only(self) -> bool:
        """Whether all there is are keys and values of the history's tokens, of which none is
        padding.
        """
        more = any(spec.kind in ("cross", "none") or spec.index_size or spec.states for spec in self.layers)
        return not more and not self.padding

    @cached_property
    def run_ends(self) -> tuple[int, ...]:
        """For each layer the end of the run of equal layers that it is in."""
        return tuple(first + count for first, count, _ in self.runs() for _ in range(count))

    def runs(self) -> Iterable[tuple[int, int, LayerSpec]]:
        """(first layer, count, spec) of each run of equal layers."""
        first = 0
        for spec, group in groupby(self.layers):
            count = len(list(group))
            yield first, count, spec
            first += count


def to_json(geometry: Geometry, fingerprint: Mapping[str, str], lost_by: str = "") -> bytes:
    """A MODEL record's payload.

    Args:
        lost_by: what the rows lost by before they came into the file, such as "scalar".
    """
    layers = [{"count": count, **_described(spec)} for _, count, spec in geometry.runs()]
    padding = {"padding": list(geometry.padding)} if geometry.padding else {}
    return strict_json.dumps(
        {
            "schema": SCHEMA,
            "dtype": geometry.dtype,
            "batch": geometry.batch,
            "layers": layers,
            "fingerprint": dict(fingerprint),
            **padding,
            **({"lost_by": lost_by} if lost_by else {}),
        }
    )


def _described(spec: LayerSpec) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": spec.kind}
    if spec.parts:
        found |= {"heads": spec.heads, "key_size": spec.key_size, "value_size": spec.value_size}
    if spec.window is not None:
        found["window"] = spec.window
    if spec.index_size:
        found["index_size"] = spec.index_size
    if spec.states:
        found["states"] = [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in spec.states]
    return found


class ModelRecord(NamedTuple):
    """What a MODEL record says.

    Attributes:
        geometry: of the cache.
        fingerprint: of the model that it was captured from.
        lost_by: what the rows had lost by before they came into the file, such as "scalar"; "" says
            nothing of it.
    """

    geometry: Geometry
    fingerprint: dict[str, str]
    lost_by: str


def from_json(data: bytes) -> ModelRecord:
    """Parse and check a MODEL record's payload.

    Raises:
        CorruptError: it is not what format.md describes.
    """
    where = "model record"
    found = strict_json.fields(
        strict_json.loads(data, where),
        where,
        ("schema", "dtype", "batch", "layers", "fingerprint"),
        ("padding", "lost_by"),
    )
    if found["schema"] != SCHEMA:
        raise CorruptError(f"{where}: schema {SCHEMA} was expected")
    dtype = strict_json.one_of(found["dtype"], f"{where} dtype", DTYPE_BYTES)
    batch = strict_json.integer(found["batch"], f"{where} batch", 1, MAX_EXTENT)
    layers: list[LayerSpec] = []
    for entry in strict_json.items(found["layers"], f"{where} layers", MAX_LAYERS):
        count, spec = _layer(entry, f"{where} layers")
        if len(layers) + count > MAX_LAYERS:
            raise CorruptError(f"{where}: more than {MAX_LAYERS} layers")
        layers += [spec] * count
    if not layers:
        raise CorruptError(f"{where}: no layers")
    entries = strict_json.fields(found["fingerprint"], f"{where} fingerprint", (), found["fingerprint"])
    fingerprint = {key: strict_json.string(value, f"{where} fingerprint {key!r}") for key, value in entries.items()}
    lost_by = strict_json.string(found["lost_by"], f"{where} lost_by") if "lost_by" in found else ""
    if "lost_by" in found and not lost_by:
        raise CorruptError(f"{where} lost_by: a name was expected")
    return ModelRecord(Geometry(dtype, tuple(layers), batch, _padding(found, batch, where)), fingerprint, lost_by)


def _padding(found: Mapping[str, Any], batch: int, where: str) -> tuple[int, ...]:
    if "padding" not in found:
        return ()
    counts = strict_json.items(found["padding"], f"{where} padding", batch)
    padding = tuple(strict_json.integer(count, f"{where} padding", 0, MAX_EXTENT) for count in counts)
    if len(padding) != batch or not any(padding):
        raise CorruptError(f"{where} padding: a number for each sequence was expected, not all of them 0")
    return padding


def _layer(entry: Any, where: str) -> tuple[int, LayerSpec]:
    sizes = ("heads", "key_size", "value_size")
    found = strict_json.fields(entry, where, ("count", "kind"), (*sizes, "window", "index_size", "states"))
    kind = strict_json.one_of(found["kind"], f"{where} kind", KINDS)
    if kind == "none":
        strict_json.fields(entry, where, ("count", "kind"), ("states",))
    else:
        strict_json.fields(entry, where, ("count", "kind", *sizes), ("window", "index_size", "states"))
    if (kind == "sliding") != ("window" in found):
        raise CorruptError(f"{where}: a sliding layer has a window, a full one has none")
    given = {
        key: strict_json.integer(found[key], f"{where} {key}", 1, MAX_EXTENT)
        for key in (*sizes, "window", "index_size")
        if key in found
    }
    spec = LayerSpec(kind, **given, states=_states(found, f"{where} states"))
    return strict_json.integer(found["count"], f"{where} count", 1, MAX_LAYERS), spec


def _states(found: Mapping[str, Any], where: str) -> tuple[StateSpec, ...]:
    if "states" not in found:
        return ()
    states = [_state(entry, where) for entry in strict_json.items(found["states"], where, MAX_STATES)]
    if not states or len({state.name for state in states}) != len(states):
        raise CorruptError(f"{where}: at least one, each of a name of its own, was expected")
    return tuple(states)


def _state(entry: Any, where: str) -> StateSpec:
    found = strict_json.fields(entry, where, ("name", "shape", "dtype"))
    shape: Sequence[int] = [
        strict_json.integer(extent, f"{where} shape", 1, MAX_EXTENT)
        for extent in strict_json.items(found["shape"], f"{where} shape", MAX_STATE_RANK)
    ]
    if not shape:
        raise CorruptError(f"{where} shape: at least one extent was expected")
    dtype = strict_json.one_of(found["dtype"], f"{where} dtype", DTYPE_BYTES)
    return StateSpec(strict_json.string(found["name"], f"{where} name"), tuple(shape), dtype)
