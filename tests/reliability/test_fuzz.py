"""The coverage-guided run, for two minutes, where atheris is installed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

SECONDS = 120
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install 'tsc-kv[fuzz]'"
)


def fuzz(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.reliability.fuzz", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.full
@needs_atheris
def test_only_errors_of_tsc_come_out(tmp_path: Path, tally: Any) -> None:
    done = fuzz("--seconds", SECONDS, "--keep", tmp_path)
    assert done.returncode == 0, done.stderr[-3_000:]
    found = re.search(r"^Done (\d+) runs in \d+ second", done.stderr, re.MULTILINE)
    assert found, done.stderr[-1_000:]
    assert int(found[1]) > 200  # the sound and hostile files alone are some 150
    assert not list(tmp_path.glob("crash-*")) + list(tmp_path.glob("timeout-*"))
    with tally("hostile mutation") as counts:
        counts["atheris executions"] += int(found[1])


@pytest.mark.full
@needs_atheris
def test_the_run_fails_where_something_else_comes_out(tmp_path: Path) -> None:
    """A file that declares more than it may is an error of `tsc`; one that is not there is none."""
    (tmp_path / "missing").symlink_to(tmp_path / "nothing")
    done = fuzz("--inputs", tmp_path / "missing")
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr
    hostile = ROOT / "tests" / "format_conformance" / "attacks" / "bomb-of-1-tib.tsc"
    assert fuzz("--inputs", hostile).returncode == 0
