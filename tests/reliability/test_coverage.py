"""The quick run of pytest covers `formats/`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.reliability.coverage import LEAST, PARTS, ROOT, percent

ROW = "coverage of formats/"


def test_what_is_run_exists_and_is_named_once() -> None:
    named = [name for part in PARTS for name in part]
    assert len(set(named)) == len(named)
    assert all((ROOT / name).exists() for name in named)


def test_percent_is_of_lines_and_branches_and_rounded_down() -> None:
    found = {"lines": 900, "lines_run": 880, "branches": 100, "branches_taken": 89}
    assert percent(found) == 96.9
    assert percent({"lines": 30_000, "lines_run": 29_099, "branches": 0, "branches_taken": 0}) == 96.99
    assert percent(dict.fromkeys(found, 0)) == 0


@pytest.mark.full
def test_lines_and_branches_of_formats_are_covered(tally: Any) -> None:
    pytest.importorskip("coverage")
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.coverage", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    with tally(ROW) as counts:
        counts["lines"] += found["lines"]
        counts["of them run"] += found["lines_run"]
        counts["branches"] += found["branches"]
        counts["of them taken"] += found["branches_taken"]
        assert found["percent"] >= LEAST
