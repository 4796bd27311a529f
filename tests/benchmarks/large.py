"""Calibrating and using a model whose cache has the shape of an 8B one's: `python -m tests.benchmarks.large`.

32 layers, 8 KV heads, head size 128: 65,536 values a token, in seven groups.  The weights are random and the rest of
the model is narrow, since the cost of a profile lies in the cache's shape; few tokens, since memory does not depend on
their number.  Prints the time of each stage, the bytes that are held, and the most memory that the process has had.
"""

from __future__ import annotations

import resource
import sys
import time

import torch
import transformers

from formats.codecs.klt.fitting import Rank
from tsc_cli.calibration.curve import coded
from tsc_cli.calibration.gather import CalibrationOptions, Gatherer
from tsc_cli.calibration.symbol_counting import profile_of
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import prefill

CONTEXT, FOLLOWING, WINDOWS = 256, 64, 6
RANK = 512  # of each group


def main() -> int:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=32,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=512,
        max_position_embeddings=2048,
        initializer_range=0.1,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    say(f"model {sum(p.numel() for p in model.parameters()) * 4 / 1e9:.2f} GB")
    started = time.perf_counter()
    gatherer = Gatherer(ModelAdapter(model), CalibrationOptions(Rank(RANK), CONTEXT))
    held = sum(t.numel() * t.element_size() for t in gatherer.state().values()) / 1e9
    say(f"groups of {[shape.layer_count for shape in gatherer.shapes]} layers, statistics {held:.2f} GB")
    draws = [torch.randint(512, (CONTEXT + FOLLOWING,)).tolist() for _ in range(WINDOWS + 2)]
    for tokens in draws[:WINDOWS]:
        gatherer.add(tokens)
    say(f"{WINDOWS} windows of {CONTEXT} tokens gathered in {time.perf_counter() - started:.0f} s")
    started = time.perf_counter()
    groups = gatherer.groups()
    say(f"fitted, rank {RANK} a group, in {time.perf_counter() - started:.0f} s")
    profile = profile_of(gatherer, groups, draws[WINDOWS : WINDOWS + 1], "8B-shaped", {})
    say(f"profile {profile.size / 1e6:.0f} MB")
    cache, _ = prefill(ModelAdapter(model), draws[-1][:CONTEXT], chunk=CONTEXT)
    started = time.perf_counter()
    bits, _ = coded(cache, model, profile, 360)
    seconds = time.perf_counter() - started
    say(f"one cache of {CONTEXT} tokens there and back in {seconds:.1f} s, {bits:.3f} bits a value")
    return 0


def say(text: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    print(f"{text}; peak of the process so far {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
