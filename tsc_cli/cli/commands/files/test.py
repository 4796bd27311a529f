"""`tsc test`: are the bytes what their writer wrote?"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import KeyFile
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable, size


@with_groups
def command(
    *,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="The .tsc files.", show_default=False)],
    decode: Annotated[
        bool, typer.Option("--decode", help="Also decode all rows; needs torch, and the profile of codec klt.")
    ] = False,
    key_file: KeyFile = None,
    out: Output,
) -> None:
    """Check every byte of .tsc files.

    It checks all checksums, records and shapes, and needs neither a model nor torch. `--decode`
    also checks what only decoding shows: symbols and profiles of codec klt, predictions of codec
    delta. The exit code is 3 if a file is corrupt or unsupported, and 2 if one cannot be read.
    Without the key of an encrypted file, it checks the checksums and the order of the records.
    """
    from formats.errors import TscError
    from formats.file.check import check, check_sealed
    from tsc_cli.cli.keys import Keys

    results: list[dict[str, Any]] = []
    worst = 0
    keys = Keys(key_file, ask=False)
    for path in files:
        try:
            with out.progress(f"testing {path}"):
                sealed = None if keys.known(path) else check_sealed(path)
                if sealed is not None:
                    results.append(
                        {
                            "path": path,
                            "ok": True,
                            "file_bytes": os.path.getsize(path),
                            "records": sealed,
                            "snapshots": None,
                        }
                    )
                    continue
                file = check(path, keys.source, decode=decode)
            results.append(
                {
                    "path": path,
                    "ok": True,
                    "file_bytes": file.size,
                    "records": len(file.entries) + 2,
                    "snapshots": len(file.views),
                }
            )
        except TscError as problem:
            worst = max(worst, problem.exit_code)
            results.append(
                {
                    "path": path,
                    "ok": False,
                    "error": problem.message,
                    "offset": problem.offset,
                    "record": problem.record,
                    "exit_code": problem.exit_code,
                }
            )
    good = sum(result["ok"] for result in results)
    text = "\n".join(_line(result) for result in results)
    out.report("tsc.test/1", {"files": results, "ok": good == len(results)}, text, f"{good} of {len(results)} ok")
    raise typer.Exit(worst)


def _line(result: dict[str, Any]) -> str:
    path = printable(result["path"])
    if result["ok"]:
        if result["snapshots"] is None:
            return f"{path}: ok as far as shows without the key, {result['records']} records, encrypted"
        counts = f"{result['records']} records, {result['snapshots']} snapshots"
        return f"{path}: ok, {counts}, {size(result['file_bytes'])}"
    place = [f"record {result['record']}"] if result["record"] is not None else []
    place += [f"byte {result['offset']}"] if result["offset"] is not None else []
    return f"{path}: FAILED: {printable(result['error'])}" + (f" ({', '.join(place)})" if place else "")
