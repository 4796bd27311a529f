"""Processes killed, interrupted, starved and disturbed: old file or new file, never less, and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from formats import LayerSpec, load, save
from formats.file.check import check
from tests.reliability.nursery import MIB, Nursery
from tests.support.traces import finite_rows, growing_trace, same_snapshots

TEXT = "".join(f"line {n} of a text that is fed to a small model, {n * n % 97}; " for n in range(12))
full = pytest.mark.full


def saved(path: Path, length: int) -> bytes:
    """The bytes that `save_in_turn` makes."""
    save(growing_trace(lengths=(length,)), path, deterministic=True, overwrite=True)
    return path.read_bytes()


@pytest.mark.parametrize("moments", [pytest.param(12, id="12"), pytest.param(300, id="300", marks=full)])
def test_killed_while_writing(
    moments: int, nursery: Nursery, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tally: Any
) -> None:
    begun = tmp_path_factory.mktemp("begun") / "begun"
    path, random = tmp_path / "t.tsc", Random(moments)
    whole = {saved(tmp_path / "made", length) for length in (6_000, 7_000)}
    (tmp_path / "made").unlink()
    seen: set[Path] = set()
    with tally("SIGKILL while writing") as counts:
        for _ in range(moments):
            before = path.read_bytes() if path.exists() else None
            pid = nursery.start("save_in_turn", path=str(path), lengths=[6_000, 7_000], times=0, begun=str(begun))
            while not begun.exists():  # where others keep the machine busy, to make the traces takes longer than all
                time.sleep(0.001)
            begun.unlink()
            time.sleep(random.uniform(0.0, 0.15))
            os.kill(pid, signal.SIGKILL)
            assert nursery.wait(pid) == -signal.SIGKILL, nursery.log()
            if path.exists():
                assert path.read_bytes() in whole
            else:
                assert before is None
            counts["moments"] += 1
            for left in set(tmp_path.iterdir()) - seen - {path}:
                seen.add(left)
                assert left.name.startswith(".t.tsc.")
                assert left.name.endswith(".tmp")
                assert left.stat().st_mode & 0o777 == 0o600
                counts["of them in the middle of a file"] += 1
                if counts["moments"] % 8:  # some stay for those that follow, as they do where nobody looks
                    left.unlink()
        counts["files that were neither old nor new"] += 0
    assert counts["of them in the middle of a file"] > moments / 4
    # leftovers are in nobody's way
    save(growing_trace(), path, overwrite=True)
    check(path)


@pytest.mark.parametrize("times", [pytest.param(40, id="40"), pytest.param(200, id="200", marks=full)])
def test_read_during_replacement(times: int, nursery: Nursery, tmp_path: Path, tally: Any) -> None:
    path, stop = tmp_path / "t.tsc", tmp_path / "stop"
    lengths = [600, 900]
    whole = [saved(path, length).hex() for length in lengths]
    with tally("a reader during replacement") as counts:
        readers = [
            nursery.start("read_until", f"reader{number}", path=str(path), stop=str(stop), whole=whole)
            for number in range(4)
        ]
        writer = nursery.start("save_in_turn", "writer", path=str(path), lengths=lengths, times=times, stop=str(stop))
        assert nursery.wait(writer) == 0, nursery.log("writer")
        counts["replacements"] += times
        for number, reader in enumerate(readers):
            assert nursery.wait(reader) == 0, nursery.log(f"reader{number}")
            counts["readers"] += 1
            counts["reads"] += int(nursery.log(f"reader{number}"))
        counts["reads of anything else"] += 0
    assert counts["reads"] > times / 4


@pytest.fixture(scope="session")
def captured(small_model: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "captured.tsc"
    assert nursery.run(capture(small_model, path)) == 0
    return path


def capture(model: Path, path: Path) -> list[str]:
    return ["capture", TEXT, "-m", str(model), "-o", str(path), "--steps", "24", "--force"]


def compress(source: Path, path: Path) -> list[str]:
    return ["compress", str(source), "-t", "20x", "--no-verify", "-o", str(path), "--force"]


def appending(model: Path, path: Path) -> list[str]:
    return ["capture", "--append", str(path), "and more", "-m", str(model), "--steps", "8"]


def recovering(source: Path, path: Path) -> list[str]:
    """From the source without its end."""
    damaged = source.with_name("damaged.tsc")
    damaged.write_bytes(source.read_bytes()[:-10])
    return ["recover", str(damaged), "-o", str(path), "--force"]


def is_whole(path: Path) -> bool:
    return check(path).trace().snapshot() is not None


@pytest.mark.parametrize("moments", [pytest.param(4, id="4"), pytest.param(60, id="60", marks=full)])
def test_interrupted(
    moments: int, nursery: Nursery, small_model: Path, captured: Path, tmp_path: Path, tally: Any
) -> None:
    path, random = tmp_path / "t.tsc", Random(moments)
    with tally("Ctrl-C") as counts:
        for words in (
            capture(small_model, path),
            compress(captured, path),
            appending(small_model, path),
            recovering(captured, path),
        ):
            path.write_bytes(captured.read_bytes())
            begin = time.monotonic()
            assert nursery.wait(nursery.start("command_line", words=words)) == 0, nursery.log()
            took = time.monotonic() - begin
            old, done = path.read_bytes(), 0
            while done < moments // 4:
                path.write_bytes(old)
                pid = nursery.start("command_line", words=words)
                time.sleep(random.uniform(0.0, took))
                for _ in range(1 + done % 3):  # a key may be held
                    os.kill(pid, signal.SIGINT)
                    time.sleep(0.005)
                code, log = nursery.wait(pid), nursery.log()
                assert "Traceback" not in log
                assert {one.name for one in tmp_path.iterdir()} <= {"t.tsc", ".t.tsc.lock"}
                if code == 0:  # it was quicker
                    assert is_whole(path)
                    continue
                assert (code, log.splitlines()[-1]) == (130, "interrupted"), log
                assert path.read_bytes() == old or is_whole(path)
                done += 1
                counts["moments"] += 1
        counts["other ends than exit 130"] += 0


@full
def test_interrupted_from_its_start(captured: Path, small_model: Path, tmp_path: Path, tally: Any) -> None:
    """Real processes, in the seconds in which libraries are imported, too."""
    path, random = tmp_path / "t.tsc", Random(0)
    with tally("Ctrl-C") as counts:
        for number in range(10):
            words = (capture(small_model, path), compress(captured, path))[number % 2]
            process = subprocess.Popen(
                [sys.executable, "-c", "from tsc_cli.cli.main import main; print(flush=True); main()", *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stdout
            process.stdout.readline()
            time.sleep(random.uniform(0.05, 3.0))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
            assert "Traceback" not in errors
            assert not [one for one in tmp_path.iterdir() if one != path]
            if process.returncode != 0:
                assert (process.returncode, errors.splitlines()[-1]) == (130, "interrupted"), errors
                counts["moments"] += 1
                counts["of them from a fresh start"] += 1
            path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.tsc"
    save(growing_trace(dtype="float32", lengths=(20_000, 30_000), rows=finite_rows), path)
    return path


FEW = [0, 1, 4]
MANY = [0.0, 0.2, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32]


@pytest.mark.parametrize("headrooms", [pytest.param(FEW, id="some"), pytest.param(MANY, id="many", marks=full)])
def test_out_of_memory(headrooms: list[float], nursery: Nursery, large: Path, tmp_path: Path, tally: Any) -> None:
    path = tmp_path / "t.tsc"
    with tally("out of memory") as counts:
        for words in (
            ["test", str(large)],
            ["inspect", str(large)],
            ["inspect", str(large), "--json"],
            ["compress", str(large), "--codec", "scalar", "--no-verify", "-o", str(path)],
            ["compress", str(large), "-t", "4x", "--no-verify", "-o", str(path)],
            ["doctor", str(large)],
            recovering(large, path)[:-1],
        ):
            for megabytes in headrooms:
                pid = nursery.start("command_line", words=words, headroom=int(megabytes * MIB))
                code, log = nursery.wait(pid), nursery.log()
                counts["runs"] += 1
                if code == 0:
                    assert path.exists() == (words[0] in ("compress", "recover"))
                    assert words[0] != "recover" or len(check(path).views) == 2
                    path.unlink(missing_ok=True)
                    continue
                lines = log.splitlines()
                assert (code, lines.count("tsc: error: out of memory")) == (2, 1), (words, megabytes, log)
                assert not any("Traceback" in line or "bug" in line for line in lines)
                assert list(tmp_path.iterdir()) == []
                counts["refused for lack of memory"] += 1
    assert counts["refused for lack of memory"] >= len(headrooms)


@pytest.mark.parametrize("headrooms", [pytest.param(FEW, id="some"), pytest.param(MANY, id="many", marks=full)])
def test_no_half_restored_cache(
    headrooms: list[float], nursery: Nursery, small_model: Path, tmp_path: Path, tally: Any
) -> None:
    spec = LayerSpec("full", heads=2, key_size=12, value_size=12)
    save(growing_trace([spec] * 3, dtype="float32", lengths=(20_000,), rows=finite_rows), tmp_path / "t.tsc")
    with tally("out of memory") as counts:
        for megabytes in headrooms:
            room = int(2 * megabytes * MIB)
            pid = nursery.start("restore", path=str(tmp_path / "t.tsc"), model=str(small_model), headroom=room)
            code, log = nursery.wait(pid), nursery.log()
            counts["runs"] += 1
            counts["half-restored caches"] += 0
            last = log.splitlines()[-1]
            assert (code, last) == (0, "restored 3") or (code == 2 and last.endswith("none")), log
            counts["refused for lack of memory"] += code == 2
    assert counts["refused for lack of memory"] > 1


def test_the_large_file_is_what_it_says(large: Path) -> None:
    assert large.stat().st_size > 2 * MIB
    trace = load(large)
    assert same_snapshots(trace.snapshot(-1), trace.snapshot(1))
