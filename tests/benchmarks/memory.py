"""Peak memory of a 64-step capture against the same run without capturing: `python -m tests.benchmarks.memory`.

Each run is a process of its own; the operating system's figure for its largest resident set is read.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

COMMON = """
import resource, sys
from importlib.resources import files
from tsc_cli.huggingface.models import loading as models
from tsc_cli.huggingface.generation import Sampler, feed, prefill
loaded = models.load(None, dtype="float32", device="cpu", say=lambda text: None)
tokens = loaded.tokenizer(files("tsc_cli").joinpath("demo.txt").read_text("utf-8")).input_ids[:1024]
"""
PLAIN = """
cache, logits = prefill(loaded.adapter, tokens, chunk=1024)
for _ in range(64):
    logits = feed(loaded.adapter, cache, [int(logits.argmax())], last_only=True)[-1]
"""
CAPTURING = """
from tsc_cli.session.capture import capture_to_file
from tsc_cli.session.decode_loop import CaptureOptions
capture_to_file(loaded.model, tokens, sys.argv[1], tokenizer=loaded.tokenizer, options=CaptureOptions(steps=64))
"""
REPORT = "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"


def peak(body: str, path: Path) -> int:
    command = [sys.executable, "-c", COMMON + body + REPORT, str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    cache = 1088 * 30 * 3 * 64 * 2 * 4
    with tempfile.TemporaryDirectory() as folder:
        for number in range(3):
            plain, capturing = peak(PLAIN, Path()), peak(CAPTURING, Path(folder) / f"{number}.tsc")
            limit = 1.3 * plain + cache
            print(
                f"without {plain / 1e6:.0f} MB, capturing {capturing / 1e6:.0f} MB: {capturing / plain:.3f} times; ",
                end="",
            )
            print(f"limit 1.3 times plus one cache of {cache / 1e6:.0f} MB = {limit / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
