"""Files whose checksums are right and which lie: states, layers without rows, indexer keys, padding."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from formats.codecs import CODECS
from formats.errors import CorruptError, TscError, UnsupportedFileError
from tests.format_conformance.craft import ATTENTION, HEADER, KEPT, LABELS, MODEL, ROWS, STATES, VIEWS, Craft, Piece
from tests.format_conformance.liars import UNKNOWN, Edit, liar
from tests.format_conformance.samples_states import ITEMS, PART_NUMBERS, conv

Json = Any
STATELESS = {number: kind for number, kind in CODECS.items() if not kind.codes_states}
PRODUCT = {  # what it says of the lies below that give no message of their own
    "model, 17 states": "layers states: a list of at most 16 entries was expected",
    "model, no states in a list of states": "layers states: at least one, each of a name of its own, was",
    "model, states not a list": "layers states: a list of at most 16 entries was expected",
    "model, states null": "layers states: a list of at most 16 entries was expected",
    "model, a state that is not an object": "layers states: an object was expected",
    "model, state without dimensions": "layers states shape: at least one extent was expected",
    "model, state of 7 dimensions": "layers states shape: a list of at most 6 entries was expecte",
    "model, state of no values": "layers states shape: an integer from 1 to 1048576 was expect",
    "model, negative shape of a state": "layers states shape: an integer from 1 to 1048576 was expect",
    "model, shape of 2^20 + 1": "layers states shape: an integer from 1 to 1048576 was expect",
    "model, true in a shape": "layers states shape: an integer from 1 to 1048576 was expect",
    "model, 12.0 in a shape": "layers states shape: an integer from 1 to 1048576 was expect",
    "model, a number as shape": "layers states shape: a list of at most 6 entries was expecte",
    "model, unknown dtype of a state": "layers states dtype: one of bfloat16, float16, float32, floa",
    "model, dtype null": "layers states dtype: one of bfloat16, float16, float32, floa",
    "model, a number as name": "layers states name: a string was expected",
    "model, heads of layers without rows": "layers: unknown field 'heads'",
    "model, sizes of layers without rows": "layers: unknown field 'heads'",
    "model, window of layers without rows": "layers: unknown field 'window'",
    "model, indexer keys of layers without rows": "layers: unknown field 'index_size'",
    "model, window of cross-attention": "layers: a sliding layer has a window, a full one has none",
    "model, rows of kind none": "layers: unknown field 'heads'",
    "model, kind none without layers": "layers count: an integer from 1 to 4096 was expected",
    "model, unknown kind": "layers kind: one of cross, full, none, sliding was expected",
    "model, index size 0": "layers index_size: an integer from 1 to 1048576 was expected",
    "model, index size 2^20 + 1": "layers index_size: an integer from 1 to 1048576 was expected",
    "model, index size null": "layers index_size: an integer from 1 to 1048576 was expected",
    "states, codec 0": "codec 0 is never valid",
    **{f"states, codec {n}": f"codec {kind.name} does not write states" for n, kind in STATELESS.items()},
    "index, part of STATES": "the index describes this record wrongly",
    "index, first layer of STATES": "the index describes this record wrongly",
    "index, layers of STATES": "the index describes this record wrongly",
    "index, first of STATES": "the index describes this record wrongly",
    "index, count of STATES": "the index describes this record wrongly",
}
REASONS: dict[str, str] = {}  # by name: what the second reader says, which is not to refuse it for something else


def lie(
    name: str, message: str, reason: str, edit: Edit, error: type[TscError] = CorruptError, *, sample: str = "pure"
) -> None:
    """`message`: a part of the product's; "": `PRODUCT` has it."""
    REASONS[f"by hand: {name}"] = reason
    liar(f"by hand: {name}", message or PRODUCT[name], edit, error, sample=f"by hand, {sample}")


def nth(craft: Craft, type_: int, number: int) -> Piece:
    return [piece for piece in craft.records if piece.type == type_][number]


def fields(type_: int, number: int, **values: int) -> Edit:
    return lambda craft: vars(nth(craft, type_, number)).update(values)


def repeated(type_: int, number: int) -> Edit:
    return lambda craft: craft.insert(copy.deepcopy(nth(craft, type_, number)))


def removed(type_: int, *numbers: int) -> Edit:
    def edit(craft: Craft) -> None:
        gone = [nth(craft, type_, number) for number in numbers]
        craft.records = [piece for piece in craft.records if not any(piece is other for other in gone)]

    return edit


def tensors(type_: int, number: int, **values: tuple[str, list[int], bytes]) -> Edit:
    """A record with other tensors."""
    return lambda craft: nth(craft, type_, number).set_tensors(values)


def zeros(*shape: int) -> tuple[str, list[int], bytes]:
    return "U8", list(shape), bytes(math.prod(shape))


# MODEL


def model(name: str, message: str, reason: str, edit: Callable[[Json], object], sample: str = "pure") -> None:
    lie(f"model, {name}", message, f"MODEL: {reason}", lambda craft: craft[MODEL].edit_json(edit), sample=sample)


def run(name: str, reason: str, number: int = 0, sample: str = "hybrid", message: str = "", **values: Json) -> None:
    """Fields of a run of layers put in or replaced."""
    model(name, message, reason, lambda value: value["layers"][number].update(values), sample)


def state(title: str, reason: str, message: str = "", **values: Json) -> None:
    """Fields of the first state replaced."""
    model(title, message, reason, lambda value: value["layers"][0]["states"][0].update(values))


UNKNOWN_FIELDS, OUT_OF_RANGE = "missing or unknown fields", "out of range"
model(
    "two states of one name",
    "each of a name of its own",
    "two states of one name",
    lambda value: value["layers"][0]["states"][1].update(name="conv"),
)
run("17 states", "states: too long", states=[conv(1) | {"name": str(number)} for number in range(17)])
run("no states in a list of states", "empty list of states", states=[])
run("states not a list", "states: not a list", states={"conv": conv(1)})
run("states null", "states: not a list", states=None)
run("a state that is not an object", "state: not an object", states=["conv"])
state("state without dimensions", "shape of a state is empty", shape=[])
state("state of 7 dimensions", "shape of a state: too long", shape=[1] * 7)
state("state of no values", f"shape of a state: {OUT_OF_RANGE}", shape=[4, 0])
state("negative shape of a state", f"shape of a state: {OUT_OF_RANGE}", shape=[-4, -3])
state("shape of 2^20 + 1", f"shape of a state: {OUT_OF_RANGE}", shape=[2**20 + 1])
state("true in a shape", "shape of a state: not an integer", shape=[12, True])
state("12.0 in a shape", "shape of a state: not an integer", shape=[12.0])
state("a number as shape", "shape of a state: not a list", shape=12)
state("unknown dtype of a state", "dtype of a state", dtype="int8")
state("dtype null", "dtype of a state: not a string", dtype=None)
state("a number as name", "name of a state: not a string", name=1)
state("unknown field of a state", f"state: {UNKNOWN_FIELDS}", message="unknown field", heads=4)
model(
    "state without a name",
    "field 'name' is missing",
    f"state: {UNKNOWN_FIELDS}",
    lambda value: value["layers"][0]["states"][0].pop("name"),
)
run("heads of layers without rows", f"run of layers: {UNKNOWN_FIELDS}", heads=1)
run("sizes of layers without rows", f"run of layers: {UNKNOWN_FIELDS}", 2, heads=1, key_size=1, value_size=1)
run("window of layers without rows", f"run of layers: {UNKNOWN_FIELDS}", 2, window=4)
run("indexer keys of layers without rows", f"run of layers: {UNKNOWN_FIELDS}", 2, index_size=4)
run("window of cross-attention", f"run of layers: {UNKNOWN_FIELDS}", 1, "encoder and decoder", window=4)
run("rows of kind none", f"run of layers: {UNKNOWN_FIELDS}", 1, kind="none")
run("kind none without layers", f"count: {OUT_OF_RANGE}", 2, count=0)
run("unknown kind", "kind", 2, kind="linear")
run("index size 0", f"index_size: {OUT_OF_RANGE}", 0, "indexed", index_size=0)
run("index size 2^20 + 1", f"index_size: {OUT_OF_RANGE}", 0, "indexed", index_size=2**20 + 1)
run("index size null", "index_size: not an integer", 1, "indexed", index_size=None)


def padding(name: str, reason: str, value: Json, sample: str = "padded") -> None:
    model(f"padding {name}", "padding", f"padding{reason}", lambda found: found.update(padding=value), sample)


padding("of two sequences", " of another number of sequences", [0, 2])
padding("of four sequences", ": too long", [0, 2, 1, 0])
padding("of no sequences", " of another number of sequences", [])
padding("of nothing", " of nothing", [0, 0, 0])
padding("of nothing, batch of 1", " of nothing", [0], "pure")
padding("negative", f": {OUT_OF_RANGE}", [0, 2, -1])
padding("of 2^20 + 1 rows", f": {OUT_OF_RANGE}", [0, 2, 2**20 + 1])
padding("true", ": not an integer", [0, 2, True])
padding("2.0", ": not an integer", [0, 2.0, 1])
padding("a number", ": not a list", 2)
padding("null", ": not a list", None)

# STATES: in the pure model 0 to 2 of conv, 3 to 6 of recurrent; the hybrid's are of codec 2

TWICE, MISSING, ALIKE = "a state is stored twice", "a state is not stored", "layers are not alike"


def states(
    name: str, message: str, reason: str, edit: Edit, error: type[TscError] = CorruptError, sample: str = "pure"
) -> None:
    lie(f"states, {name}", message, reason, edit, error, sample=sample)


def header_of(
    name: str,
    message: str,
    reason: str,
    number: int,
    error: type[TscError] = CorruptError,
    *,
    sample: str = "pure",
    **values: int,
) -> None:
    states(name, message, reason, fields(STATES, number, **values), error, sample)


states("missing at a snapshot", "state 'recurrent' of layer 1 is missing at snapshot 2", MISSING, removed(STATES, 6))
states("missing at two snapshots", "state 'conv' of layer 2 is missing at snapshot 1", MISSING, removed(STATES, 2))
states(
    "of a hybrid missing",
    "state 'recurrent' of layer 4 is missing at snapshot 0",
    MISSING,
    removed(STATES, 2),
    sample="hybrid",
)
states("all missing", "state 'conv' of layer 0 is missing at snapshot 0", MISSING, removed(STATES, *range(7)))
header_of("missing in a layer", "state 'recurrent' of layer 2 is missing at snapshot 0", MISSING, 3, layer_count=2)
states("stored twice", "state 'conv' of layer 0 is stored twice at snapshot 0", TWICE, repeated(STATES, 0))
states(
    "stored twice at one snapshot",
    "state 'recurrent' of layer 1 is stored twice at snapshot 2",
    TWICE,
    repeated(STATES, 6),
)
header_of(
    "one stored twice, one missing", "state 'recurrent' of layer 1 is stored twice at snapshot 1", TWICE, 6, first=1
)
header_of("under the number of another", "state 'conv' of layer 0 is missing at snapshot 0", TWICE, 0, part=1)
header_of("part beyond the states", "a states record of state 2", "no such state", 3, part=2)
header_of("part 65,535", "a states record of state 65535", "no such state", 3, part=65_535)
header_of(
    "first beyond the snapshots", "a states record of snapshots that there are not", "STATES: snapshots", 6, first=3
)
header_of(
    "count beyond the snapshots", "a states record of snapshots that there are not", "STATES: snapshots", 6, count=2
)
header_of("first 2^62", "a states record of snapshots that there are not", "STATES: snapshots", 6, first=2**62)
header_of("count 2^62", "a states record of snapshots that there are not", "STATES: snapshots", 6, count=2**62)
header_of("count 0", "a states record of snapshots that there are not", "STATES: snapshots", 6, count=0)
header_of("no layers", "cannot be stored together", "type 10: layers", 6, layer_count=0)
header_of("layers beyond the model", "cannot be stored together", "type 10: layers", 6, layer_count=3)
header_of("2^32 - 1 layers", "cannot be stored together", "type 10: layers", 6, layer_count=2**32 - 1)
header_of("unlike layers", "cannot be stored together", ALIKE, 0, layer_count=3, sample="hybrid")
header_of("dummy layer", "a states record of state 0", "no such state", 2, first_layer=3, sample="hybrid")
header_of(
    "layer with rows and without states",
    "a states record of state 0",
    "no such state",
    3,
    first_layer=2,
    sample="hybrid",
)


def other_last_layer(**values: Json) -> Edit:
    """The pure model as two runs, of which the second one's first state is another one."""

    def edit(value: Json) -> None:
        first, last = value["layers"][0] | {"count": 2}, copy.deepcopy(value["layers"][0]) | {"count": 1}
        last["states"][0].update(values)
        value["layers"] = [first, last]

    return lambda craft: craft[MODEL].edit_json(edit)


states("layers whose states differ in name", "cannot be stored together", ALIKE, other_last_layer(name="convolution"))
states("layers whose states differ in dtype", "cannot be stored together", ALIKE, other_last_layer(dtype="float16"))
states("layers whose states differ in shape", "cannot be stored together", ALIKE, other_last_layer(shape=[3, 4]))
for number in (0, *STATELESS):
    header_of(f"codec {number}", "", "STATES: codec", 0, codec=number)
header_of("unknown codec", f"codec {UNKNOWN} is not known", f"codec {UNKNOWN}", 0, UnsupportedFileError, codec=UNKNOWN)
header_of("codec 65,535", "codec 65535 is not known", "codec 65535", 0, UnsupportedFileError, codec=65_535)
header_of("lossless as scalar", "tensor 'layout'", "no tensor layout", 0, codec=2)
header_of("scalar as lossless", "were expected", "tensors", 0, codec=1, sample="hybrid")

# tensors of STATES: record 3 holds the recurrent state, float32 [2, 4, 3], of 3 layers at 1 snapshot
PLANES, SHAPE = "tensor 'planes' is", "planes: shape"
states(
    "planes of another state",
    PLANES,
    SHAPE,
    lambda craft: setattr(nth(craft, STATES, 3), "raw", nth(craft, STATES, 0).raw),
)
states("planes in the dtype of the model", PLANES, SHAPE, tensors(STATES, 3, planes=zeros(2, 3, 1, 1, 2, 12)))
states("planes in the order of keys", PLANES, SHAPE, tensors(STATES, 3, planes=zeros(4, 3, 1, 2, 12, 1)))
states("planes without heads", PLANES, SHAPE, tensors(STATES, 3, planes=zeros(4, 3, 1, 1, 1, 24)))
states("planes in the shape of the state", PLANES, SHAPE, tensors(STATES, 3, planes=zeros(4, 3, 1, 1, 2, 4, 3)))
states("planes with heads of a matrix", PLANES, SHAPE, tensors(STATES, 0, planes=zeros(2, 2, 1, 3, 4, 3)))
states("planes of a snapshot more", PLANES, SHAPE, tensors(STATES, 3, planes=zeros(4, 3, 1, 2, 2, 12)))
states("planes of a layer less", PLANES, SHAPE, tensors(STATES, 3, planes=zeros(4, 2, 1, 1, 2, 12)))
states(
    "signed planes",
    "tensor 'planes' is I8",
    "table: dtype",
    tensors(STATES, 3, planes=("I8", [4, 3, 1, 1, 2, 12], bytes(288))),
)
states("another name", "were expected", "instead of", tensors(STATES, 3, state=zeros(4, 3, 1, 1, 2, 12)))
states(
    "another tensor", "were expected", "instead of", tensors(STATES, 3, planes=zeros(4, 3, 1, 1, 2, 12), more=zeros(0))
)
states("not a table", "too short", "shorter than", lambda craft: setattr(nth(craft, STATES, 3), "raw", b"{}"))
states("planes of one sequence", PLANES, SHAPE, tensors(STATES, 0, planes=zeros(4, 1, 1, 2, 1, 4)), sample="padded")


def layout(at: int, value: int) -> Edit:
    """An integer of the layout of the hybrid's first state: 16 levels, axis 1, symmetric, scales of 2 bytes."""

    def edit(craft: Craft) -> None:
        numbers = nth(craft, STATES, 0).integers("layout")
        numbers[at] = value
        nth(craft, STATES, 0).set_integers("layout", numbers)

    return edit


states("1 level", "layout that no writer makes", "layout: 1 at 0", layout(0, 1), sample="hybrid")
states("more levels", "tensor 'codes' is", "codes: shape", layout(0, 17), sample="hybrid")
states("the other axis", "tensor 'codes' is", "codes: shape", layout(3, 0), sample="hybrid")
states(
    "offsets missing",
    "states: a scalar layout that no writer makes",
    "bytes of an offset",
    layout(2, 0),
    sample="hybrid",
)
states("scales of 8 bytes", "tensor 'scales' is", "scales: shape", layout(5, 8), sample="hybrid")

# Limits

TOO_MANY = "states of more than 268435456 bytes"


def shaped(number: int, *shape: int) -> Edit:
    """Another shape of the first state of a run."""
    return lambda craft: craft[MODEL].edit_json(
        lambda value: value["layers"][number]["states"][0].update(shape=list(shape))
    )


lie("limits, 2^20 six times", TOO_MANY, "when decoded", shaped(0, *[2**20] * 6))
lie("limits, 2^20 six times in codec 2", TOO_MANY, "when decoded", shaped(0, *[2**20] * 6), sample="hybrid")
lie("limits, states of 264 MiB in one record", TOO_MANY, "when decoded", shaped(3, 2**20, 22), sample="hybrid")


def huge_and_missing(craft: Craft) -> None:
    shaped(3, *[2**20] * 6)(craft)
    removed(STATES, 2)(craft)


lie(
    "limits, huge states that nothing stores",
    "state 'recurrent' of layer 4 is missing at snapshot 0",
    MISSING,
    huge_and_missing,
    sample="hybrid",
)


def all_parts(craft: Craft) -> None:
    """Keys and values of 120 MiB and indexer keys of 24 MiB, each less than what is allowed."""
    craft[MODEL].edit_json(
        lambda value: value["layers"][0].update(heads=5, key_size=2**20, value_size=2**20, index_size=2**20)
    )


lie(
    "limits, rows of 264 MiB with indexer keys",
    "a block of more than 268435456 bytes",
    "when decoded",
    all_parts,
    sample="indexed",
)

# ROWS


def rows(name: str, message: str, reason: str, edit: Edit, sample: str = "indexed") -> None:
    lie(f"rows, {name}", message, reason, edit, sample=sample)


INDEXER = "indexer keys of different rows"
rows(
    "of a dummy layer",
    "a block covers layers that keep no rows",
    "ROWS: layers without rows",
    fields(ROWS, 0, first_layer=3),
    "hybrid",
)
rows(
    "of a layer that has states only",
    "a block covers layers that keep no rows",
    "ROWS: layers without rows",
    fields(ROWS, 0, first_layer=0),
    "hybrid",
)
rows("of a layer and of one without rows", "cannot be stored together", ALIKE, fields(ROWS, 0, layer_count=2), "hybrid")
rows(
    "of full and of cross layers",
    "cannot be stored together",
    ALIKE,
    fields(ROWS, 0, layer_count=4),
    "encoder and decoder",
)
rows("of layers with and without indexer keys", "cannot be stored together", ALIKE, fields(ROWS, 0, layer_count=3))
rows(
    "part 3 without an index size",
    "a block of indexer keys that its layers do not have",
    "ROWS: part",
    fields(ROWS, 3, part=3),
)
rows("part 4", "a block of part 4", "ROWS: part", fields(ROWS, 2, part=4))
rows("part 3 of codec 6", "does not write records of part 3", "ROWS: part", fields(ROWS, 2, codec=6))
rows("indexer keys missing", "layer 0 has keys without values or values without keys", INDEXER, removed(ROWS, 2))
rows(
    "indexer keys missing for a row",
    "layer 0 has keys without values or values without keys",
    INDEXER,
    fields(ROWS, 2, count=5),
)
rows(
    "indexer keys missing in a layer",
    "layer 1 has keys without values or values without keys",
    INDEXER,
    fields(ROWS, 2, layer_count=1),
)
rows("indexer keys stored twice", "stored twice", "stored twice", repeated(ROWS, 7))
rows("indexer keys alone", "layer 3 has keys without values or values without keys", INDEXER, removed(ROWS, 5, 6))
rows("indexer keys as keys", "stored twice", "stored twice", fields(ROWS, 2, part=1))
rows("indexer keys in the order of values", PLANES, SHAPE, tensors(ROWS, 2, planes=zeros(2, 2, 1, 6, 1, 5)))
rows("indexer keys of the width of keys", PLANES, SHAPE, tensors(ROWS, 2, planes=zeros(2, 2, 1, 1, 4, 6)))

# VIEWS: lines of the hybrid's first snapshot: 0 history, 1 layer 2, 2 layer 5, 3 layer 6

Lines = list[list[int]]


def views(name: str, message: str, reason: str, edit: Callable[[Lines], object], sample: str = "hybrid") -> None:
    def change(craft: Craft) -> None:
        flat = craft[VIEWS].integers("spans")
        lines = [flat[at : at + 5] for at in range(0, len(flat), 5)]
        edit(lines)
        craft[VIEWS].set_integers("spans", [value for line in lines for value in line])

    lie(f"views, {name}", message, reason, change, sample=sample)


def cell(line: int, column: int, value: int) -> Callable[[Lines], object]:
    return lambda lines: lines[line].__setitem__(column, value)


def line(at: int, *numbers: int) -> Callable[[Lines], object]:
    return lambda lines: lines.insert(at, list(numbers))


SPANS = "spans: layers"
views("rows of a dummy layer", "views: a snapshot lacks or repeats layer 3", SPANS, line(2, 0, 3, 1, 0, 4))
views(
    "rows of a dummy layer in a group",
    "views: a snapshot lacks or repeats layer 2",
    "spans: rows of a layer that has none",
    cell(1, 2, 2),
)
views(
    "rows of a group over layers without rows",
    "views: a snapshot lacks or repeats layer 2",
    "spans: rows of a layer that has none",
    cell(1, 2, 4),
)
views(
    "rows of the first layer, which has none",
    "views: a snapshot lacks or repeats layer 0",
    SPANS,
    line(1, 0, 0, 1, 0, 4),
)
views(
    "rows of all layers",
    "views: a snapshot lacks or repeats layer 0",
    SPANS,
    lambda lines: [cell(1, 1, 0)(lines), cell(1, 2, 7)(lines)],
)
views("first layer skipped", "views: a snapshot lacks or repeats layer 2", SPANS, lambda lines: lines.pop(1))
views("a layer with rows skipped", "views: a snapshot lacks or repeats layer 5", SPANS, lambda lines: lines.pop(2))
views("last layer skipped", "views: a snapshot lacks layer 6", "does not cover all layers", lambda lines: lines.pop(3))
views("layers in another order", "not in order", SPANS, lambda lines: lines.insert(1, lines.pop(2)))
views(
    "rows in a model without any", "views: a snapshot lacks or repeats layer 0", SPANS, line(1, 0, 0, 1, 0, 4), "pure"
)
views(
    "rows of all layers of a model without any",
    "views: a snapshot lacks or repeats layer 0",
    SPANS,
    line(1, 0, 0, 3, 0, 4),
    "pure",
)
views(
    "cross-attention skipped",
    "views: a snapshot lacks layer 2",
    "does not cover all layers",
    lambda lines: lines.pop(2),
    "encoder and decoder",
)
views(
    "rows that cross-attention does not store",
    "needs rows of layer 2",
    "is not stored",
    cell(2, 4, 6),
    "encoder and decoder",
)

# LABELS: two records of the padded batch, of 4 and 2 rows


def token_ids(number: int, *shape: int, dtype: str = "U16", value: int = 1) -> Edit:
    def edit(craft: Craft) -> None:
        piece = nth(craft, LABELS, number)
        octets = np.full(shape, value, {"U16": "<u2", "I32": "<i4"}[dtype]).tobytes()
        piece.set_tensors(piece.tensors() | {"token_ids": (dtype, list(shape), octets)})

    return edit


def labels(name: str, message: str, reason: str, edit: Edit, sample: str = "padded") -> None:
    lie(f"labels, {name}", message, reason, edit, sample=sample)


IDS = "tensor 'token_ids' is"
labels(
    "of each sequence, then of one",
    "labels: some records have ids for each sequence, some for all",
    "of one and of all",
    token_ids(1, 2),
)
labels(
    "of one, then of each sequence",
    "labels: some records have ids for each sequence, some for all",
    "of one and of all",
    token_ids(0, 4),
)
labels("of two sequences", IDS, "token_ids: shape", token_ids(0, 4, 2))
labels("of each sequence in a batch of 1", IDS, "token_ids: shape", token_ids(0, 6, 1), "pure")
labels("of three sequences in a batch of 1", IDS, "token_ids: shape", token_ids(0, 6, 3), "pure")
labels("of each row in another order", IDS, "token_ids: shape", token_ids(0, 3, 4))
labels("of three dimensions", IDS, "token_ids: shape", token_ids(0, 4, 3, 1))
labels(
    "negative in one sequence", "negative token id", "token_ids: negative", token_ids(0, 4, 3, dtype="I32", value=-1)
)


def offsets_of_each(craft: Craft) -> None:
    piece = nth(craft, LABELS, 0)
    piece.set_tensors(piece.tensors() | {"position_offsets": ("I64", [4, 3], bytes(96))})


labels("positions of each sequence", "tensor 'position_offsets' is", "position_offsets: shape", offsets_of_each)

# KEPT, ATTENTION


def inserted(type_: int, first_layer: int, **tensors: tuple[str, list[int], bytes]) -> Edit:
    def edit(craft: Craft) -> None:
        count = 2 if type_ == KEPT else 5
        craft.insert(Piece(type_, b"", first_layer=first_layer, layer_count=1, count=count)).set_tensors(tensors)

    return edit


KEPT_ROWS = "KEPT: layers without rows, or with indexer keys"
KEPT_BITS = {"kept": ("U8", [1, 1, 1], b"\3")}
lie(
    "kept, in a layer with indexer keys",
    "a map of kept rows with indexer keys",
    KEPT_ROWS,
    inserted(KEPT, 0, **KEPT_BITS),
    sample="indexed",
)
lie(
    "kept, in a layer with states only",
    "a map of kept rows covers layers that keep no rows",
    KEPT_ROWS,
    inserted(KEPT, 0, **KEPT_BITS),
    sample="hybrid",
)
lie(
    "kept, in a dummy layer",
    "a map of kept rows covers layers that keep no rows",
    KEPT_ROWS,
    inserted(KEPT, 3, kept=zeros(1, 0, 1)),
    sample="hybrid",
)
lie(
    "attention, of a dummy layer",
    "attention covers layers that keep no rows",
    "ATTENTION: layers without rows",
    inserted(ATTENTION, 3, received=zeros(4, 1, 1, 5)),
    sample="hybrid",
)
lie(
    "attention, of a layer with states only",
    "layers that keep no rows",
    "ATTENTION: layers without rows",
    inserted(ATTENTION, 0, received=zeros(4, 1, 0, 5)),
)

# HEADER: raw bytes


def without(name: str, sample: str, less: Callable[[Json, int], tuple[int, int]]) -> None:
    """Raw bytes that leave something out: `less` says how much of the trace and of the last snapshot."""

    def edit(craft: Craft) -> None:
        trace, final = less(json.loads(craft[MODEL].raw), craft[VIEWS].count)
        craft[HEADER].edit_json(
            lambda value: value.update(
                raw_bytes_trace=value["raw_bytes_trace"] - trace, raw_bytes_final=value["raw_bytes_final"] - final
            )
        )

    lie(f"header, raw bytes {name}", "other raw bytes", "raw bytes are wrong", edit, sample=sample)


def of_states(model: Json, times: int = 1) -> int:
    """The bytes of all states of one sequence, so many times."""
    sizes = [
        run["count"] * math.prod(state["shape"]) * ITEMS[state["dtype"]]
        for run in model["layers"]
        for state in run.get("states", ())
    ]
    return times * sum(sizes)


without("without states", "hybrid", lambda model, count: (of_states(model, count), of_states(model)))
without("with the states of one snapshot", "pure", lambda model, count: (of_states(model, count - 1), 0))
without(
    "with states of one sequence", "padded", lambda model, count: (of_states(model, 2 * count), of_states(model, 2))
)
without("without indexer keys", "indexed", lambda *_: (2 * 11 * 2 * 5 + 2 * 10 * 6, 2 * 6 * 2 * 5 + 2 * 5 * 6))
without("without indexer keys of a layer", "indexed", lambda *_: (2 * 10 * 6, 2 * 5 * 6))
without("of states in the dtype of the model", "pure", lambda *_: (3 * 3 * 24 * 2, 3 * 24 * 2))
without("without cross-attention", "encoder and decoder", lambda *_: (2 * 2 * 5 * 56, 2 * 5 * 56))
without("of cross-attention to the history", "encoder and decoder", lambda *_: (2 * 4 * 56, 2 * 56))

# Fields, types, index

NO_FIELD = "fields that its type does not have"
lie("record, LABELS with codec", NO_FIELD, "codec and part", lambda craft: craft[LABELS].lies.update(codec=1))
lie(
    "record, reserved byte of STATES",
    "reserved bits",
    "reserved bytes",
    lambda craft: craft[STATES].lies.update(reserved_b=1),
)
lie(
    "record, type 0x0b",
    "0x0b is not known",
    "type 11",
    lambda craft: craft.insert(Piece(0x0B, b"?")),
    UnsupportedFileError,
)
lie(
    "record, STATES as ROWS",
    "a block covers layers that keep no rows",
    "ROWS: layers without rows",
    lambda craft: craft.insert(Piece(ROWS, b"?", 1, PART_NUMBERS["keys"], 0, 1, 0, 1)),
)
for column, title in ((5, "part"), (6, "first layer"), (7, "layers"), (8, "first"), (9, "count")):
    lie(
        f"index, {title} of STATES",
        "",
        "INDEX differs",
        lambda craft, column=column: setattr(  # type: ignore[misc]
            craft, "edit_index", lambda lines: lines[7].__setitem__(column, lines[7][column] + 1)
        ),
    )
