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
from tsc_cli import text_input
from tsc_cli.huggingface.models.loading import Loaded, check_trust, known_name
from tsc_cli.huggingface.models.loading import load as load_model
from tsc_cli.model_store import default_model, hub, store
from tsc_cli.progress import Say, silent

from .output import Output, go_nowhere, message

_RANGE = re.compile(r"(-?\d{1,9})(?:-(\d{1,9}))?")
MAX_TEXT = 1 << 28  # bytes of a prompt; a longer one is a mistake


def check_output(path: str, *, force: bool, read: Iterable[str | None] = ()) -> None:
    """Refuse an output before the work is done.  `-` is stdout, which must not be a terminal.

    Args:
        read: keys and texts that the command reads, over which nothing is written even if `force` is set.
    """
    if not path:
        raise UsageError("the name of the output is empty", hint="-o FILE, or -o - for stdout")
    if path == "-":
        if sys.stdout.isatty():
            raise UsageError("binary data is not written to a terminal", hint="give -o FILE, or redirect stdout")
    else:
        for one in read:  # first: the other refusal would recommend --force
            if one is not None and os.path.exists(path) and os.path.exists(one) and os.path.samefile(path, one):
                raise UsageError("is read by this command, so that nothing is written over it", path=path)
        refuse_existing(Path(path), force=force)


@contextlib.contextmanager
def open_output(path: str, *, force: bool) -> Iterator[BinaryIO]:
    """The output file (atomic), or stdout for `-`."""
    if path == "-":
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError as error:
            go_nowhere()
            raise StorageError("stdout was closed before everything was written") from error
    else:
        with atomic_write(path, force=force) as file:
            yield file


def one_sequence(trace: Trace, number: int) -> Trace:
    """A trace of one text: sequence `number` of a batch.  Raises UsageError if there is none."""
    return trace if trace.geometry.batch == 1 and number == 0 else trace.sequence(number)


def read_text(path: str, say: Say = silent) -> str:
    """A UTF-8 text file, or stdin for `-`; `say` is told of a byte order mark that was taken off."""
    if not path:
        raise UsageError("the name of the file to read is empty", hint="a file, or - for stdin")
    name = "stdin" if path == "-" else path
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_TEXT + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", path=name) from error
    if len(data) > MAX_TEXT:
        raise UsageError(f"is longer than {MAX_TEXT} bytes", path=name)
    return text_input.decode(data, name, say)


def read_prompt(prompt: str | None, prompt_file: str | None, say: Say, *, hint: str | None = None) -> str | None:
    """The prompt of a command: its argument, a file, or stdin for `-`; None if there is none.

    Raises:
        UsageError: there are two, or it is empty (`hint` says what to do without one), or no text.
    """
    if prompt is not None and prompt_file is not None:
        raise UsageError("give one prompt", hint="as an argument, with --prompt-file, or - for stdin")
    if prompt_file is None and prompt is None:
        return None
    if prompt_file is None and prompt is not None and prompt != "-":
        return text_input.require_content(text_input.argument(prompt, say=say), hint)
    return text_input.require_content(read_text(prompt_file or "-", say), hint)


def model_for(
    trace: Trace, name: str | None, device: str, out: Output, *, any_model: bool = False,
    trust_remote_code: bool = False,
) -> Loaded:  # fmt: skip
    """The model of a file, in the dtype of the capture.

    A name that only the file gives is looked up on this machine and never fetched from a hub: whoever made the file
    does not decide what is downloaded here, nor that a model may run code of its own.

    Raises:
        UsageError: the file does not name a model that can be found here, and neither does `name`; or code is to be
            trusted of a model that only the file names.
    """
    check_trust(name, trust_remote_code)
    chosen = name or known_name(trace.info.get("model"))
    if chosen is None:
        raise UsageError("the file does not name a model that can be found here", hint="give it with -m")
    dtype = "auto" if any_model else trace.fingerprint.get("dtype", trace.geometry.dtype)
    with out.progress("loading the model"):
        return load_model(
            chosen,
            dtype=dtype,
            device=device,
            fetch=name is not None,
            trust_remote_code=trust_remote_code,
            say=out.note,
        )


def say_differences(trace: Trace, loaded: Loaded, out: Output, *, forced: bool) -> None:
    """Say what is not as it was at capture: what was forced, or only another kernel; a refusal says so itself."""
    from tsc_cli.huggingface.fingerprint import fingerprint

    try:
        with out.progress("hashing the weights"):
            found = fingerprint.of(loaded.model, loaded.tokenizer)
    except UnsupportedCacheError as error:
        if not forced:
            raise
        message(f"--force-model-mismatch: nothing was compared, {error.message}; the results may be meaningless")
        return
    differs = fingerprint.difference(trace.fingerprint, found)
    if forced and differs is not None:
        message(f"--force-model-mismatch: {differs}; the results may be meaningless")
    rounding = fingerprint.differences_in_rounding(trace.fingerprint, found)
    for note in (rounding, fingerprint.another_version(trace.fingerprint)):
        if note is not None and (forced or differs is None):
            out.note(note)


def model_at_hand(trace: Trace) -> bool:
    """True if the model that a file names is on this machine, so that nothing has to be fetched."""
    name = known_name(trace.info.get("model"))
    if name is None:
        return False
    if name == default_model.NAME:
        return default_model.is_ready()
    return store.is_at_hand(name) if store.find(name) is not None else hub.kept(name)


def numbers(text: str, count: int, what: str) -> list[int]:
    """A selection such as `0-3,7,-1`, `all` or `last`, out of `count` things; negative numbers count from the end."""
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
        chosen += [number % count for number in range(first, last + 1)]
    return sorted(set(chosen))
