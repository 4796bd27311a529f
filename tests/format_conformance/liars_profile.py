"""Files whose checksums are right and whose PROFILE record lies, or whose profile does, under its right digest."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import zstandard

from formats.errors import CorruptError, TscError, UnsupportedFileError
from tests.format_conformance import profiles
from tests.format_conformance.craft import HEADER, MODEL, PROFILE, Craft, Piece, Tensor, raw_frame
from tests.format_conformance.liars import RLE_BLOCK, Edit, liar
from tests.format_conformance.liars_codecs import item, of_type, other_dtype, tensors, with_numbers, with_tensors

Json = Any
ONE, TWO = "klt", "klt, two groups"  # samples; ONE has layers 0 and 1 in a group of rank 8

# The PROFILE record


def named(name: str, message: str, edit: Edit, error: type[TscError] = CorruptError, *, opens: bool = False) -> None:
    liar(f"PROFILE: {name}", message, edit, error, sample=ONE, opens=opens)


def octets(name: str, change: Callable[[bytes], bytes]) -> Callable[[dict[str, Tensor]], object]:
    """A tensor of bytes with other ones, of any number."""

    def edit(found: dict[str, Tensor]) -> None:
        data = change(found[name][2])
        found[name] = "U8", [len(data)], data

    return edit


def unnamed(craft: Craft) -> None:
    craft.records.remove(craft[PROFILE])


def elsewhere(craft: Craft) -> None:
    """The digest of a profile that nobody has, and no data."""
    craft[PROFILE].set_tensors({"digest": ("U8", [32], bytes(32))})


NOT_NAMED = "not the one that the file names"
for count in (0, 31, 33, 64):
    named(
        f"digest of {count} bytes",
        "tensor 'digest' is",
        tensors(PROFILE, octets("digest", lambda old, count=count: (old * 2)[:count])),
    )  # type: ignore[misc]
named("digest of another dtype", "tensor 'digest' is", tensors(PROFILE, other_dtype("digest")))
named("data of another dtype", "tensor 'data' is", tensors(PROFILE, other_dtype("data")))
named(
    "data of two dimensions",
    "tensor 'data' is",
    tensors(PROFILE, lambda found: found.update(data=("U8", [1, len(found["data"][2])], found["data"][2]))),
)
named("without digest", "were expected", tensors(PROFILE, lambda found: found.pop("digest")))
named("another tensor", "were expected", tensors(PROFILE, lambda found: found.update(more=("U8", [0], b""))))
named("not a table", "too short", of_type(PROFILE, lambda piece: setattr(piece, "raw", b"{}")))
named("twice", "more than one profile record", lambda craft: craft.insert(copy.deepcopy(craft[PROFILE])))
named(
    "a second one, of another profile",
    "more than one profile record",
    lambda craft: craft.insert(Piece(PROFILE, b"")).set_tensors({"digest": ("U8", [32], bytes(32))}),
)
for field in ("codec", "part", "first_layer", "layer_count", "first", "count"):
    named(
        f"with {field}",
        "fields that its type does not have",
        of_type(PROFILE, lambda piece, field=field: setattr(piece, field, 1)),
    )  # type: ignore[misc]
named("wrong digest", NOT_NAMED, tensors(PROFILE, octets("digest", lambda old: bytes([old[0] ^ 1]) + old[1:])))
named("digest in reverse", NOT_NAMED, tensors(PROFILE, octets("digest", lambda old: old[::-1])))
named(
    "another profile than the named", NOT_NAMED, tensors(PROFILE, octets("data", lambda _: profiles.two_groups().data))
)
named("none, though rows need it", "a file that names none", unnamed, opens=True)
named("on another machine", "is not on this machine", elsewhere, UnsupportedFileError, opens=True)

# The profile itself, under the digest that its bytes have


def reprofiled(craft: Craft, edit: Callable[[Piece], object]) -> None:
    """An edit of the profile as if it were the payload of a record."""
    inner = Piece(0, craft[PROFILE].tensors()["data"][2])
    edit(inner)
    digest = ("U8", [32], hashlib.sha256(inner.raw).digest())
    craft[PROFILE].set_tensors({"digest": digest, "data": ("U8", [len(inner.raw)], inner.raw)})


def profiled(
    name: str, message: str, edit: Callable[[Piece], object], *, sample: str = ONE, opens: bool = False
) -> None:
    """`opens`: of what is read with the rows."""
    liar(f"profile: {name}", message, lambda craft: reprofiled(craft, edit), sample=sample, opens=opens)


def raw(change: Callable[[bytes], bytes]) -> Callable[[Piece], object]:
    return lambda piece: setattr(piece, "raw", change(piece.raw))


def described(edit: Callable[[Json], object]) -> Callable[[Piece], object]:
    """An edit of the description."""

    def both(piece: Piece) -> None:
        found = piece.tensors()
        value = json.loads(found["profile"][2])
        edit(value)
        text = json.dumps(value).encode()
        piece.set_tensors(found | {"profile": ("U8", [len(text)], text)})

    return both


def in_group(number: int = 0, **values: Json) -> Callable[[Piece], object]:
    return described(lambda value: value["groups"][number].update(values))


def packed(name: str, at: int, value: float) -> Callable[[Piece], object]:
    """One number of a tensor of floats."""

    def edit(found: dict[str, Tensor]) -> None:
        dtype, shape, data = found[name]
        code, size = {"F16": ("<e", 2), "F32": ("<f", 4)}[dtype]
        found[name] = dtype, shape, data[: at * size] + struct.pack(code, value) + data[(at + 1) * size :]

    return with_tensors(edit)


def as_zeros(name: str) -> Callable[[Piece], object]:
    return with_tensors(lambda found: found.update({name: (*found[name][:2], bytes(len(found[name][2])))}))


profiled("nothing", "too short", raw(lambda _: b""))
profiled("7 bytes", "too short", raw(lambda old: old[:7]))
profiled("cut short", "was expected", raw(lambda old: old[:-1]))
profiled("cut in its header", "does not fit", raw(lambda old: old[:200]))
profiled("a byte more", "1 bytes after the last tensor", raw(lambda old: old + b"\0"))
profiled("some other safetensors file", "but not a profile", with_tensors(lambda found: found.pop("profile")))
profiled("description of another dtype", "but not a profile", with_tensors(other_dtype("profile")))
profiled("description that is no JSON", "not JSON", with_tensors(octets("profile", lambda old: old[:-1])))
profiled("another schema", "schema tsc.profile/1", described(lambda value: value.update(schema="tsc.profile/2")))
for field in ("schema", "name", "fingerprint", "info", "curve", "groups"):
    profiled(f"without {field}", f"'{field}' is missing", described(lambda value, field=field: value.pop(field)))  # type: ignore[misc]
profiled("another field", "unknown field", described(lambda value: value.update(more=1)))
profiled("name not a string", "a string was expected", described(lambda value: value.update(name=1)))
profiled("number as a fingerprint", "a string was expected", described(lambda v: v.update(fingerprint={"a": 1})))
profiled("list as info", "an object was expected", described(lambda value: value.update(info=[])))
profiled("text in the curve", "a number was expected", described(lambda value: value.update(curve=[{"kl": "low"}])))
profiled("curve of numbers", "an object was expected", described(lambda value: value.update(curve=[1])))
profiled("no groups", "no groups", described(lambda value: value.update(groups=[])))
profiled("257 groups", "at most 256", described(lambda value: value.update(groups=value["groups"] * 257)))
profiled("groups in reverse", "order of layers", described(lambda value: value["groups"].reverse()), sample=TWO)
profiled("groups that overlap", "order of layers", in_group(1, first_layer=1), sample=TWO)
profiled("layers that it does not have", "has no layers 0 to 1", in_group(first_layer=1), opens=True)
profiled("layers between its groups", "has no layers 0 to 2", in_group(1, first_layer=3), sample=TWO, opens=True)
for field, numbers in {
    "first_layer": (-1, 4_097),
    "layer_count": (0, 4_097),
    "heads": (0, 2**20 + 1),
    "key_size": (0, 2**20 + 1),
    "value_size": (0,),
    "rank": (0, -1, 2**14 + 1, 2**63 - 1),
    "metric_exponent": (-101, 101, 0.5),
}.items():
    for number in numbers:
        profiled(f"{field} {number}", "an integer from", in_group(0, **{field: number}))
for step in (0, -1.0, 1e-31, 1e31, 1e300):
    profiled(f"basis step {step}", "basis step out of range", in_group(basis_step=step))
profiled("rank beyond the width", "a basis of 33 x 32", in_group(rank=33, bands=[33]))
profiled("rank of 16,384", "a basis of 16384 x 32", in_group(rank=2**14, bands=[2**14]))
profiled("more coefficients than scales", "tensor '0.scale' is", in_group(rank=9, bands=[9]))
ASCEND = "do not ascend to the rank"
for bands in ([], [5, 2, 8], [2, 2, 8], [2, 5], [5, 8, 8]):
    profiled(f"bands {bands}", ASCEND, in_group(bands=bands))
profiled("band 0", "an integer from", in_group(bands=[0, 8]))
profiled("band beyond the rank", "an integer from", in_group(bands=[8, 9]))
profiled("65 bands", "at most 64", in_group(bands=[1] * 64 + [8]))


def rotary(name: str, message: str, *kinds: Json, layers: Json = (0, 0)) -> None:
    profiled(f"rotary: {name}", message, in_group(rotary={"kinds": kinds, "layers": layers}))


PAIR = {"frequencies": [1.0], "interleaved": False}
rotary("more pairs than a head has", "at most 2", PAIR | {"frequencies": [1, 1, 1]})
rotary("1e300 radians a position", "that no model has", PAIR | {"frequencies": [1e300]})
rotary("text as a frequency", "a number was expected", PAIR | {"frequencies": ["1"]})
rotary("1 as interleaved", "that no model has", PAIR | {"interleaved": 1})
rotary("null as interleaved", "that no model has", PAIR | {"interleaved": None})
rotary("a kind that is not there", "an integer from", PAIR, layers=[0, 1])
rotary("no kinds", "an integer from")
rotary("one layer of two", "not one rotary embedding a layer", PAIR, layers=[0])
rotary("more kinds than layers", "at most 2", PAIR, PAIR, PAIR)

for tensor in ("basis", "mean", "metric_values", "residual_scale", "importance"):
    profiled(f"without {tensor}", "were expected", with_tensors(lambda found, tensor=tensor: found.pop(f"0.{tensor}")))  # type: ignore[misc]
profiled("without tables", "were expected", with_tensors(lambda found: found.pop("tables.activity")))
profiled(
    "prediction from no group",
    "were expected",
    with_tensors(lambda found: found.update({"0.predict": ("F16", [8, 8], bytes(128))})),
)
profiled(
    "prediction from more coefficients",
    "more coefficients than there are",
    with_tensors(lambda found: found.update({"1.predict": ("F16", [6, 11], bytes(132))})),
    sample=TWO,
)
profiled(
    "prediction of fewer coefficients",
    "tensor '1.predict' is",
    with_tensors(lambda found: found.update({"1.predict": ("F16", [5, 10], bytes(100))})),
    sample=TWO,
)
profiled(
    "prediction that is no matrix",
    "tensor '1.predict' is",
    with_tensors(lambda found: found.update({"1.predict": ("F16", [60], bytes(120))})),
    sample=TWO,
)


def classes(name: str, by: int) -> Callable[[Piece], object]:
    """A table with more or fewer rows."""

    def edit(found: dict[str, Tensor]) -> None:
        dtype, (count, symbols), data = found[f"tables.{name}"]
        row = 4 * symbols
        found[f"tables.{name}"] = dtype, [count + by, symbols], (data + data[-row:])[: (count + by) * row]

    return with_tensors(edit)


for table in ("coefficients", "importance", "activity", "residual_activity"):
    for by in (1, -1):
        profiled(f"{table} with {by:+} classes", f"tensor 'tables.{table}' is", classes(table, by))
    profiled(
        f"{table}: frequency 0",
        "cannot be coded",
        with_numbers(f"tables.{table}", lambda row: (item(0, row[0] + row[1])(row), item(1, 0)(row))),
        opens=True,
    )
    profiled(
        f"{table}: a sum too large",
        "do not add up",
        with_numbers(f"tables.{table}", lambda row: item(-1, row[-1] + 1)(row)),
        opens=True,
    )
profiled(
    "a sum that is right modulo 2^32",
    "do not add up",
    with_numbers("tables.importance", lambda row: (item(0, row[0] + 2**31)(row), item(1, row[1] + 2**31)(row))),
    opens=True,
)
for what, value in {"infinity": math.inf, "NaN": math.nan}.items():
    for tensor in ("mean", "first_mean", "metric_keys", "metric_values", "importance"):
        profiled(f"{what} in {tensor}", "not finite", packed(f"0.{tensor}", 5, value), opens=True)
    profiled(f"{what} in predict", "not finite", packed("1.predict", 5, value), sample=TWO, opens=True)
for tensor in ("metric_keys", "metric_values"):
    profiled(f"{tensor} of zeros", "no inverse", as_zeros(f"0.{tensor}"), opens=True)
for tensor, number in (
    ("scale", 3_201),
    ("scale", 32_767),
    ("scale", -32_767),
    ("scale", -32_768),
    ("residual_scale", -3_201),
    ("residual_scale", 32_767),
):
    profiled(f"{tensor} {number}", "a scale out of range", with_numbers(f"0.{tensor}", item(-1, number)), opens=True)


def basis(change: Callable[[bytes], bytes]) -> Callable[[Piece], object]:
    return with_tensors(octets("0.basis", change))


def zeros(count: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(count))


profiled("no basis", "not a zstd frame", basis(lambda _: b""), opens=True)
profiled("basis cut short", "cannot be decoded", basis(lambda old: old[:-1]), opens=True)
profiled("basis in two frames", "cannot be decoded", basis(lambda old: old + zeros(9)), opens=True)
profiled("a longer basis", "declares another size", basis(lambda _: zeros(513)), opens=True)
profiled("a shorter basis", "declares another size", basis(lambda _: zeros(511)), opens=True)
profiled(
    "basis without a size",
    "declares another size",
    basis(lambda _: raw_frame(bytes(512), size=None, window=0x50)),
    opens=True,
)


def enormous_basis(craft: Craft) -> None:
    """256 MiB of zeros for heads that take little else."""
    heads, rank = 2**13, 2**12
    width = 4 * heads
    craft[MODEL].edit_json(lambda model: model["layers"][0].update(heads=heads, key_size=1, value_size=1))
    row, rows = 4 * width, (7, 8, 9, 12)
    craft[HEADER].edit_json(lambda value: value.update(raw_bytes_trace=sum(rows) * row, raw_bytes_final=12 * row))
    blocks = RLE_BLOCK * (2 * rank * width // 131_072 - 1)
    frame = raw_frame(bytes(131_072), size=2 * rank * width, window=0x68, blocks=blocks)
    metric = "F16", [2, heads, 1, 1], struct.pack("<e", 1.0) * 2 * heads

    def edit(piece: Piece) -> None:
        none = {"kinds": [{"frequencies": [], "interleaved": False}], "layers": [0, 0]}
        in_group(heads=heads, key_size=1, value_size=1, rank=rank, bands=[rank], rotary=none)(piece)
        piece.set_tensors(
            piece.tensors()
            | {
                "0.basis": ("U8", [len(frame)], frame),
                "0.mean": ("F32", [width], bytes(4 * width)),
                "0.first_mean": ("F32", [width], bytes(4 * width)),
                "0.scale": ("I16", [rank], bytes(2 * rank)),
                "0.importance": ("F32", [6 + width], bytes(4 * (6 + width))),
                "0.residual_scale": ("I16", [width], bytes(2 * width)),
                "0.metric_keys": metric,
                "0.metric_values": metric,
            }
        )

    reprofiled(craft, edit)


liar("profile: a basis of 256 MiB out of 140 KiB", "a basis of 268435456 bytes", enormous_basis, sample=ONE, opens=True)
