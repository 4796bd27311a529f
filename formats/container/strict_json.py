"""JSON as a file format may use it: bounded, without duplicate keys, NaN, huge integers or broken Unicode.

The standard library's parser accepts all of those; every hook below closes one of its doors.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Mapping
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
        UsageError: a string holds half of a surrogate pair, which is not valid text and which no reader would take.
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
        constants: gives the value of NaN, Infinity and -Infinity, for texts that are no part of a .tsc file; without it
            they are refused.
        beyond: likewise gives the value of an integer of more than 63 bits; it gets at most 400 digits.
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

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise CorruptError(f"{what}: duplicate key in a JSON object")
        return result

    def integer(digits: str) -> Any:
        # bounded before int(): conversion of a long string takes quadratic time
        if len(digits) > 20 or not -MAX_INTEGER <= int(digits) <= MAX_INTEGER:
            if beyond is not None and len(digits) <= _DIGITS:
                return beyond(digits)
            raise CorruptError(f"{what}: integer out of range")
        return int(digits)

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise CorruptError(f"{what}: number out of range")
        return value

    def constant(name: str) -> None:
        raise CorruptError(f"{what}: {name} is not JSON")

    try:
        value = json.loads(
            text, object_pairs_hook=pairs, parse_int=integer, parse_float=number, parse_constant=constants or constant
        )
    except json.JSONDecodeError as error:
        at = f"{error.msg}, line {error.lineno}, column {error.colno}" if text.strip() else "it is empty"
        raise CorruptError(f"{what}: not JSON ({at})") from error
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what}: not JSON") from error
    if len(text) > longest or "\\u" in text:  # no other text has a longer string, or half of a surrogate pair
        _check_strings(value, what, longest)
    return value


def _check_depth(text: str, what: str) -> None:
    """Bound the nesting before the recursive parser sees the text."""
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        first = found[0][0]
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
    """The same object with null for the numbers that JSON does not have: NaN and infinities, at any depth."""
    return {key: _writable(value) for key, value in facts.items()}


def _writable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return writable(value)
    if isinstance(value, list):
        return [_writable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
