"""JSON as a file format may use it: bounded, without duplicate keys, NaN, huge integers or broken
Unicode.

The standard library's parser accepts all of those; `loads` refuses them.  `fields`, `integer` and
so on check a value that came out of a file: each raises CorruptError and names the field.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from formats.errors import CorruptError, UsageError
from formats.limits import MAX_INTEGER, MAX_JSON_BYTES, MAX_JSON_DEPTH, MAX_STRING

# a string, which may lack its end, or a bracket outside of strings; nothing is tried twice (`++`)
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_DIGITS = 400  # of an integer that only texts of others may have


def dumps(value: Any) -> bytes:
    """The canonical text of `value`: sorted keys, no spaces, UTF-8.  Equal values give equal bytes.

    Raises:
        UsageError: a string holds half of a surrogate pair, which is not valid text and which no
            reader would take.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        near = ascii(text[max(error.start - 20, 0) : error.start + 1])
        raise UsageError(f"half of a surrogate pair is not valid text, and cannot be stored: near {near}") from None


def loads(
    data: bytes,
    what: str,
    *,
    most: int = MAX_JSON_BYTES,
    longest: int = MAX_STRING,
    constants: Callable[[str], Any] | None = None,
    beyond: Callable[[str], Any] | None = None,
) -> Any:
    """Parse `data` or raise CorruptError; `what` names the text in the message.

    Args:
        most: bytes that are allowed.
        longest: characters of a string that are allowed.
        constants: gives the value of NaN, Infinity and -Infinity, for texts that are no part of a
            .tsc file; without it they are refused.
        beyond: likewise gives the value of an integer of more than 63 bits; it gets at most 400
            digits.
    """
    if len(data) > most:
        raise CorruptError(f"{what}: {len(data)} bytes of JSON, at most {most} are allowed")
    if data.startswith(codecs.BOM_UTF8):
        raise CorruptError(f"{what}: begins with a byte order mark, which is not JSON")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptError(f"{what}: not UTF-8 (byte {error.start})") from error
    _check_depth(text, what)

    def parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise CorruptError(f"{what}: duplicate key in a JSON object")
        return result

    def parse_integer(digits: str) -> Any:
        # bounded before int(): conversion of a long string takes quadratic time
        if len(digits) > 20 or not -MAX_INTEGER <= int(digits) <= MAX_INTEGER:
            if beyond is not None and len(digits) <= _DIGITS:
                return beyond(digits)
            raise CorruptError(f"{what}: integer out of range")
        return int(digits)

    def parse_number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise CorruptError(f"{what}: number out of range")
        return value

    def refuse_constant(name: str) -> None:
        raise CorruptError(f"{what}: {name} is not JSON")

    try:
        value = json.loads(
            text,
            object_pairs_hook=parse_object,
            parse_int=parse_integer,
            parse_float=parse_number,
            parse_constant=constants or refuse_constant,
        )
    except json.JSONDecodeError as error:
        fault = f"{error.msg}, line {error.lineno}, column {error.colno}" if text.strip() else "it is empty"
        raise CorruptError(f"{what}: not JSON ({fault})") from error
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what}: not JSON") from error
    # no other text has a longer string, or half of a surrogate pair
    if len(text) > longest or "\\u" in text:
        _check_strings(value, what, longest)
    return value


def _check_depth(text: str, what: str) -> None:
    """Bound the nesting before the recursive parser sees the text."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        first = match[0][0]
        if first in "[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise CorruptError(f"{what}: JSON is nested deeper than {MAX_JSON_DEPTH}")
        elif first in "]}":
            depth -= 1


def _check_strings(value: Any, what: str, longest: int) -> None:
    if isinstance(value, str):
        if len(value) > longest:
            raise CorruptError(f"{what}: a string of {len(value)} characters, at most {longest} are allowed")
        if _SURROGATE.search(value):
            raise CorruptError(f"{what}: lone surrogate in a string")
    elif isinstance(value, list):
        for item in value:
            _check_strings(item, what, longest)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_strings(key, what, longest)
            _check_strings(item, what, longest)


def writable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same object with null for the numbers that JSON does not have: NaN and infinities, at any
    depth.
    """
    return {key: _writable(value) for key, value in facts.items()}


def _writable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return writable(value)
    if isinstance(value, list):
        return [_writable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fields(value: Any, where: str, required: Collection[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """`value` as an object that has all required keys and none that is unknown."""
    if not isinstance(value, dict):
        raise CorruptError(f"{where}: an object was expected")
    if missing := sorted(set(required) - value.keys()):
        raise CorruptError(f"{where}: field '{missing[0]}' is missing")
    if unknown := sorted(value.keys() - set(required) - set(optional)):
        raise CorruptError(f"{where}: unknown field {unknown[0]!r}")
    return value


def integer(value: Any, where: str, low: int, high: int) -> int:
    """`value` as an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CorruptError(f"{where}: an integer from {low} to {high} was expected")
    return value


def number(value: Any, where: str) -> float:
    """`value` as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CorruptError(f"{where}: a number was expected")
    return float(value)


def string(value: Any, where: str) -> str:
    """`value` as a string."""
    if not isinstance(value, str):
        raise CorruptError(f"{where}: a string was expected")
    return value


def one_of(value: Any, where: str, choices: Collection[str]) -> str:
    """`value` as one of some words."""
    if not isinstance(value, str) or value not in choices:
        raise CorruptError(f"{where}: one of {', '.join(sorted(choices))} was expected")
    return value


def items(value: Any, where: str, most: int) -> list[Any]:
    """`value` as a list of at most `most` entries."""
    if not isinstance(value, list) or len(value) > most:
        raise CorruptError(f"{where}: a list of at most {most} entries was expected")
    return value
