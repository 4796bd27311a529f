"""The default model's whole context, 8,192 tokens: `python -m tests.benchmarks.long_context [--text FILE]`.

Every stage is a process of its own, of which the wall-clock seconds (Python, torch and the model's loading included)
and the largest resident set are taken from the operating system: prefill and decoding without tsc, capture, compress,
restore and resume, verify.  8,064 tokens of prompt and 128 steps, so that the 128 positions that verify scores behind
the prompt are still positions that the model was trained on.  Without --text the text is Python's own reference
documentation, which `tsc calibrate` without texts learns from: figures for codec klt need another one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT, STEPS, EVERY, CHUNK, RESUMED = 8064, 128, 32, 1024, 16
FILES = {  # name -> options of `tsc compress`; scalar needs no profile
    "klt, `--tier 125x`": ["--tier", "125x"],
    "scalar, 4 bits": ["--codec", "scalar", "--set", "bits=4"],
}
LIBRARY = """
import sys
from tsc_cli.calibration.texts import library_texts
open(sys.argv[1], "w", encoding="utf-8").write(library_texts()[0][0])
"""
LOADED = """
import json, resource, sys, time
from itertools import islice
from pathlib import Path
from tsc_cli import load, to_cache
from tsc_cli.huggingface.models import loading as models
from tsc_cli.huggingface.generation import feed, prefill
from tsc_cli.session.resume import resume
loaded = models.load(None, dtype="float32", device="cpu", say=lambda text: None)
model, path = loaded.model, sys.argv[1]
context, steps, chunk, resumed = map(int, sys.argv[2:6])
def prefilled():
    started = time.perf_counter()
    cache, logits = prefill(loaded.adapter, tokens, chunk=chunk)
    return cache, logits, time.perf_counter() - started
"""
PLAIN = """
tokens = loaded.tokenizer(Path(path).read_text("utf-8")).input_ids[:context]
cache, logits, seconds = prefilled()
for _ in range(steps):
    logits = feed(loaded.adapter, cache, [int(logits.argmax())], last_only=True)[-1]
print(json.dumps({"prefill": seconds}))
"""
RESTORE = """
times = []
for _ in range(3):
    cache = None  # one restored cache at a time
    started = time.perf_counter()
    cache = to_cache(load(path), model, tokenizer=loaded.tokenizer)
    times.append(time.perf_counter() - started)
cache = None
trace = load(path)
made = list(islice(resume(trace, model, snapshot=0, tokenizer=loaded.tokenizer), resumed))
equal = made == trace.token_ids(-1)[context:context + resumed]
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # before the prefill, which is there to be compared
tokens = trace.token_ids(-1)[:context + steps]
seconds = prefilled()[2] if chunk else None
print(json.dumps({"restore": sorted(times)[1], "equal": equal, "kilobytes": kilobytes, "prefill": seconds}))
"""

BEYOND = "--allow-beyond-positions"  # what follows the last snapshot


@dataclass(frozen=True)
class Stage:
    """What a process took, and the JSON that it printed."""

    seconds: float
    peak: int
    facts: dict[str, Any]


def run(*words: str) -> Stage:
    """Run this Python with the words.  This process stays small: Linux counts what it holds when it starts a child."""
    with tempfile.TemporaryFile("w+") as out:
        started = time.perf_counter()
        child = subprocess.Popen([sys.executable, *words], stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(words[-6:])} ended with {child.returncode}")
        out.seek(0)
        text = out.read().strip()
    unit = 1 if sys.platform == "darwin" else 1024
    return Stage(seconds, usage.ru_maxrss * unit, json.loads(text) if text else {})


def tsc(*words: str) -> Stage:
    return run("-m", "tsc_cli", *words, "--json", "--quiet")


def script(body: str, path: Path, *, steps: int = STEPS, chunk: int = CHUNK) -> Stage:
    return run("-c", LOADED + body, str(path), *map(str, (CONTEXT, steps, chunk, RESUMED)))


class Report:
    """Prints a line a stage as it ends."""

    def __init__(self) -> None:
        self.plain = 0

    def __call__(self, name: str, stage: Stage, peak: int | None = None) -> Stage:
        peak = stage.peak if peak is None else peak
        self.plain = self.plain or peak
        print(f"| {name} | {stage.seconds:.1f} | {peak / 1e6:,.0f} MB | {peak / self.plain:.2f} |", flush=True)
        return stage


def main(text: Path | None, folder: Path) -> None:
    if text is None:
        text = folder / "library.txt"
        run("-c", LIBRARY, str(text))
    whole, report = folder / "whole.tsc", Report()
    print("| stage | seconds | peak | of the first |\n| --- | --- | --- | --- |")
    report("without tsc: prefill in chunks, decode", script(PLAIN, text))
    report("without tsc: prefill in one pass", script(PLAIN, text, steps=0, chunk=CONTEXT))
    report("nothing but loading the model", script("", text))
    sizes = ["--context", str(CONTEXT), "--steps", str(STEPS), "--every", str(EVERY), "--chunk", str(CHUNK)]
    captured = report(
        "capture", tsc("capture", "--prompt-file", str(text), *sizes, "--dtype", "float32", "-o", str(whole))
    )
    rows, restored = [], script(RESTORE, whole, steps=STEPS)
    report("restore three times, resume", restored, restored.facts["kilobytes"] * 1024)
    prefill = restored.facts["prefill"]
    verified = report("verify, first and last snapshot", verify(whole, "0,-1"))
    rows.append(row("lossless", captured.facts, verified, restored, prefill, None))
    for number, (name, options) in enumerate(FILES.items()):
        path = folder / f"{number}.tsc"
        made = report(f"compress: {name}", tsc("compress", str(whole), *options, BEYOND, "-o", str(path)))
        restored = script(RESTORE, path, chunk=0)
        report(f"restore three times, resume: {name}", restored, restored.facts["kilobytes"] * 1024)
        verified = report(f"verify, first snapshot: {name}", verify(path, "0"))
        rows.append(row(name, made.facts, verified, restored, prefill, made.facts["quality"]["kl_mean"]))
    raw = captured.facts["raw_bytes_trace"], captured.facts["raw_bytes_final"]
    print(f"\nraw bytes {raw[0]:,} (the trace), {raw[1]:,} (the final cache); prefill of all of it {prefill:.1f} s")
    print(
        f"\n| file | bytes | of the trace | of the final cache | KL, {STEPS} positions | same top-1 | KL by compress | "
        f"restore | of the prefill | {RESUMED} tokens as captured |\n|{' --- |' * 10}"
    )
    print("\n".join(rows))


def verify(path: Path, snapshots: str) -> Stage:
    positions, greedy = ["--positions", str(STEPS)], ["--greedy", str(RESUMED)]
    return tsc("verify", str(path), "--snapshots", snapshots, *positions, *greedy, BEYOND)


def row(
    name: str, made: dict[str, Any], verified: Stage, restored: Stage, prefill: float, measured: float | None
) -> str:
    first, back = verified.facts["results"][0], restored.facts
    exact = " (bit-identical)" if all(one["identical"] for one in verified.facts["results"]) else ""
    cells = [
        name,
        f"{made['file_bytes']:,}",
        f"{made['ratio_trace']:.2f}x",
        f"{made['ratio_final']:.2f}x",
        f"{first['kl_mean']:.2g}{exact}",
        f"{first['top1']:.4f}",
        "" if measured is None else f"{measured:.2g}",
        f"{back['restore']:.2f} s",
        f"{back['restore'] / prefill:.3f}",
        "yes" if back["equal"] else "no",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path)
    with tempfile.TemporaryDirectory() as scratch:
        main(parser.parse_args().text, Path(scratch))
