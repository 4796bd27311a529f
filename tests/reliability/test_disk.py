"""Every call that writes made to fail in turn: the old file stays, nothing else is left, one line, exit 2."""

from __future__ import annotations

import errno
import io
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from formats import load, save
from formats.errors import StorageError
from formats.file import check
from tests.reliability.test_processes import TEXT
from tests.support.traces import finite_rows, growing_trace
from tsc_cli.cli.main import run

FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
Job = Callable[[], int]


class Disk:
    """Counts the calls that change a disk, and makes one of them fail.

    Args:
        failing: the number of the call that fails; -1 for none.
        fault: its errno.
        short: every write takes only some of the bytes that it is given, as a system call may.
    """

    def __init__(self, failing: int = -1, fault: int = 0, *, short: bool = False) -> None:
        self.failing, self.fault, self.short = failing, fault, short
        self.calls: list[str] = []

    def call(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self.failing:
            raise OSError(self.fault, os.strerror(self.fault))


class Raw(io.FileIO):
    """The file below the buffer: a `write` here is a system call."""

    disk: Disk

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        self.disk.call("write")
        return super().write(view[: max(1, len(view) // 3)] if self.disk.short else view)


@contextmanager
def on(disk: Disk) -> Iterator[None]:
    """All writing inside of the block goes to `disk`."""
    with pytest.MonkeyPatch.context() as patch:

        def through(name: str) -> None:
            real = getattr(os, name)

            def called(*arguments: Any, **named: Any) -> Any:
                disk.call(name)
                return real(*arguments, **named)

            patch.setattr(os, name, called)

        def fdopen(descriptor: int, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if mode != "wb":
                return real_fdopen(descriptor, mode, *arguments, **named)
            raw = Raw(descriptor, "wb")
            raw.disk = disk
            return io.BufferedWriter(raw)

        def create(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            if flags & os.O_CREAT and str(path).endswith(".tmp"):
                disk.call("open")
            return real_open(path, flags, *arguments, **named)

        real_fdopen, real_open = os.fdopen, os.open
        patch.setattr(os, "fdopen", fdopen)
        for name in ("fsync", "replace", "link", "fchmod"):
            through(name)
        patch.setattr(os, "open", create)
        yield


@contextmanager
def at_most_bytes(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the kernel itself refuses the write, in the middle of it if need be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def damaged(source: Path) -> Path:
    """The source without its end."""
    path = source.with_name("damaged.tsc")
    path.write_bytes(source.read_bytes()[:-10])
    return path


@pytest.fixture(scope="session")
def source(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "source.tsc"
    assert run(["capture", TEXT, "-m", str(small_model), "-o", str(path), "--steps", "4", "-q"]) == 0
    return path


def saving(path: Path) -> int:
    """`save` is not a command; its error is the line that a command would show."""
    try:
        save(growing_trace(lengths=(900, 1_000), rows=finite_rows), path, overwrite=True)
    except StorageError as error:
        print(f"tsc: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def appending(model: Path, path: Path) -> list[str]:
    return ["capture", "--append", str(path), TEXT[:9], "-m", str(model), "--steps", "1", "-q"]


def recovering(damaged: Path, path: Path) -> list[str]:
    return ["recover", str(damaged), "-o", str(path), "--force", "-q"]


def jobs(source: Path, damaged: Path, model: Path, path: Path) -> dict[str, Job]:
    """A few jobs that write `path`, which holds a copy of `source`."""
    lossy = ["compress", str(source), "--codec", "scalar", "--no-verify", "-o", str(path), "--force", "-q"]
    words = ["-m", str(model), "-q"]
    return {
        "save": lambda: saving(path),
        "compress": lambda: run(lossy),
        "record": lambda: run(["verify", str(path), "--record", "--positions", "8", "--greedy", "0", *words]),
        "capture": lambda: run(["capture", TEXT, "-o", str(path), "--steps", "2", "--force", *words]),
        "append": lambda: run(appending(model, path)),
        "recover": lambda: run(recovering(damaged, path)),
    }


def others(path: Path) -> list[str]:
    """What lies beside a file, but for the lock of those that append to it."""
    return [one.name for one in path.parent.iterdir() if one.name not in (path.name, f".{path.name}.lock")]


@pytest.mark.parametrize("every", [pytest.param(11, id="some"), pytest.param(1, id="all", marks=pytest.mark.full)])
@pytest.mark.parametrize("job", ["save", "compress", "record", "capture", "append", "recover"])
def test_every_call_fails_in_turn(
    job: str,
    every: int,
    source: Path,
    damaged: Path,
    small_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tally: Any,
) -> None:
    path = tmp_path / "t.tsc"
    do = jobs(source, damaged, small_model, path)[job]
    old = source.read_bytes()
    path.write_bytes(old)
    if job in ("append", "record"):  # the lock is made once
        with on(Disk(0, errno.EROFS)):
            assert do() == 2
        assert capsys.readouterr().err == f"tsc: error: {path}: cannot be locked: Read-only file system\n"
    with on(disk := Disk()):
        assert do() == 0
    size = path.stat().st_size
    assert path.read_bytes() != old
    assert disk.calls.count("fsync") == 2
    renamed = disk.calls.index("replace")

    def assert_intact(what: str, *, new: bool = False) -> None:
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if "error" in line] == [lines[-1]], what
        assert lines[-1].startswith(f"tsc: error: {path}: cannot be written: "), what
        if new:  # the rename was done, and only how long it lasts is in doubt
            check.check(path)
        else:
            assert path.read_bytes() == old, what
        assert not others(path), what
        path.write_bytes(old)

    path.write_bytes(old)
    capsys.readouterr()
    with tally("disk full, I/O error, short write") as counts:
        last_ones = range(len(disk.calls) - 4, len(disk.calls))
        for number, name in enumerate(disk.calls):
            for fault in FAULTS.values() if number % every == 0 or number in last_ones else ():
                with on(Disk(number, fault)):
                    assert do() == 2, (name, number)
                assert_intact(f"{name}, call {number}", new=number > renamed)
                counts["calls failed"] += 1
        for limit in range(1, size, max(1, size * every // 12)):
            with at_most_bytes(limit):
                assert do() == 2
            assert_intact(f"at most {limit} bytes")
            counts["files cut off by the kernel"] += 1
        with on(disk := Disk(short=True)):
            assert do() == 0
        assert load(path).snapshot() is not None
        counts["short writes made up for"] += disk.calls.count("write")
        counts["damaged or missing originals"] += 0


@pytest.mark.parametrize("every", [pytest.param(19, id="some"), pytest.param(1, id="all", marks=pytest.mark.full)])
def test_every_read_fails_in_turn(
    every: int,
    source: Path,
    damaged: Path,
    small_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tally: Any,
) -> None:
    """A disk that cannot be read is no damage: nothing is recovered without what it may still give."""
    path, new = tmp_path / "t.tsc", tmp_path / "new.tsc"
    path.write_bytes(source.read_bytes())
    with tally("disk full, I/O error, short write") as counts:
        for words, file in (
            (["doctor", str(path)], path),
            (recovering(damaged, new), damaged),
            (appending(small_model, path), path),
        ):
            held = file.read_bytes()
            number = 0
            while True:
                with failing_reads(number) as reads:
                    code = run(words)
                if not reads.failed:
                    break
                error = capsys.readouterr().err
                assert code == 2, (words, number, error)
                said = [f"tsc: error: {one}: cannot be read: Input/output error" for one in (file, new)]  # read back
                assert error.startswith(tuple(said)), (words, error)
                assert len([line for line in error.splitlines() if "error" in line]) == 1
                assert file.read_bytes() == held
                assert not new.exists()
                assert not others(path)
                counts["reads failed"] += 1
                number += every
            assert code == 0
            new.unlink(missing_ok=True)
            path.write_bytes(source.read_bytes())
        counts["damaged or missing originals"] += 0


class Reads:
    failed = False


@contextmanager
def failing_reads(number: int) -> Iterator[Reads]:
    """The read of this number fails, of a .tsc file."""
    reads, left, real = Reads(), [number], os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        left[0] -= 1
        if left[0] == -1:
            reads.failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, length, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", pread)
        yield reads
