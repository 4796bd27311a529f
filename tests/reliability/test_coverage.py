"""The quick run of pytest covers `formats/`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.reliability.guards import REPEATED

ROW = "coverage of formats/"
LEAST = 97  # percent of lines and branches together
# those that reach `formats/` in their own process, without tests that do the same many times: no more than the quick
# run covers
TESTS = [
    "tests/format_conformance",
    "tests/formats",
    "tests/project/test_layers.py",
    "tests/reliability/test_disk.py",
    "tests/reliability/test_values.py",
    "tests/tsc_cli/calibration/test_calibration.py",
    "tests/tsc_cli/cli/test_cli.py",
    "tests/tsc_cli/cli/test_cli_calibrate.py",
    "tests/tsc_cli/cli/test_cli_compress.py",
    "tests/tsc_cli/cli/test_cli_recover.py",
    "tests/tsc_cli/compression/test_compression.py",
    "tests/tsc_cli/huggingface/test_positions.py",
    "tests/tsc_cli/huggingface/test_rotary.py",
    "tests/tsc_cli/scoring/test_fidelity.py",
    "tests/tsc_cli/session/test_append.py",
    "tests/tsc_cli/verification/test_verification.py",
]


def test_what_is_run_exists_and_is_named_once() -> None:
    assert sorted(set(TESTS)) == TESTS
    assert all((ROOT / name).exists() for name in TESTS)


@pytest.mark.full
def test_lines_and_branches_of_formats_are_covered(tally: Any, tmp_path: Path) -> None:
    pytest.importorskip("pytest_cov")
    report = tmp_path / "report.json"
    words = ["-q", "-p", "no:cacheprovider", "-m", "not full", "-k", REPEATED, "--cov=formats", "--cov-report="]
    words += [f"--cov-report=json:{report}", f"--cov-fail-under={LEAST}"]
    environment = os.environ | {"COVERAGE_FILE": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *words, *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout[-3000:] + done.stderr[-1000:]
    totals = json.loads(report.read_text("utf-8"))["totals"]
    with tally(ROW) as counts:
        counts["lines"] += totals["num_statements"]
        counts["of them run"] += totals["covered_lines"]
        counts["branches"] += totals["num_branches"]
        counts["of them taken"] += totals["covered_branches"]
        assert done.returncode == 0, done.stdout[-3000:]
