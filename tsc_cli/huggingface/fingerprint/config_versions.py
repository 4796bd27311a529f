"""One config as two versions of transformers see it: each knows fields that the other does not.

The hash of a config covers all of its fields, so that a file of one version would be refused under
the next, which has one field more. Therefore a file also keeps what was at its default, in a few
bytes a field. A field that one side does not know, and that the other has at its default, changes
nothing. A default that has another value now does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

from .config_fields import canonical, parsed, shown

_NAME, _VALUE = 3, 3  # bytes of a digest


def usual_fields(fields: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """The fields that are at the default of their class, as text: a digest of the name and of the value of each."""
    same = sorted(name for name, value in fields.items() if name in usual and usual[name] == value)
    return base64.b85encode(b"".join(_digest(name)[:_NAME] + _of_value(fields[name]) for name in same)).decode()


def agree(recorded: Mapping[str, str], found: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
    """Whether a file's config is the one at hand, but for fields that one side does not know and that change nothing.

    Args:
        settings: the fields at hand.
    """
    changed, changed_here = parsed(recorded.get("config_fields")), parsed(found.get("config_fields"))
    usual = _parsed_usual(recorded.get("config_usual"))
    if changed is None or changed_here is None or usual is None:
        return False
    for name, value in changed.items():
        here = settings[name] if name in settings else settings.get(f"rope_parameters.{name}", _Unknown)
        if here is _Unknown or shown(here) != value:
            return False
    for name, value in settings.items():
        if name in changed:
            continue
        then = usual.get(_digest(name)[:_NAME])
        if then is not None and then != _of_value(value):
            return False
        copied = settings.get(f"rope_parameters.{name}", _Unknown) == value  # `rope` is compared by itself
        if then is None and name in changed_here and not copied:
            return False
    return True


class _Unknown:
    """Stands for a field that is not there; None is a value."""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _of_value(value: Any) -> bytes:
    whole = isinstance(value, float) and value.is_integer()  # 1 and 1.0 are one value
    return _digest(canonical(int(value) if whole else value))[:_VALUE]


def _parsed_usual(text: str | None) -> dict[bytes, bytes] | None:
    """Digest of the value by digest of the name, or None for what was not written by `usual_fields`."""
    try:
        data = base64.b85decode(text or "")
    except (ValueError, binascii.Error):
        return None
    size = _NAME + _VALUE
    if not data or len(data) % size:
        return None
    return {data[at : at + _NAME]: data[at + _NAME : at + size] for at in range(0, len(data), size)}
