"""An interrupted or failing write leaves the old file or the new one, and nothing else."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from formats import load, save
from formats.container.atomic_write import atomic_write
from formats.errors import StorageError, UsageError
from formats.file.check import check
from tests.support.traces import growing_trace

WRITER = """
import sys
from formats import save
from tests.support.traces import growing_trace
traces = [growing_trace(lengths=(length,)) for length in (600, 700)]
print("ready", flush=True)
while True:
    for trace in traces:
        save(trace, sys.argv[1], overwrite=True)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_mode_and_content(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "f") as file:
        file.write(b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file(tmp_path: Path, interruption: type[BaseException]) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(interruption), atomic_write(tmp_path / "f", overwrite=True) as file:
        file.write(b"half")
        raise interruption
    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_refusal_of_the_system_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    if call == "link":
        monkeypatch.setattr(os, "replace", full)  # what a file system without links falls back on
    with pytest.raises(StorageError, match="f: cannot be written: No space left on device"):
        with atomic_write(tmp_path / "f", overwrite=call == "replace") as file:
            file.write(b"new")
    assert names(tmp_path) == []


def test_without_hard_links_a_file_that_appeared_is_still_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    with atomic_write(tmp_path / "f") as file:
        file.write(b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    with pytest.raises(UsageError, match="exists already"):
        with atomic_write(tmp_path / "g") as file:
            (tmp_path / "g").write_bytes(b"somebody else's")
    assert (tmp_path / "g").read_bytes() == b"somebody else's"
    assert {one.name for one in tmp_path.iterdir()} == {"f", "g"}


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(UsageError, match="exists already"), atomic_write(tmp_path / "f"):
        pytest.fail("opened an output that exists")
    # one that appears while the output is being written is kept as well
    (tmp_path / "g").unlink(missing_ok=True)
    with pytest.raises(UsageError, match="exists already"), atomic_write(tmp_path / "g") as file:
        file.write(b"new")
        (tmp_path / "g").write_bytes(b"other")
    assert (tmp_path / "g").read_bytes() == b"other"
    assert names(tmp_path) == ["f", "g"]


def test_a_symbolic_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with atomic_write(tmp_path / "link", overwrite=True) as file:
        file.write(b"new")
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert not (tmp_path / "link").is_symlink()


def test_a_file_may_be_saved_over_itself(tmp_path: Path) -> None:
    save(growing_trace(), tmp_path / "t.tsc")
    trace = load(tmp_path / "t.tsc")
    save(trace, tmp_path / "t.tsc", overwrite=True)
    assert len(load(tmp_path / "t.tsc")) == len(trace)
    trace.snapshot()  # the old file, still open, is still whole
    check(tmp_path / "t.tsc")


@pytest.mark.full  # processes with a start of their own; the quick share of `tests/reliability` kills forks
def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.tsc"
    seen = set()
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.023 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if path.exists():
            seen.add(check(path).views[-1].tokens_seen)
    assert seen <= {600, 700}
    assert seen, "no attempt got as far as writing a file"


def test_interrupted_while_the_temporary_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def create(path: str, flags: int, mode: int = 0o777) -> int:
        os.close(real(path, flags, mode))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", create)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "t.tsc"):
        pass
    assert list(tmp_path.iterdir()) == []
