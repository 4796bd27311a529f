"""Check that a disk has room before writing something large, and explain failed writes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from formats.errors import StorageError, TscError
from tsc_cli.text_format import size

from .network_errors import cause_of, first_line

# bytes that stay free: a disk that is full to the last byte makes other programs fail
_SPARE = 64 << 20


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise StorageError if `needed` bytes do not fit on the disk of `folder`, present or not."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:  # a file system that does not say
        return
    if free < needed + _SPARE:
        raise StorageError(
            f"{what} takes {size(needed)}, and {size(free)} are free",
            path=str(folder),
            hint="make room (tsc models shows what is kept), or set TSC_CACHE and HF_HOME to folders on another disk",
        )


@contextlib.contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Turn every other error of the block into a StorageError that says why."""
    try:
        yield
    except (TscError, MemoryError):
        raise
    except Exception as error:  # libraries in Rust say "disk full" in errors of their own
        cause = cause_of(error)
        if cause.local:
            raise StorageError(f"{what} cannot be stored: {cause.text}", path=str(folder), hint=cause.hint) from error
        raise StorageError(f"{what} cannot be stored: {first_line(error)}", path=str(folder)) from error
