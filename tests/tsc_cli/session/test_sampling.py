"""What is sampled: a draw depends on the seed and on every token before it, and on nothing else."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from formats import load, save
from formats.errors import UsageError
from tests.support import models
from tests.support.families import PROMPT, SUPPORTED
from tests.tsc_cli.huggingface.test_foreign import batch
from tsc_cli import capture, from_cache
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import prefill
from tsc_cli.huggingface.restore import to_cache
from tsc_cli.huggingface.sampling import Sampler, tokens_before
from tsc_cli.scoring.continuations import sample_after
from tsc_cli.session.append import append
from tsc_cli.session.decode_loop import CaptureOptions
from tsc_cli.session.resume import resume

HOT: dict[str, Any] = {"temperature": 1.5, "seed": 7}


def test_appends_with_one_seed_draw_differently(tmp_path: Path) -> None:
    model, path = models.llama(), tmp_path / "t.tsc"
    save(capture(model, models.prompt(20), options=CaptureOptions(steps=0, **HOT)), path)
    for _ in range(3):
        append(model, [], path, options=CaptureOptions(steps=8, **HOT))
    made = load(path).token_ids()[20:]
    assert len({tuple(made[at : at + 8]) for at in (0, 8, 16)}) == 3
    # nor a part of one in the others
    assert len({tuple(made[at + 2 : at + 8]) for at in (0, 8, 16)}) == 3


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_next", "mamba", "t5"])
def test_an_unbroken_sampled_run_is_the_same_run_in_parts(family: str, tmp_path: Path) -> None:
    from tests.support.family_runs import capture_small

    sample, path = SUPPORTED[family], tmp_path / "t.tsc"
    model = sample.build(torch.float32)
    whole = capture_small(sample, model, steps=24, **HOT)
    save(capture_small(sample, model, steps=12, **HOT), path)
    append(model, [], path, options=CaptureOptions(steps=5, **HOT))
    append(model, [], path, options=CaptureOptions(steps=7, **HOT))
    parts = load(path)
    assert parts.token_ids() == whole.token_ids()
    assert parts.pending == whole.pending
    other = capture_small(sample, model, steps=24, temperature=1.5, seed=8)
    assert other.token_ids() != whole.token_ids()


def test_a_sampled_resume_goes_on_as_the_sampled_run_did() -> None:
    model = models.llama()
    whole = capture(model, models.prompt(20), options=CaptureOptions(steps=24, **HOT))
    again = list(islice(resume(whole, model, snapshot=9, sampler=Sampler(**HOT)), 15))
    assert again == whole.token_ids()[29:]
    sampler = Sampler(**HOT)  # is a setting: two resumes with it are equal
    first, second = (list(islice(resume(whole, model, sampler=sampler), 12)) for _ in range(2))
    assert first == second


def test_the_turn_before_a_token_changes_its_draw(tmp_path: Path) -> None:
    """One length, one seed, flat logits: only the history tells the draws apart."""
    flat = torch.zeros(5000)
    draws = [Sampler(**HOT).after(history)(flat) for history in ([1, 2, 3], [1, 2, 4], [2, 1, 3], [1, 2], [])]
    assert len(set(draws)) == 5
    assert Sampler(**HOT).after([1, 2]).after([3])(flat) == draws[0]
    assert Sampler(1.5, 8).after([1, 2, 3])(flat) != draws[0]
    assert Sampler(1.5, 7, 1).after([1, 2, 3])(flat) != draws[0]


def test_the_sequences_of_a_batch_draw_each_for_itself() -> None:
    model = models.llama()
    same = capture(model, torch.tensor([models.prompt(12)] * 4), options=CaptureOptions(steps=10, **HOT))
    made = [tuple(same.sequence(number).token_ids()[12:]) for number in range(4)]
    assert len(set(made)) == 4
    # the first of a batch draws as it would alone, whatever stands beside it
    assert list(made[0]) == capture(model, models.prompt(12), options=CaptureOptions(steps=10, **HOT)).token_ids()[12:]


def test_padding_is_no_history() -> None:
    model = SUPPORTED["llama"].build(torch.float64)
    ids, mask = batch()
    trace = capture(model, ids, attention_mask=mask, options=CaptureOptions(steps=6, **HOT))
    for number in range(len(ids)):
        alone = trace.sequence(number)
        history = alone.token_ids(0)
        assert tokens_before(trace, 0, number) == history
        choose = Sampler(**HOT, sequence=number)
        assert list(islice(resume(alone, model, snapshot=2, sampler=choose), 5)) == [
            *alone.token_ids()[len(history) + 2 :],
            alone.pending[0],
        ]


def test_what_verify_samples_depends_on_what_came_before() -> None:
    model = models.llama()
    made = []
    for prompt in (models.prompt(20), models.prompt(20, seed=1)):
        cache, _ = prefill(ModelAdapter(model), prompt, chunk=64)
        trace = from_cache(cache, model, prompt)
        made.append(sample_after(trace, ModelAdapter(model), to_cache(trace, model), 12, 0))
    assert made[0] != made[1]


def test_draws_follow_the_probabilities() -> None:
    weights = torch.tensor([0.5, 0.0, 0.25, 0.25])
    counts = torch.zeros(4)
    for number in range(4000):
        counts[Sampler(1.0, 3).after([number])(weights.log())] += 1
    assert counts[1] == 0
    assert (counts / 4000 - weights).abs().max() < 0.03


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-300, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0)) * 30
    logits[7] = -math.inf
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        given = logits.to(dtype)
        assert Sampler(temperature, 5).after([1])(given) == int(given.argmax())
    tied = torch.tensor([1.0, 3.0, 3.0])
    assert {Sampler(temperature, 0).after([number])(tied) for number in range(40)} == {1, 2}
    assert len(capture(models.llama(), PROMPT, options=CaptureOptions(steps=2, temperature=temperature))) == 3


def test_the_largest_temperature_is_no_preference() -> None:
    logits = torch.tensor([0.0, 300.0, -300.0])
    assert {Sampler(1e308, 0).after([number])(logits) for number in range(40)} == {0, 1, 2}


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -1.0])
def test_what_is_no_temperature(temperature: float) -> None:
    with pytest.raises(UsageError, match="temperature"):
        capture(models.llama(), PROMPT, options=CaptureOptions(steps=1, temperature=temperature))


@pytest.mark.parametrize("seed", [-1, 1 << 63, 1 << 64, 10**40, 1.5, "1"])
def test_what_is_no_seed(seed: Any, tmp_path: Path) -> None:
    model, path = models.llama(), tmp_path / "t.tsc"
    with pytest.raises(UsageError, match="seed"):
        capture(model, PROMPT, options=CaptureOptions(steps=1, seed=seed))
    save(capture(model, PROMPT, options=CaptureOptions(steps=1, seed=(1 << 63) - 1, temperature=1.0)), path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="seed"):
        append(model, [], path, options=CaptureOptions(steps=1, seed=seed))
    assert path.read_bytes() == before


def test_logits_that_are_not_numbers_choose_nothing() -> None:
    with pytest.raises(UsageError, match="not numbers"):
        Sampler(1.0)(torch.tensor([0.0, math.nan]))
