"""Silence other libraries' progress bars and warnings, and recognize their out-of-memory errors."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

# of memory, as torch, zstd, the kernel and the loader of shared objects put it
_WANTS = ("allocate memory", "not enough memory", "can't start new thread", "failed to map segment")


def quiet_environment() -> None:
    """Settings that libraries read when they are first imported; imports nothing itself."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def quiet_libraries() -> None:
    """Stop transformers and huggingface_hub from printing and from sending telemetry.

    What they log as an error they raise as well, and that becomes the one line of a refusal.
    """
    quiet_environment()
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", module=r"(transformers|huggingface_hub|accelerate|torch)\b")


@contextlib.contextmanager
def quiet_panics() -> Iterator[None]:
    """Hide what a Rust library prints when it panics; Python gets an exception as well.

    Whatever else is written to stderr meanwhile comes out at the end.
    """
    try:
        sys.stderr.flush()
        real = os.dup(2)
    except (OSError, ValueError, AttributeError):  # there is no stderr
        yield
        return
    panicked = False
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error)
            raise
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            captured.seek(0)
            text = captured.read()
            if text and not panicked:
                with contextlib.suppress(OSError):
                    os.write(2, text)


def is_panic(problem: BaseException) -> bool:
    """Return whether Rust code panicked; the exception is no subclass of `Exception`."""
    return type(problem).__name__ == "PanicException"


def is_out_of_memory(problem: BaseException) -> bool:
    """Return whether memory ran out; torch and zstd tell only in the text of general errors."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    text = str(problem).lower()
    matches = any(words in text for words in _WANTS)
    return matches and (
        isinstance(problem, RuntimeError | OSError | ImportError) or type(problem).__name__ == "ZstdError"
    )
