"""The only file that prints.  stdout is data; stderr is messages and progress."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from formats.errors import StorageError
from tsc_cli.progress import Progress, lines, nothing
from tsc_cli.text_input import shown, tolerant


def printable(text: str, *, keep: str = "") -> str:
    """`text` without anything that could steer a terminal: control characters appear as escapes, and so do bytes of a
    name that are no text."""
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii")
        for char in shown(text)
    )


def plain(name: str) -> str:
    """A name out of a file for a figure: as it is, not as a formula."""
    return printable(name).replace("$", r"\$")


def size(count: float) -> str:
    """Bytes for a person, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def ratio(value: float) -> str:
    return f"{value:.2f}x" if value < 100 else f"{value:.0f}x"


def columns(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """An aligned table: the first column to the left, columns of numbers to the right."""
    lines = [list(head)] if head else []
    lines += [[printable(cell) for cell in row] for row in rows]
    if not lines:
        return ""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    right = [at > 0 and all(_numeric(row[at]) for row in rows) for at in range(len(widths))]
    text = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    ]
    if head:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def _numeric(cell: str) -> bool:
    starts = cell[:1].isdigit() or cell[:1] in ("+", "-", ".")
    return not cell or (starts and cell.count(" ") <= 1) or cell in ("nan", "none")


def go_nowhere() -> None:
    """Whatever still goes to stdout, so that closing it at exit does not fail a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Output:
    """How one command reports: for a person, as JSON, or as the headline alone."""

    as_json: bool = False
    quiet: bool = False

    def report(self, schema: str, facts: Mapping[str, Any], text: str, headline: str) -> None:
        """The command's result, in the form that was asked for; what steers a terminal is escaped in a text."""
        if self.as_json:
            self.data(json.dumps({"schema": schema, **facts}, indent=2, allow_nan=False) + "\n")
        else:
            self.data((headline if self.quiet else printable(text, keep="\n")) + "\n")

    def data(self, text: str) -> None:
        """Text to stdout, at once; a reader that went away is not an error."""
        tolerant(sys.stdout)
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            go_nowhere()  # the exit code stays the command's own
        except OSError as error:
            go_nowhere()
            raise StorageError(f"stdout cannot be written: {error.strerror}") from error

    def note(self, text: str) -> None:
        """A message for a person."""
        if not (self.quiet or self.as_json):
            message(text)

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Progress]:
        """Progress on stderr: a bar at a terminal; elsewhere, and with JSON, a line now and then.

        Args:
            total: how many units there are; None shows that something goes on.
        """
        if self.quiet:
            yield nothing
            return
        if self.as_json or not sys.stderr.isatty():
            with lines(what, total, message) as advance:
                yield advance
            return
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        parts = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        if total is not None:
            parts = (*parts, TextColumn("left"), TimeRemainingColumn())  # type: ignore[assignment]
        with Bars(*parts, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(printable(what), total=total)
            yield lambda units: bar.advance(task, units)


def message(text: str) -> None:
    tolerant(sys.stderr)
    with contextlib.suppress(BrokenPipeError):
        print(printable(text, keep="\n"), file=sys.stderr, flush=True)


def error(text: str, hint: str | None = None) -> None:
    message(f"tsc: error: {' '.join(text.split())}")
    if hint:
        message(f"hint: {' '.join(hint.split())}")
