"""A GGUF model as files: one, or the parts into which llama.cpp's gguf-split cut it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from formats.errors import UsageError

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_OF_A_PART = ("GGUF.", "split.")  # what a part says of itself, not of the model


def parts_of(path: Path) -> list[Path]:
    """Return all parts of a split GGUF model of which one is named, in order.

    Raises:
        UsageError: a part is missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) < 2:
        return [path]
    count = int(match[3])
    if not 1 <= int(match[2]) <= count:
        raise UsageError(f"is named as part {int(match[2])} of {count}", path=str(path))
    paths = [path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    for part in paths:
        if not part.is_file():
            raise UsageError(f"is one of {count} parts, of which {part.name} is missing", path=str(path))
    return paths


def stem_of(path: Path) -> str:
    """The name of a model's file without its ending and without the number of its part."""
    match = _PART.fullmatch(path.name)
    return match[1] if match is not None else path.name.removesuffix(".gguf")


def join(parts: list[Path], target: Path) -> None:
    """Write the parts of a model into one file, which is what transformers reads."""
    import gguf

    readers = [gguf.GGUFReader(part) for part in parts]
    first = readers[0]
    writer = gguf.GGUFWriter(target, first.fields["general.architecture"].contents(), endianess=first.endianess)
    for name, field in first.fields.items():
        # the writer wrote that one
        if name.startswith(_OF_A_PART) or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    tensors: list[Any] = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
