"""One writer at a time: a lock beside a file that is replaced by what is made of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from formats.errors import StorageError


@contextlib.contextmanager
def only_writer(path: str | os.PathLike[str], timeout: float = 0) -> Iterator[None]:
    """Hold the lock of a file: `.NAME.lock` beside it, or beside what a link stands for.

    Args:
        timeout: seconds to wait for another process.
    Raises:
        StorageError: another process holds it, or it cannot be made.
    """
    target = Path(os.path.realpath(path))
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=timeout, mode=0o600)
    try:
        lock.acquire()
    except Timeout as error:
        raise StorageError("another process is writing to it", path=os.fspath(path)) from error
    except OSError as error:
        raise StorageError(f"cannot be locked: {error.strerror}", path=os.fspath(path)) from error
    try:
        yield
    finally:
        lock.release()
