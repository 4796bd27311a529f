"""JSON that others wrote: a model's config.json, the index of its shards, the header of one.

They have no limits of their own, and grow with the model: an index names every tensor, a config may
list every expert. So what bounds them is the file and the machine: how much memory a text needs is
estimated from its bytes before anything is made of it. What the JSON of a .tsc file may not have
(see `formats.container.strict_json`) is refused here where it is damage, and taken where other
writers write it: Infinity, long strings, integers of any size.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from formats.container import strict_json
from formats.errors import CorruptError, LimitError, StorageError
from formats.limits import BUDGET, GIB, memory_budget

# of an index or a config: ten million tensors; all of it is read before it can be understood
MAX_TEXT = GIB
_TEXT_COST = 6  # bytes of memory for each of the text: itself, decoded, and its strings
# bytes of memory for each value or pair: of an object, a list, or one of their entries
_VALUE_COST = 256


def read_object(path: Path, hint: str | None = None) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        hint: what to do about a file that holds none.
    Raises:
        CorruptError: it is no JSON, or no object.
        LimitError: reading it would take more memory than there is.
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_TEXT:
                raise LimitError(f"is {size} bytes of JSON, at most {MAX_TEXT} are read", path=str(path))
            require_memory(size * _TEXT_COST, "its text", str(path))
            data = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", path=str(path)) from error
    try:
        values = loads(data, path.name, str(path), MAX_TEXT)
    except CorruptError as error:
        raise CorruptError(error.message.removeprefix(f"{path.name}: "), path=str(path), hint=hint) from error
    if not isinstance(values, dict):
        raise CorruptError("is not a JSON object", path=str(path), hint=hint)
    return values


def loads(data: bytes, what: str, path: str, most: int) -> Any:
    """Parse a text of somebody else's.

    Args:
        what: names the text in messages.
        path: of the file that has it, for `LimitError`.
        most: bytes that are allowed.
    Raises:
        CorruptError: it is no JSON, or has a key twice.
        LimitError: what it holds would take more memory than there is.
    """
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    require_memory(len(data) * _TEXT_COST + values * _VALUE_COST, "what it says", path)
    # Python's own writer, which made most of them, writes Infinity for an open bound
    return strict_json.loads(data, what, most=most, longest=most, constants=float, beyond=float)


def require_memory(needed: int, what: str, path: str) -> None:
    """Raise LimitError if the memory budget does not allow that many bytes for `what`."""
    if needed > memory_budget():
        raise LimitError(
            f"{what} may take {needed} bytes of memory, more than the budget of {memory_budget()}",
            path=path,
            hint=f"{BUDGET} (bytes) raises the budget",
        )
