"""Random edits that know the format: most mutants pass the checksums and reach the checks behind them."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import struct
from collections.abc import Callable
from random import Random
from typing import Any

from tests.format_conformance import mutate_encrypted
from tests.format_conformance.craft import (
    ATTENTION,
    END,
    HEADER,
    INDEX,
    KEPT,
    LABELS,
    MODEL,
    PROFILE,
    REFERENCE,
    ROWS,
    STATES,
    VIEWS,
    Craft,
    Piece,
    frame,
    join_table,
    raw_frame,
    spell,
    split_table,
)
from tests.format_conformance.seal import Seal

NUMBERS = (
    -(2**63),
    -(2**31),
    -4,
    -2,
    -1,
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    12,
    255,
    256,
    4_096,
    4_097,
    65_535,
    65_536,
    2**20,
    2**20 + 1,
    2**26,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
JSON_VALUES: tuple[Any, ...] = (
    None,
    True,
    1.0,
    0.5,
    "",
    "x",
    "full",
    "sliding",
    "bfloat16",
    "float16",
    "float32",
    "float8_e5m2",
    "U8",
    "I64",
    "tsc.model/1",
    "\ud800",
    [],
    {},
    [0],
    [[]],
    {"a": 1},
    {"a": {}},
)
TEXTS = (b",", b"{", b"}", b"]", b'"', b" ", b"\n", b"0", b"-", b"1e999", b"NaN", b"\xff", b"\xef\xbb\xbf", b"\\u0000")
WIDTHS = {
    "codec": 16,
    "part": 16,
    "first_layer": 32,
    "layer_count": 32,
    "first": 64,
    "count": 64,
    "type": 8,
    "sequence": 32,
    "stored": 64,
    "raw": 64,
    "reserved_a": 8,
    "reserved_b": 16,
    "reserved_c": 32,
}
DESCRIBED = list(WIDTHS)[:6]
TABLES = (ROWS, LABELS, VIEWS, REFERENCE, KEPT, ATTENTION, PROFILE, STATES)


def near(random: Random, value: int, low: int, high: int) -> int:
    """Another number: mostly a neighbour, sometimes one at which a limit lies."""
    chosen = value + random.choice((-2, -1, 1, 1, 2)) if random.random() < 0.6 else random.choice(NUMBERS)
    return min(max(chosen, low), high)


def pick(craft: Craft, random: Random, *types: int) -> Piece:
    return random.choice([piece for piece in craft.records if not types or piece.type in types])


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) of a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def change_json(value: Any, random: Random) -> None:
    container, key = random.choice(places(value))
    what = random.randrange(5)
    if what == 0:
        del container[key]
    elif what == 1 and isinstance(container, list):
        container.insert(key, copy.deepcopy(random.choice(container)))
    elif what == 1:
        container[random.choice(("x", "window", "dtype"))] = container[key]
    elif type(container[key]) is int and what < 4:
        container[key] = near(random, container[key], -(2**63), 2**64)
    else:
        container[key] = copy.deepcopy(random.choice(JSON_VALUES))


def json_value(craft: Craft, random: Random) -> None:
    pick(craft, random, MODEL, MODEL, HEADER).edit_json(lambda value: change_json(value, random))


def table_header(craft: Craft, random: Random) -> None:
    pick(craft, random, *TABLES).edit_table(lambda header: change_json(header, random))


def table_data(craft: Craft, random: Random) -> None:
    piece = pick(craft, random, *TABLES)
    header, data = split_table(piece.raw)
    at = random.randrange(len(data))
    data = data[:at] + random.choice((b"", b"\0", bytes([data[at] ^ 1 << random.randrange(8)]))) + data[at + 1 :]
    piece.raw = join_table(spell(header), data)


def table_shape(craft: Craft, random: Random) -> None:
    """Rows or states of another codec: a tensor dropped, doubled, cut short or lengthened, its shape right."""
    piece = pick(craft, random, ROWS, KEPT, ATTENTION, STATES)
    tensors = piece.tensors()
    name = random.choice(list(tensors))
    dtype, shape, octets = tensors.pop(name)
    what = random.randrange(4)
    if what == 0:
        tensors[random.choice(("codes", "exact", "offsets", "planes"))] = (dtype, shape, octets)
    elif what < 3:
        axis = random.randrange(len(shape))
        shape = [*shape[:axis], near(random, shape[axis], 0, 64), *shape[axis + 1 :]]
        length = math.prod(shape) * (len(octets) // max(1, math.prod(tensors_shape(piece, name))))
        tensors[name] = (dtype, shape, (octets + bytes(1 << 12))[:length])
    piece.set_tensors(tensors)


def tensors_shape(piece: Piece, name: str) -> list[int]:
    return piece.tensors()[name][1]


def layout_number(craft: Craft, random: Random) -> None:
    """What decoding of lossy rows and states goes by."""
    coded = [piece for piece in craft.records if piece.type in (ROWS, STATES) and piece.codec > 1]
    piece = random.choice(coded)
    name = random.choice(("layout", "layout", "bases", "words", "apart"))
    values = piece.integers(name)
    at = random.randrange(len(values))
    low, high = (0, 2**32 - 1) if name == "words" else (-(2**31), 2**31 - 1)
    values[at] = near(random, values[at], low, high)
    piece.set_integers(name, values)


def kept_bits(craft: Craft, random: Random) -> None:
    """Another row kept by a head, or by one head too many."""
    piece = pick(craft, random, KEPT)
    bits = piece.integers("kept")
    for _ in range(random.choice((1, 2, 2))):
        bits[random.randrange(len(bits))] ^= 1 << random.randrange(8)
    header, _ = split_table(piece.raw)
    piece.raw = join_table(spell(header), bytes(bits))


def table_number(craft: Craft, random: Random) -> None:
    piece = pick(craft, random, LABELS, VIEWS, VIEWS, REFERENCE)
    name = random.choice(list(split_table(piece.raw)[0]))
    values = piece.integers(name)
    at = random.randrange(len(values))
    wide = name != "token_ids"
    values[at] = near(random, values[at], -(2**63) if wide else 0, 2**63 - 1 if wide else 2**16 - 1)
    piece.set_integers(name, values)


def span_line(craft: Craft, random: Random) -> None:
    """Drop, repeat, move or halve a line of a VIEWS table; a halved line says the same in two."""
    flat = craft[VIEWS].integers("spans")
    lines = [flat[at : at + 5] for at in range(0, len(flat), 5)]
    at = random.randrange(len(lines))
    what = random.randrange(6)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(at, list(lines[at]))
    elif what == 2:
        lines.insert(random.randrange(len(lines)), lines.pop(at))
    elif what == 3 and lines[at][2] > 1:
        number, layer, layers, first, rows = lines[at]
        lines[at : at + 1] = [[number, layer, 1, first, rows], [number, layer + 1, layers - 1, first, rows]]
    else:
        number, layer, layers, first, rows = lines[at]
        half = random.randint(1, rows - 1)
        lines[at : at + 1] = [[number, layer, layers, first, half], [number, layer, layers, first + half, rows - half]]
        if what == 5:
            lines[at], lines[at + 1] = lines[at + 1], lines[at]  # the cache in another order
    craft[VIEWS].set_integers("spans", [value for line in lines for value in line])


def split_labels(craft: Craft, random: Random) -> None:
    piece = pick(craft, random, LABELS)
    second = copy.deepcopy(piece)
    half = random.randint(1, piece.count - 1)
    for name in ("token_ids", "position_offsets"):
        values = piece.integers(name)
        cut = half * len(values) // piece.count  # of each sequence, where each has its own
        piece.set_integers(name, values[:cut])
        second.set_integers(name, values[cut:])
    second.first, second.count, piece.count = piece.first + half, piece.count - half, half
    craft.records.insert(craft.records.index(piece) + random.randint(0, 1), second)


def split_rows(craft: Craft, random: Random) -> None:
    """One record of rows or states as two, by these or by layers: `planes` is cut along one axis."""
    piece = pick(craft, random, ROWS, STATES)
    second = copy.deepcopy(piece)
    header, data = split_table(piece.raw)
    shape = header["planes"]["shape"]
    by_rows = random.random() < 0.7
    keys = piece.type == ROWS and piece.part in (1, 3)
    axis = (5 if keys else 3) if by_rows else 1
    at = random.randint(1, shape[axis] - 1)
    inner = math.prod(shape[axis + 1 :])
    line = shape[axis] * inner
    for part, begin, stop in ((piece, 0, at), (second, at, shape[axis])):
        octets = b"".join(data[n + begin * inner : n + stop * inner] for n in range(0, len(data), line))
        cut = [*shape[:axis], stop - begin, *shape[axis + 1 :]]
        entry = {"dtype": "U8", "shape": cut, "data_offsets": [0, len(octets)]}
        part.raw = join_table(spell({"planes": entry}), octets)
    if by_rows:
        second.first, second.count, piece.count = piece.first + at, piece.count - at, at
    else:
        second.first_layer, second.layer_count, piece.layer_count = piece.first_layer + at, piece.layer_count - at, at
    craft.records.insert(random.randint(1, len(craft.records) - 1), second)


def record_field(craft: Craft, random: Random) -> None:
    piece = random.choice([*craft.records, craft.index, craft.end])
    name = random.choice(list(WIDTHS))
    high = 2 ** WIDTHS[name] - 1
    if name in DESCRIBED:
        value = near(random, getattr(piece, name), 0, high)
        if piece.type in (INDEX, END):
            piece.lies[name] = value
        else:
            setattr(piece, name, value)
    else:
        piece.lies[name] = near(random, random.choice((0, len(piece.raw), 7)), 0, high)


def record_order(craft: Craft, random: Random) -> None:
    at, to = (random.randrange(len(craft.records)) for _ in range(2))
    what = random.randrange(5)
    if what == 0:
        del craft.records[at]
    elif what == 1:
        craft.records.insert(to, copy.deepcopy(craft.records[at]))
    elif what == 2:
        craft.records.insert(to, craft.records.pop(at))
    elif what == 3:
        kind = random.choice((0, 6, 7, 8, 9, 0x7F, 0x80, 0x82, 0x83, 0xFF))
        craft.records.insert(to, Piece(kind, random.choice((b"", b"any"))))
    else:
        middle = craft.records[1:-1]
        random.shuffle(middle)
        craft.records[1:-1] = middle


def text(craft: Craft, random: Random) -> None:
    piece = pick(craft, random)
    at = random.randrange(len(piece.raw))
    piece.raw = piece.raw[:at] + random.choice(TEXTS) + piece.raw[at + random.randrange(3) :]


def odd_frame(craft: Craft, random: Random) -> None:
    piece = pick(craft, random)
    raw = piece.raw
    windows, sizes = (None, 0x50, 0x68, 0x69, 0x70), (len(raw), len(raw), len(raw) + 1, None)
    piece.stored = random.choice(
        (
            frame(raw) + random.choice((b"\0", frame(b""), b"\x50\x2a\x4d\x18\0\0\0\0")),
            frame(raw)[: -random.randint(1, 5)],
            raw_frame(raw, size=random.choice(sizes), window=random.choice(windows)),
            raw_frame(raw, size=len(raw), dictionary=random.choice((b"\0", b"\1", b"\0\0\0\0", b"\0\0\0\1"))),
            raw_frame(raw + random.choice((b"", b"x")), size=len(raw)),
        )
    )


def index_cell(craft: Craft, random: Random) -> None:
    at, column, seed = random.random(), random.randrange(10), random.random()

    def edit(lines: list[list[int]]) -> None:
        line = int(at * len(lines))
        lines[line][column] = near(Random(seed), lines[line][column], -(2**63), 2**63 - 1)

    craft.edit_index = edit


def other_ratios(craft: Craft, random: Random) -> None:
    """HEADER keeps the ratios that it states, or states ones that are a little off."""
    craft.ratios = False
    factor = random.choice((1.0, 0.9985, 1.0015, 1.01, -1.0))
    craft[HEADER].edit_json(lambda value: value.update(ratio_trace=value["ratio_trace"] * factor))


def superblock(craft: Craft, random: Random) -> None:
    craft.minor = random.choice((0, 0, 0, 1, 65_535))
    craft.flags = random.choice((0, 1 << random.randrange(16)))
    craft.reserved = random.choice(({}, {random.choice((12, 15, 32, 59)): 1}))


def state_spec(craft: Craft, random: Random) -> None:
    """Another shape, dtype, name, number or place of the states of a run of layers."""

    def edit(model: Any) -> None:
        runs = model["layers"]
        states = random.choice([run["states"] for run in runs if "states" in run])
        state = random.choice(states)
        what = random.randrange(8)
        if what < 3:
            change_json(state, random)
        elif what == 3:  # what is stored may stay right
            shape = state["shape"]
            at = random.randrange(len(shape))
            shape[at : at + 2] = random.choice(([math.prod(shape[at : at + 2])], [1, *shape[at : at + 2]]))
        elif what == 4:
            state["dtype"] = random.choice(("float32", "bfloat16", "float16"))
        elif what == 5:
            states.insert(random.randrange(3), state | {"name": random.choice((state["name"], "another", ""))})
        elif what == 6:
            random.shuffle(states)
        else:
            random.choice(runs)["states"] = copy.deepcopy(states)

    craft[MODEL].edit_json(edit)


def kind(craft: Craft, random: Random) -> None:
    """Layers of another kind, with the fields of that kind or those of the old one, with indexer keys or without."""

    def edit(model: Any) -> None:
        run = random.choice(model["layers"])
        what = random.randrange(4)
        if what == 0:
            run["index_size"] = near(random, run.get("index_size", 2), 0, 2**20 + 1)
        elif what == 1:
            del run["index_size"]
        else:
            run["kind"] = random.choice(("full", "full", "cross", "cross", "sliding", "none"))
        if what == 3:  # the fields are those of the new kind
            run.pop("window", None)
            if run["kind"] == "sliding":
                run["window"] = 5
            for name in ("heads", "key_size", "value_size", "index_size") if run["kind"] == "none" else ():
                run.pop(name, None)

    craft[MODEL].edit_json(edit)


def padding(craft: Craft, random: Random) -> None:
    def edit(model: Any) -> None:
        rows = model.get("padding", [1] * model["batch"])
        what = random.randrange(4)
        if what == 0:
            del rows[random.randrange(len(rows))]
        elif what == 1:
            rows.insert(0, random.choice((0, 1)))
        elif what == 2:
            at = random.randrange(len(rows))
            rows[at] = near(random, rows[at], -1, 2**20 + 1)
        model["padding"] = rows if what < 3 or random.random() < 0.5 else [0] * model["batch"]

    craft[MODEL].edit_json(edit)


def states_field(craft: Craft, random: Random) -> None:
    piece = pick(craft, random, STATES)
    name = random.choice(DESCRIBED)
    setattr(piece, name, near(random, getattr(piece, name), 0, 2 ** WIDTHS[name] - 1))


def joined_states(craft: Craft, random: Random) -> None:
    """A record of states moved to where another one is, or dropped and the other one doubled."""
    piece, other = pick(craft, random, STATES), pick(craft, random, STATES)
    for name in random.sample(DESCRIBED[1:], random.randint(1, 5)):
        setattr(piece, name, getattr(other, name))
    if random.random() < 0.5:
        piece.raw, piece.codec = other.raw, other.codec


def labels_of_each(craft: Craft, random: Random) -> None:
    """Token ids of each sequence where there were those of one, or the other way round, in one record or in all."""
    batch = json.loads(craft[MODEL].raw)["batch"]
    pieces = [piece for piece in craft.records if piece.type == LABELS]
    for piece in pieces if random.random() < 0.7 else [random.choice(pieces)]:
        values, tensors = piece.integers("token_ids"), piece.tensors()
        dtype, shape, octets = tensors["token_ids"]
        item = len(octets) // len(values)
        if len(shape) == 1:
            octets = b"".join(octets[at : at + item] * batch for at in range(0, len(octets), item))
            shape = [*shape, batch]
        else:
            octets, shape = octets[: item * shape[0]], shape[:1]
        piece.set_tensors(tensors | {"token_ids": (dtype, shape, octets)})


MUTATIONS: dict[Callable[[Craft, Random], None], int] = {
    json_value: 8,
    table_header: 6,
    table_data: 4,
    table_number: 10,
    span_line: 10,
    split_labels: 3,
    split_rows: 6,
    record_field: 6,
    record_order: 5,
    text: 4,
    odd_frame: 4,
    index_cell: 3,
    superblock: 1,
    table_shape: 4,
    layout_number: 8,
    kept_bits: 4,
    other_ratios: 1,
}

# what there is in files with states and the like
MUTATIONS_OF_STATES: dict[Callable[[Craft, Random], None], int] = {
    state_spec: 12,
    kind: 6,
    padding: 6,
    states_field: 10,
    joined_states: 4,
    labels_of_each: 4,
}


def fix_raw_bytes(craft: Craft, *, whole: bool) -> None:
    """Let HEADER say what MODEL and VIEWS now make of the raw bytes, so that the rows behind are looked at.

    Args:
        whole: of all tokens, as before eviction.
    """
    model = json.loads(craft[MODEL].raw)
    items = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
    item = items.get(model["dtype"], 1)
    sizes, cross, of_states = [], [], 0
    for run in model["layers"]:
        heads, *widths = (run.get(name, 0) for name in ("heads", "key_size", "value_size"))
        count = min(run["count"], 5_000)
        sizes += [heads * sum(widths) + run.get("index_size", 0)] * count
        cross += [run["kind"] == "cross"] * count
        of_states += count * sum(math.prod(one["shape"]) * items.get(one["dtype"], 1) for one in run.get("states", ()))
    raw = [of_states * model["batch"]] * min(craft[VIEWS].count, 100)
    spans = craft[VIEWS].integers("spans")
    for number, layer, layers, _, rows in zip(*(spans[column::5] for column in range(5)), strict=True):
        named = range(layer, min(layer + layers, len(sizes))) if layer >= 0 else ()
        counted = sum(sizes[at] for at in named if not whole or cross[at])
        if layer < 0 and whole:  # of models without sliding layers
            counted = sum(size for size, other in zip(sizes, cross, strict=True) if not other)
        raw[number] += item * model["batch"] * rows * counted
    craft[HEADER].edit_json(lambda value: value.update(raw_bytes_trace=sum(raw), raw_bytes_final=raw[-1]))


def has_more_than_rows(craft: Craft) -> bool:
    """Whether MODEL has states, indexer keys, padding or layers of kinds that few models have."""
    model = json.loads(craft[MODEL].raw)
    runs = model["layers"]
    return "padding" in model or any(
        {"states", "index_size"} & run.keys() or run["kind"] in ("none", "cross") for run in runs
    )


def mutant(valid: bytes, random: Random, seal: Seal | None = None) -> bytes:
    """`seal`: of an encrypted file; every other mutant of one is made without it."""
    with_key = seal is not None and random.random() < 0.5
    craft = Craft.of(valid, seal if with_key else None)
    # an edit that no longer applies after another one is left out
    inapplicable = (KeyError, IndexError, ValueError, TypeError, AttributeError, StopIteration, struct.error)
    mutations = MUTATIONS | (MUTATIONS_OF_STATES if craft[MODEL].raw and has_more_than_rows(craft) else {})
    if seal is not None:
        keyless = {record_field: 5, record_order: 5, index_cell: 1} | mutate_encrypted.WITHOUT_KEY
        mutations = mutations | mutate_encrypted.WITH_KEY if with_key else keyless
    for _ in range(random.choice((1, 1, 2, 2, 3, 4))):
        with contextlib.suppress(*inapplicable):
            random.choices(list(mutations), list(mutations.values()))[0](craft, random)
    if random.random() < 0.7:
        with contextlib.suppress(*inapplicable, OverflowError, MemoryError):
            fix_raw_bytes(craft, whole=random.random() < 0.1)
    try:
        data = craft.build()
    except struct.error:  # several edits of one field led out of its range
        return valid
    if random.random() < 0.02:
        at = random.randrange(len(data))
        data = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    return data
