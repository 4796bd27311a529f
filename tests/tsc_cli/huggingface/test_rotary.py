"""The rotary embedding of a layer is found by experiment, whatever the family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from formats.codecs.klt.rotary import Rotary
from tests.support import models
from tsc_cli.huggingface import caches, rotary_detection
from tsc_cli.huggingface.adapter import ModelAdapter

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def _scaled(kind: str, **extra: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **extra}}


LLAMA3 = _scaled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = _scaled("yarn", factor=4.0, original_max_position_embeddings=64)


def _of(config: Any) -> Any:
    return lambda dtype=torch.float32: models.build(config, dtype)


# name: how to make it, channels of a head that turn (of each layer), interleaved pairs
ROTARY: dict[str, tuple[Any, list[int], bool]] = {
    "llama": (models.llama, [12] * 3, False),
    "llama3-scaling": (lambda dtype=torch.float32: models.llama(dtype, **LLAMA3), [12] * 3, False),
    "yarn": (lambda dtype=torch.float32: models.llama(dtype, **YARN), [12] * 3, False),
    "linear": (lambda dtype=torch.float32: models.llama(dtype, **_scaled("linear", factor=2.0)), [12] * 3, False),
    "mqa": (
        _of(transformers.LlamaConfig(**models.SMALL, num_attention_heads=4, num_key_value_heads=1)),
        [12] * 3,
        False,
    ),
    "qwen3": (models.qwen3, [20] * 3, False),
    "sliding": (models.mistral_sliding, [12] * 3, False),
    "gemma3-two-bases": (models.gemma3_mixed, [16] * 3, False),
    "partial": (
        _of(transformers.GPTNeoXConfig(**models.SMALL, num_attention_heads=3, rotary_pct=0.25)),
        [4] * 3,
        False,
    ),
    "interleaved": (_of(transformers.CohereConfig(**models.SMALL, **HEADS)), [12] * 3, True),
    "interleaved-partial": (
        _of(transformers.GlmConfig(**models.SMALL, **HEADS, head_dim=16, pad_token_id=0)),
        [8] * 3,
        True,
    ),
    "some-layers-without": (
        _of(transformers.SmolLM3Config(**models.SMALL, **HEADS, no_rope_layers=[1, 1, 0], pad_token_id=0)),
        [12, 12, 0],
        False,
    ),
    "learned-positions": (models.gpt2, [0] * 3, False),
}


@pytest.mark.parametrize("name", ROTARY)
def test_each_family_says_how_it_turns_its_keys(name: str) -> None:
    make, channels, interleaved = ROTARY[name]
    found = rotary_detection.layers_of(ModelAdapter(make()))
    assert [one.channels for one in found] == channels
    assert all(one.interleaved is interleaved for one in found if one.channels)


@pytest.mark.parametrize("name", [name for name, (_, channels, _) in ROTARY.items() if any(channels)])
def test_turned_back_the_first_layer_depends_on_the_token_alone(name: str) -> None:
    model = ROTARY[name][0]()
    found = rotary_detection.layers_of(ModelAdapter(model))
    cache = caches.new_cache(ModelAdapter(model))
    with torch.no_grad():  # 14 equal tokens: below every window
        model(input_ids=torch.full((1, 14), 7), **models.given(model, cache))
    keys, _ = caches.rows_of(cache)[0]
    back = found[0].turn(keys, torch.arange(14), back=True)
    assert torch.allclose(back, back[:, :, :1].expand_as(back), atol=1e-4 * float(back.abs().max()))
    assert not torch.allclose(keys, keys[:, :, :1].expand_as(keys), atol=1e-2 * float(keys.abs().max()))
    assert torch.allclose(found[0].turn(back, torch.arange(14)), keys, atol=1e-5)


def test_scalings_differ_from_the_plain_embedding() -> None:
    plain, llama3, yarn = (
        rotary_detection.layers_of(ModelAdapter(ROTARY[name][0]()))[0] for name in ("llama", "llama3-scaling", "yarn")
    )
    assert len({plain.frequencies, llama3.frequencies, yarn.frequencies}) == 3


def test_mixed_layers_have_frequencies_of_their_own() -> None:
    found = rotary_detection.layers_of(ModelAdapter(models.gemma3_mixed()))
    assert len({one.frequencies for one in found}) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_turns_as_its_float32_twin(dtype: torch.dtype) -> None:
    found = rotary_detection.layers_of(ModelAdapter(models.llama(dtype)))
    twin = rotary_detection.layers_of(ModelAdapter(models.llama()))
    assert [one.channels for one in found] == [one.channels for one in twin]
    for one, other in zip(found, twin, strict=True):
        assert torch.allclose(torch.tensor(one.frequencies), torch.tensor(other.frequencies), rtol=1e-2)


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_keeps_lengths_and_positions_add_up(interleaved: bool) -> None:
    turn = Rotary((1.0, 0.1, 0.01), interleaved).turn
    keys = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(1))
    at = torch.tensor([0, 3, 7, 1000, 100_000])
    turned = turn(keys, at)
    assert torch.allclose(turned.norm(dim=-1), keys.norm(dim=-1), rtol=1e-5)
    assert torch.equal(turned[..., 6:], keys[..., 6:])  # channels beyond the pairs stay
    assert torch.allclose(turn(turn(keys, at), at), turn(keys, 2 * at), atol=1e-5)
    assert torch.allclose(turn(turned, at, back=True), keys, atol=1e-5)
