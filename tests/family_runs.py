"""What `test_families` does with a family: the run that is not interrupted here, the resumed ones in another process.

`python -m tests.family_runs FOLDER` restores every snapshot of every .tsc file there and writes, beside each, the
logits that follow.  One process for all: starting one costs more than a family does.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import DynamicCache

from formats import load
from tests.families import DTYPES, PROMPT, SUPPORTED
from tsc_cli import to_cache
from tsc_cli.capturing import CaptureOptions, capture_to_file

STEPS = {"single": 0, "trace": 11}  # of decoding: a snapshot, and twelve
AFTER = 24  # tokens after each


def capture_family(folder: Path, family: str, dtype: str) -> None:
    """Write FAMILY.DTYPE.KIND.tsc for both kinds, and the logits of the uninterrupted run; an error into a text."""
    sample = SUPPORTED[family]
    try:
        model = sample.build(DTYPES[dtype])
        for kind, steps in STEPS.items():
            options = CaptureOptions(steps, chunk=sample.chunk)
            capture_to_file(model, PROMPT, folder / f"{family}.{dtype}.{kind}.tsc", options=options)
        filled = DynamicCache(config=model.config)  # by transformers alone
        for start in range(0, len(PROMPT), sample.chunk):
            logits = _feed(model, filled, PROMPT[start : start + sample.chunk])
        exact = _greedy(model, filled, int(logits.argmax()), STEPS["trace"] + AFTER)
        save_file({"logits": exact}, folder / f"{family}.{dtype}.exact")
    except Exception:
        (folder / f"{family}.{dtype}.error").write_text(traceback.format_exc())


def resume_file(path: Path) -> None:
    """Write FILE.resumed: `logits`, (snapshots, tokens, vocabulary), and `control`, (vocabulary,).

    The control is what follows the last snapshot if its last row is lost.
    """
    family, dtype, _ = path.stem.split(".")
    try:
        model, trace = _model(family, dtype), load(path)
        resumed = [
            _greedy(model, to_cache(trace, model, number), view.next_token, AFTER)
            for number, view in enumerate(trace.views)
        ]
        damaged = to_cache(trace, model)
        for layer in damaged.layers:
            layer.keys[:, :, -1] = 0
            layer.values[:, :, -1] = 0
        control = _feed(model, damaged, [trace.views[-1].next_token])
        save_file({"logits": torch.stack(resumed), "control": control}, path.with_suffix(".resumed"))
    except Exception:
        path.with_suffix(".error").write_text(traceback.format_exc())


@cache
def _model(family: str, dtype: str) -> Any:
    return SUPPORTED[family].build(DTYPES[dtype])


@torch.inference_mode()
def _feed(model: Any, filled: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Logits after the last token, (vocabulary,)."""
    logits = model(input_ids=torch.tensor([tokens]), past_key_values=filled, use_cache=True).logits
    return logits[0, -1].clone()


def _greedy(model: Any, filled: Any, token: int, count: int) -> torch.Tensor:
    """Logits after `token` and after each that follows it, (count, vocabulary)."""
    rows = []
    for _ in range(count):
        rows.append(_feed(model, filled, [token]))
        token = int(rows[-1].argmax())
    return torch.stack(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for file in sorted(Path(sys.argv[1]).glob("*.tsc")):
        resume_file(file)
