"""The tier header: what the file promises, how it was captured, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import schema, strict_json
from .errors import CorruptError
from .limits import MAX_INTEGER, MAX_SNAPSHOTS

SCHEMA = "tsc.header/1"


@dataclass(frozen=True)
class TierHeader:
    """The HEADER record.

    Attributes:
        tier: the promise that the writer kept, by the name that `tsc tiers` lists.
        raw_bytes: tensors' bytes over all snapshots, and of the final one; a reader recomputes and compares both.
            A ratio is one of them over the length of the file, everything counted.
        created_by: the program and its version.
        capture: how the rows came to be (free-form, scalar values).
        quality: one record a verified snapshot (free-form, scalar values).
    """

    tier: str
    raw_bytes_trace: int
    raw_bytes_final: int
    created_by: str
    capture: dict[str, Any] = field(default_factory=dict)
    quality: list[dict[str, Any]] = field(default_factory=list)


def to_json(header: TierHeader) -> bytes:
    return strict_json.dumps({
        "schema": SCHEMA, "tier": header.tier, "created_by": header.created_by,
        "raw_bytes_trace": header.raw_bytes_trace, "raw_bytes_final": header.raw_bytes_final,
        "capture": header.capture, "quality": header.quality,
    })  # fmt: skip


def from_json(data: bytes) -> TierHeader:
    """Parse and check a HEADER record's payload.  Raises CorruptError."""
    where = "tier header"
    found = schema.fields(
        strict_json.loads(data, where), where,
        ("schema", "tier", "created_by", "raw_bytes_trace", "raw_bytes_final", "capture", "quality"),
    )  # fmt: skip
    if found["schema"] != SCHEMA:
        raise CorruptError(f"{where}: schema {SCHEMA} was expected")
    return TierHeader(
        schema.string(found["tier"], f"{where} tier"),
        schema.integer(found["raw_bytes_trace"], f"{where} raw_bytes_trace", 1, MAX_INTEGER),
        schema.integer(found["raw_bytes_final"], f"{where} raw_bytes_final", 1, MAX_INTEGER),
        schema.string(found["created_by"], f"{where} created_by"),
        _scalars(found["capture"], f"{where} capture"),
        [
            _scalars(entry, f"{where} quality")
            for entry in schema.items(found["quality"], f"{where} quality", MAX_SNAPSHOTS)
        ],
    )


def _scalars(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CorruptError(f"{where}: an object was expected")
    for key, item in value.items():
        if isinstance(item, dict | list):
            raise CorruptError(f"{where} {key!r}: a number, a string, true, false or null was expected")
    return value
