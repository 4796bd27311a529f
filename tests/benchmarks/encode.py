"""Encoding a 64-step trace against capturing it, in one process: `python -m tests.benchmarks.encode`.

Default model, demo text, 1,024 tokens and 64 steps.  Capturing is the model's run with its snapshots kept in memory;
encoding is from rows in memory to the whole file.
"""

from __future__ import annotations

import io
import time
from importlib.resources import files

from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import write
from tsc_cli import capture
from tsc_cli.huggingface.models import loading
from tsc_cli.scoring.published import TABLE_1, TIERS


def main() -> None:
    loaded = loading.load(None, device="cpu", say=print)
    tokens = loaded.tokenizer(files("tsc_cli").joinpath("demo.txt").read_text("utf-8")).input_ids[:1024]
    capture(loaded.model, tokens[:64], steps=2)  # the first call of a process is slower
    started = time.perf_counter()
    source = Source(capture(loaded.model, tokens, steps=64))
    captured = time.perf_counter() - started
    source.filtered(Recipe("lossless"))  # into memory
    print(f"capture {captured:.2f} s")
    recipes = {
        "lossless": Recipe("lossless"),
        "scalar 8 bits": TABLE_1["scalar-8"].recipe,
        "scalar 2 bits": Recipe("scalar", {"bits": 2}),
        "scalar rotated": Recipe("scalar", {"bits": 4, "keys": "token", "symmetric": True, "hadamard": True}),
        "delta": Recipe("delta"),
        "delta, keyframe 8 bits": Recipe("delta", {"keyframe_bits": 8}),
        **{
            f"{name} as published": tier.published.recipe
            for name, tier in TIERS.items()
            if tier.published is not None and tier.published.recipe.codec in ("vq", "pq")
        },
    }
    for name, recipe in recipes.items():
        started = time.perf_counter()
        _, length = write(source, recipe, io.BytesIO())
        seconds = time.perf_counter() - started
        print(f"{name:24s} {seconds:6.2f} s, {seconds / captured:5.2f} of the capture, {length} bytes")


if __name__ == "__main__":
    main()
