"""Names of models on this machine: one small file per name, so that no two processes share one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from formats.container.atomic_write import atomic_write
from formats.errors import UsageError

from .folders import root

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
# what commands take for a file by its ending, whatever it is called before it
_FILES = (".gguf", ".safetensors", ".json", ".tsc", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_BYTES = 1 << 16
KINDS = ("gguf", "hub", "folder")


@dataclass(frozen=True)
class Named:
    """What a name stands for.

    Attributes:
        kind: "gguf" (converted, in a folder of tsc's own), "hub" (in the local hub cache) or
            "folder" (where it lies).
        source: the file, hub id or folder that it was made of.
        sha256: of a GGUF file's bytes, or "".
    """

    name: str
    kind: str
    source: str
    sha256: str = ""

    def same_as(self, other: Named) -> bool:
        """Return whether both are the same model, whatever their names and paths."""
        if self.kind == "gguf":
            return other.kind == "gguf" and self.sha256 == other.sha256
        return (self.kind, self.source) == (other.kind, other.source)


def folder() -> Path:
    return root() / "names"


def find(name: str) -> Named | None:
    """Return what a name stands for, or None.

    Raises:
        UsageError: its file cannot be read.
    """
    if NAME.fullmatch(name) is None:
        return None
    path = _path(name)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"what {name} stands for cannot be read: {error.strerror}", path=str(path)) from error
    try:
        values = json.loads(data)
        named = Named(**{field.name: values[field.name] for field in fields(Named)})
    except (ValueError, TypeError, KeyError, RecursionError):
        named = None
    if named is None or not all(isinstance(value, str) for value in asdict(named).values()) or named.kind not in KINDS:
        raise UsageError(
            f"what {name} stands for is damaged", path=str(path), hint=f"tsc models remove {name}, then add it again"
        )
    # a file system that takes other letters for the same
    return named if named.name == name else None


def all_named() -> Iterator[Named]:
    """All names that can be read, in their order."""
    for path in sorted(folder().glob("*.json")):
        try:
            named = find(path.name.removesuffix(".json"))
        except UsageError:
            continue
        if named is not None:
            yield named


def check(name: str) -> None:
    """Raise UsageError for what cannot be given as a name."""
    from .default_model import NAME as DEFAULT

    hint = "letters, digits, '.', '_' and '-', at most 80, such as qwen-0.5b"
    if NAME.fullmatch(name) is None or name.endswith("."):
        raise UsageError(f"{name!r} cannot be the name of a model", hint=hint)
    if name.casefold().endswith(_FILES):
        raise UsageError(f"{name!r} cannot be the name of a model: it would be taken for a file", hint=hint)
    if name.casefold() in (DEFAULT, "default"):
        raise UsageError(f"{name} is the default model's name", hint="give another with --name")


def holder(name: str) -> Named | None:
    """Return the model of this name in any capitalization, as some file systems ignore case."""
    folded = name.casefold()
    return next((named for named in all_named() if named.name.casefold() == folded), None)


def require_free(named: Named) -> None:
    """Raise UsageError unless a name is well-formed and stands for no other model."""
    check(named.name)
    taken = holder(named.name)
    if taken is not None and (taken.name != named.name or not taken.same_as(named)):
        raise UsageError(
            f"there is a model called {taken.name} already, made of {taken.source}",
            hint=f"give another name with --name, or tsc models remove {taken.name}",
        )


def give(named: Named) -> None:
    """Store what a name stands for.

    Raises:
        UsageError: it is taken.
        StorageError: it cannot be stored.
    """
    require_free(named)
    if find(named.name) is None:
        folder().mkdir(parents=True, exist_ok=True)
        # refuses what another process noted meanwhile
        with atomic_write(_path(named.name)) as file:
            file.write(json.dumps(asdict(named), indent=2).encode())


def forget(name: str) -> None:
    if NAME.fullmatch(name):
        _path(name).unlink(missing_ok=True)


def suggested(text: str) -> str:
    """A name made of a file's, a folder's or a hub's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:80].rstrip("._-")
    for end in _FILES:
        if name.casefold().endswith(end):
            name = name[: -len(end)].rstrip("._-")
    return name or "model"


def _path(name: str) -> Path:
    return folder() / f"{os.path.basename(name)}.json"
