"""Restoring and encoding one 1,024-token cache at 125x, against prefilling it: `python -m tests.benchmarks.klt`.

Default model, float32, the installed profile, one process.  The three alternate, so that the machine's speed drifts
for all alike; medians are printed.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from formats.codecs.klt import profile_store
from formats.encode.source import Source
from formats.encode.write import write
from tsc_cli import capture, load, to_cache
from tsc_cli.compression.compressor import Compressor
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import prefill
from tsc_cli.huggingface.models import loading
from tsc_cli.scoring.published import tier_of

ROUNDS = 5


def main() -> int:
    loaded = loading.load(None, dtype="float32", device="cpu", say=print)
    model, tokenizer = loaded.model, loaded.tokenizer
    tokens = tokenizer(files("tsc_cli").joinpath("demo.txt").read_text("utf-8")).input_ids[:1024]
    trace = capture(model, tokens, steps=0, tokenizer=tokenizer)
    profile = profile_store.for_model(trace.fingerprint)
    if profile is None:
        print("there is no profile of the default model: tsc calibrate makes one", file=sys.stderr)
        return 2
    source = Source(trace)
    tier = tier_of("125x")
    recipe = Compressor(source, None, profile=profile).choose(tier).winner.recipe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.tsc"
        with path.open("wb") as file:
            _, size = write(source, recipe, file)
        print(
            f"{trace.raw_bytes} raw, {size} bytes of file, {trace.raw_bytes / size:.4f}x, profile {profile.size} bytes"
        )
        started = time.perf_counter()
        to_cache(load(path), model, tokenizer=tokenizer)
        print(f"first restore of a process, the profile unpacked: {time.perf_counter() - started:.3f} s")
        times: dict[str, list[float]] = {"prefill": [], "restore": [], "encode": []}
        for _ in range(ROUNDS):
            for name, job in (
                ("prefill", lambda: prefill(ModelAdapter(model), tokens, chunk=1024)),
                ("restore", lambda: to_cache(load(path), model, tokenizer=tokenizer)),
                ("encode", lambda: write(source, recipe, io.BytesIO())),
            ):
                started = time.perf_counter()
                job()
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        print(f"{name} {median:.3f} s, {median / medians['prefill']:.3f} of the prefill (median of {ROUNDS})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
