"""Runs the fault matrix and writes docs/reliability.md and .json.

python -m tests.reliability [--full] [words for pytest]
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.rows import PROPERTY, ROWS, Tally

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
TESTS = [
    "tests/reliability",
    "tests/format/test_second_reader.py",
    "tests/format/test_recovery.py",
    "tests/format/test_damage.py",
    "tests/format/test_liars.py",
    "tests/format/test_encryption.py",
    "tests/format/test_encrypted_liars.py",
    "tests/attacks",
]
FOUND = ROOT / "docs" / "reliability.json"
HEAD = """# What was done to files and processes, and what came of it

Written by `python -m tests.reliability --full -n 2 --dist worksteal`, which replaces the rows that it runs: each row
stands as it was last run, and says which share; of a row without long tests the quick share is all. The counts are
those that the tests made, and stand in [reliability.json](reliability.json). `python -m pytest` runs the quick share,
`python -m pytest -m full` the rest. A row passes if each of its tests does; a test fails on the first wrong tensor,
lost file, other error or other exit code.

| fault | what is done | share | count | result |
| --- | --- | --- | --- | --- |
"""
TAIL = """
## A file is damaged: what to do

1. Where the disk gives errors, copy the file first.
2. `tsc doctor FILE` says what is wrong, and how many snapshots can be saved. An encrypted file needs its key, here and
   below.
3. `tsc recover FILE -o SAVED.tsc` writes them into a new file, under new numbers. The input is not changed. Exit code 0
   says that something was saved, not that all was: `"complete"` of `--json` tells. Where the format wants something
   that is lost and that no snapshot needs, zeros stand for it.
4. `tsc test SAVED.tsc`, then `tsc verify SAVED.tsc`: the new file promises no tier.

What a killed capture left is such a file, too: `.NAME.*.tmp` beside the output.

## What these rows do not say

- A process that is killed cannot clean up after itself. What it was writing stays beside the output as `.NAME.*.tmp`
  (mode 0600, or that of the session that it appended to), harmless to every reader and writer; nothing removes it but
  you. It holds what the output would have held: remove it where the text is private. All other ways of ending remove
  it.
- `compress`, `bench` and `verify --recompute` write scratch files into a folder `tsc-*` (mode 0700) of the system's
  temporary folder. A process that is killed leaves it there, with a cache in it: remove it, too. Those of an encrypted
  file are encrypted with a key that is gone.
- `tsc recover` takes such a remainder of a capture, too. Labels and snapshots are written with each block of rows, that
  is when the prompt has 256 tokens, and after 256 decoded ones: snapshots since then, and all of a capture that has not
  come so far, are lost with the process. A session that is appended to loses nothing that was acknowledged.
- When the very last step, the sync of the folder, fails, the new file is in place and whole; the command says that it
  failed, since nobody knows whether the name survives a power cut.
- Disks that fail are imitated (a call that returns an error, a kernel limit on the length of files), and so is want of
  memory (a limit on address space, for processes that have imported their libraries). Python itself may wait for ever
  for a thread that dies for want of memory as it is born; `tsc` hashes weights in threads when a model is compared.
  Libraries written in Rust (that of codec klt's entropy coder, tokenizers) may end the process where they get none:
  then a temporary file stays, as if it had been killed.
- A cache of yours that is being filled (`to_cache(..., into=cache)`) is not emptied again if memory runs out on the
  way.
- Records that are exchanged by somebody who makes the checksums right again make a valid file that says something
  else; see [SECURITY.md](../SECURITY.md).
- `recover` keeps a snapshot whole or not at all. What it is tested against are files whose snapshots come one after
  the other; in a file that `compress` or `save` wrote, labels and snapshots stand at the end, so that one that was cut
  off before them gives no snapshot.
- A session's lock keeps out other processes that append to it or record into it with `tsc`, on file systems that know
  locks; it keeps out nobody who writes to the file by other means. `.NAME.lock` stays beside the file, empty.
- A second `tsc capture --append` does not wait: it is refused (exit 2). Callers of the library may give it time.
- Where a file cannot be read (an I/O error, not damage), `recover` and `doctor` stop: copy the disk first.
- That a line was run does not say that a test looks at what it did. `python -m tests.reliability.coverage` measures the
  one (`--missing` lists what is left), `python -m tests.reliability.guards` the other, for checks: it removes each.
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
