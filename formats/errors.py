"""The one hierarchy of errors that `formats` raises.

Each class carries the exit code that the command line gives it, so that a script can tell "you
asked for something wrong" (2) from "this file is damaged" (3) without parsing text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType


class TscError(Exception):
    """Something that `tsc` can name: what happened, where, and what to do next.

    Attributes:
        message: one line, without the file name.
        path: the file concerned, if any.
        offset: the byte offset in the file at which the problem starts, if known.
        record: the sequence number of the record concerned, if known.
        hint: what to do next, one line.
    """

    exit_code = 101

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        offset: int | None = None,
        record: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.offset = offset
        self.record = record
        self.hint = hint

    def __str__(self) -> str:
        where = [f"record {self.record}"] if self.record is not None else []
        if self.offset is not None:
            where.append(f"byte {self.offset}")
        place = f" ({', '.join(where)})" if where else ""
        prefix = f"{self.path}: " if self.path else ""
        return f"{prefix}{self.message}{place}"


class UsageError(TscError):
    """The request cannot be carried out as asked."""

    exit_code = 2


class StorageError(TscError):
    """The operating system refused to read or write."""

    exit_code = 2


class UnsupportedCacheError(TscError):
    """The model keeps a kind of cache that `tsc` cannot restore faithfully, so it refuses to store
    it.
    """

    exit_code = 2


class MismatchError(TscError):
    """The file belongs to another model than the one at hand."""

    exit_code = 2


class LockedError(TscError):
    """The file is encrypted, and the key is not at hand or is another one."""

    exit_code = 2


class CorruptError(TscError):
    """The bytes are not what their writer wrote, or the writer did not follow the format."""

    exit_code = 3


class UnsupportedFileError(TscError):
    """A well-formed file that needs a newer reader (major version, critical record type, codec)."""

    exit_code = 3


class LimitError(TscError):
    """More than a file may hold, or than the memory budget allows here: that says nothing against a
    file.
    """

    exit_code = 2


class PromiseError(TscError):
    """The asked tier or quality cannot be met."""

    exit_code = 4


@contextlib.contextmanager
def optional_packages(extra: str, purpose: str) -> Iterator[None]:
    """Turn the failing import of a package that is not installed into one line that says how to
    install it.

    Args:
        extra: of this project, which installs the package: crypto, gguf, plot.
        purpose: what needs it, as the subject of a sentence.
    Raises:
        UsageError: a package that is imported within is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise UsageError(
            f"{purpose} needs {package}, which is not installed", hint=f"pip install 'tsc-kv[{extra}]'"
        ) from error


class Locating:
    """A context in which an error that names no place learns where in which file it arose."""

    def __init__(self, path: str, offset: int | None = None, record: int | None = None) -> None:
        self._place = (path, offset, record)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # of what was asked, such as the key, not of a place in the file
        if isinstance(error, UsageError):
            error.path = error.path or self._place[0]
        elif isinstance(error, TscError) and error.path is None:
            error.path, error.offset, error.record = self._place
