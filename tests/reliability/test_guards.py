"""No check of `formats/` is without a test that fails when it is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests import ROOT
from tests.reliability.guards import guards

# what may go unnoticed, by file and the beginning of its line, and why
KNOWN: dict[str, str] = {}


def test_checks_are_found() -> None:
    found = guards()
    assert len(found) > 150
    assert len({one.file for one in found}) > 15


@pytest.mark.full
def test_every_check_is_missed_when_it_is_gone(tally: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.guards"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout.splitlines()[-1])
    with tally("validators") as counts:
        counts["checks removed"] += found["removed"]
        counts["noticed"] += found["noticed"]
        counts["survivors"] += len(found["survivors"])
    unexpected = [one for one in found["survivors"] if not any(known in one for known in KNOWN)]
    assert not unexpected, "\n".join(unexpected)
