"""Restoring one 1,024-token lossless cache against prefilling it, in one process: `python -m tests.benchmarks.restore`.

Default model, demo text.  The two alternate, so that the machine's speed drifts for both alike; medians are printed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from tsc_cli import capture, load, save, to_cache
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.generation import prefill
from tsc_cli.huggingface.models import loading

ROUNDS = 7


def main(dtype: str) -> None:
    loaded = loading.load(None, dtype=dtype, device="cpu", say=print)
    model, tokenizer = loaded.model, loaded.tokenizer
    tokens = tokenizer(files("tsc_cli").joinpath("demo.txt").read_text("utf-8")).input_ids[:1024]
    started = time.perf_counter()
    fingerprint.of(model, tokenizer)
    print(f"{dtype}: fingerprint, once a loaded model: {time.perf_counter() - started:.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.tsc"
        trace = capture(model, tokens, steps=0, tokenizer=tokenizer)
        started = time.perf_counter()
        size = save(trace, path)
        print(f"{dtype}: {trace.raw_bytes} raw, {size} bytes of file, {trace.raw_bytes / size:.4f}x; ", end="")
        print(f"written in {time.perf_counter() - started:.3f} s")
        prefills, restores = [], []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            prefill(ModelAdapter(model), tokens, chunk=1024)
            prefills.append(time.perf_counter() - started)
            started = time.perf_counter()
            to_cache(load(path), model, tokenizer=tokenizer)
            restores.append(time.perf_counter() - started)
    a, b = statistics.median(prefills), statistics.median(restores)
    print(f"{dtype}: prefill {a:.3f} s, restore {b:.3f} s: {a / b:.1f} times faster (medians of {ROUNDS})")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["float32", "bfloat16", "float16"]:
        main(wanted)
