"""The checks, each in an environment of its own; CONTRIBUTING.md says what each runs."""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"  # torch takes minutes to install

PYTEST = ("python", "-m", "pytest", "-n", "2", "--dist", "loadfile")
FLOORS = {"formats": 98, "tsc_cli": 93}  # percent of lines and branches together
BENCHMARKS = sorted(path.stem for path in (Path(__file__).parent / "tests" / "benchmarks").glob("[!_]*.py"))


def install(session: nox.Session, extras: str = "test") -> None:
    """The project, editable, in the versions that it is tested with."""
    session.install("-c", "constraints.txt", "-e", f".[{extras}]")


@nox.session
def tests(session: nox.Session) -> None:
    """The quick suite."""
    install(session)
    session.run(*PYTEST, *session.posargs)


@nox.session
def full(session: nox.Session) -> None:
    """The tests that the quick suite leaves out."""
    install(session)
    session.run(*PYTEST, "-m", "full", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """The quick suite with line and branch coverage; each package has a floor in percent."""
    install(session)
    session.run(*PYTEST, "--cov", "--cov-report=", *session.posargs)
    for package, least in FLOORS.items():
        words = (f"--include={package}/*", f"--fail-under={least}", "--skip-covered", "--show-missing")
        session.run("python", "-m", "coverage", "report", *words)


@nox.session
def mutants(session: nox.Session) -> None:
    """Small changes of a module that the named tests miss: `-- MODULE TESTS`."""
    if len(session.posargs) < 2:
        session.error("name a module and its tests: -- formats/trace/spans.py tests/formats/trace/test_spans.py")
    install(session, "test,mutation")
    session.run("python", "-m", "tests.reliability.mutants", *session.posargs)


@nox.session
def reliability(session: nox.Session) -> None:
    """The whole fault matrix; writes docs/reliability.md and .json."""
    install(session, "test,fuzz")
    words = ("--full", "-n", "2", "--dist", "worksteal")
    session.run("python", "-m", "tests.reliability", *words, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff and the import contract; neither needs the project's dependencies."""
    session.install("-c", "constraints.txt", "ruff", "import-linter")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Types of the two packages, strictly."""
    install(session)
    session.run("mypy", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """One benchmark by name, `nox -s benchmarks -- startup`; without a name, the list of them."""
    if not session.posargs:
        session.log(f"benchmarks: {', '.join(BENCHMARKS)}")
        return
    name, *words = session.posargs
    if name not in BENCHMARKS:
        session.error(f"there is no benchmark {name!r}; benchmarks: {', '.join(BENCHMARKS)}")
    install(session)
    session.run("python", "-m", f"tests.benchmarks.{name}", *words)


@nox.session(venv_backend="none")
def oldest(session: nox.Session) -> None:
    """A share of the tests with the oldest versions that pyproject.toml allows."""
    session.run(sys.executable, "-m", "tests.smoke", "--oldest", *session.posargs)


@nox.session(venv_backend="none")
def newest(session: nox.Session) -> None:
    """A share of the tests with the newest versions that pyproject.toml allows."""
    session.run(sys.executable, "-m", "tests.smoke", "--newest", *session.posargs)
