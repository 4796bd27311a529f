"""One safetensors buffer, read strictly and without copying; torch is not needed to read one.

Reading is done here because a hostile header has to be refused for reasons that the library does
not check (duplicate keys, unknown fields, metadata), and because `tsc inspect` reads tables of
integers without importing torch or numpy; writing, because the library ends the process where there
is no memory for its buffer, and Python raises MemoryError. Format:
https://github.com/huggingface/safetensors (8-byte little-endian header length, JSON, data).
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from formats.errors import CorruptError
from formats.limits import MAX_INTEGER, MAX_JSON_BYTES, MAX_TENSOR_RANK, MAX_TENSORS

from . import strict_json

if TYPE_CHECKING:
    import torch

ITEM_SIZES = {  # in the library's order, the last one first in a buffer
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
_ORDER = {dtype: place for place, dtype in enumerate(ITEM_SIZES)}
_OF_TORCH = dict(
    zip(
        (
            "bool",
            "uint8",
            "int8",
            "float8_e5m2",
            "float8_e4m3fn",
            "int16",
            "uint16",
            "float16",
            "bfloat16",
            "int32",
            "uint32",
            "float32",
            "float64",
            "int64",
            "uint64",
        ),
        ITEM_SIZES,
        strict=True,
    )
)
_Code = Literal["B", "H", "i", "q"]
_CODES: dict[str, _Code] = {"U8": "B", "U16": "H", "I32": "i", "I64": "q"}


@dataclass(frozen=True)
class TensorView:
    """A tensor as it lies in a buffer: dtype in safetensors' spelling, shape, and its little-endian
    bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def integers(self) -> Sequence[int]:
        """The values of an integer tensor, row-major, without torch."""
        values = array(_CODES[self.dtype], self.data.tobytes())
        if sys.byteorder == "big":  # pragma: no cover - no such machine at hand
            values.byteswap()
        return values


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as files and the command line spell it, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def parse(buffer: bytes | memoryview, what: str) -> dict[str, TensorView]:
    """The tensors of a safetensors buffer.  They tile it exactly; anything else raises
    CorruptError.
    """
    view = memoryview(buffer)
    if len(view) < 8:
        raise CorruptError(f"{what}: too short for a safetensors buffer")
    length = int.from_bytes(view[:8], "little")
    if length > min(MAX_JSON_BYTES, len(view) - 8):
        raise CorruptError(f"{what}: safetensors header of {length} bytes does not fit")
    header = bytes(view[8 : 8 + length]).rstrip(b" ")
    if header[:1] + header[-1:] != b"{}":
        raise CorruptError(f"{what}: safetensors header is not a JSON object followed by spaces")
    entries = strict_json.loads(header, what)
    if not isinstance(entries, dict) or len(entries) > MAX_TENSORS:
        raise CorruptError(f"{what}: safetensors header is not an object of at most {MAX_TENSORS} tensors")
    data = view[8 + length :]
    tensors: dict[str, TensorView] = {}
    ranges: list[tuple[int, int]] = []
    for name, entry in entries.items():
        where = f"{what}: tensor {name!r}"
        found = strict_json.fields(entry, where, ("dtype", "shape", "data_offsets"))
        dtype = strict_json.one_of(found["dtype"], f"{where} dtype", ITEM_SIZES)
        shape = tuple(
            strict_json.integer(n, f"{where} shape", 0, MAX_INTEGER)
            for n in strict_json.items(found["shape"], f"{where} shape", MAX_TENSOR_RANK)
        )
        offsets = strict_json.items(found["data_offsets"], f"{where} data_offsets", 2)
        if len(offsets) != 2:
            raise CorruptError(f"{where}: two data offsets were expected")
        start = strict_json.integer(offsets[0], f"{where} data_offsets", 0, len(data))
        stop = strict_json.integer(offsets[1], f"{where} data_offsets", start, len(data))
        if math.prod(shape) * ITEM_SIZES[dtype] != stop - start:
            raise CorruptError(f"{where}: shape and dtype do not give {stop - start} bytes")
        ranges.append((start, stop))
        tensors[name] = TensorView(dtype, shape, data[start:stop])
    check_tiling(ranges, len(data), what)
    return tensors


def check_tiling(ranges: Iterable[tuple[int, int]], total: int, what: str) -> None:
    """Raise CorruptError unless the byte ranges (start, stop) tile `total` bytes exactly."""
    at = 0
    for start, stop in sorted(ranges):
        if start != at:
            raise CorruptError(f"{what}: tensors overlap or leave a hole at byte {min(start, at)} of the data")
        at = stop
    if at != total:
        raise CorruptError(f"{what}: {total - at} bytes after the last tensor")


def expect(
    tensors: Mapping[str, TensorView], shapes: Mapping[str, tuple[str, tuple[int | None, ...]]], what: str
) -> None:
    """Require exactly the tensors of `shapes`: name -> (dtype, shape), where None stands for any
    extent.
    """
    if tensors.keys() != shapes.keys():
        raise CorruptError(f"{what}: tensors {sorted(shapes)} were expected, {sorted(tensors)[:8]} were found")
    for name, (dtype, shape) in shapes.items():
        found = tensors[name]
        fits = len(found.shape) == len(shape) and all(
            want is None or want == have for want, have in zip(shape, found.shape, strict=True)
        )
        if found.dtype != dtype or not fits:
            raise CorruptError(f"{what}: tensor {name!r} is {found.dtype} {list(found.shape)}, not {dtype} {shape}")


def pack(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors buffer of tensors of any device, byte for byte as the library writes it.

    The order of `tensors` does not change the bytes.
    """
    import torch

    return _joined(
        {
            name: (
                _OF_TORCH[dtype_name(tensor.dtype)],
                tensor.shape,
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data,
            )
            for name, tensor in tensors.items()
        },
        metadata,
    )


def pack_integers(tensors: Mapping[str, tuple[str, Sequence[int], Sequence[int]]]) -> bytes:
    """As `pack` would, of (dtype, shape, values, row-major) of integer tensors, without torch."""
    parts = {}
    for name, (dtype, shape, values) in tensors.items():
        numbers = array(_CODES[dtype], values)
        if sys.byteorder == "big":  # pragma: no cover - no such machine at hand
            numbers.byteswap()
        parts[name] = dtype, shape, numbers.tobytes()
    return _joined(parts)


def _joined(
    tensors: Mapping[str, tuple[str, Sequence[int], bytes | memoryview]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The buffer of tensors' (dtype, shape, data)."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    parts: list[bytes | memoryview] = []
    at = 0
    for name in sorted(tensors, key=lambda name: (-_ORDER[tensors[name][0]], name)):
        dtype, shape, data = tensors[name]
        stop = at + len(data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        parts.append(data)
        at = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def to_torch(view: TensorView, device: str | torch.device = "cpu") -> torch.Tensor:
    """A writable uint8 tensor of the view's bytes on `device`; the caller reinterprets and reshapes
    it.
    """
    import torch

    if not len(view.data):
        return torch.empty(0, dtype=torch.uint8, device=device)
    return torch.frombuffer(bytearray(view.data), dtype=torch.uint8).to(device)
