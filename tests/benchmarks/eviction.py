"""What eviction costs, and what wrong position ids would: `python -m tests.benchmarks.eviction [TEXT]`.

Default model, 1,024 tokens, KL over the 256 tokens that follow.  Rows are kept exactly (codec lossless), so that all of
the KL is the filter's.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from transformers.cache_utils import DynamicCache

from formats import Trace
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from tsc_cli import capture
from tsc_cli.huggingface import restore
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import Sampler, continuation, score
from tsc_cli.huggingface.models import loading
from tsc_cli.scoring.fidelity import compare
from tsc_cli.scoring.scorer import scratch_file
from tsc_cli.session.decode_loop import CaptureOptions

FILTERS = [
    ("h2o", {"keep": 0.9}),
    ("h2o", {"keep": 0.75}),
    ("h2o", {"keep": 0.75, "recent": 0.25}),
    ("h2o", {"keep": 0.75, "recent": 0.9}),
    ("h2o", {"keep": 0.5}),
    ("h2o", {"keep": 0.25}),
    ("streaming", {"sinks": 4, "window": 764}),
    ("streaming", {"sinks": 0, "window": 768}),
    ("streaming", {"sinks": 4, "window": 252}),
]


def naive(trace: Trace, model: object) -> DynamicCache:
    """The same rows in a cache that does not know that any were evicted: positions go on from the number of rows."""
    cache = DynamicCache(config=model.config)  # type: ignore[attr-defined]
    moment = trace.snapshot(0)
    for layer, (keys, values) in enumerate(zip(moment.keys, moment.values, strict=True)):
        cache.update(keys, values, layer)
    return cache


def main(path: str | None) -> None:
    loaded = loading.load(None, device="cpu", say=print)
    model, tokenizer = loaded.model, loaded.tokenizer
    text = Path(path).read_text("utf-8") if path else files("tsc_cli").joinpath("demo.txt").read_text("utf-8")
    ids = tokenizer(text).input_ids[: 1024 + 257]
    trace = capture(model, ids[:1024], options=CaptureOptions(steps=0, attention=True))
    source, tokens = Source(trace), ids[1024:]
    exact = score(ModelAdapter(model), restore.to_cache(trace, model), tokens[:-1])
    for name, settings in FILTERS:
        with scratch_file(source, Recipe("lossless", evict=name, evict_settings=settings)) as evicted:
            right = compare(
                exact, score(ModelAdapter(model), restore.to_cache(evicted, model), tokens[:-1]), tokens[1:]
            )
            wrong = compare(exact, score(ModelAdapter(model), naive(evicted, model), tokens[:-1]), tokens[1:])
            print(
                f"{name} {settings}: KL {right.kl_mean:.4f} +- {right.kl_mean_se:.4f}, top-1 {right.top1:.3f}; "
                f"with wrong position ids KL {wrong.kl_mean:.4f}, {wrong.kl_mean / right.kl_mean:.1f} times"
            )
            if settings == {"keep": 0.75}:
                made = continuation(ModelAdapter(model), restore.to_cache(evicted, model), tokens[0], 48, Sampler())
                print(f"  goes on: {tokenizer.decode(made)!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
