"""The part of the second reader that reads profiles, written from docs/format.md alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from tests.format_conformance.second_reader.codecs import Array, Refused, Tables, corrupt, exactly, expect, need
from tests.format_conformance.second_reader.payload import (
    MIB,
    as_integer,
    as_list,
    as_object,
    as_text,
    parse_json,
    read_tables,
    unframe,
)

MOST = 1024 * MIB  # bytes of a profile, values of its bases
TABLES = {"coefficients": (41, 256), "importance": (1, 256), "activity": (64, 32), "residual_activity": (1, 32)}
NUMBERS = {
    "first_layer": (0, 4096),
    "layer_count": (1, 4096),
    "heads": (1, 2**20),
    "key_size": (1, 2**20),
    "value_size": (1, 2**20),
    "rank": (1, 2**14),
    "metric_exponent": (-100, 100),
}


def as_number(value: object, what: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        corrupt(f"{what}: not a number")
    need(low <= value <= high, f"{what}: out of range")
    return float(value)


@dataclass
class Group:
    """A group of layers: what the description says of it, and its tensors when they are asked for."""

    tables: Tables
    number: int
    first_layer: int
    layers: int
    heads: int
    key_size: int
    value_size: int
    rank: int
    metric_exponent: int
    basis_step: float
    bands: list[int]
    rotary: list[tuple[list[float], bool]]  # of each layer: frequencies, whether pairs are interleaved

    @property
    def width(self) -> int:
        return self.layers * self.heads * (self.key_size + self.value_size)

    def shapes(self) -> dict[str, tuple[str, list[int]]]:
        """Dtype and shape of its tensors but the basis."""
        square = [self.layers, self.heads]
        found = {
            "mean": ("F32", [self.width]),
            "first_mean": ("F32", [self.width]),
            "metric_keys": ("F16", [*square, self.key_size, self.key_size]),
            "metric_values": ("F16", [*square, self.value_size, self.value_size]),
            "scale": ("I16", [self.rank]),
            "residual_scale": ("I16", [self.width]),
            "importance": ("F32", [6 + 2 * self.layers * self.heads]),
        }
        if self.number and f"{self.number}.predict" in self.tables:
            found["predict"] = ("F16", [self.rank, *self.tables[f"{self.number}.predict"].shape[1:2]])
        return found

    def layer_of(self) -> list[int]:
        """The layer of each value of a vector: keys of all layers, then values."""
        return [
            layer
            for size in (self.key_size, self.value_size)
            for layer in range(self.layers)
            for _ in range(self.heads * size)
        ]

    def unpack(self) -> None:
        """Read the tensors."""

        def tensor(name: str) -> Array:
            values = self.tables[f"{self.number}.{name}"].values()
            return values.astype(int if values.dtype.kind == "i" else float)

        raw = 2 * self.rank * self.width
        frame = bytes(self.tables[f"{self.number}.basis"].data)
        need(raw <= 16 * MIB or raw <= 1024 * len(frame), "profile: length of a basis")
        low, high = np.frombuffer(unframe(frame, raw, "basis"), dtype=np.uint8).reshape(2, self.rank, self.width)
        zigzag = low.astype(int) + 256 * high.astype(int)
        self.basis = np.where(zigzag % 2, -(zigzag + 1) // 2, zigzag // 2).astype(float)
        self.mean, self.first_mean = tensor("mean"), tensor("first_mean")
        self.metric_keys, self.metric_values = (
            tensor(name) * 2.0**self.metric_exponent for name in ("metric_keys", "metric_values")
        )
        self.scale, self.residual_scale = tensor("scale"), tensor("residual_scale")
        self.predict = tensor("predict") if f"{self.number}.predict" in self.tables else None
        floats = [self.mean, self.first_mean, self.metric_keys, self.metric_values, tensor("importance")]
        if self.predict is not None:
            floats.append(self.predict)
        need(all(np.isfinite(values).all() for values in floats), "profile: a value that is not finite")
        for scales in (self.scale, self.residual_scale):
            need(bool((np.abs(scales) <= 3200).all()), "profile: a scale out of range")


def read_rotary(value: object, layers: int, key_size: int) -> list[tuple[list[float], bool]]:
    entry = as_object(value, "rotary", {"kinds", "layers"})
    kinds = []
    for kind in as_list(entry["kinds"], "rotary: kinds", layers):
        one = as_object(kind, "rotary: kind", {"frequencies", "interleaved"})
        rates = as_list(one["frequencies"], "rotary: frequencies", key_size // 2)
        if not isinstance(one["interleaved"], bool):
            corrupt("rotary: interleaved")
        kinds.append(([as_number(rate, "frequency", -1024, 1024) for rate in rates], one["interleaved"]))
    numbers = as_list(entry["layers"], "rotary: layers", layers)
    need(len(numbers) == layers, "rotary: layers")
    return [kinds[as_integer(number, "rotary: kind", 0, len(kinds) - 1)] for number in numbers]


def read_group(value: object, number: int, tables: Tables) -> Group:
    entry = as_object(value, "group", {*NUMBERS, "basis_step", "bands", "rotary"})
    first, layers, heads, key_size, value_size, rank, exponent = (
        as_integer(entry[name], name, low, high) for name, (low, high) in NUMBERS.items()
    )
    bands = [as_integer(stop, "bands", 1, rank) for stop in as_list(entry["bands"], "bands", 64)]
    need(bands[-1:] == [rank] and all(a < b for a, b in pairwise(bands)), "bands do not ascend to the rank")
    step = as_number(entry["basis_step"], "basis_step", 2.0**-100, 2.0**100)
    rotary = read_rotary(entry["rotary"], layers, key_size)
    return Group(tables, number, first, layers, heads, key_size, value_size, rank, exponent, step, bands, rotary)


class Profile:
    def __init__(self, raw: bytes) -> None:
        """The profile that these bytes are; its tensors are looked at when they are needed."""
        need(len(raw) <= MOST, "profile: too long")
        self.digest = hashlib.sha256(raw).digest()
        self.tensors = read_tables(raw)
        need("profile" in self.tensors and len(self.tensors["profile"].shape) == 1, "profile: no description")
        expect(self.tensors["profile"], {"U8"}, self.tensors["profile"].shape, "profile")
        described = parse_json(bytes(self.tensors["profile"].data))
        as_object(described, "profile", {"schema", "name", "fingerprint", "info", "curve", "groups"})
        need(described["schema"] == "tsc.profile/1", "profile: schema")
        as_text(described["name"], "profile: name")
        for text in as_object(described["fingerprint"], "profile: fingerprint").values():
            as_text(text, "profile: fingerprint")
        as_object(described["info"], "profile: info")
        for point in as_list(described["curve"], "profile: curve", 256):
            for number in as_object(point, "profile: curve").values():
                as_number(number, "profile: curve", -math.inf, math.inf)
        entries = as_list(described["groups"], "profile: groups", 256)
        need(len(entries) >= 1, "profile: no groups")
        self.groups = [read_group(entry, number, self.tensors) for number, entry in enumerate(entries)]
        self.check_tensors()

    def check_tensors(self) -> None:
        names, values, stop, rank = {"profile"}, 0, 0, 0
        for name, shape in TABLES.items():
            need(f"tables.{name}" in self.tensors, f"profile: no tables.{name}")
            expect(self.tensors[f"tables.{name}"], {"U32"}, list(shape), name)
            names.add(f"tables.{name}")
        for group in self.groups:
            need(group.first_layer >= stop, "profile: groups are not in the order of layers")
            values += group.rank * group.width
            need(group.rank <= group.width and values <= MOST, "profile: size of a basis")
            for name, (dtype, extents) in (group.shapes() | {"basis": ("U8", [])}).items():
                full = f"{group.number}.{name}"
                need(full in self.tensors, f"profile: no {full}")
                anything = [math.prod(self.tensors[full].shape)]
                expect(self.tensors[full], {dtype}, anything if name == "basis" else extents, full)
                names.add(full)
                need(name != "predict" or (len(extents) == 2 and extents[1] <= rank), "predict: too many coefficients")
            stop, rank = group.first_layer + group.layers, group.rank
        exactly(self.tensors, names)

    @cached_property
    def unpacked(self) -> list[Group]:
        for group in self.groups:
            group.unpack()
        return self.groups

    @cached_property
    def frequencies(self) -> dict[str, Array]:
        found = {name: self.tensors[f"tables.{name}"].values().astype(np.int64) for name in TABLES}
        for name, table in found.items():
            need(bool((table >= 1).all() and (table.sum(1) == 2**24).all()), f"tables.{name}: frequencies")
        return found

    def table(self, name: str) -> Array:
        return self.frequencies[name]

    def groups_of(self, first_layer: int, layers: int) -> list[Group]:
        """The groups that these layers consist of."""
        stop = first_layer + layers
        found = [group for group in self.unpacked if first_layer <= group.first_layer < stop]
        at = first_layer
        for group in found:
            need(group.first_layer == at, "profile: no such layers")
            at += group.layers
        need(at == stop, "profile: no such layers")
        return found


def read_reference(tables: Tables, given: bytes | None) -> Callable[[], Profile]:
    """How to come by the profile of a PROFILE record; `given` is one that is at hand."""
    exactly(tables, {"digest", "data"} if "data" in tables else {"digest"})
    digest = expect(tables["digest"], {"U8"}, [32], "digest").octets().tobytes()
    if "data" in tables:
        need(len(tables["data"].shape) == 1, "data: shape")
        embedded = Profile(expect(tables["data"], {"U8"}, tables["data"].shape, "data").octets().tobytes())
        need(embedded.digest == digest, "PROFILE: another digest than the embedded profile's")
        return lambda: embedded

    def at_hand() -> Profile:
        if given is None or hashlib.sha256(given).digest() != digest:
            raise Refused("unsupported: the profile is not at hand")
        return Profile(given)

    return at_hand
