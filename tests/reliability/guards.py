"""Removes each check of `formats/` in turn and sees whether a test notices.  Prints one JSON object.

    python -m tests.reliability.guards [--every N] [--only WORD] [--jobs N] [TESTS]

A check is a `raise` that refuses a file (CorruptError, LimitError, UnsupportedFileError, `corrupt(...)`).  Its removal
changes nothing unless it is reached, so that one run of the tests finds, for each check, the tests that reach it; then
these alone are run against the package without the check, the quickest first and until one fails, each time in a fork
of the process that ran them all, in which the code of the function around the check is exchanged.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import resource
import sys
import time
import types
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest

from formats import errors
from tests import ROOT

TESTS = [
    "tests/format_conformance",
    "tests/formats",
    "tests/tsc_cli/cli/test_cli_recover.py",
    "tests/tsc_cli/compression/test_compression.py",
    "tests/tsc_cli/session/test_append.py",
]
# without tests that do the same many times, and what only the second reader is asked
REPEATED = " and ".join(
    f"not {words}"
    for words in (
        "mutants",
        "truncation",
        "zeroed",
        "flipped_bits",
        "every_bit",
        "damaged_byte",
        "(test_second_reader and liars)",
    )
)
REFUSALS = {"CorruptError", "LimitError", "UnsupportedFileError", "corrupt"}
MOST, SECONDS = 60, 10.0  # tests tried of those that reach a check, and how long they take; more say the same
CPU = 30  # seconds of a fork: without a check, reading may never end, which is noticed, too
MEMORY = 16 << 30


@dataclass(frozen=True)
class Guard:
    """One `raise`, by its lines."""

    module: str
    file: str
    first: int
    last: int

    @property
    def name(self) -> str:
        line = (ROOT / self.file).read_text().splitlines()[self.first - 1].strip()
        return f"{self.file}:{self.first}: {line}"


def guards() -> list[Guard]:
    found = []
    for path in sorted((ROOT / "formats").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                called = node.exc.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                if name in REFUSALS:
                    last = node.end_lineno or node.lineno
                    found.append(Guard(module, str(path.relative_to(ROOT)), node.lineno, last))
    return found


class Watch:
    """Notes which test reaches which check: a refusal is made inside of its `raise`."""

    def __init__(self, known: list[Guard]) -> None:
        self.reached: dict[Guard, list[str]] = defaultdict(list)
        self._lines = {(str(ROOT / one.file), line): one for one in known for line in range(one.first, one.last + 1)}
        self._test = ""
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.seconds[report.nodeid] = report.duration

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._test = item.nodeid

    def quickest(self, guard: Guard) -> list[str]:
        """Tests that reach a check, by duration; no more than say something new."""
        found, seconds = [], 0.0
        for test in sorted(set(self.reached.get(guard, [])), key=lambda one: self.seconds.get(one, 99.0)):
            seconds += self.seconds.get(test, 0.0)
            if len(found) == MOST or (found and seconds > SECONDS):
                break
            found.append(test)
        return found

    def install(self) -> None:
        made = errors.TscError.__init__

        def noting(problem: errors.TscError, *arguments: Any, **named: Any) -> None:
            frame: types.FrameType | None = sys._getframe(1)  # noqa: SLF001
            for _ in range(4):  # `corrupt` stands between
                if frame is None:
                    break
                guard = self._lines.get((frame.f_code.co_filename, frame.f_lineno))
                if guard and (not self.reached[guard] or self.reached[guard][-1] != self._test):
                    self.reached[guard].append(self._test)
                frame = frame.f_back
            made(problem, *arguments, **named)

        errors.TscError.__init__ = noting  # type: ignore[method-assign]


class _Remove(ast.NodeTransformer):
    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.copy_location(ast.Pass(), node) if node.lineno == self._guard.first else node


def remove(guard: Guard) -> None:
    """Exchange the code of the function that holds the check, in this process."""
    path = ROOT / guard.file
    tree = ast.fix_missing_locations(_Remove(guard).visit(ast.parse(path.read_text())))
    codes: dict[str, types.CodeType] = {}
    _collect(compile(tree, str(path), "exec"), codes)
    module = importlib.import_module(guard.module)
    holders = [module, *(value for value in vars(module).values() if isinstance(value, type))]
    exchanged = 0
    for holder in holders:
        for value in list(vars(holder).values()):
            for one in (value, *(getattr(value, name, None) for name in ("__wrapped__", "__func__", "fget", "func"))):
                if isinstance(one, types.FunctionType) and one.__module__ == guard.module:
                    new = codes.get(f"{one.__code__.co_qualname}:{one.__code__.co_firstlineno}")
                    if new is not None:
                        one.__code__ = new
                        exchanged += 1
    assert exchanged, guard.name


def _collect(code: types.CodeType, into: dict[str, types.CodeType]) -> None:
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            into[f"{one.co_qualname}:{one.co_firstlineno}"] = one
            _collect(one, into)


@contextlib.contextmanager
def silence() -> Any:
    """What pytest prints is of no interest here."""
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)


class Session:
    """Runs all tests once, and then, for each check, those that reach it in a fork that lacks it."""

    def __init__(self, chosen: list[Guard], watch: Watch, jobs: int) -> None:
        self._chosen, self._watch, self._jobs = chosen, watch, jobs
        self._failed: list[str] = []
        self.survivors: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.append(report.nodeid)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        assert session.items, "there are no tests"
        assert not session.testsfailed, "some tests cannot be collected"
        begin = time.monotonic()
        self._run(session.items)
        assert not self._failed, f"tests fail as they are: {', '.join(self._failed[:9])}"
        tell(f"{len(session.items)} tests once in {time.monotonic() - begin:.0f} s")
        self._remove_each({item.nodeid: item for item in session.items})
        return True

    def _run(self, items: list[pytest.Item], *, until_failure: bool = False) -> None:
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if until_failure and self._failed:
                return

    def _remove_each(self, items: dict[str, pytest.Item]) -> None:
        running: dict[int, Guard] = {}
        for guard in self._chosen:
            tests = [items[name] for name in self._watch.quickest(guard)]
            if not tests:
                self._survived(guard, "  [no test reaches it]")
                continue
            if len(running) >= self._jobs:
                self._reap(running)
            pid = os.fork()
            if pid == 0:
                self._without(guard, tests)
            running[pid] = guard
        while running:
            self._reap(running)

    def _without(self, guard: Guard, tests: list[pytest.Item]) -> None:
        """In a fork: exit code 0 where no test fails, 1 where one does."""
        code = 77
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            remove(guard)
            self._run(tests, until_failure=True)
            code = 1 if self._failed else 0
        except BaseException as problem:  # a test that ends the session
            tell(f"{guard.name}: {problem!r}")
        finally:
            os._exit(code)

    def _reap(self, running: dict[int, Guard]) -> None:
        pid, status = os.wait()
        guard, code = running.pop(pid), os.waitstatus_to_exitcode(status)
        assert code in (0, 1) or code < 0, (guard.name, code)
        if code == 0:
            self._survived(guard)

    def _survived(self, guard: Guard, note: str = "") -> None:
        self.survivors.append(guard.name + note)
        tell(self.survivors[-1])


def tell(what: str) -> None:
    print(what, file=sys.__stderr__, flush=True)


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--every", type=int, default=1, help="remove one of so many checks")
    words.add_argument("--only", default="", help="remove those whose file or line has this in it")
    words.add_argument("--jobs", type=int, default=1, help="how many forks at once")
    words.add_argument("tests", nargs="*", default=TESTS, help="files or folders of tests, instead of all that matter")
    asked = words.parse_args()
    known = guards()
    watch = Watch(known)
    watch.install()
    chosen = [one for one in known if asked.only in one.name][:: asked.every]
    session, begin = Session(chosen, watch, asked.jobs), time.monotonic()
    with silence():
        # what tests print must not be kept back by a fork: -s
        code = pytest.main(
            ["-q", "-s", "-p", "no:cacheprovider", "-k", REPEATED, "-m", "not full", *asked.tests],
            plugins=[watch, session],
        )
    assert code == 0, "the tests fail as they are"
    tell(f"{len(chosen)} removed in {time.monotonic() - begin:.0f} s")
    found = {"removed": len(chosen), "noticed": len(chosen) - len(session.survivors), "survivors": session.survivors}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
