"""Keeping other libraries' bars and warnings out of a command's output."""

from __future__ import annotations

import os
import warnings


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
