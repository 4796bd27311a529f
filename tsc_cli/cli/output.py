"""The only file that prints.  stdout is data; stderr is messages and progress."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from formats.errors import StorageError
from tsc_cli.progress import Progress, lines, nothing
from tsc_cli.text_format import printable
from tsc_cli.text_input import tolerant

from .options import Json, Quiet


def go_nowhere() -> None:
    """Whatever still goes to stdout, so that closing it at exit does not fail a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Output:
    """How one command reports: for a person, as JSON, or as the headline alone."""

    as_json: Json = False
    quiet: Quiet = False

    def report(self, schema: str, facts: Mapping[str, Any], text: str, headline: str) -> None:
        """Print the result in the form that was asked for, with terminal controls escaped."""
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
