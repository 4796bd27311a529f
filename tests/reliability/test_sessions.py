"""Sessions that grow: what was acknowledged is there, whoever is killed, and whoever writes and reads meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from formats import Trace, load, save
from formats.container.atomic_write import only_writer
from formats.file.check import check
from tests.reliability.nursery import Nursery
from tests.reliability.sessions import PROMPT_TOKENS, model
from tests.reliability.test_processes import TEXT, captured  # noqa: F401  a fixture
from tests.support.models import prompt
from tests.support.traces import same_snapshots
from tsc_cli import capture

full = pytest.mark.full
LONGEST = 48  # snapshots


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session that every other one is a beginning of, captured in one go."""
    path = tmp_path_factory.mktemp("whole") / "whole.tsc"
    save(capture(model(), prompt(PROMPT_TOKENS), steps=LONGEST + 12), path)
    return path


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A session of one snapshot."""
    path = tmp_path_factory.mktemp("begun") / "begun.tsc"
    save(capture(model(), prompt(PROMPT_TOKENS), steps=0), path)
    return path.read_bytes()


def snapshots_of(path: Path, whole: Trace, *, every: bool = False) -> int:
    """How many a session has, which passes the strict check and is the beginning of `whole`; every row compared."""
    trace = check(path).trace()
    for number in range(len(trace)) if every else (len(trace) - 1,):
        assert same_snapshots(trace.snapshot(number), whole.snapshot(number)), number
    return len(trace)


@pytest.mark.parametrize("moments", [pytest.param(20, id="20"), pytest.param(300, id="300", marks=full)])
def test_killed_while_appending(
    moments: int, nursery: Nursery, whole: Path, begun: bytes, tmp_path: Path, tally: Any
) -> None:
    path, random, expected = tmp_path / "t.tsc", Random(moments), load(whole)
    path.write_bytes(begun)
    path.chmod(0o600)  # which an append keeps
    for _ in range(2):  # the first process waits for the model
        started = time.monotonic()
        assert nursery.wait(nursery.start("append_in_turn", session=str(path), each=2, times=2)) == 0, nursery.log()
        took = time.monotonic() - started
    known = snapshots_of(path, expected, every=True)
    assert known == 5
    with tally("SIGKILL while writing") as counts:
        for _ in range(moments):
            pid = nursery.start("append_in_turn", session=str(path), each=1, times=0)
            time.sleep(random.uniform(0.0, 2 * took))
            os.kill(pid, signal.SIGKILL)
            assert nursery.wait(pid) == -signal.SIGKILL, nursery.log()
            acknowledged = [int(line) for line in nursery.log().split()]
            told = max(acknowledged, default=known)
            assert acknowledged == list(range(known + 1, told + 1))
            known = snapshots_of(path, expected)
            assert known in (told, told + 1)  # acknowledged, or on the disk and not yet acknowledged
            with only_writer(path):  # raises where the lock is held
                pass
            counts["moments in append mode"] += 1
            counts["appends acknowledged"] += len(acknowledged)
            left = [one for one in tmp_path.iterdir() if one.suffix == ".tmp"]
            counts["of the moments in the middle of a file"] += len(left) > counts["temporaries that stay"]
            counts["temporaries that stay"] = len(left)
            assert all(one.name.startswith(".t.tsc.") and one.stat().st_mode & 0o777 == 0o600 for one in left)
            if known > LONGEST:
                snapshots_of(path, expected, every=True)
                path.write_bytes(begun)
                known = 1
        counts["acknowledged snapshots lost"] += 0
        snapshots_of(path, expected, every=True)
        del counts["temporaries that stay"]
    # how many, depends on what else the machine does
    assert counts["appends acknowledged"] >= moments / 20
    assert counts["of the moments in the middle of a file"] >= moments / 20
    # what stays of those that were killed is in nobody's way
    assert nursery.wait(nursery.start("append_in_turn", session=str(path), each=1, times=1)) == 0, nursery.log()
    assert snapshots_of(path, expected, every=True) == known + 1


WRITERS, READERS, EACH = 4, 4, 10


@pytest.mark.parametrize("times", [pytest.param(10, id="8x10"), pytest.param(200, id="8x200", marks=full)])
def test_writers_and_readers(
    times: int, nursery: Nursery, whole: Path, begun: bytes, tmp_path: Path, tally: Any
) -> None:
    """Processes that append and processes that read, all at once; a new session after each 40 snapshots."""
    session, expected = f"{tmp_path}/{{}}.tsc", load(whole)
    paths = [Path(session.format(number)) for number in range(times // EACH)]
    for path in paths:
        path.write_bytes(begun)
    length = WRITERS * EACH + 1
    with tally("two writers, a reader during append") as counts:
        writers = [
            nursery.start("append_in_turn", f"writer{number}", session=session, each=EACH, times=times)
            for number in range(WRITERS)
        ]
        readers = [
            nursery.start(
                "read_in_turn", f"reader{number}", session=session, length=length, times=times, whole=str(whole)
            )
            for number in range(READERS)
        ]
        acknowledged: list[list[int]] = []
        for number, writer in enumerate(writers):
            assert nursery.wait(writer) == 0, nursery.log(f"writer{number}")
            acknowledged.append([int(line) for line in nursery.log(f"writer{number}").split()])
            counts["processes that append"] += 1
        for number, path in enumerate(paths):
            mine = [one for told in acknowledged for one in told[number * EACH : (number + 1) * EACH]]
            assert sorted(mine) == list(range(2, length + 1))  # none twice, none lost
            assert snapshots_of(path, expected, every=True) == length
            counts["appends"] += len(mine)
        counts["appends lost or doubled"] += 0
        for number, reader in enumerate(readers):
            assert nursery.wait(reader) == 0, nursery.log(f"reader{number}")
            reads = int(nursery.log(f"reader{number}"))
            assert reads >= times
            counts["processes that read"] += 1
            counts["reads"] += reads
        counts["reads of anything but a beginning of the session"] += 0
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_second_writer_is_refused_and_may_wait(
    nursery: Nursery,
    captured: Path,  # noqa: F811
    small_model: Path,
    whole: Path,
    begun: bytes,
    tmp_path: Path,
    tally: Any,
) -> None:
    """The command says so in a line and exits with 2; a caller who gives it time waits."""
    path = tmp_path / "t.tsc"
    path.write_bytes(captured.read_bytes())
    words = ["capture", "--append", str(path), TEXT[:9], "-m", str(small_model), "--steps", "1", "-q"]
    with tally("two writers, a reader during append") as counts:
        with only_writer(path):
            assert nursery.wait(nursery.start("command_line", words=words)) == 2
        assert nursery.log() == f"tsc: error: {path}: another process is writing to it\n"
        assert path.read_bytes() == captured.read_bytes()
        counts["second writers refused"] += 1
        assert nursery.wait(nursery.start("command_line", words=words)) == 0, nursery.log()
        assert len(check(path).views) > len(check(captured).views)
        path.write_bytes(begun)
        with only_writer(path):
            pid = nursery.start("append_in_turn", session=str(path), each=1, times=1)
            time.sleep(0.5)
            assert nursery.log() == ""
            assert path.read_bytes() == begun
        assert nursery.wait(pid) == 0
        assert snapshots_of(path, load(whole)) == 2
        counts["second writers that waited"] += 1
