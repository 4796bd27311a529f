"""The quick run of pytest covers `formats/`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.guards import REPEATED

ROOT = Path(__file__).parents[2]
ROW = "coverage of formats/"
LEAST = 97  # percent of lines and branches together
# those that reach `formats/` in their own process, without tests that do the same many times: no more than the quick
# run covers
TESTS = [
    "tests/format",
    "tests/reliability/test_disk.py",
    "tests/reliability/test_values.py",
    "tests/test_append.py",
    "tests/test_atomic.py",
    "tests/test_calibration.py",
    "tests/test_cli.py",
    "tests/test_cli_calibrate.py",
    "tests/test_cli_compress.py",
    "tests/test_cli_recover.py",
    "tests/test_codecs.py",
    "tests/test_compression.py",
    "tests/test_entropy.py",
    "tests/test_eviction.py",
    "tests/test_fidelity.py",
    "tests/test_golden.py",
    "tests/test_klt.py",
    "tests/test_kmeans.py",
    "tests/test_layers.py",
    "tests/test_lossless.py",
    "tests/test_packing.py",
    "tests/test_positions.py",
    "tests/test_profile.py",
    "tests/test_rotary.py",
    "tests/test_spans.py",
    "tests/test_states.py",
    "tests/test_timeline.py",
    "tests/test_verification.py",
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
