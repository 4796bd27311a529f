"""A cache is restored into the model of its capture only; the field that differs is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from formats.errors import MismatchError
from tests.support import models
from tsc_cli import capture, to_cache
from tsc_cli.huggingface.fingerprint import fingerprint


def one_weight(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 2**-12
    return model


CHANGES: dict[str, tuple[str, Callable[[], Any]]] = {
    "one weight": ("weights", lambda: one_weight(models.mistral_sliding())),
    "rope theta": (
        "rope.rope_theta",
        lambda: models.mistral_sliding(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    ),
    "rope scaling": (
        "rope.factor",
        lambda: models.mistral_sliding(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
    ),
    "sliding window": ("sliding_window", lambda: models.mistral_sliding(sliding_window=17)),
    "norm epsilon": ("config.rms_norm_eps", lambda: models.mistral_sliding(rms_norm_eps=1e-5)),
    "dtype": ("dtype", lambda: models.mistral_sliding(torch.bfloat16)),
    "architecture": ("architecture", models.llama),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_single_change_is_refused_and_named(change: str) -> None:
    field, build = CHANGES[change]
    trace = capture(models.mistral_sliding(), models.prompt(9), steps=1)
    with pytest.raises(MismatchError, match=f"another model: {field} is "):
        to_cache(trace, build())


def test_another_tokenizer_is_refused() -> None:
    model, tokenizer = models.llama(), models.byte_tokenizer()
    trace = capture(model, models.prompt(9), steps=0, tokenizer=tokenizer)
    to_cache(trace, model, tokenizer=models.byte_tokenizer())
    tokenizer.add_tokens(["new"])
    with pytest.raises(MismatchError, match="tokenizer"):
        to_cache(trace, model, tokenizer=tokenizer)


def test_how_a_tokenizer_was_last_asked_to_pad_is_no_difference() -> None:
    model, tokenizer = models.llama(), models.byte_tokenizer()
    trace = capture(model, models.prompt(9), steps=0, tokenizer=tokenizer)
    used = models.byte_tokenizer()
    used.pad_token = used.eos_token
    used(["a", "bcd"], padding=True, truncation=True, max_length=5)
    assert used.backend_tokenizer.padding is not None
    assert used.backend_tokenizer.truncation is not None
    to_cache(trace, model, tokenizer=used)
    assert used.backend_tokenizer.padding is not None  # the caller's tokenizer is left alone


@pytest.mark.parametrize("field", ["weights", "config", "rope"])
def test_a_file_that_does_not_say_what_it_belongs_to_is_refused(field: str) -> None:
    model = models.llama()
    trace = capture(model, models.prompt(9), steps=0)
    del trace.fingerprint[field]
    with pytest.raises(MismatchError, match=f"does not say what model it belongs to: it has no {field}"):
        to_cache(trace, model)
    to_cache(trace, model, allow_model_mismatch=True)


def test_the_same_model_built_twice_is_the_same() -> None:
    assert fingerprint.of(models.llama()) == fingerprint.of(models.llama())


def test_a_weight_changed_in_place_is_noticed_although_the_hash_is_cached() -> None:
    model = models.llama()
    before = fingerprint.weights_of(model)
    assert fingerprint.weights_of(model) == before
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert fingerprint.weights_of(model) != before


def test_another_attention_kernel_means_the_same_cache() -> None:
    model = models.llama()
    trace = capture(model, models.prompt(9), steps=0)
    model.set_attn_implementation("eager")
    to_cache(trace, model)


def test_force_goes_on_and_converts_the_dtype() -> None:
    trace = capture(models.llama(), models.prompt(9), steps=0)
    cache = to_cache(trace, models.llama(torch.bfloat16), allow_model_mismatch=True)
    assert cache.layers[0].keys.dtype == torch.bfloat16
