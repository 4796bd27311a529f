"""Folders of converted models: one process builds each, and publishes it by renaming it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from formats.paths import cache_folder
from tsc_cli.progress import Say

# what a killed process may leave: half of a model that comes, or of one that goes
_NEW, _OLD = ".new-", ".old-"


def root() -> Path:
    """The folder of all models that `tsc` keeps itself."""
    return cache_folder() / "models"


@contextlib.contextmanager
def building(target: Path, is_ready: Callable[[], bool], say: Say) -> Iterator[Path | None]:
    """Yield an empty folder in which to build `target`, or None if that is there already.

    What others left when they were killed is deleted first. The folder is gone when the block ends.

    Raises:
        OSError: it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(target, say):
        if is_ready():
            yield None
            return
        sweep()
        scratch = target.with_name(_NEW + target.name)
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir(mode=0o700)
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def publish(built: Path, target: Path) -> None:
    """Write a finished folder to the disk and rename it to `target`, replacing what is there."""
    for file in (*built.rglob("*"), built):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if target.exists():
        _set_aside(target)
    built.rename(target)


def remove(target: Path, say: Say) -> int:
    """Delete a folder once no process is writing it, and return how many bytes that frees."""
    if not target.parent.is_dir():
        return 0
    with _only_one(target, say):
        freed = size_of(target)
        if target.exists():
            _set_aside(target)
        return freed


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; of linked ones what the links stand for."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # deleted meanwhile, or a link to nowhere
            total += file.stat().st_size if file.is_file() else 0
    return total


def sweep() -> None:
    """Delete what killed processes left half-made."""
    for left in (*root().glob(f"{_OLD}*"), *root().glob(f"{_NEW}*")):
        if left.name.startswith(_OLD):
            shutil.rmtree(left, ignore_errors=True)
            continue
        lock = FileLock(left.with_name(left.name.removeprefix(_NEW) + ".lock"))
        with contextlib.suppress(Timeout, OSError), lock.acquire(blocking=False):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _only_one(target: Path, say: Say) -> Iterator[None]:
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say("another process is at this model; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _set_aside(target: Path) -> None:
    """Rename, then delete: nobody finds half of a model under its name."""
    gone = target.with_name(f"{_OLD}{secrets.token_hex(4)}-{target.name}")
    target.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
