"""Small checks for values that come out of a file's JSON.  Each raises CorruptError and names the field."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from formats.errors import CorruptError


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
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CorruptError(f"{where}: an integer from {low} to {high} was expected")
    return value


def number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CorruptError(f"{where}: a number was expected")
    return float(value)


def string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise CorruptError(f"{where}: a string was expected")
    return value


def one_of(value: Any, where: str, choices: Collection[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise CorruptError(f"{where}: one of {', '.join(sorted(choices))} was expected")
    return value


def items(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise CorruptError(f"{where}: a list of at most {most} entries was expected")
    return value
