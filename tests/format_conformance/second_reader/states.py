"""STATES, for the second reader: which record holds which state of which snapshot, and its values.

As `second_reader`, written from docs/format.md alone.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from tests.format_conformance.second_reader.codecs import (
    KNOWN_CODECS,
    Array,
    Block,
    Refused,
    decode_lossless,
    decode_scalar,
    need,
)
from tests.format_conformance.second_reader.model import Geometry, Layer, State
from tests.format_conformance.second_reader.payload import MIB, read_tables
from tests.format_conformance.second_reader.records import Record, payload

BLOCK_BUDGET = 64 * MIB  # this reader's own: arithmetic takes several times the bytes of a block


def check_layers(record: Record, geometry: Geometry) -> Layer:
    """The layers that a record is of exist and are all alike; returns one."""
    need(record.layer_count >= 1 and record.layers.stop <= len(geometry.layers), f"type {record.type}: layers")
    alike = geometry.layers[record.first_layer]
    need(all(geometry.layers[layer] == alike for layer in record.layers), f"type {record.type}: layers are not alike")
    return alike


def check_size(what: str, size: int, decoded: int) -> None:
    """`size`: what the limit is on; `decoded`: the bytes that are decoded at once."""
    need(size <= 256 * MIB, f"{what}: {size} bytes when decoded")
    if decoded > BLOCK_BUDGET:
        raise Refused(f"budget: {decoded} bytes of {what}")


def state_of(record: Record, geometry: Geometry) -> State:
    return geometry.layers[record.first_layer].states[record.part]


def block_of_states(record: Record, geometry: Geometry) -> Block:
    """As if the states were values, a row for each snapshot."""
    state = state_of(record, geometry)
    return Block(
        state.dtype, "values", record.layer_count, geometry.batch, state.heads, state.size, record.first, record.number
    )


def check_states_record(record: Record, geometry: Geometry, snapshots: int) -> None:
    need(record.codec != 0, "STATES: codec")
    if record.codec not in KNOWN_CODECS:
        raise Refused(f"unsupported: codec {record.codec}")
    need(record.codec in (1, 2), "STATES: codec")
    layer = check_layers(record, geometry)
    need(record.part < len(layer.states), "STATES: no such state")
    need(record.number >= 1 and record.first + record.number <= snapshots, "STATES: snapshots")
    size = block_of_states(record, geometry).bytes
    check_size("STATES", size, size)


def check_states(stored: list[Record], geometry: Geometry, snapshots: int) -> None:
    """Every state of every layer is stored once for every snapshot."""
    wanted = snapshots * sum(len(layer.states) for layer in geometry.layers)
    found = sum(record.layer_count * record.number for record in stored)
    need(found <= wanted, "STATES: a state is stored twice")  # before the layers of all records are listed
    spans: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for record in stored:
        for layer in record.layers:
            spans[layer, record.part].append((record.first, record.first + record.number))
    for one in spans.values():
        need(all(a[1] <= b[0] for a, b in pairwise(sorted(one))), "STATES: a state is stored twice")
    need(found == wanted, "STATES: a state is not stored")


def read_states_record(data: memoryview, record: Record, geometry: Geometry) -> Array:
    """The states as bits, [layers, batch, heads, snapshots, values of a head]."""
    tables, block = read_tables(payload(data, record)), block_of_states(record, geometry)
    return decode_lossless(tables, block) if record.codec == 1 else decode_scalar(tables, block)
