"""Settings of codecs and filters: frozen dataclasses of scalars, made from `key=value` text or from
a header.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, get_type_hints

from .errors import UsageError

T = TypeVar("T")
Value = int | float | bool | str


@dataclass(frozen=True)
class Settings:
    """Settings of a codec: int, float, bool or str, each with a default.  A codec without any uses
    this class.
    """

    def described(self) -> dict[str, Value]:
        """The settings that count, as a file's header holds them."""
        return asdict(self)


_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def make(kind: type[T], values: Mapping[str, Any], owner: str) -> T:
    """An instance of the dataclass `kind`, whose fields are int, float, bool or str.

    Args:
        values: field name -> value, or its text as in `--set bits=4`.
        owner: what the settings belong to, for messages, such as "codec scalar".
    Raises:
        UsageError: there is no such setting, or the value does not fit it.
    """
    kinds = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"settings: {', '.join(names)}"
            raise UsageError(f"{owner} has no setting {key!r}", hint=hint)
    return kind(**{key: _convert(value, kinds[key], f"{owner}: {key}") for key, value in values.items()})


def _convert(value: Any, kind: type, where: str) -> Any:
    if isinstance(value, str) and kind is not str:
        text = value.strip().lower()
        try:
            value = _WORDS[text] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise UsageError(f"{where}={value} is not {_ARTICLES[kind]}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise UsageError(f"{where}={value} is not {_ARTICLES[kind]}")
    return value


_ARTICLES: dict[type, str] = {int: "an integer", float: "a number", bool: "true or false", str: "a word"}


def require(condition: bool, message: str) -> None:
    """Raise UsageError with `message` unless the condition of a setting holds."""
    if not condition:
        raise UsageError(message)
