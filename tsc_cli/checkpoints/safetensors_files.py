"""Safetensors checkpoints: which tensors a file or an index of shards holds, and where.

Format: https://github.com/huggingface/safetensors (8-byte little-endian header length, JSON, data).
The header is read here, with the checks of that project's reader, because offsets are needed to
read rows without mapping the file. Everything that a file says is checked against its size before
anything of that size is allocated.
"""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from formats.container import strict_json
from formats.container.safetensors_buffer import ITEM_SIZES, check_tiling
from formats.errors import CorruptError, StorageError, UsageError
from formats.limits import MAX_INTEGER, MAX_TENSOR_RANK

from . import json_files
from .matrices import Encoding, Tensor

if TYPE_CHECKING:
    from .matrices import Floats

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# of a file, as its library has it: a million tensors; an index is bounded by its file
MAX_HEADER = 100_000_000
_AGAIN = "fetch the checkpoint again"


def _bfloat16(data: Any) -> Floats:
    values: Floats = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return values


def _float64(data: Any) -> Floats:
    with np.errstate(over="ignore"):  # becomes infinite, which is refused by name
        values: Floats = data.view("<f8").astype(np.float32)
    return values


_DECODERS = {
    "F32": lambda data: data.view("<f4"),
    "F16": lambda data: data.view("<f2").astype(np.float32),
    "BF16": _bfloat16,
    "F64": _float64,
}
ENCODINGS = {name: Encoding(name, 1, size, _DECODERS.get(name)) for name, size in ITEM_SIZES.items()}


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one .safetensors file.

    Raises:
        CorruptError: it is not one, or not all of it is there.
        LimitError: its header takes more memory than there is.
        StorageError: it cannot be read.
    """
    shown = str(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little") if size >= 8 else 0
            if not 2 <= length <= size - 8:
                raise CorruptError("is not a safetensors file, or only the start of one", path=shown, hint=_AGAIN)
            if length > MAX_HEADER:
                raise CorruptError(
                    f"is not a safetensors file: its header would take {length} bytes, and {MAX_HEADER} are allowed",
                    path=shown,
                    hint=_AGAIN,
                )
            header = file.read(length)
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", path=shown) from error
    try:
        return _tensors(json_files.loads(header, "header", shown, MAX_HEADER), shown, 8 + length, size)
    except CorruptError as error:
        raise CorruptError(f"safetensors {error.message}", path=shown, hint=error.hint or _AGAIN) from error


def _tensors(entries: Any, path: str, start: int, size: int) -> dict[str, Tensor]:
    if not isinstance(entries, dict):
        raise CorruptError("header: an object of tensors was expected")
    tensors, ranges = {}, []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        where = f"header: tensor {name!r}"
        fields = strict_json.fields(entry, where, ("dtype", "shape", "data_offsets"))
        shape = strict_json.items(fields["shape"], f"{where} shape", MAX_TENSOR_RANK)
        offsets = [
            strict_json.integer(n, f"{where} data_offsets", 0, MAX_INTEGER)
            for n in strict_json.items(fields["data_offsets"], f"{where} data_offsets", 2)
        ]
        if len(offsets) != 2 or offsets[1] < offsets[0]:
            raise CorruptError(f"{where}: two ascending data offsets were expected")
        if start + offsets[1] > size:
            raise CorruptError(f"{where} ends at byte {start + offsets[1]} of a file of {size}: it is cut short")
        extents = tuple(strict_json.integer(n, f"{where} shape", 0, MAX_INTEGER) for n in shape)
        encoding = ENCODINGS.get(strict_json.string(fields["dtype"], f"{where} dtype"))
        # a dtype of a later version of the format is somebody else's tensor until it is asked for
        encoding = encoding or Encoding(fields["dtype"], 1, 0, None)
        if encoding.size and math.prod(extents) * encoding.size != offsets[1] - offsets[0]:
            raise CorruptError(f"{where}: shape and dtype do not give {offsets[1] - offsets[0]} bytes")
        ranges.append((offsets[0], offsets[1]))
        tensors[name] = Tensor(path, name, encoding, extents, start + offsets[0])
    check_tiling(ranges, size - start, "header")
    return tensors


def read_index(folder: Path) -> list[str]:
    """Return the names of the shards in a folder's index, each once and all inside the folder."""
    return sorted(set(_weight_map(folder / INDEX).values()))


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint in a folder: shards with an index, or one file.

    Raises:
        UsageError: there is no safetensors checkpoint, or not all of one.
        CorruptError: index and shards do not agree, or one of them is damaged.
    """
    if not (folder / INDEX).is_file():
        return read_file(_only_file(folder))
    weight_map = _weight_map(folder / INDEX)
    shards = {name: folder / name for name in sorted(set(weight_map.values()))}
    missing = [name for name, path in shards.items() if not path.is_file()]
    if missing:
        raise UsageError(
            f"{missing[0]} is missing, and {len(missing) - 1} more of {len(shards)} shards"
            if missing[1:]
            else f"{missing[0]} is missing, one of {len(shards)} shards",
            path=str(folder),
            hint="fetch the missing files; model.safetensors.index.json names them",
        )
    tensors_by_shard = {name: read_file(path) for name, path in shards.items()}
    for tensor, shard in weight_map.items():
        if tensor not in tensors_by_shard[shard]:
            raise CorruptError(
                f"does not hold tensor {tensor!r}, which the index places there", path=str(shards[shard]), hint=_AGAIN
            )
    return {tensor: tensors_by_shard[shard][tensor] for tensor, shard in weight_map.items()}


def _only_file(folder: Path) -> Path:
    if (folder / SINGLE).is_file():
        return folder / SINGLE
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise UsageError(
            f"{len(files)} .safetensors files and no {INDEX}",
            path=str(folder),
            hint="fetch the index, or name one of the files",
        )
    return files[0]


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = json_files.read_object(index, _AGAIN).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise CorruptError("has no weight_map from tensors to files", path=str(index), hint=_AGAIN)
    for name in set(weight_map.values()):
        parts = PurePosixPath(name).parts
        # names as written, not as they resolve: a hub cache's files are links out of their folder
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name or ":" in name or "\0" in name:
            raise CorruptError(
                f"names a file outside the folder: {name!r}",
                path=str(index),
                hint="do not use this checkpoint before you know who made it",
            )
    return weight_map
