"""The rows of the fault matrix, and the counters through which tests report to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PROPERTY = "fault matrix"  # of a test report: (row, counts)

# row -> what its tests do; the numbers come from the tests
ROWS = {
    "bit rot": "every bit of three small files (plain, with states, klt) and random bits of a large one inverted; "
    "strict reading must refuse, doctor name the offset of the damaged record, and recover return only what does not "
    "depend on it, bit for bit",
    "truncation": "a file cut at every length; strict reading and opening must refuse, and recover must return exactly "
    "the snapshots whose records are complete, bit for bit",
    "hostile mutation": "structure-aware edits with checksums made right again, of plain files and, by somebody who "
    "has the key, of encrypted ones; only errors of `tsc` may come out, with at most the budget + 64 MiB of memory and "
    "2 s each; so, too, mutants that atheris makes by coverage",
    "the second reader": "the same mutants read by a reader written from docs/format.md alone; both must agree on "
    "accepting and on content",
    "crafted liars": "named files with right checksums and lying content, some of them in "
    "tests/format_conformance/attacks; each must be "
    "refused with its own reason",
    "swapped and replayed records": "records of a file of 8 layers and 8 snapshots exchanged, whole and payload for "
    "payload, and replaced by those of another file; and the same of an encrypted file and of its other copies, "
    "numbers, lengths and checksums made right again; strict reading must refuse",
    "SIGKILL while writing": "a process that saves over a file in a loop killed at random moments; the path must hold "
    "the old or the new file, byte for byte; and one that appends to a session: every snapshot that it acknowledged "
    "must be there, bit for bit, the lock free and the next append work",
    "disk full, I/O error, short write": "every call that writes, syncs or renames made to fail in turn, in save, "
    "compress, verify --record, capture, capture --append and recover, and every read in doctor, recover and append; "
    "the old file must stay, the temporary go, exit 2, one line",
    "Ctrl-C": "capture, compress, capture --append and recover interrupted at random moments; exit 130, no traceback, "
    "old file or whole new one, no temporary",
    "out of memory": "test, inspect, doctor, compress, recover and restoring under limits on address space; exit 2 and "
    "one line, or success; nothing half-written or half-restored",
    "a reader during replacement": "processes open and check a file while another one replaces it; each must see a "
    "whole old or new file",
    "two writers, a reader during append": "processes append to a session through its lock while others open and "
    "check it; no append may be lost, and each reader must see a beginning of the session, bit for bit",
    "NaN, Inf, denormals, -0.0": "rows of special values: lossless must give back every bit, lossy codecs must refuse "
    "and name the layer or, where all are finite, store them",
    "validators": "each check of `formats/` that refuses a file removed in turn; a test must fail",
    "coverage of formats/": "lines and branches that the quick run of pytest reaches; at least 97% of both together",
}


class Tally(Counter[str]):
    """How often what was done or seen, in the order of the first time."""

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {what}" for what, count in self.items())


Tallying = Callable[[str], "Iterator[Tally]"]


@contextmanager
def tallying(row: str, record: Callable[[str, object], None]) -> Iterator[Tally]:
    """Counts for one row, printed and recorded when the block ends, also when it fails."""
    assert row in ROWS, row
    counts = Tally()
    try:
        yield counts
    finally:
        record(PROPERTY, (row, dict(counts)))
        print(f"{row}: {counts}")
