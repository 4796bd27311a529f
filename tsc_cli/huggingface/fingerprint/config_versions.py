"""Comparing configs of two versions of transformers, each of which has fields of its own.

The hash of a config covers all of its fields, so that a file of one version would be refused under
the next, which has one field more. Therefore a file also keeps which fields were at their default,
in a few bytes each. Configs agree if a field that one side does not have is at its default on the
other. They differ if a default has another value now.
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
    """Return the fields at their class's defaults as text, by digests of names and values."""
    same = sorted(name for name, value in fields.items() if name in usual and usual[name] == value)
    return base64.b85encode(b"".join(_digest(name)[:_NAME] + _value_digest(fields[name]) for name in same)).decode()


def agree(recorded: Mapping[str, str], found: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
    """Return whether a file's config is the model's, but for defaults that one side does not have.

    Args:
        recorded: the file's fingerprint.
        found: the model's fingerprint.
        settings: the fields of the model's config.
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
        if then is not None and then != _value_digest(value):
            return False
        # `rope` is compared by itself
        copied = settings.get(f"rope_parameters.{name}", _Unknown) == value
        if then is None and name in changed_here and not copied:
            return False
    return True


class _Unknown:
    """Marks a missing field, since None is a value."""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _value_digest(value: Any) -> bytes:
    whole = isinstance(value, float) and value.is_integer()  # 1 and 1.0 are one value
    return _digest(canonical(int(value) if whole else value))[:_VALUE]


def _parsed_usual(text: str | None) -> dict[bytes, bytes] | None:
    """Return digests of values by digests of names; None unless `usual_fields` wrote the text."""
    try:
        data = base64.b85decode(text or "")
    except (ValueError, binascii.Error):
        return None
    size = _NAME + _VALUE
    if not data or len(data) % size:
        return None
    pairs = (data[start : start + size] for start in range(0, len(data), size))
    return {pair[:_NAME]: pair[_NAME:] for pair in pairs}
