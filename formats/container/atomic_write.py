"""Writing a file whole or not at all, and by one process at a time.

A reader, a crash or a full disk sees the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from formats.errors import StorageError, UsageError

# what a file system says that has no hard links
_NO_LINKS = {errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError where `path` cannot become an output: early, before work is done for it."""
    if path.is_dir():
        raise UsageError("is a folder, a file name was expected", path=str(path))
    if not path.parent.is_dir():
        raise UsageError("the folder does not exist", path=str(path.parent))
    if path.exists() and not path.is_file():  # a device would become a file
        raise UsageError("is not a regular file", path=str(path))
    if not overwrite and os.path.lexists(path):
        raise UsageError("the file exists already", path=str(path), hint="--force replaces it")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` when the block ends well, and is gone when it does not.

    Mode 0600, since a KV cache is the prompt.  A symbolic link at `path` is replaced, not followed.

    Raises:
        UsageError: `path` exists and `overwrite` is not set, or its folder does not exist.
        StorageError: the operating system refused; nothing is left behind.
    """
    target = Path(path)
    refuse_existing(target, overwrite=overwrite)
    temporary: str | None = None
    try:
        # named before it exists, unlike by mkstemp: Ctrl-C may strike while it is being created
        temporary = str(target.parent / f".{target.name}.{secrets.token_urlsafe(6)}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, target, overwrite=overwrite)
        temporary = None
        _sync_folder(target.parent)
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror or error}", path=str(target)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _publish(temporary: str, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, refuses a file that appeared in the meantime
    except FileExistsError as error:
        raise UsageError("the file exists already", path=str(target), hint="--force replaces it") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        refuse_existing(target, overwrite=False)
        os.replace(temporary, target)
    else:
        os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_writer(path: str | os.PathLike[str], timeout: float = 0) -> Iterator[None]:
    """Hold the lock of a file: `.NAME.lock` beside it, or beside the target of a link.

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
