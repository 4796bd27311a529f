"""SHA-256 of large files, remembered while the file system says that they are unchanged.

What is compared is the path, the size, the file's number on the disk and the times of the last
change of content and of status. The last of these no program can set back, so that a file that was
replaced in place is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from formats.container.atomic_write import atomic_write
from formats.errors import StorageError, TscError
from tsc_cli.progress import Stage

State = list[list[int | str]]

_PIECE = 1 << 22
_FRESH = 2_000_000_000  # ns: within so long after a change another one may leave the same time


def sha256_of(parts: list[Path], *, root: Path, stage: Stage) -> str:
    """SHA-256 of the bytes of some files, one after the other.

    Args:
        root: the folder of what is remembered.
        stage: opens a progress bar over so many bytes.
    Raises:
        StorageError: they cannot be read.
    """
    try:
        state = state_of(parts)
        note = root / f"{hashlib.sha256(os.fsencode(parts[0].resolve())).hexdigest()[:32]}.json"
        remembered = _remembered(note, state)
        if remembered is not None:
            return remembered
        digest = _read(parts, stage)
        settled = time.time_ns() - max(int(entry[-1]) for entry in state) > _FRESH
        if state_of(parts) == state and settled:
            _remember(note, state, digest)
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", path=str(parts[0])) from error
    return digest


def _read(parts: list[Path], stage: Stage) -> str:
    digest = hashlib.sha256()
    total = sum(part.stat().st_size for part in parts)
    with stage(f"reading {parts[0].name}", total) as advance:
        for part in parts:
            with part.open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
                    advance(len(piece))
    return digest.hexdigest()


def state_of(parts: list[Path]) -> State:
    """What the system says of some files; it is another one once their bytes are changed."""
    states: State = []
    for part in parts:
        status = part.stat()
        states.append(
            [str(part.resolve()), status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        )
    return states


def _remembered(note: Path, state: State) -> str | None:
    try:
        values = json.loads(note.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.get("state") != state:
        return None
    digest = values.get("sha256")
    return digest if isinstance(digest, str) and len(digest) == 64 else None


def _remember(note: Path, state: State, digest: str) -> None:
    with contextlib.suppress(OSError, TscError):  # then it is read again next time
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(note, overwrite=True) as file:
            file.write(json.dumps({"state": state, "sha256": digest}).encode())
