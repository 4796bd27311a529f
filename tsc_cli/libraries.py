"""Other libraries: their bars and warnings are kept out of a command's output, their want of memory is recognized."""

from __future__ import annotations

import os
import warnings

# of memory, as torch, zstd, the kernel and the loader of shared objects put it
_WANTS = ("allocate memory", "not enough memory", "can't start new thread", "failed to map segment")


def quiet_environment() -> None:
    """Settings that libraries read when they are first imported; imports nothing itself."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def quiet_libraries() -> None:
    """Only errors are shown by transformers and huggingface_hub from here on, and no telemetry is sent."""
    quiet_environment()
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", module=r"(transformers|huggingface_hub|accelerate|torch)\b")


def is_want_of_memory(problem: Exception) -> bool:
    """Whether memory ran out; torch and zstd say so in the text of errors that can mean anything."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    text = str(problem).lower()
    told = any(words in text for words in _WANTS)
    return told and (isinstance(problem, RuntimeError | OSError | ImportError) or type(problem).__name__ == "ZstdError")
