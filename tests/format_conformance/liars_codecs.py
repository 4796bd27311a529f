"""Files whose checksums are right and whose rows lie: codecs 2 to 5, rows that heads kept, attention, ratios."""

from __future__ import annotations

import copy
import math
import struct
from collections.abc import Callable
from typing import Any

from formats.codecs import codec_by_name
from formats.errors import CorruptError, TscError, UnsupportedFileError
from tests.format_conformance import samples
from tests.format_conformance.craft import ATTENTION, HEADER, KEPT, LABELS, MODEL, ROWS, VIEWS, Craft, Piece, Tensor
from tests.format_conformance.liars import UNKNOWN, Edit, liar
from tests.format_conformance.second_reader import reader as second_reader

Json = Any
CODECS = {"scalar": "scalar, 5 levels", "vq": "vq", "pq": "pq", "delta": "delta, chains"}  # codec: sample


def with_tensors(edit: Callable[[dict[str, Tensor]], object]) -> Callable[[Piece], object]:
    def both(piece: Piece) -> None:
        found = piece.tensors()
        edit(found)
        piece.set_tensors(found)

    return both


def with_numbers(name: str, edit: Callable[[list[int]], object]) -> Callable[[Piece], object]:
    """An edit of an integer tensor that keeps its shape."""

    def both(piece: Piece) -> None:
        found = piece.tensors()
        values = piece.integers(name)
        edit(values)
        if found[name][0] == "U8":
            piece.set_tensors(found | {name: (*found[name][:2], bytes(values))})
        else:
            piece.set_integers(name, values)

    return both


def of_type(type_: int, edit: Callable[[Piece], object], number: int = 0) -> Edit:
    """An edit of the `number`-th record of a type."""
    return lambda craft: edit([piece for piece in craft.records if piece.type == type_][number])


def tensors(type_: int, edit: Callable[[dict[str, Tensor]], object]) -> Edit:
    return of_type(type_, with_tensors(edit))


def integers(type_: int, name: str, edit: Callable[[list[int]], object], number: int = 0) -> Edit:
    return of_type(type_, with_numbers(name, edit), number)


def fields(type_: int, number: int = 0, **values: int) -> Edit:
    return of_type(type_, lambda piece: [setattr(piece, name, value) for name, value in values.items()], number)


def other_shape(name: str, axis: int, by: int) -> Callable[[dict[str, Tensor]], object]:
    """A tensor longer or shorter along one axis, with as many octets as that takes."""

    def edit(found: dict[str, Tensor]) -> None:
        dtype, shape, octets = found[name]
        shape = list(shape)
        shape[axis] += by
        length = math.prod(shape) * {"U8": 1, "I32": 4, "I64": 8}[dtype]
        found[name] = dtype, shape, octets.ljust(length, b"\0")[:length]

    return edit


def other_dtype(name: str) -> Callable[[dict[str, Tensor]], object]:
    """The same octets as signed bytes, or as single ones where they were integers."""

    def edit(found: dict[str, Tensor]) -> None:
        dtype, shape, octets = found[name]
        found[name] = ("I8", shape, octets) if dtype == "U8" else ("U8", [len(octets)], octets)

    return edit


def item(at: int, value: int) -> Callable[[list[int]], object]:
    return lambda values: values.__setitem__(at, value)


# HEADER: ratios, codec, parameters; raw bytes of files whose rows were evicted

ANOTHER_RATIO, RAW_BYTES = "another ratio than the file has", "other raw bytes"


def stated(name: str, message: str, edit: Callable[[Json], object], sample: str = "valid") -> None:
    """HEADER with ratios that stay as the edit leaves them."""

    def both(craft: Craft) -> None:
        craft.ratios = False
        craft[HEADER].edit_json(edit)

    liar(f"header: {name}", message, both, sample=sample)


def times(name: str, factor: float) -> Callable[[Json], object]:
    return lambda value: value.update({name: value[name] * factor})


def lengthened(craft: Craft) -> None:
    craft.ratios = False
    craft.insert(Piece(0x90, bytes(range(256))))


stated("ratio of the trace 1% too large", ANOTHER_RATIO, times("ratio_trace", 1.01))
stated("ratio of the trace 1% too small", ANOTHER_RATIO, times("ratio_trace", 0.99))
stated("ratio of the last 1% too large", ANOTHER_RATIO, times("ratio_final", 1.01))
stated("ratio of the last 1% too small", ANOTHER_RATIO, times("ratio_final", 0.99))
stated("negative ratio", ANOTHER_RATIO, times("ratio_trace", -1.0))
stated("ratio 0", ANOTHER_RATIO, lambda value: value.update(ratio_final=0))
stated("ratio 1e308", ANOTHER_RATIO, lambda value: value.update(ratio_trace=1e308))
stated("ratio 2^63 - 1", ANOTHER_RATIO, lambda value: value.update(ratio_trace=2**63 - 1))
stated(
    "ratios the other way round",
    ANOTHER_RATIO,
    lambda value: value.update(ratio_trace=value["ratio_final"], ratio_final=value["ratio_trace"]),
)
liar("header: ratios of a shorter file", ANOTHER_RATIO, lengthened)
for name in ("ratio_final", "ratio_trace", "codec", "parameters"):
    stated(f"without {name}", f"field '{name}' is missing", lambda value, name=name: value.pop(name))  # type: ignore[misc]
for what, wrong in {"true": True, "text": "0.9", "null": None, "a list": [0.9], "an object": {}}.items():
    stated(f"{what} as ratio", "ratio_trace: a number", lambda value, wrong=wrong: value.update(ratio_trace=wrong))  # type: ignore[misc]
stated("codec not a string", "codec: a string", lambda value: value.update(codec=2))
stated("codec null", "codec: a string", lambda value: value.update(codec=None))
stated("parameters not an object", "parameters: an object", lambda value: value.update(parameters=[]))
stated("nested parameters", "parameters 'a': a number", lambda value: value.update(parameters={"a": {}}))
stated("list in parameters", "parameters 'a': a number", lambda value: value.update(parameters={"a": [1]}))


def raw_bytes(name: str, edit: Callable[[Json], object]) -> None:
    for sample in ("h2o", "streaming"):
        liar(f"header: {name}, {sample}", RAW_BYTES, lambda craft: craft[HEADER].edit_json(edit), sample=sample)


raw_bytes("raw bytes of the trace lie", lambda value: value.update(raw_bytes_trace=value["raw_bytes_trace"] - 1))
raw_bytes("raw bytes of the last lie", lambda value: value.update(raw_bytes_final=value["raw_bytes_final"] + 1))
raw_bytes("raw bytes of the trace alone", lambda value: value.update(raw_bytes_final=value["raw_bytes_trace"]))


def named_and_whole(craft: Craft) -> None:
    """The raw bytes of the last snapshot as its rows are now, those of the trace as they were before eviction."""
    named = second_reader.read(samples.sample("streaming")).raw_bytes(3)
    craft[HEADER].edit_json(lambda value: value.update(raw_bytes_final=named))


liar("header: raw bytes of two kinds", RAW_BYTES, named_and_whole, sample="streaming")


def short_history(craft: Craft) -> None:
    """Each history has one token, so that there cannot have been more rows before eviction than there are."""
    flat = craft[VIEWS].integers("spans")
    for at in range(0, len(flat), 5):
        flat[at + 4] = 1 if flat[at + 1] == -1 else flat[at + 4]
    craft[VIEWS].set_integers("spans", flat)
    row = second_reader.read(samples.sample("h2o")).geometry.row_bytes[-1]  # all layers
    craft[HEADER].edit_json(lambda value: value.update(raw_bytes_trace=4 * row, raw_bytes_final=row))


liar("header: raw bytes of fewer rows than are named", RAW_BYTES, short_history, sample="h2o")

# KEPT: record 0 of layers 0 and 1 (two heads each), record 1 of layer 2 (one head); 4 of rows 0 to 6 each


def kept(name: str, message: str, edit: Edit) -> None:
    liar(f"kept: {name}", message, edit, sample="h2o")


def again(**values: int) -> Edit:
    """A second map for layer 2, of one row from `first` on."""

    def edit(craft: Craft) -> None:
        piece = craft.insert(Piece(KEPT, b"", first_layer=2, layer_count=1, count=1))
        piece.set_tensors({"kept": ("U8", [1, 1, 1], b"\1")})
        for name, value in values.items():
            setattr(piece, name, value)

    return edit


def fewer(values: list[int], at: int) -> None:
    """A head with its first set bit cleared."""
    values[at] &= values[at] - 1


def fewer_slots(values: list[int]) -> None:
    """One slot less than rows are stored."""
    for at in range(len(values)):
        fewer(values, at)


SAME_NUMBER, EVICTED = "the same number of rows", "that were evicted are stored or named"
kept("one head less", "tensor 'kept' is U8 [2, 1, 1]", tensors(KEPT, other_shape("kept", 1, -1)))
kept("one layer more", "tensor 'kept' is U8 [3, 2, 1]", tensors(KEPT, other_shape("kept", 0, 1)))
kept("one byte more", "tensor 'kept' is U8 [2, 2, 2]", tensors(KEPT, other_shape("kept", 2, 1)))
kept(
    "two dimensions",
    "tensor 'kept' is U8 [4, 1]",
    tensors(KEPT, lambda found: found.update(kept=("U8", [4, 1], found["kept"][2]))),
)
kept("another dtype", "tensor 'kept' is I8", tensors(KEPT, other_dtype("kept")))
kept("another name", "were expected", tensors(KEPT, lambda found: found.update(keep=found.pop("kept"))))
kept("another tensor", "were expected", tensors(KEPT, lambda found: found.update(more=("U8", [0], b""))))
kept("not a table", "too short", lambda craft: setattr(craft[KEPT], "raw", b"{}"))
kept("a head with a row more", SAME_NUMBER, integers(KEPT, "kept", lambda values: item(0, 0x7F)(values)))
kept("a layer with a row less", SAME_NUMBER, integers(KEPT, "kept", lambda v: [fewer(v, at) for at in (2, 3)]))
kept("no rows", SAME_NUMBER, integers(KEPT, "kept", lambda values: [item(at, 0)(values) for at in range(4)]))
kept("no rows of a single head", SAME_NUMBER, integers(KEPT, "kept", item(0, 0), 1))
kept("a bit behind the last row", "rows beyond the span", integers(KEPT, "kept", lambda v: item(3, v[3] | 0x80)(v)))
kept("fewer slots than rows stored", EVICTED, integers(KEPT, "kept", fewer_slots))
kept("fewer slots in one layer", EVICTED, integers(KEPT, "kept", fewer_slots, 1))
kept("more rows evicted", EVICTED, fields(KEPT, 1, count=8))
kept("twice", "two maps say", lambda craft: craft.insert(copy.deepcopy(craft[KEPT])))
kept("spans that overlap", "two maps say", again(first=6))
kept("span inside another", "two maps say", again(first=2))
kept("layers not alike", "layers that cannot be stored together", fields(KEPT, 0, layer_count=3))
kept("no layers", "layers that cannot be stored together", fields(KEPT, 0, layer_count=0))
kept("layers beyond the model", "layers that cannot be stored together", fields(KEPT, 1, first_layer=4))
kept("2^32 - 1 layers", "layers that cannot be stored together", fields(KEPT, 1, layer_count=2**32 - 1))
kept("without labels", "kept rows without labels", again(first=12))
kept("first row 2^62", "kept rows without labels", again(first=2**62))
kept("2^40 rows", "kept rows without labels", again(first=7, count=2**40))
kept("0 rows", "kept rows without labels", again(first=7, count=0))
kept("with codec", "fields that its type does not have", fields(KEPT, codec=1))
kept("with part", "fields that its type does not have", fields(KEPT, part=1))


def evicted_row_named(craft: Craft) -> None:
    """The first snapshot names rows 1 to 4 of layers 0 to 2, whose slots are rows 0 to 3."""
    flat = craft[VIEWS].integers("spans")
    at = next(at for at in range(0, len(flat), 5) if flat[at + 1] == 0)
    assert flat[at + 2 : at + 5] == [3, 0, 4]
    flat[at + 3] = 1
    craft[VIEWS].set_integers("spans", flat)


def evicted_row_stored(craft: Craft) -> None:
    """Row 11 of layer 2 is evicted, and the last snapshot does not name it, but the file stores it."""
    flat = craft[VIEWS].integers("spans")
    at = next(at for at in range(0, len(flat), 5) if flat[at : at + 2] == [3, 0] and flat[at + 3] == 7)
    assert flat[at + 2 : at + 5] == [3, 7, 5]
    flat[at + 4] = 4
    craft[VIEWS].set_integers("spans", flat)
    again(first=10, count=2)(craft)


kept("a row of a step is evicted", EVICTED, again(first=10, count=2))
kept("a row is evicted and stored", EVICTED, evicted_row_stored)
kept("a view names what was evicted", "needs rows of layer 0", evicted_row_named)

# ATTENTION: record 0 of layers 1 and 2 (two heads each), record 1 of layer 3; 7 rows each


def attention(name: str, message: str, edit: Edit) -> None:
    liar(f"attention: {name}", message, edit, sample="attention")


attention("one head less", "tensor 'received' is U8 [4, 2, 1, 7]", tensors(ATTENTION, other_shape("received", 2, -1)))
attention("three bytes", "tensor 'received' is U8 [3, 2, 2, 7]", tensors(ATTENTION, other_shape("received", 0, -1)))
attention("eight bytes", "tensor 'received' is U8 [8, 2, 2, 7]", tensors(ATTENTION, other_shape("received", 0, 4)))
attention("one row more", "tensor 'received' is U8 [4, 2, 2, 8]", tensors(ATTENTION, other_shape("received", 3, 1)))
attention(
    "float32 itself",
    "tensor 'received' is F32",
    tensors(ATTENTION, lambda t: t.update(received=("F32", [2, 2, 7], t["received"][2]))),
)
attention("another dtype", "tensor 'received' is I8", tensors(ATTENTION, other_dtype("received")))
attention("another name", "were expected", tensors(ATTENTION, lambda t: t.update(given=t.pop("received"))))
attention("another tensor", "were expected", tensors(ATTENTION, lambda t: t.update(more=("U8", [0], b""))))
attention("not a table", "too short", lambda craft: setattr(craft[ATTENTION], "raw", b"{}"))
attention("another count", "tensor 'received' is U8 [4, 2, 2, 7]", fields(ATTENTION, count=6))
attention("more rows than there are", "rows without labels", fields(ATTENTION, count=13))
attention("2^63 - 1 rows", "rows without labels", fields(ATTENTION, count=2**63 - 1))
attention("layers not alike", "layers that cannot be stored together", fields(ATTENTION, layer_count=3))
attention("no layers", "layers that cannot be stored together", fields(ATTENTION, layer_count=0))
attention("layers beyond the model", "layers that cannot be stored together", fields(ATTENTION, 1, layer_count=2))
attention("with first", "fields that its type does not have", fields(ATTENTION, first=1))
attention("with codec", "fields that its type does not have", fields(ATTENTION, codec=1))
attention("with part", "fields that its type does not have", fields(ATTENTION, part=2))

# Tensors of the codecs, in the first record that has them: keys of layers 0 and 1


def number_of(craft: Craft, codec: str) -> int:
    wanted = codec_by_name(codec).id
    return [piece.codec for piece in craft.records if piece.type == ROWS].index(wanted)


def coded(
    codec: str,
    name: str,
    message: str,
    edit: Callable[[Piece], object],
    error: type[TscError] = CorruptError,
    *,
    sample: str = "",
    accepted: str = "",
) -> None:
    def of_record(craft: Craft) -> None:
        edit(craft.rows(number_of(craft, codec)))

    liar(f"{codec}: {name}", message, of_record, error, sample=sample or CODECS[codec], accepted=accepted)


ASKED_FIRST = {"layout", "exact_blocks", "exact_rows"}  # what says which tensors there are
NAMES = {
    "scalar": ("layout", "codes", "scales", "offsets"),
    "vq": ("layout", "codes", "codebooks", "means", "scales", "exact_blocks", "exact"),
    "delta": ("layout", "bases", "codes", "scales", "exact_rows", "exact"),
}
NAMES["pq"] = NAMES["vq"]
for codec, names in NAMES.items():
    for name in names:
        bitmap = name.startswith("exact_")
        coded(
            codec,
            f"without {name}",
            f"no tensor '{name}'" if name in ASKED_FIRST else "were expected",
            with_tensors(lambda found, name=name: found.pop(name)),
        )  # type: ignore[misc]
        coded(codec, f"{name} of another dtype", f"tensor '{name}' is", with_tensors(other_dtype(name)))
        for axis in range({"layout": 1, "bases": 1}.get(name, 1 if bitmap else 2)):
            message = "does not hold" if bitmap else f"tensor '{name}' is"
            coded(codec, f"{name} longer along axis {axis}", message, with_tensors(other_shape(name, axis, 1)))
        coded(codec, f"{name} shorter along its last axis", message, with_tensors(other_shape(name, -1, -1)))
    coded(codec, "another tensor", "were expected", with_tensors(lambda found: found.update(more=("U8", [0], b""))))
    coded(
        codec,
        "layout twice as wide",
        "tensor 'layout' is I64",
        with_tensors(lambda found: found.update(layout=("I64", found["layout"][1], found["layout"][2] * 2))),
    )
    coded(codec, "not a table", "too short", lambda piece: setattr(piece, "raw", b"{}"))
    unknown = f"codec {UNKNOWN} is not known"
    coded(codec, "unknown codec", unknown, lambda piece: setattr(piece, "codec", UNKNOWN), UnsupportedFileError)
    coded(codec, "as klt", "does not write records of part", lambda piece: setattr(piece, "codec", 6))
    coded(
        codec,
        "codec 65,535",
        "codec 65535 is not known",
        lambda piece: setattr(piece, "codec", 65_535),
        UnsupportedFileError,
    )

coded("scalar", "as vq", "tensor 'layout' is", lambda piece: setattr(piece, "codec", 3))
coded("delta", "as lossless", "were expected", lambda piece: setattr(piece, "codec", 1))
coded("vq", "as delta", "tensor 'layout' is", lambda piece: setattr(piece, "codec", 5))
coded(
    "scalar",
    "offsets of a symmetric grid",
    "were expected",
    with_numbers("layout", lambda values: (item(2, 1)(values), item(6, 0)(values))),
)
coded("vq", "exact blocks without a kind", "were expected", with_numbers("layout", item(5, 0)))
coded(
    "vq",
    "kind without exact blocks",
    "no tensor 'exact_blocks'",
    with_numbers("layout", item(5, 2)),
    sample="vq without fallback",
)


def joint(craft: Craft) -> None:
    """One record for keys and values."""
    values = craft.rows(1)
    craft.records = [piece for piece in craft.records if piece is not values]
    craft.rows(0).part = 0


for codec, sample in CODECS.items():
    if codec != "delta":  # its first records are lossless
        liar(f"{codec}: part 0", "does not write records of part 0", joint, sample=sample)

# Integers of the layouts: position, then what no writer puts there

NO_LAYOUT = "layout that no writer makes"
BAD: dict[str, dict[tuple[int, str], tuple[int, ...]]] = {
    "scalar": {
        (0, "levels"): (-1, 0, 1, 65_537, 2**31 - 1),
        (1, "group"): (-1, 2**20 + 1),
        (2, "symmetric"): (-1, 1, 2),
        (3, "axis"): (-1, 2),
        (4, "rotated"): (-1, 2),
        (5, "bytes of a scale"): (-2, 0, 1, 3, 16),
        (6, "bytes of an offset"): (-2, 0, 1, 3, 16),
    },
    "vq": {
        (0, "block"): (-2, 0, 257),
        (1, "sub-vectors"): (-1, 0, 3),
        (2, "centroids"): (-1, 0, 1, 257),
        (3, "codebooks"): (-1, 0, 3),
        (4, "normalization"): (-1, 2),
        (5, "kind"): (-1, 5),
    },
    "pq": {
        (0, "block"): (0, 3, 257),
        (1, "sub-vectors"): (-2, 0, 3, 8),
        (2, "centroids"): (1, 257),
        (3, "codebooks"): (0, 3),
        (4, "normalization"): (-1, 2),
        (5, "kind"): (-1, 5),
    },
    "delta": {
        (0, "levels"): (-1, 0, 1, 257),
        (1, "group"): (-1, 2**20 + 1),
        (2, "bytes of a scale"): (-2, 0, 1, 3, 16),
    },
}
for codec, places in BAD.items():
    for (at, title), numbers in places.items():
        for number in numbers:
            coded(codec, f"{title} {number}", NO_LAYOUT, with_numbers("layout", item(at, number)))
coded("scalar", "symmetric with an offset", NO_LAYOUT, with_numbers("layout", item(6, 2)), sample="scalar, 3 levels")
coded("scalar", "2 levels for 5", "tensor 'codes' is", with_numbers("layout", item(0, 2)))
coded("scalar", "257 levels for 5", "tensor 'codes' is", with_numbers("layout", item(0, 257)))
coded("scalar", "smaller groups", "tensor 'scales' is", with_numbers("layout", item(1, 2)))
coded("scalar", "the other axis", "tensor 'codes' is", with_numbers("layout", item(3, 0)))
coded("scalar", "wider scales", "tensor 'scales' is", with_numbers("layout", item(5, 4)))
coded("scalar", "wider offsets", "tensor 'offsets' is", with_numbers("layout", item(6, 8)))
coded("vq", "another block", "tensor 'codes' is", with_numbers("layout", item(0, 4)), sample="vq without fallback")
coded("vq", "more centroids", "tensor 'codebooks' is", with_numbers("layout", item(2, 9)))
coded("vq", "one codebook for two", "tensor 'codebooks' is", with_numbers("layout", item(3, 1)))
coded("vq", "means of channels", "tensor 'means' is", with_numbers("layout", item(4, 1)))
coded("vq", "wider exact blocks", "tensor 'exact' is", with_numbers("layout", item(5, 3)))
coded("delta", "4 levels for 16", "tensor 'codes' is", with_numbers("layout", item(0, 4)))
coded("delta", "smaller groups", "tensor 'scales' is", with_numbers("layout", item(1, 2)))
coded("delta", "wider scales", "tensor 'scales' is", with_numbers("layout", item(2, 8)))
coded("pq", "as vq", NO_LAYOUT, lambda piece: setattr(piece, "codec", 3))

# What the integers of the other tensors say

for codec in ("vq", "pq"):
    coded(codec, "a centroid that is not there", "names a centroid", with_numbers("codes", item(-1, 8)))
    coded(codec, "centroid 255 of 8", "names a centroid", with_numbers("codes", item(0, 255)))
    coded(
        codec,
        "a block marked too little",
        "tensor 'exact' is",
        with_numbers("exact_blocks", lambda bits: item(0, bits[0] & bits[0] - 1)(bits)),
    )
    coded(
        codec,
        "all blocks marked",
        "tensor 'exact' is",
        with_numbers("exact_blocks", lambda bits: [item(at, 0xFF)(bits) for at in range(len(bits))]),
    )


def last_record(name: str, at: int, mask: int) -> Edit:
    """A bit set in a bitmap of the values of layer 3, whose rows do not fill its bytes."""
    return of_type(ROWS, with_numbers(name, lambda bits: item(at, bits[at] | mask)(bits)), -1)


liar("vq: a bit behind the last block", "does not hold 9 bits", last_record("exact_blocks", 1, 0x02), sample="vq")
liar("pq: the last bit of the bitmap", "does not hold 18 bits", last_record("exact_blocks", 2, 0x80), sample="pq")
liar(
    "delta: a bit behind the last row",
    "does not hold 5 bits",
    last_record("exact_rows", 0, 0x20),
    sample="delta, chains",
)
coded(
    "delta",
    "a row marked too much",
    "tensor 'exact' is",
    with_numbers("exact_rows", lambda bits: item(0, bits[0] ^ 1)(bits)),
)

NOT_BEFORE = "is not before it"  # bases of rows 7 to 11
for what, base in {"itself": 7, "the next row": 8, "a row behind": 11, "-2": -2, "2^63 - 1": 2**63 - 1}.items():
    coded("delta", f"row 7 predicted from {what}", NOT_BEFORE, with_numbers("bases", item(0, base)))
coded("delta", "row 11 predicted from itself", NOT_BEFORE, with_numbers("bases", item(4, 11)))
coded(
    "delta",
    "two rows predicted from each other",
    NOT_BEFORE,
    with_numbers("bases", lambda bases: (item(1, 9)(bases), item(2, 8)(bases))),
)
coded("delta", "base -2^63", NOT_BEFORE, with_numbers("bases", item(2, -(2**63))))

NOT_HELD = "predicted from rows that the file does not hold"


def sliding_base(row: int) -> Edit:
    """A base of the keys of layer 3, which stores rows 3 to 11."""
    return of_type(ROWS, with_numbers("bases", item(0, row)), -2)


liar("delta: a base that was never stored", NOT_HELD, sliding_base(0), sample="delta, chains", opens=True)
liar("delta: a base one row before the stored", NOT_HELD, sliding_base(2), sample="delta, chains", opens=True)
liar(
    "delta: a base that was evicted",
    NOT_HELD,
    of_type(ROWS, with_numbers("bases", item(0, 5)), 2),
    sample="h2o",
    opens=True,
)
liar("delta: 65 records followed", "a chain of more than 64", lambda _: samples.chained(66), opens=True)

# Rows that would take more than 256 MiB


def enormous_codes(piece: Piece, heads: int, blocks: int) -> None:
    """Of 12 rows: each byte of the codes stands for 256 values."""
    piece.set_tensors(
        {
            "layout": ("I32", [6], struct.pack("<6i", 256, 1, 256, 1, 0, 0)),
            "codes": ("U8", [1, 1, heads, 12, blocks, 1], bytes(heads * 12 * blocks)),
            "codebooks": ("U8", [2, 1, 1, 256, 256], bytes(2 * 256 * 256)),
            "means": ("U8", [2, 1, 1, heads, 1, 1], bytes(2 * heads)),
            "scales": ("U8", [2, 1, 1, heads, 1, 1], bytes(2 * heads)),
        }
    )


def enormous(craft: Craft) -> None:
    """Keys of 384 MiB, of which each byte of the codes stands for 256."""
    craft[MODEL].edit_json(lambda model: model["layers"][0].update(heads=16, key_size=2**20, value_size=1))
    row = 2 * 16 * (2**20 + 1)
    craft[HEADER].edit_json(lambda value: value.update(raw_bytes_trace=36 * row, raw_bytes_final=12 * row))
    for part, blocks in ((0, 4_096), (1, 1)):
        enormous_codes(craft.rows(part), 16, blocks)


liar("rows: 384 MiB out of 800 KiB", "a block of more than 268435456 bytes", enormous, sample="one layer, vq")


def long_heads(craft: Craft) -> None:
    craft[MODEL].edit_json(lambda model: model["layers"][0].update(heads=2**20, key_size=2**20))


for codec, sample in CODECS.items():
    liar(f"rows: heads of 2^40 values, {codec}", "a block of more than 268435456 bytes", long_heads, sample=sample)
liar(
    "rows: no labels of compressed rows",
    "outside the 0 rows",
    lambda craft: craft.records.remove(craft[LABELS]),
    sample="vq",
)
