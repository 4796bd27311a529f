"""Files and standard streams as the commands take them, and the two together with a model."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from formats import Trace
from formats.container.atomic_write import atomic_write, refuse_existing
from formats.errors import StorageError, UnsupportedCacheError, UsageError
from tsc_cli.huggingface.models.loading import Loaded

from .output import Output, go_nowhere, message

_RANGE = re.compile(r"(-?\d{1,9})(?:-(\d{1,9}))?")


def check_output(path: str, *, overwrite: bool, read: Iterable[str | None] = ()) -> None:
    """Refuse an output before the work is done.  `-` is stdout, which must not be a terminal.

    Args:
        read: keys and texts that the command reads, over which nothing is written even if
            `overwrite` is set.
    """
    if not path:
        raise UsageError("the name of the output is empty", hint="-o FILE, or -o - for stdout")
    if path == "-":
        if sys.stdout.isatty():
            raise UsageError("binary data is not written to a terminal", hint="give -o FILE, or redirect stdout")
    else:
        for path_read in read:  # first: the other refusal would recommend --force
            if (
                path_read is not None
                and os.path.exists(path)
                and os.path.exists(path_read)
                and os.path.samefile(path, path_read)
            ):
                raise UsageError("is an input of this command, and is not overwritten", path=path)
        refuse_existing(Path(path), overwrite=overwrite)


@contextlib.contextmanager
def open_output(path: str, *, overwrite: bool) -> Iterator[BinaryIO]:
    """The output file (atomic), or stdout for `-`."""
    if path == "-":
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            go_nowhere()
            raise StorageError("stdout was closed before everything was written") from error
    else:
        with atomic_write(path, overwrite=overwrite) as file:
            yield file


def one_sequence(trace: Trace, sequence: int) -> Trace:
    """A trace of one text: sequence `number` of a batch.  Raises UsageError if there is none."""
    return trace if trace.geometry.batch == 1 and sequence == 0 else trace.sequence(sequence)


def say_differences(trace: Trace, loaded: Loaded, out: Output, *, forced: bool) -> None:
    """Report how the model, or the kernels it runs on, differ from those at capture."""
    from tsc_cli.huggingface.fingerprint import fingerprint

    try:
        with out.progress("hashing the weights"):
            fingerprint_here = fingerprint.of(loaded.model, loaded.tokenizer)
    except UnsupportedCacheError as error:
        if not forced:
            raise
        message(
            f"--force-model-mismatch: the models were not compared: {error.message}; the results may be meaningless"
        )
        return
    differs = fingerprint.difference(trace.fingerprint, fingerprint_here)
    if forced and differs is not None:
        message(f"--force-model-mismatch: {differs}; the results may be meaningless")
    rounding = fingerprint.differences_in_rounding(trace.fingerprint, fingerprint_here)
    for note in (rounding, fingerprint.another_version(trace.fingerprint)):
        if note is not None and (forced or differs is None):
            out.note(note)


def numbers(text: str, count: int, what: str) -> list[int]:
    """Parse a selection of `count` items such as `0-3,7,-1`, `all` or `last`."""
    if text == "all":
        return list(range(count))
    if text == "last":
        return [count - 1]
    chosen: list[int] = []
    for piece in (piece.strip() for piece in text.split(",")):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise UsageError(f"{what} {piece!r} is not a number or a range", hint="such as 0-3,7, last or all")
        first, last = int(match[1]), int(match[2] or match[1])
        if not -count <= first < count or not -count <= last < count or (match[2] and last < first):
            raise UsageError(f"there is no {what} {piece}", hint=f"{what}s are 0 to {count - 1}")
        chosen += [index % count for index in range(first, last + 1)]
    return sorted(set(chosen))
