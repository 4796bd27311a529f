"""GGUF checkpoints: which tensors a file holds, and where.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package dequantizes;
the header is read here, since the package maps the file and builds every entry of the vocabulary,
and trusts the counts that the file states. Integers are little-endian, dimensions innermost first.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from formats.errors import CorruptError, LimitError, StorageError, UnsupportedFileError, optional_packages
from formats.limits import MIB

from .json_files import require_memory
from .matrices import Encoding, Tensor

if TYPE_CHECKING:
    from .matrices import Floats

# strings of arrays in the metadata, stepped over one by one: a vocabulary's are a million
MAX_ELEMENTS = 1 << 26
_LEAST_TENSOR, _LEAST_ENTRY = 24, 13  # bytes of the file: no name, no extents or the shortest value
# bytes of memory for each of a text: read, and decoded in up to four bytes a character
_TEXT_COST = 5
# bytes of memory for what is kept of a tensor or an entry of metadata, its texts apart
_ITEM_COST = 1024
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# what a configuration in Hugging Face's manner calls them
_FIELDS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
}


def read_gguf(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a GGUF file, and its configuration under the names that Hugging Face uses.

    Raises:
        CorruptError: it is not one, or not all of it is there.
        LimitError: it holds more than there is memory for, or than can be stepped over.
        UnsupportedFileError: a version or byte order that is not read.
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, str(path)).read()
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", path=str(path)) from error


class _Reader:
    def __init__(self, file: BinaryIO, path: str) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size
        self.elements = self.kept = 0

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.file.read(4) != b"GGUF":
            raise self.corrupt("is not a GGUF file")
        version = self.number("I")
        if version not in (2, 3):
            raise UnsupportedFileError(f"GGUF version {version} is not read, only 2 and 3", path=self.path)
        count, entries = self.number("Q"), self.number("Q")
        if count * _LEAST_TENSOR + entries * _LEAST_ENTRY > self.size - self.file.tell():
            raise self.corrupt(
                f"states {count} tensors and {entries} entries of metadata, more than its {self.size} bytes can hold"
            )
        self.keep((count + entries) * _ITEM_COST)
        facts = {}
        for _ in range(entries):
            name = self.text()
            facts[name] = self.value(self.number("I"))
        infos = [(self.text(), self.extents(), self.number("I"), self.number("Q")) for _ in range(count)]
        alignment = facts.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= MIB:
            raise self.corrupt("states an alignment that is none")
        start = -(-self.file.tell() // alignment) * alignment
        tensors = {name: self.tensor(name, shape, kind, start + offset) for name, shape, kind, offset in infos}
        if len(tensors) != count:
            raise self.corrupt("names a tensor twice")
        return tensors, self.config(facts)

    def config(self, facts: dict[str, Any]) -> dict[str, Any]:
        kind = facts.get("general.architecture")
        config: dict[str, Any] = {"model_type": kind} if isinstance(kind, str) else {}
        if isinstance(facts.get("split.count"), int):  # of how many files this is one
            config["split_count"] = facts["split.count"]
        return config | {
            ours: facts[f"{kind}.{theirs}"]
            for theirs, ours in _FIELDS.items()
            if isinstance(facts.get(f"{kind}.{theirs}"), int)
        }

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
        encoding = _encoding(kind)
        octets = math.prod(shape) // encoding.block * encoding.size
        if shape and shape[-1] % encoding.block:
            raise self.corrupt(f"tensor {name!r}: rows of {shape[-1]} are not blocks of {encoding.block}")
        if offset + octets > self.size:
            raise self.corrupt(f"tensor {name!r} ends at byte {offset + octets} of a file of {self.size}")
        return Tensor(self.path, name, encoding, shape, offset)

    def extents(self) -> tuple[int, ...]:
        rank = self.number("I")
        if not 0 <= rank <= 8:
            raise self.corrupt(f"states a tensor of {rank} dimensions")
        return tuple(reversed([self.number("Q") for _ in range(rank)]))

    def value(self, kind: int) -> Any:
        """A scalar or a text; None for an array, which is skipped."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.corrupt(f"states a value of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[inner]}"))
        elif inner == _STRING:
            if count * 8 > self.size - self.file.tell():
                raise self.corrupt(f"states an array of {count} texts, which ends beyond the file")
            self.elements += count
            if self.elements > MAX_ELEMENTS:
                raise LimitError(
                    f"holds arrays of {self.elements} texts, at most {MAX_ELEMENTS} are stepped over", path=self.path
                )
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise self.corrupt(f"states an array of type {inner}")
        return None

    def number(self, code: str) -> Any:
        octets = struct.calcsize(f"<{code}")
        data = self.file.read(octets)
        if len(data) != octets:
            raise self.corrupt("ends within its header")
        return struct.unpack(f"<{code}", data)[0]

    def text(self) -> str:
        length = self.number("Q")
        if self.file.tell() + length > self.size:
            raise self.corrupt(f"states a text of {length} bytes, which ends beyond the file")
        self.keep(_TEXT_COST * length)
        return self.file.read(length).decode("utf-8", "replace")

    def keep(self, octets: int) -> None:
        """Count memory before it is taken."""
        self.kept += octets
        require_memory(self.kept, "its metadata", self.path)

    def skip(self, octets: int) -> None:
        if self.file.tell() + octets > self.size:
            raise self.corrupt("ends within its header")
        self.file.seek(octets, os.SEEK_CUR)

    def corrupt(self, message: str) -> CorruptError:
        return CorruptError(message, path=self.path, hint="fetch the file again")


@functools.cache
def _encoding(kind: int) -> Encoding:
    """Return how the tensors of a GGML type are stored; an unknown type cannot be decoded."""
    with optional_packages("gguf", "a GGUF file"):
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        ggml_type = GGMLQuantizationType(kind)
    except ValueError:
        return Encoding(f"type {kind}", 1, 0, None)
    block, size = GGML_QUANT_SIZES[ggml_type]

    def decode(data: Any) -> Floats:
        with np.errstate(all="ignore"):  # a damaged scale becomes NaN, which is refused by name
            values: Floats = dequantize(data, ggml_type)
        return values

    try:
        decode(np.zeros((1, size), np.uint8))
    except (NotImplementedError, ValueError):  # no code for it in this version of the package
        return Encoding(ggml_type.name, block, size, None)
    return Encoding(ggml_type.name, block, size, decode)
