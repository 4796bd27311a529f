"""Strict JSON: bounded, one spelling of a value when written, and every door of the standard parser closed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.container.strict_json import dumps, loads
from formats.errors import CorruptError

LARGEST = 2**63 - 1
MIB = 1 << 20
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers(-LARGEST, LARGEST) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20
)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ({"b": 1, "a": [None, True, 1.5]}, b'{"a":[null,true,1.5],"b":1}'),
        ({"ä": "\u2028\x7f\0"}, '{"ä":"\u2028\x7f\\u0000"}'.encode()),
        ("\U0001f600", '"\U0001f600"'.encode()),
        (-LARGEST, b"-9223372036854775807"),
    ],
    ids=["sorted", "utf-8", "astral", "integer"],
)
def test_canonical_text(value: object, want: bytes) -> None:
    assert dumps(value) == want


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_only_numbers_are_written(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps({"x": number})


@given(VALUES)
def test_values_come_back(value: object) -> None:
    text = dumps(value)
    found = loads(text, "x")
    assert found == value
    assert dumps(found) == text


@given(st.dictionaries(TEXT, SCALARS, min_size=2), st.randoms())
def test_order_of_keys_does_not_matter(value: dict[str, object], random: object) -> None:
    keys = list(value)
    random.shuffle(keys)  # type: ignore[attr-defined]
    assert dumps({key: value[key] for key in keys}) == dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(nested(16), id="16 deep"),
        pytest.param(b'{"a":' * 8 + nested(8) + b"}" * 8, id="16 deep, mixed"),
        pytest.param(b"[" + b"[]," * 1_000 + b"[]]", id="wide, not deep"),
        pytest.param(b'"' + b"[{" * 1_000 + b'"', id="brackets in a string"),
        pytest.param(b'["\\"' + b"[" * 50 + b'\\\\"]', id="escaped quotes"),
        pytest.param(b"9223372036854775807", id="largest integer"),
        pytest.param(b"-9223372036854775807", id="smallest integer"),
        pytest.param(b"1e308", id="large number"),
        pytest.param(b"1e-999", id="underflow"),
        pytest.param(b'"' + b"x" * 65_536 + b'"', id="longest string"),
        pytest.param('"{}"'.format("\U0001f600" * 65_536).encode(), id="longest string, astral"),
        pytest.param(b'{"%s":0}' % (b"x" * 65_536), id="longest key"),
        pytest.param(rb'"\ud83d\ude00"', id="surrogate pair"),
        pytest.param(b" \t\r\n0 \t\r\n", id="spaces around"),
        pytest.param(b"0".ljust(MIB), id="1 MiB"),
    ],
)
def test_limits_are_reached(text: bytes) -> None:
    assert loads(text, "x") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(nested(17), "nested deeper than 16", id="17 deep"),
        pytest.param(b"[" * MIB, "nested deeper than 16", id="a million deep"),
        pytest.param(b'{"a":' * 200_000, "nested deeper than 16", id="200,000 objects deep"),
        pytest.param(b'["\\\\", ' + nested(16) + b"]", "nested deeper than 16", id="depth behind an escape"),
        pytest.param(b'{"a":1,"a":1}', "duplicate key", id="duplicate key"),
        pytest.param(rb'{"a":1,"\u0061":2}', "duplicate key", id="duplicate key, spelled otherwise"),
        pytest.param(b'[{"b":[{"a":1,"a":2}]}]', "duplicate key", id="duplicate key inside"),
        pytest.param(b"9223372036854775808", "integer out of range", id="2^63"),
        pytest.param(b"-9223372036854775808", "integer out of range", id="-2^63"),
        pytest.param(b"[" + b"9" * 5_000 + b"]", "integer out of range", id="5,000 digits"),
        pytest.param(b"9" * (MIB - 1), "integer out of range", id="a million digits"),
        pytest.param(b"1e999", "number out of range", id="1e999"),
        pytest.param(b"-1e999", "number out of range", id="-1e999"),
        pytest.param(b"NaN", "NaN is not JSON", id="NaN"),
        pytest.param(b"[Infinity]", "Infinity is not JSON", id="Infinity"),
        pytest.param(b'{"a":-Infinity}', "-Infinity is not JSON", id="-Infinity"),
        pytest.param(rb'"\ud800"', "lone surrogate", id="lone surrogate"),
        pytest.param(rb'["\ude00\ud83d"]', "lone surrogate", id="surrogates swapped"),
        pytest.param(rb'{"a":{"\ud800":1}}', "lone surrogate", id="lone surrogate in a key"),
        pytest.param(b'"\xed\xa0\x80"', "not UTF-8", id="surrogate in UTF-8"),
        pytest.param(b'"\xc0\x80"', "not UTF-8", id="overlong"),
        pytest.param('"x"'.encode("utf-16"), "not UTF-8", id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf{}", "not JSON", id="byte order mark"),
        pytest.param(b'"' + b"x" * 65_537 + b'"', "a string of 65537", id="string too long"),
        pytest.param(b'{"%s":0}' % (b"x" * 65_537), "a string of 65537", id="key too long"),
        pytest.param(b"0".ljust(MIB + 1), "1048577 bytes of JSON", id="over 1 MiB"),
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b" ", "not JSON", id="blank"),
        pytest.param(b"{} {}", "not JSON", id="two values"),
        pytest.param(b'{"a":1,}', "not JSON", id="trailing comma"),
        pytest.param(b"{'a':1}", "not JSON", id="single quotes"),
        pytest.param(b"[01]", "not JSON", id="leading zero"),
        pytest.param(b"[+1]", "not JSON", id="plus sign"),
        pytest.param(b"[.5]", "not JSON", id="no digit ahead of the point"),
        pytest.param(b"0x10", "not JSON", id="hexadecimal"),
        pytest.param("[\u0661]".encode(), "not JSON", id="Arabic digit"),
        pytest.param(b'"\n"', "not JSON", id="control character"),
        pytest.param(b'"\\x41"', "not JSON", id="unknown escape"),
        pytest.param(b"/**/0", "not JSON", id="comment"),
        pytest.param("\u00a00".encode(), "not JSON", id="no-break space"),
        pytest.param(b"{}\0", "not JSON", id="zero byte"),
    ],
)
def test_refused(text: bytes, message: str) -> None:
    with pytest.raises(CorruptError, match=f"^the text: .*{message}"):
        loads(text, "the text")


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0dE8+-.eaNtrul fs', max_size=60).map(str.encode))
def test_nothing_but_corrupt_error_escapes(text: bytes) -> None:
    try:
        value = loads(text, "x")
    except CorruptError:
        return
    assert loads(dumps(value), "x") == value
