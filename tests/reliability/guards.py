"""Removes each check of `formats/` in turn and sees whether a test notices.  Prints one JSON object.

    python -m tests.reliability.guards [--every N]

A check is a `raise` that refuses a file (CorruptError, LimitError, UnsupportedFileError, `corrupt(...)`).  Its removal
changes nothing unless it is reached, so that one run of the tests finds, for each check, the tests that reach it; then
these alone are run against the package without the check, each time in a fork of this process in which the code of
the function around it is exchanged.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import resource
import sys
import types
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from formats import errors

ROOT = Path(__file__).parents[2]
TESTS = [
    "tests/format", "tests/test_klt.py", "tests/test_profile.py", "tests/test_codecs.py", "tests/test_lossless.py",
    "tests/test_states.py", "tests/test_eviction.py", "tests/test_compression.py", "tests/test_entropy.py",
]  # fmt: skip
SLOW = "not mutants and not truncation and not zeroed and not flipped_bits_read_lazily"
REFUSALS = {"CorruptError", "LimitError", "UnsupportedFileError", "corrupt"}
MOST = 60  # tests tried of those that reach a check; more say the same


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

    def install(self) -> None:
        made = errors.TscError.__init__

        def noting(problem: errors.TscError, *arguments: Any, **named: Any) -> None:
            frame: types.FrameType | None = sys._getframe(1)
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


def run(tests: list[str], *words: str, plugins: list[Any] | None = None) -> int:
    with silence():
        return pytest.main([*words, "-q", "-p", "no:cacheprovider", *tests], plugins=plugins or [])


def noticed(guard: Guard, tests: list[str]) -> bool:
    """Whether one of the tests fails without the check."""
    pid = os.fork()
    if pid == 0:
        code = 77
        # without a check, reading may never end or ask for everything: that is noticed, too
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        try:
            remove(guard)
            code = run(tests, "-x")
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1, 2) or code < 0, (guard.name, code)
    return code != 0


def main(every: int) -> None:
    known = guards()
    watch = Watch(known)
    watch.install()
    assert run(TESTS, "-k", SLOW, "-m", "not full", plugins=[watch]) == 0, "the tests fail as they are"
    chosen = known[::every]
    survivors = []
    for guard in chosen:
        tests = sorted(set(watch.reached.get(guard, [])), key=lambda test: watch.seconds.get(test, 99.0))
        if not tests or not noticed(guard, tests[:MOST]):
            survivors.append(guard.name + ("" if tests else "  [no test reaches it]"))
            print(survivors[-1], file=sys.stderr, flush=True)
    print(f"{len(chosen)} removed", file=sys.stderr)
    print(json.dumps({"removed": len(chosen), "noticed": len(chosen) - len(survivors), "survivors": survivors}))


if __name__ == "__main__":
    main(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
