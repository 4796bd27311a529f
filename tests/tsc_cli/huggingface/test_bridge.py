"""Restored caches go on exactly as the uninterrupted run did, in every family that is supported."""

from __future__ import annotations

from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from formats.errors import MismatchError, UnsupportedCacheError
from tests.support import models
from tsc_cli import capture, load, save, to_cache
from tsc_cli.huggingface import caches, restore
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import Sampler, continue_from, feed, prefill
from tsc_cli.session.resume import resume

STEPS, MORE = 12, 24


def uninterrupted(model: Any, prompt: list[int]) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens and logits of one greedy run: STEPS + MORE tokens after the prompt."""
    cache, logits = prefill(ModelAdapter(model), prompt, chunk=1024)
    token, tokens, seen = int(logits.argmax()), [], []
    for _ in range(STEPS + MORE):
        tokens.append(token)
        seen.append(feed(ModelAdapter(model), cache, [token], last_only=True)[-1])
        token = int(seen[-1].argmax())
    return tokens, seen


# quick: all that families differ in with one dtype and length, and all dtypes and lengths with one family
@pytest.mark.parametrize(
    ("length", "family", "dtype"),
    [
        pytest.param(
            length,
            family,
            dtype,
            id=f"{'past-window' if length > 16 else 'short'}-{family}-{dtype}",
            marks=() if family == "gemma3-mixed" or (length, dtype) == (40, torch.float32) else pytest.mark.full,
        )
        for length, family, dtype in product((9, 40), models.FAMILIES, (torch.float32, torch.bfloat16))
    ],
)
def test_every_snapshot_resumes_bit_identically(family: str, dtype: torch.dtype, length: int, tmp_path: Path) -> None:
    model, prompt = models.FAMILIES[family](dtype), models.prompt(length)
    tokens, logits = uninterrupted(model, prompt)
    save(capture(model, prompt, steps=STEPS), tmp_path / "trace.tsc")
    trace = load(tmp_path / "trace.tsc")
    assert len(trace) == STEPS + 1
    for number in range(len(trace)):
        cache = to_cache(trace, model, number)
        for step in range(number, number + MORE):
            assert torch.equal(feed(ModelAdapter(model), cache, [tokens[step]], last_only=True)[-1], logits[step]), (
                number,
                step,
            )


@pytest.mark.parametrize("family", models.FAMILIES)
def test_generate_takes_the_cache(family: str) -> None:
    model, prompt = models.FAMILIES[family](torch.float32), models.prompt(40)
    trace = capture(model, prompt, steps=3)
    whole = torch.tensor([[*trace.token_ids(-1), trace.views[-1].next_token]])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = model.generate(whole, **models.given_to_generate(to_cache(trace, model)), **settings)
    expected = list(islice(resume(trace, model), 9))
    assert made[0, whole.shape[1] - 1 :].tolist() == expected


def test_sliding_layers_store_only_their_window() -> None:
    trace = capture(models.gemma3_mixed(), models.prompt(40), steps=0)
    rows = {spec.kind: trace.views[0].rows(layer) for layer, spec in enumerate(trace.geometry.layers)}
    assert rows == {"sliding": 15, "full": 40}
    stored = {block.key.row_count for block in trace.blocks if trace.geometry.layers[block.key.first_layer].window}
    assert stored == {15}


def test_fork_leaves_the_original_alone() -> None:
    model = models.gemma3_mixed()
    cache, logits = prefill(ModelAdapter(model), models.prompt(20), chunk=64)
    before = [(keys.clone(), values.clone()) for keys, values in caches.rows_of(cache)]
    list(islice(continue_from(ModelAdapter(model), caches.fork(cache), int(logits.argmax()), Sampler()), 5))
    assert all(
        torch.equal(a, b)
        for old, new in zip(before, caches.rows_of(cache), strict=True)
        for a, b in zip(old, new, strict=True)
    )
    assert cache.get_seq_length() == 20


def test_a_subclass_of_a_supported_layer_is_refused() -> None:
    class Layer(transformers.cache_utils.DynamicLayer):
        pass

    cache = transformers.DynamicCache(config=models.llama().config)
    cache.layers[1] = Layer()
    with pytest.raises(UnsupportedCacheError, match="layer 1 of M is a Layer"):
        caches.refuse_unsupported(cache, "M")


def test_restoring_checks_every_layer_before_building() -> None:
    model = models.llama()
    trace = capture(model, models.prompt(9), steps=0)
    moment, specs = trace.snapshot(), trace.geometry.layers
    moment.keys[2] = moment.keys[2][:, :, :-1]
    with pytest.raises(MismatchError, match="layer 2 has 8 rows, layer 0 has 9"):
        restore.restore(moment, ModelAdapter(model), specs)
    moment.keys.pop()
    with pytest.raises(MismatchError, match="the file has 2 layers, the model 3"):
        restore.restore(moment, ModelAdapter(model), specs[:-1])
