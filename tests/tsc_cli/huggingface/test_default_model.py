"""The main job on the default model: real weights, real text.  The model is fetched once and kept."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tsc_cli import capture, load, save, to_cache, verify
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import Sampler, continue_from, prefill
from tsc_cli.huggingface.models import loading as model_loading
from tsc_cli.session.resume import resume
from tsc_cli.verification.verify import VerifyOptions

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SMALLEST = {"fp32": 1.17, "bf16": 1.48, "fp16": 1.16}  # ratio of one 1,024-token cache, everything counted


@pytest.fixture(scope="module", params=["fp32", "bf16", pytest.param("fp16", marks=pytest.mark.full)])
def case(request: pytest.FixtureRequest) -> tuple[str, model_loading.Loaded, list[int]]:
    """(name of the dtype, the default model in it, tokens of the demo's text)."""
    loaded = model_loading.load(None, dtype=DTYPES[request.param], device="cpu", say=print)
    text = files("tsc_cli").joinpath("demo.txt").read_text("utf-8")
    return request.param, loaded, loaded.tokenizer(text).input_ids


def test_one_cache_is_small_and_bit_identical(case: tuple[str, Any, list[int]], tmp_path: Path) -> None:
    name, loaded, tokens = case
    trace = capture(loaded.model, tokens[:1024], steps=0, tokenizer=loaded.tokenizer)
    size = save(trace, tmp_path / "t.tsc")
    assert trace.raw_bytes / size >= SMALLEST[name]
    cache, _ = prefill(ModelAdapter(loaded.model), tokens[:1024], chunk=1024)
    assert caches.identical(cache, to_cache(load(tmp_path / "t.tsc"), loaded.model, tokenizer=loaded.tokenizer))


@pytest.mark.parametrize("steps", [5, pytest.param(16, marks=pytest.mark.full)])
def test_every_snapshot_resumes_as_the_uninterrupted_run(
    case: tuple[str, Any, list[int]], steps: int, tmp_path: Path
) -> None:
    _, loaded, tokens = case
    more = 8
    cache, logits = prefill(ModelAdapter(loaded.model), tokens[:256], chunk=1024)
    whole = list(
        islice(continue_from(ModelAdapter(loaded.model), cache, int(logits.argmax()), Sampler()), steps + more)
    )
    save(capture(loaded.model, tokens[:256], steps=steps), tmp_path / "t.tsc")
    trace = load(tmp_path / "t.tsc")
    for number in range(steps + 1):
        resumed = list(islice(resume(trace, loaded.model, snapshot=number), steps + more - number))
        assert resumed == whole[number:], number


def test_verify_finds_exactly_nothing_lost(case: tuple[str, Any, list[int]]) -> None:
    _, loaded, tokens = case
    trace = capture(loaded.model, tokens[:256], steps=2, reference=tokens[256:385])
    for result in [verify(trace, loaded.model, 0, options=VerifyOptions(positions=128, greedy=4))]:
        assert (result.fidelity.kl_mean, result.fidelity.kl_max, result.fidelity.top1) == (0, 0, 1)
        assert result.identical
        assert result.fidelity.sufficient


def test_a_model_in_another_dtype_is_another_model(case: tuple[str, Any, list[int]]) -> None:
    name, loaded, tokens = case
    trace = capture(loaded.model, tokens[:16], steps=0)
    other = torch.float16 if name != "fp16" else torch.bfloat16
    with pytest.raises(Exception, match="dtype is"):
        to_cache(trace, loaded.model.to(other))
    loaded.model.to(getattr(torch, DTYPES[name]))


@pytest.mark.full  # two minutes; the same with a small model is among the tests of the command line
def test_the_demo_ends_with_its_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tsc_cli", "demo", "-o", str(tmp_path / "demo.tsc"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["snapshots"] == 65
    assert facts["ratio_trace"] >= 66
    assert facts["resumed_equal"]
    for result in facts["results"]:
        assert (result["kl_mean"], result["top1"], result["identical"]) == (0.0, 1.0, True)
