"""Two models for which the answer of `tsc probe-weights` is known.

`python -m tests.benchmarks.probe_controls TEXT FOLDER` makes both of the default model.  `shuffled` has each matrix's
own weights in a random order, so that its layers have nothing to do with each other.  `tuned` was trained for some
steps on TEXT (AdamW, rate 1e-4, windows of 128 tokens), so that it is near its base.  Then:

    tsc probe-weights FOLDER/shuffled --global
    tsc probe-weights FOLDER/tuned --against smollm2-135m-instruct --global
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tsc_cli.huggingface.models import loading

CONTEXT, RATE = 128, 1e-4


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    torch.manual_seed(0)
    loaded = loading.load(None, dtype="float32", device="cpu", say=print)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel())].view_as(weight))
    loaded.model.save_pretrained(asked.folder / "shuffled")
    loaded = loading.load(None, dtype="float32", device="cpu", say=print)
    tokens = torch.tensor(loaded.tokenizer(asked.text.read_text("utf-8")).input_ids)
    train(loaded.model, tokens, asked.steps)
    loaded.model.save_pretrained(asked.folder / "tuned")
    return 0


def train(model: torch.nn.Module, tokens: torch.Tensor, steps: int) -> None:
    """Some steps of next-token prediction on random windows."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for step in range(steps):
        start = int(torch.randint(len(tokens) - CONTEXT, ()))
        window = tokens[start : start + CONTEXT][None]
        loss = model(input_ids=window, labels=window).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {float(loss.detach()):.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
