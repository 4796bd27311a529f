"""Line and branch coverage of `formats/` in the quick run of pytest; needs coverage.py.  Prints one line.

    python -m tests.reliability.coverage [--missing] [--json] [--jobs N] [TESTS]

Exit code 1 where less than 97% of lines and branches together are covered.  Left out are tests that never reach
`formats/` or only through other processes, and those that do the same many times (`REPEATED`): what is printed is no
more than the quick run covers.  Each part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.reliability.guards import REPEATED

ROOT = Path(__file__).parents[2]
LEAST = 97.0
PARTS = [
    ["tests/format"],
    ["tests/test_klt.py", "tests/test_profile.py", "tests/test_calibration.py", "tests/test_codecs.py"],
    [
        "tests/test_append.py",
        "tests/test_atomic.py",
        "tests/test_compression.py",
        "tests/test_entropy.py",
        "tests/test_eviction.py",
        "tests/test_fidelity.py",
        "tests/test_golden.py",
        "tests/test_layers.py",
        "tests/test_lossless.py",
        "tests/test_positions.py",
        "tests/test_rotary.py",
        "tests/test_states.py",
        "tests/test_timeline.py",
        "tests/test_verification.py",
    ],
    [
        "tests/test_cli.py",
        "tests/test_cli_calibrate.py",
        "tests/test_cli_compress.py",
        "tests/test_cli_recover.py",
        "tests/reliability/test_disk.py",
        "tests/reliability/test_values.py",
    ],
]


def measured(parts: Iterable[list[str]], jobs: int, *, missing: bool = False) -> dict[str, Any]:
    """Run parts of the tests and return the totals of coverage.py.  Raises SystemExit where a test fails."""
    with tempfile.TemporaryDirectory() as folder:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"COVERAGE_FILE": f"{folder}/data", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}

        def coverage(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "coverage", *words]
            return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

        def run(part: list[str]) -> None:
            done = coverage(
                "run", "-p", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not full", "-k", REPEATED, *part
            )
            if done.returncode:
                raise SystemExit(f"{' '.join(part)}: {done.stdout[-3000:]}{done.stderr[-1000:]}")

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, parts))
        coverage("combine", "-q")
        if missing:
            print(coverage("report", "-m", "--skip-covered").stdout, file=sys.stderr)
        report = Path(folder) / "report.json"
        coverage("json", "-q", "-o", str(report))
        found = json.loads(report.read_text("utf-8"))
    totals = found["totals"]
    return {
        "files": len(found["files"]),
        "lines": totals["num_statements"],
        "lines_run": totals["covered_lines"],
        "branches": totals["num_branches"],
        "branches_taken": totals["covered_branches"],
    }


def percent(found: dict[str, Any]) -> float:
    """Of lines and branches together, as coverage.py counts; rounded down."""
    part, whole = found["lines_run"] + found["branches_taken"], found["lines"] + found["branches"]
    return int(10_000 * part / whole) / 100 if whole else 0.0


def main() -> int:
    words = argparse.ArgumentParser()
    words.add_argument("--missing", action="store_true", help="list on stderr what is not covered")
    words.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    words.add_argument("--jobs", type=int, default=1, help="how many processes at once")
    words.add_argument("tests", nargs="*", help="these instead of all that matter")
    asked = words.parse_args()
    found = measured([asked.tests] if asked.tests else PARTS, asked.jobs, missing=asked.missing)
    share = percent(found)
    if asked.json:
        print(json.dumps(found | {"percent": share}))
    else:
        print(
            f"{found['files']} files, {found['lines_run']:,} of {found['lines']:,} lines, "
            f"{found['branches_taken']:,} of {found['branches']:,} branches, {share:.2f}%"
        )
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
