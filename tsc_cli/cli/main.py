"""The program's entry point: it runs the Typer app and explains every error in one line.

0 ok; 1 a check ran and failed its threshold; 2 usage or I/O; 3 corrupt or unsupported file; 4 the
requested tier or quality cannot be met; 101 a bug of ours; 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

from formats.errors import TscError
from tsc_cli import text_input
from tsc_cli.libraries import is_out_of_memory, quiet_environment

from . import output

BUG = 101
INTERRUPTED = 130
# seconds after a Ctrl-C in which others are ignored: a key that is held must not stop the cleaning
# up
CLEANING = 2.0

interrupts: list[float] = []  # when


def interrupt(*_: object) -> None:
    """Ctrl-C, noted: where it strikes an import, libraries make another error of it."""
    now = time.monotonic()
    if not interrupts or now - interrupts[-1] > CLEANING:
        interrupts.append(now)
        raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `tsc` and exit.  `arguments` default to the command line's."""
    # a job that is told to stop cleans up as one that is interrupted: nothing half-written stays
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, interrupt)
    if os.environ.get("TSC_DEBUG") != "1":
        # what goes wrong where nobody can catch it, such as in a thread of progress lines that gets
        # no memory, loses nothing and is not shown; a function in C, since one in Python would need
        # memory itself
        sys.unraisablehook = callable
    quiet_environment()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: what is opened next would stand in for it
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    try:
        code = run(arguments)
    finally:  # the rest is taking down the interpreter, in which Ctrl-C would be an end by a signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run `tsc` and return its exit code.  `TSC_DEBUG=1` lets exceptions through."""
    try:
        from .app import app

        code = app(args=arguments, standalone_mode=False, prog_name="tsc")
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as problem:
        if os.environ.get("TSC_DEBUG") == "1":
            raise
        if not interrupts:
            return _explain(problem)
        code = INTERRUPTED
    if code == INTERRUPTED:
        output.message("interrupted")
    return code if isinstance(code, int) else 0


def _explain(problem: Exception) -> int:
    if isinstance(problem, TscError):
        output.error(str(problem), problem.hint)
        return problem.exit_code
    # Typer's own usage errors; their class is private to Typer, their shape is not
    if hasattr(problem, "format_message") and hasattr(problem, "exit_code"):
        context = getattr(problem, "ctx", None)
        command = context.command_path if context is not None else "tsc"
        output.error(problem.format_message(), f"{command} --help")
        return 2
    if is_out_of_memory(problem):
        output.error("out of memory", "a smaller --chunk or --context needs less")
        return 2
    if isinstance(problem, OSError):
        output.error(str(problem))
        return 2
    if isinstance(problem, UnicodeEncodeError) and not text_input.is_text(problem.object):
        output.error(
            f"{text_input.shown(problem.object[:200])!r} is not valid text: "
            "a byte or half of a surrogate pair is not UTF-8"
        )
        return 2
    output.error(f"{type(problem).__name__}: {problem}", "this is a bug in tsc; TSC_DEBUG=1 shows where")
    return BUG
