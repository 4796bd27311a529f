"""The tier header: what the file promises, how it was captured, and what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from formats.container import strict_json
from formats.errors import CorruptError
from formats.limits import MAX_INTEGER, MAX_SNAPSHOTS

SCHEMA = "tsc.header/1"
_FIELDS = (
    "schema",
    "tier",
    "created_by",
    "raw_bytes_trace",
    "raw_bytes_final",
    "capture",
    "quality",
    "codec",
    "parameters",
    "ratio_trace",
    "ratio_final",
)


@dataclass(frozen=True)
class TierHeader:
    """The HEADER record.

    Attributes:
        tier: the promise that the writer kept, by the name that `tsc tiers` lists; "" if none was
            asked for.
        raw_bytes: tensors' bytes over all snapshots, and of the final one, as captured; a reader
            compares both with the snapshots.  A ratio is one of them over the length of the file,
            everything counted.
        codec, parameters: how the rows were coded (scalar values).
        ratios: of the trace and of the final cache, rounded down to four digits; 0 until the file
            is finished.
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
    codec: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    ratios: tuple[float, float] = (0.0, 0.0)

    def with_ratios(self, file_bytes: int) -> TierHeader:
        """The same with the ratios of a file of this length."""
        trace, final = (rounded_down(raw / file_bytes) for raw in (self.raw_bytes_trace, self.raw_bytes_final))
        return replace(self, ratios=(trace, final))


def rounded_down(ratio: float) -> float:
    """To four significant digits, so that a header does not depend on the last byte of the file
    that it is part of.
    """
    scale = 10.0 ** (3 - math.floor(math.log10(ratio)))
    return math.floor(ratio * scale) / scale


def to_json(header: TierHeader) -> bytes:
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "tier": header.tier,
        "created_by": header.created_by,
        "raw_bytes_trace": header.raw_bytes_trace,
        "raw_bytes_final": header.raw_bytes_final,
        "capture": header.capture,
        "quality": header.quality,
        "codec": header.codec,
        "parameters": header.parameters,
        "ratio_trace": header.ratios[0],
        "ratio_final": header.ratios[1],
    }
    return strict_json.dumps(facts)


def from_json(data: bytes) -> TierHeader:
    """Parse and check a HEADER record's payload.  Raises CorruptError."""
    where = "tier header"
    found = strict_json.fields(strict_json.loads(data, where), where, _FIELDS)
    if found["schema"] != SCHEMA:
        raise CorruptError(f"{where}: schema {SCHEMA} was expected")
    return TierHeader(
        strict_json.string(found["tier"], f"{where} tier"),
        strict_json.integer(found["raw_bytes_trace"], f"{where} raw_bytes_trace", 1, MAX_INTEGER),
        strict_json.integer(found["raw_bytes_final"], f"{where} raw_bytes_final", 1, MAX_INTEGER),
        strict_json.string(found["created_by"], f"{where} created_by"),
        _scalars(found["capture"], f"{where} capture"),
        [
            _scalars(entry, f"{where} quality")
            for entry in strict_json.items(found["quality"], f"{where} quality", MAX_SNAPSHOTS)
        ],
        strict_json.string(found["codec"], f"{where} codec"),
        _scalars(found["parameters"], f"{where} parameters"),
        (
            strict_json.number(found["ratio_trace"], f"{where} ratio_trace"),
            strict_json.number(found["ratio_final"], f"{where} ratio_final"),
        ),
    )


def _scalars(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CorruptError(f"{where}: an object was expected")
    for key, item in value.items():
        if isinstance(item, dict | list):
            raise CorruptError(f"{where} {key!r}: a number, a string, true, false or null was expected")
    return value
