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
    from formats.repair.scan import Problem


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
        found = diagnose(file, keys)
    damage = [one for one in found.problems if one.damage]
    facts = {
        "path": file,
        "ok": not damage,
        "file_bytes": found.size,
        "records": found.records,
        "snapshots": found.snapshots,
        "recoverable_snapshots": found.whole,
        "unread_bytes": [{"start": start, "stop": stop} for start, stop in found.unread],
        "problems": [
            {"damage": one.damage, "message": one.message, "offset": one.offset, "record": one.record}
            for one in found.problems
        ],
    }
    headline = f"damaged, {len(damage)} problems" if damage else "healthy"
    out.report("tsc.doctor/1", facts, _text(file, found), headline)
    raise typer.Exit(3 if damage else 0)


def _text(path: str, found: Diagnosis) -> str:
    state = "damaged" if found.damaged else "healthy"
    lines = [f"{printable(path)}: {state}, {found.records} records, {size(found.size)}"]
    lines += [_line(one) for one in found.problems]
    unread = sum(stop - start for start, stop in found.unread)
    if unread:
        ranges = ", ".join(f"{start} to {stop - 1}" for start, stop in found.unread[:8])
        more = ", ..." if len(found.unread) > 8 else ""
        lines.append(f"{unread} bytes are in no intact record: {ranges}{more}")
    if found.damaged:
        whole = f"{len(found.whole)} of {found.snapshots} snapshots" if found.snapshots else "no snapshot"
        lines.append(f"tsc recover can save {whole}")
    return "\n".join(lines)


def _line(one: Problem) -> str:
    place = [f"record {one.record}"] if one.record is not None else []
    place += [f"byte {one.offset}"] if one.offset is not None else []
    return f"  {'damage' if one.damage else 'note'}: {printable(one.message)}" + (
        f" ({', '.join(place)})" if place else ""
    )
