"""The parts of a payload that the second reader of .tsc files and of profiles share: frames, JSON, tables.

As `second_reader`, written from docs/format.md alone.
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

import zstandard

from tests.format_conformance.second_reader.codecs import TENSOR_TYPES, Tables, Tensor, corrupt, exactly, need

MIB = 1 << 20
I64_MAX = 2**63 - 1

# zstd frames


def unframe(frame: bytes, raw: int, where: str) -> bytes:
    """The content of one zstd frame, which declares `raw` bytes."""
    need(frame[:4] == b"\x28\xb5\x2f\xfd", f"{where}: not a zstd frame")
    try:
        parameters = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError:
        corrupt(f"{where}: zstd frame header")
    need(parameters.content_size == raw, f"{where}: content size")
    need(parameters.window_size <= 8 * MIB, f"{where}: window size")
    need(parameters.dict_id == 0, f"{where}: dictionary")
    try:
        content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=raw, allow_extra_data=False)
    except zstandard.ZstdError:
        corrupt(f"{where}: zstd frame")
    need(len(content) == raw, f"{where}: raw length")
    return content


# JSON


def json_depth(text: str) -> int:
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def json_integer(text: str) -> int:
    need(len(text) <= 20, "JSON: integer out of range")
    value = int(text)
    need(-I64_MAX <= value <= I64_MAX, "JSON: integer out of range")
    return value


def json_float(text: str) -> float:
    value = float(text)
    need(math.isfinite(value), "JSON: number overflows")
    return value


def json_constant(text: str) -> NoReturn:
    corrupt(f"JSON: {text}")


def json_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    need(len(result) == len(pairs), "JSON: duplicate key")
    return result


def check_strings(value: object) -> None:
    if isinstance(value, str):
        need(len(value) <= 65_536, "JSON: string too long")
        need(not re.search("[\ud800-\udfff]", value), "JSON: lone surrogate")
    elif isinstance(value, list):
        for item in value:
            check_strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_strings(key)
            check_strings(item)


def parse_json(raw: bytes) -> dict[str, object]:
    need(len(raw) <= MIB, "JSON: more than 1 MiB")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        corrupt("JSON: not UTF-8")
    need(not text.startswith("\ufeff"), "JSON: byte order mark")
    need(json_depth(text) <= 16, "JSON: nested too deep")
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=json_pairs,
            parse_constant=json_constant,
            parse_int=json_integer,
            parse_float=json_float,
        )
    except json.JSONDecodeError:
        corrupt("JSON: syntax")
    check_strings(value)
    return as_object(value, "JSON payload")


def as_object(
    value: object, what: str, keys: set[str] | None = None, optional: frozenset[str] = frozenset()
) -> dict[str, object]:
    """`value`, an object with exactly these keys and maybe the optional ones (with any, without a set)."""
    if not isinstance(value, dict):
        corrupt(f"{what}: not an object")
    need(keys is None or keys <= value.keys() <= keys | optional, f"{what}: missing or unknown fields")
    return value


def as_list(value: object, what: str, limit: int) -> list[object]:
    if not isinstance(value, list):
        corrupt(f"{what}: not a list")
    need(len(value) <= limit, f"{what}: too long")
    return value


def as_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        corrupt(f"{what}: not a string")
    return value


def as_integer(value: object, what: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        corrupt(f"{what}: not an integer")
    need(low <= value <= high, f"{what}: out of range")
    return value


# Tables


def read_tables(raw: bytes, names: set[str] | None = None) -> Tables:
    """The tensors of one safetensors buffer, which are exactly those named (any, without a set)."""
    need(len(raw) >= 8, "table: shorter than its header length")
    length = int.from_bytes(raw[:8], "little")
    need(length <= min(MIB, len(raw) - 8), "table: header length")
    head = raw[8 : 8 + length].rstrip(b" ")
    need(head[:1] == b"{" and head[-1:] == b"}", "table: header is not an object padded with spaces")
    entries = parse_json(head)
    need(len(entries) <= 4096, "table: too many tensors")
    data = memoryview(raw)[8 + length :]
    tensors: Tables = {}
    extents: list[tuple[int, int]] = []
    for name, value in entries.items():
        entry = as_object(value, "table: entry", {"dtype", "shape", "data_offsets"})
        dtype = as_text(entry["dtype"], "table: dtype")
        need(dtype in TENSOR_TYPES, "table: dtype")
        shape = [as_integer(item, "table: shape", 0, I64_MAX) for item in as_list(entry["shape"], "table: shape", 8)]
        offsets = as_list(entry["data_offsets"], "table: data_offsets", 2)
        need(len(offsets) == 2, "table: data_offsets")
        begin, stop = (as_integer(item, "table: data_offsets", 0, len(data)) for item in offsets)
        need(stop - begin == math.prod(shape) * TENSOR_TYPES[dtype][1], "table: length of a tensor")
        tensors[name] = Tensor(dtype, shape, data[begin:stop])
        extents.append((begin, stop))
    position = 0
    for begin, stop in sorted(extents):
        need(begin == position, "table: tensors overlap or leave a hole")
        position = stop
    need(position == len(data), "table: bytes behind the last tensor")
    if names is not None:
        exactly(tensors, names)
    return tensors
