"""`tsc doctor`: everything that is wrong with a file, and what is unusual about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import File, KeyFile
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable, size

if TYPE_CHECKING:
    from formats.repair.diagnose import Diagnosis
    from formats.repair.findings import Problem


@with_groups
def command(*, file: File, key_file: KeyFile = None, out: Output) -> None:
    """List everything that is wrong with a .tsc file, or unusual, with byte offsets.

    Unlike tsc test, it continues after the first problem, and it says what tsc recover could save.
    It needs neither a model nor torch. The exit code is 3 if the file is damaged or unsupported,
    but 0 if it is only unusual.
    """
    from formats.repair.diagnose import diagnose
    from tsc_cli.cli.keys import Keys

    keys = Keys(key_file).ready(file)
    with out.progress(f"examining {file}"):
        diagnosis = diagnose(file, keys)
    damage = [problem for problem in diagnosis.problems if problem.damage]
    facts = {
        "path": file,
        "ok": not damage,
        "file_bytes": diagnosis.size,
        "records": diagnosis.records,
        "snapshots": diagnosis.snapshots,
        "recoverable_snapshots": diagnosis.whole,
        "unread_bytes": [{"start": start, "stop": stop} for start, stop in diagnosis.unread],
        "problems": [
            {"damage": problem.damage, "message": problem.message, "offset": problem.offset, "record": problem.record}
            for problem in diagnosis.problems
        ],
    }
    headline = f"damaged, {len(damage)} problems" if damage else "healthy"
    out.report("tsc.doctor/1", facts, _text(file, diagnosis), headline)
    raise typer.Exit(3 if damage else 0)


def _text(path: str, diagnosis: Diagnosis) -> str:
    state = "damaged" if diagnosis.damaged else "healthy"
    lines = [f"{printable(path)}: {state}, {diagnosis.records} records, {size(diagnosis.size)}"]
    lines += [_line(problem) for problem in diagnosis.problems]
    unread = sum(stop - start for start, stop in diagnosis.unread)
    if unread:
        ranges = ", ".join(f"{start} to {stop - 1}" for start, stop in diagnosis.unread[:8])
        more = ", ..." if len(diagnosis.unread) > 8 else ""
        lines.append(f"{unread} bytes are in no intact record: {ranges}{more}")
    if diagnosis.damaged:
        whole = f"{len(diagnosis.whole)} of {diagnosis.snapshots} snapshots" if diagnosis.snapshots else "no snapshot"
        lines.append(f"tsc recover can save {whole}")
    return "\n".join(lines)


def _line(problem: Problem) -> str:
    place = [f"record {problem.record}"] if problem.record is not None else []
    place += [f"byte {problem.offset}"] if problem.offset is not None else []
    return f"  {'damage' if problem.damage else 'note'}: {printable(problem.message)}" + (
        f" ({', '.join(place)})" if place else ""
    )
