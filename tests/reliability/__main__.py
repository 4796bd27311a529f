"""Runs the fault matrix and writes docs/reliability.md and .json.

python -m tests.reliability [--full] [words for pytest]
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from tests import ROOT
from tests.reliability.rows import PROPERTY, ROWS, Tally

PAGE = ROOT / "docs" / "reliability.md"
TESTS = [
    "tests/reliability",
    "tests/format_conformance/test_second_reader.py",
    "tests/formats/repair/test_recovery.py",
    "tests/formats/repair/test_damage.py",
    "tests/format_conformance/test_liars.py",
    "tests/formats/container/test_encryption.py",
    "tests/format_conformance/test_encrypted_liars.py",
    "tests/format_conformance/attacks",
]
FOUND = ROOT / "docs" / "reliability.json"
HEAD = """# Faults: what was tried, and what happened

`python -m tests.reliability --full -n 2 --dist worksteal` writes this page and
[reliability.json](reliability.json), which has the counts. It replaces the rows that it runs.
`python -m pytest` runs the quick share of a row, and `python -m pytest -m full` the rest; a row
without long tests has only the quick share. A row passes if each of its tests does. A test fails at
the first wrong tensor, lost file, unexpected error or unexpected exit code.

| fault | what is done | share | count | result |
| --- | --- | --- | --- | --- |
"""
TAIL = """
## What to do with a damaged file

1. If the disk reports errors, copy the file first: `doctor` and `recover` stop at an I/O error.
2. `tsc doctor FILE` says what is wrong and how many snapshots can be saved. An encrypted file needs
   its key.
3. `tsc recover FILE -o SAVED.tsc` writes them into a new file, under new numbers, and leaves the
   input as it is. Exit code 0 says that something was saved; `"complete"` of `--json` says whether
   all was.
4. Run `tsc test SAVED.tsc`, then `tsc verify SAVED.tsc`. The new file promises no tier.

A capture that was killed leaves such a file, too: `.NAME.*.tmp` beside the output. Labels and
snapshots are written with each block of rows, that is when the prompt has 256 tokens, and after 256
decoded ones. Later snapshots, and all of a shorter capture, are lost with the process. A session
that is appended to keeps every acknowledged snapshot.

## Limits of these tests

- A process that is killed leaves `.NAME.*.tmp` beside the output (mode 0600, or that of the session
  that it appended to). Readers and writers ignore it. It holds what the output would have held:
  remove it where the text is private.
- `compress`, `bench` and `verify --recompute` write scratch files into a folder `tsc-*` (mode 0700)
  of the system's temporary folder. A process that is killed leaves it there, with a cache in it:
  remove it, too. Those of an encrypted file are encrypted with a key that is gone.
- If the sync of the folder, the last step of writing, fails, the new file is complete and in place.
  The command reports the failure, since the name may not survive a power cut.
- Failing disks are simulated (a call that returns an error, a kernel limit on the length of files),
  and so is a lack of memory (a limit on address space, for processes that have imported their
  libraries). Python may wait forever for a thread that runs out of memory as it starts; `tsc`
  hashes weights in threads. Libraries written in Rust (codec klt's entropy coder, tokenizers) may
  end the process when they run out of memory, which leaves a temporary file.
- If memory runs out while `to_cache(..., into=cache)` fills your cache, the cache is not emptied
  again.
- Somebody who exchanges records and recomputes the checksums makes a valid file with other
  contents; see [SECURITY.md](../SECURITY.md).
- `recover` keeps a snapshot whole or not at all. It is tested on files whose snapshots follow one
  another. `compress` and `save` write labels and snapshots at the end, and a file that was cut off
  before them gives no snapshot.
- A session's lock keeps out other `tsc` processes that append or record, on file systems with
  locks; other programs can still write. `.NAME.lock` stays beside the file, empty. A second `tsc
  capture --append` is refused (exit 2) and does not wait; callers of the library may give it time.
- A line that was run may still be untested. `nox -s coverage` measures which lines are run and lists
  the rest. `python -m tests.reliability.guards` removes each check and expects a test to fail.
  `nox -s mutants` changes a chosen module in every small way and expects the same.
"""


class Collector:
    """Adds up what tests record, and whether they passed."""

    def __init__(self) -> None:
        self.counts = {row: Tally() for row in ROWS}
        self.failed: Counter[str] = Counter()
        self.full = dict.fromkeys(ROWS, False)  # whether more than the quick share was run

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == PROPERTY:
                row, counts = value
                self.counts[row].update(counts)
                self.failed[row] += report.failed
                self.full[row] |= "full" in report.keywords


def page(found: Mapping[str, Any]) -> str:
    lines = []
    for row, what in ROWS.items():
        one = found.get(row, {"counts": {}, "failed": 0, "share": ""})
        result = f"FAILED ({one['failed']} tests)" if one["failed"] else "passed"
        counts = str(Tally(one["counts"])) or "not run"
        lines.append(f"| {row} | {what} | {one['share']} | {counts} | {result if one['counts'] else ''} |")
    return HEAD + "\n".join(lines) + "\n" + TAIL


def main(words: list[str]) -> int:
    full = "--full" in words
    rest = [word for word in words if word != "--full"]
    collected = Collector()
    code = pytest.main(["-m", "full or not full" if full else "not full", *TESTS, *rest], plugins=[collected])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(code)
    found = json.loads(FOUND.read_text("utf-8")) if FOUND.exists() else {}
    for row, counts in collected.counts.items():
        if counts:
            share = "full" if collected.full[row] else "quick"
            found[row] = {"counts": dict(counts), "failed": collected.failed[row], "share": share}
    FOUND.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    PAGE.write_text(page(found), "utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
