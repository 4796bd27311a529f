"""Files whose checksums are right and whose JSON lies: MODEL and the tier header."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from tests.format_conformance.craft import HEADER, MODEL, Craft
from tests.format_conformance.liars import MIB, liar

Json = Any
RUN = {"count": 1, "kind": "full", "heads": 1, "key_size": 1, "value_size": 1}

# MODEL: by its text, and by its values


def text(name: str, message: str, make: Callable[[bytes], bytes]) -> None:
    def edit(craft: Craft) -> None:
        craft[MODEL].raw = make(craft[MODEL].raw)

    liar(f"json: {name}", message, edit)


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def make(raw: bytes) -> bytes:
        assert raw.count(old) == 1
        return raw.replace(old, new)

    return make


def batch(spelled: bytes) -> Callable[[bytes], bytes]:
    return replaced(b'"batch":1', b'"batch":' + spelled)


def weights(spelled: bytes) -> Callable[[bytes], bytes]:
    return replaced(b'"test"', spelled)


text("duplicate key", "duplicate key", batch(b'1,"batch":1'))
text("duplicate key far inside", "duplicate key", replaced(b'"weights":', b'"weights":"x","weights":'))
text("nested 17 deep", "nested deeper than 16", weights(b"[" * 15 + b"]" * 15))
text("nested 100,000 deep", "nested deeper than 16", lambda _: b"[" * 100_000)
text("integer of 5,000 digits", "integer out of range", batch(b"1" * 5_000))
text("integer 2^63", "integer out of range", batch(b"9223372036854775808"))
text("integer -2^63", "integer out of range", batch(b"-9223372036854775808"))
text("1e999", "number out of range", batch(b"1e999"))
text("float of 100,000 digits", "number out of range", batch(b"1" * 100_000 + b".5"))
text("NaN", "NaN is not JSON", batch(b"NaN"))
text("-Infinity", "-Infinity is not JSON", batch(b"-Infinity"))
text("lone surrogate", "lone surrogate", weights(rb'"\ud800"'))
text("lone surrogate in a key", "lone surrogate", replaced(b'"weights"', rb'"\udfff"'))
text("string of 65,537", "a string of 65537", weights(b'"' + b"x" * 65_537 + b'"'))
text("control character", "not JSON", weights(b'"\n"'))
text("byte order mark", "not JSON", lambda raw: b"\xef\xbb\xbf" + raw)
text("not UTF-8", "not UTF-8", weights(b'"\xff"'))
text("surrogate in UTF-8", "not UTF-8", weights(b'"\xed\xa0\x80"'))
text("UTF-16", "not UTF-8", lambda raw: raw.decode().encode("utf-16"))
text("list", "an object was expected", lambda _: b"[]")
text("null", "an object was expected", lambda _: b"null")
text("empty", "an empty payload", lambda _: b"")
text("two objects", "not JSON", lambda raw: raw * 2)
text("cut short", "not JSON", lambda raw: raw[:-1])
text("comma too many", "not JSON", replaced(b'"batch":1,', b'"batch":1,,'))
text("more than 1 MiB", "a model record of 1048577 bytes", lambda raw: raw.ljust(MIB + 1))
text("2.0 as integer", "batch: an integer from 1", batch(b"2.0"))
text("1e0 as integer", "batch: an integer from 1", batch(b"1e0"))
text("true as integer", "batch: an integer from 1", batch(b"true"))


def json_liar(type_: int, name: str, message: str, edit: Callable[[Json], object]) -> None:
    liar(f"{'model' if type_ == MODEL else 'header'}: {name}", message, lambda craft: craft[type_].edit_json(edit))


def model(name: str, message: str, **fields: Json) -> None:
    json_liar(MODEL, name, message, lambda value: value.update(fields))


def layer(name: str, message: str, **fields: Json) -> None:
    """The last run of layers with other fields; None takes one out."""

    def edit(value: Json) -> None:
        run = value["layers"][-1] | fields
        value["layers"][-1] = {key: item for key, item in run.items() if item is not None}

    json_liar(MODEL, name, message, edit)


for field in ("schema", "dtype", "batch", "layers", "fingerprint"):
    json_liar(MODEL, f"without {field}", f"field '{field}' is missing", operator.methodcaller("pop", field))
model("another schema", "schema tsc.model/1 was expected", schema="tsc.model/2")
model("unknown field", "unknown field 'colour'", colour="red")
model("unknown dtype", "dtype: one of", dtype="int8")
model("dtype not a string", "dtype: one of", dtype=["bfloat16"])
model("batch 0", "batch: an integer from 1", batch=0)
model("batch 2^20 + 1", "batch: an integer from 1", batch=2**20 + 1)
model("no layers", "no layers", layers=[])
model("layers not a list", "a list of at most 4096", layers={})
model("4,097 runs", "a list of at most 4096", layers=[RUN] * 4_097)
model("5,000 layers", "more than 4096 layers", layers=[RUN | {"count": 2_500}] * 2)
model("run of 5,000", "count: an integer from 1 to 4096", layers=[RUN | {"count": 5_000}])
model("fingerprint not an object", "fingerprint: an object", fingerprint=[])
model("fingerprint not strings", "fingerprint 'weights': a string", fingerprint={"weights": 1})
model("lost by nothing", "lost_by: a name was expected", lost_by="")
model("lost by a number", "lost_by: a string was expected", lost_by=2)
model("tier lossless of rows that were lossy before", "its rows are not as captured (scalar)", lost_by="scalar")
layer("run without layers", "count: an integer from 1", count=0)
layer("0 heads", "heads: an integer from 1", heads=0)
layer("2^21 heads", "heads: an integer from 1", heads=2**21)
layer("negative size", "value_size: an integer from 1", value_size=-1)
layer("size as text", "key_size: an integer from 1", key_size="4")
layer("unknown kind", "kind: one of cross, full, none, sliding", kind="linear")
layer("unknown field in a layer", "unknown field 'scale'", scale=1)
layer("layer without heads", "field 'heads' is missing", heads=None)
layer("window on a full layer", "a sliding layer has a window", kind="full")
layer("sliding without window", "a sliding layer has a window", window=None)
layer("window 0", "window: an integer from 1", window=0)
layer("sizes that the rows do not have", "tensor 'planes' is U8", key_size=2, value_size=4)

# HEADER


def missed_by_a_trillionth(craft: Craft) -> None:
    """A tier that says all digits of the file's own ratio, and a bit more: its spelling is part of the length."""
    craft[HEADER].edit_json(lambda value: value.update(tier=f"{0:.12f}x"))
    length = len(craft.build())
    for _ in range(8):
        more = [0]

        def state(value: Json, length: int = length, more: list[int] = more) -> None:
            more[0] = -(-value["raw_bytes_trace"] * 10**12 // length) + 1
            whole, part = divmod(more[0], 10**12)
            value.update(tier=f"{whole}.{part:012d}x")

        craft[HEADER].edit_json(state)
        length = len(craft.build())


def header(name: str, message: str, **fields: Json) -> None:
    json_liar(HEADER, name, message, lambda value: value.update(fields))


json_liar(HEADER, "without tier", "field 'tier' is missing", lambda value: value.pop("tier"))
json_liar(
    HEADER,
    "raw bytes of the trace lie",
    "other raw bytes",
    lambda value: value.update(raw_bytes_trace=value["raw_bytes_trace"] + 1),
)
json_liar(
    HEADER,
    "raw bytes of the last lie",
    "other raw bytes",
    lambda value: value.update(raw_bytes_final=value["raw_bytes_final"] - 1),
)
header("another schema", "schema tsc.header/1 was expected", schema="tsc.model/1")
header("unknown field", "unknown field 'ratio'", ratio=2.0)
header("raw bytes 0", "raw_bytes_final: an integer from 1", raw_bytes_final=0)
header("raw bytes as float", "raw_bytes_trace: an integer from 1", raw_bytes_trace=1.0)
header("tier not a string", "tier: a string", tier=1)
header("tier of a ratio that the file has not", "states tier 60x, and the file is", tier="60x")
header("tier of 20 digits", "states tier 99999999999999999999x, and the file is", tier="9" * 20 + "x")
header("tier lossless of another codec", "its rows are not as captured (vq)", codec="vq")
liar("header: a tier that is missed by a trillionth", "states tier", lambda c: missed_by_a_trillionth(c))
header("nested capture", "capture 'a': a number", capture={"a": {}})
header("list in capture", "capture 'a': a number", capture={"a": [1]})
header("capture not an object", "capture: an object", capture=None)
header("quality not a list", "quality: a list", quality={})
header("quality not objects", "quality: an object", quality=[1])
header("nested quality", "quality 'a': a number", quality=[{}, {"a": []}])
liar("header: more than 1 MiB", "a header record of", lambda c: setattr(c[HEADER], "raw", c[HEADER].raw.ljust(MIB + 1)))
