"""Processes that are born with everything imported, to be killed, interrupted and starved by tests.

Importing torch and transformers takes seconds; a fork of a process that has done so takes milliseconds.  The process
that forks is not the one of the tests, so that no thread pool of theirs is carried over.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.reliability import sessions
from tests.reliability.sessions import append_in_turn, read_in_turn

MIB = 1 << 20


def save_in_turn(path: str, lengths: list[int], times: int, stop: str = "", begun: str = "") -> int:
    """Save traces of these lengths over one another, for ever or so many times; then make the file `stop`.

    The file `begun` is made when the traces are.
    """
    from formats import save
    from tests.support.traces import growing_trace

    traces = [growing_trace(lengths=(length,)) for length in lengths]
    if begun:
        Path(begun).touch()
    done = 0
    while done < times or not times:
        save(traces[done % len(traces)], path, overwrite=True, deterministic=True)
        done += 1
    Path(stop).touch()
    return 0


def read_until(path: str, stop: str, whole: list[str]) -> int:
    """Check a file until `stop` exists; prints how often.  Fails if it is ever anything but one of these files."""
    from formats.file import check

    reads = 0
    while not Path(stop).exists():
        file = check.check(path)
        size, descriptor = file.size, file.reader.fd
        if os.pread(descriptor, size + 1, 0).hex() not in whole:
            print("read something else")
            return 1
        reads += 1
    print(reads)
    return 0


def command_line(words: list[str], headroom: int = -1) -> int:
    """`tsc WORDS`, with so many bytes of address space more than the process has already; -1 for no limit."""
    from tsc_cli.cli.main import main

    _limit(headroom)
    main(words)
    return 0


def restore(path: str, model: str, headroom: int) -> int:
    """Restore the last snapshot; prints `restored N` layers or the class of the error."""
    from formats import load
    from tsc_cli import to_cache
    from tsc_cli.huggingface.models.loading import load as load_model

    loaded = load_model(model, dtype="float32", device="cpu", fetch=False, say=print)
    cache = None
    _limit(headroom)
    try:
        # the weights are not hashed: Python waits forever for a thread that runs out of memory as it starts
        cache = to_cache(load(path), loaded.model, allow_model_mismatch=True)
    except Exception as error:
        _limit(-1)
        print(f"{type(error).__name__}: {error} {'half' if cache is not None else 'none'}")
        return 2
    _limit(-1)
    print(f"restored {sum(layer.keys is not None for layer in cache.layers)}")
    return 0


def _limit(headroom: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (hard if headroom < 0 else now + headroom, hard))


JOBS: dict[str, Callable[..., int]] = {
    job.__name__: job for job in (save_in_turn, read_until, command_line, restore, append_in_turn, read_in_turn)
}


def serve() -> None:
    """Answer lines of JSON.

    {"job", "arguments", "log"} -> pid once it runs; {"wait": pid} -> its exit code; {"run": words} -> the exit code of
    `tsc` in this process, so that whatever it imports is there for all that follow.
    """
    import torch
    import transformers  # noqa: F401

    import tsc_cli.cli.app
    import tsc_cli.compression.compressor
    import tsc_cli.huggingface.models.loading
    import tsc_cli.session.append
    import tsc_cli.session.capture
    import tsc_cli.verification.verify  # noqa: F401
    from tsc_cli.cli.main import run

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        if "run" in asked:
            with contextlib.redirect_stdout(sys.stderr):
                code = run(asked["run"])
            print(code, flush=True)
            continue
        if asked["job"] == "append_in_turn":
            sessions.model()
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            _child(asked, tell)
        os.close(tell)
        os.read(told, 1)
        os.close(told)
        print(pid, flush=True)


def _child(asked: dict[str, Any], tell: int) -> None:
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.dump_traceback_later(600, exit=True)  # nobody waits for one that hangs
    code = 99
    try:
        os.write(tell, b".")
        os.close(tell)
        code = JOBS[asked["job"]](**asked["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Nursery:
    """The process that forks, seen from a test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert self._line() == "ready"

    def start(self, job: str, log: str = "log", **arguments: Any) -> int:
        """Fork a process that does a job; returns its number once it has begun."""
        path = str(self._folder / log)
        return int(self._ask({"job": job, "arguments": arguments, "log": path}))

    def wait(self, pid: int) -> int:
        """The exit code, or minus the number of the signal that ended it."""
        return int(self._ask({"wait": pid}))

    def run(self, words: list[str]) -> int:
        """`tsc` in the process that forks."""
        return int(self._ask({"run": words}))

    def log(self, log: str = "log") -> str:
        return (self._folder / log).read_text()

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, what: dict[str, Any]) -> str:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


if __name__ == "__main__":
    serve()
