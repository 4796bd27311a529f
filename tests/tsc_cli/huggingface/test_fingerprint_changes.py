"""One setting changed: the restore is refused and the setting named, or taken where the cache means the same."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import normalizers, pre_tokenizers, processors

from formats import Trace
from formats.errors import MismatchError
from tests.support import models
from tsc_cli import capture, to_cache
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.generation import feed

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SCALED = {"rope_theta": 10000.0, "factor": 2.0}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rope_parameters": ROPE}
_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, _HEADS),
    "mistral": (transformers.MistralConfig, _HEADS | {"sliding_window": 16}),
    "gemma2": (transformers.Gemma2Config, _HEADS | {"head_dim": 12, "sliding_window": 16}),
    "mixtral": (transformers.MixtralConfig, _HEADS | {"num_local_experts": 4, "sliding_window": None}),
    "qwen3": (transformers.Qwen3Config, _HEADS | {"head_dim": 12}),
    "bloom": (transformers.BloomConfig, {"n_layer": 3, "n_head": 4}),
}


def build(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    made, settings = _KINDS[kind]
    torch.manual_seed(0)
    config = made(**models.SMALL | settings | changes)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@functools.cache
def original(kind: str) -> tuple[Any, Trace]:
    """The model of a capture, with its trace: made once a kind, and never written to."""
    model = build(kind)
    return model, capture(model, models.prompt(9), steps=1, tokenizer=models.byte_tokenizer())


def with_(change: Callable[[Any], object]) -> Callable[[], Any]:
    """The Llama with something done to it in memory."""

    def made() -> Any:
        model = build("llama")
        with torch.no_grad():
            change(model)
        return model

    return made


def flip_a_bit(model: Any) -> None:
    model.model.layers[2].mlp.up_proj.weight.view(torch.int32)[5, 7] ^= 1


def adapted(model: Any, alpha: int = 16) -> None:
    """As transformers and peft leave a model, without their being installed."""
    config = type("LoraConfig", (), {})()
    vars(config).update(peft_type="LORA", r=8, lora_alpha=alpha, target_modules={"v_proj", "q_proj"}, lora_dropout=0.1)
    model.peft_config = {"default": config}
    model.active_adapters = lambda: ["default"]
    model.model.layers[0].self_attn.q_proj.scaling = {"default": alpha / 8}


def changed(kind: str, **changes: Any) -> tuple[str, Callable[[], Any]]:
    return kind, lambda: build(kind, **changes)


def rope(**settings: Any) -> tuple[str, Callable[[], Any]]:
    return changed("llama", rope_parameters=settings)


REFUSED: dict[str, tuple[str, tuple[str, Callable[[], Any]]]] = {
    "one weight": ("weights", ("llama", with_(lambda m: m.model.layers[1].mlp.down_proj.weight[3, 5].add_(2**-12)))),
    "one bit": ("weights", ("llama", with_(flip_a_bit))),
    "dtype of one layer": ("weights", ("llama", with_(lambda m: m.model.layers[1].input_layernorm.bfloat16()))),
    "bfloat16": ("dtype", ("llama", lambda: build("llama", torch.bfloat16))),
    "float16": ("dtype", ("llama", lambda: build("llama", torch.float16))),
    "architecture": ("architecture", ("llama", lambda: build("qwen3"))),
    "layers": ("layers", changed("llama", num_hidden_layers=2)),
    "heads": ("heads", changed("llama", num_attention_heads=6)),
    "KV heads": ("kv_heads", changed("llama", num_key_value_heads=4)),
    "head size": ("config.head_dim", changed("llama", head_dim=16)),
    "hidden size": ("config.hidden_size", changed("llama", hidden_size=64)),
    "intermediate size": ("config.intermediate_size", changed("llama", intermediate_size=96)),
    "vocabulary": ("config.vocab_size", changed("llama", vocab_size=301)),
    "positions": ("config.max_position_embeddings", changed("llama", max_position_embeddings=512)),
    "norm epsilon": ("config.rms_norm_eps", changed("llama", rms_norm_eps=1e-5)),
    "other norm epsilon": ("config.layer_norm_epsilon", changed("bloom", layer_norm_epsilon=1e-3)),
    "activation": ("config.hidden_act", changed("llama", hidden_act="gelu")),
    "attention bias": ("config.attention_bias", changed("llama", attention_bias=True)),
    "MLP bias": ("config.mlp_bias", changed("llama", mlp_bias=True)),
    "tied embeddings": ("config.tie_word_embeddings", changed("llama", tie_word_embeddings=True)),
    "RoPE base": ("rope.rope_theta", rope(**ROPE | {"rope_theta": 500000.0})),
    "linear RoPE": ("rope.factor", rope(rope_type="linear", **SCALED)),
    "dynamic RoPE": ("rope.factor", rope(rope_type="dynamic", **SCALED)),
    "YaRN": ("rope.factor", rope(rope_type="yarn", original_max_position_embeddings=128, **SCALED)),
    "Llama 3 RoPE": (
        "rope.factor",
        rope(
            rope_type="llama3",
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=128,
            **SCALED,
        ),
    ),
    "partial rotary": ("rope.partial_rotary_factor", rope(partial_rotary_factor=0.5, **ROPE)),
    "rotary buffer": ("rope_frequencies", ("llama", with_(lambda m: m.model.rotary_emb.inv_freq[5].mul_(1.001)))),
    "rotary buffer rounded": ("rope_frequencies", ("llama", with_(lambda m: m.model.rotary_emb.to(torch.bfloat16)))),
    "rotary scaling": (
        "rope_frequencies",
        ("llama", with_(lambda m: setattr(m.model.rotary_emb, "attention_scaling", 1.1))),
    ),
    "sliding window": ("sliding_window", changed("mistral", sliding_window=17)),
    "layer types": ("config.layer_types", changed("gemma2", layer_types=["full_attention"] * 3)),
    "softcap": ("config.attn_logit_softcapping", changed("gemma2", attn_logit_softcapping=30.0)),
    "final softcap": ("config.final_logit_softcapping", changed("gemma2", final_logit_softcapping=None)),
    "attention scale": ("config.query_pre_attn_scalar", changed("gemma2", query_pre_attn_scalar=144)),
    "experts": ("config.num_local_experts", changed("mixtral", num_local_experts=3)),
    "experts per token": ("config.num_experts_per_tok", changed("mixtral", num_experts_per_tok=1)),
    "adapter": ("adapters", ("llama", with_(adapted))),
}

ACCEPTED: dict[str, tuple[str, Callable[[], Any]]] = {
    "nothing": changed("llama"),
    "ids that pad, begin and end": changed("llama", pad_token_id=7, bos_token_id=8, eos_token_id=[9, 10]),
    "dropout": changed("llama", attention_dropout=0.1),
    "dropouts of other names": changed("bloom", hidden_dropout=0.1, attention_dropout=0.2),
    "what weights were drawn with": changed("llama", initializer_range=0.02 + 1e-9),
    "router losses": changed("mixtral", router_aux_loss_coef=0.5, output_router_logits=True),
    "labels of a classifier": changed("llama", num_labels=5),
    "attention kernel": ("llama", with_(lambda m: m.set_attn_implementation("eager"))),
    "experts' kernel": ("mixtral", lambda: build("mixtral", experts_implementation="eager")),
    "name": ("llama", with_(lambda m: setattr(m.config, "_name_or_path", "elsewhere"))),
    "name in a GGUF file": ("llama", with_(lambda m: setattr(m.config, "_model_name_or_path", "elsewhere"))),
    "no cache by default": changed("llama", use_cache=False),
    "1 for 1.0": changed("llama", rope_parameters=ROPE | {"rope_theta": 10000}),
    "quantization as loaded": ("llama", with_(lambda m: setattr(m.config, "quantization_config", {"bits": 4}))),
    "a pass before": ("llama", with_(lambda m: m(torch.tensor([models.prompt(200)])))),
    "another device's rounding": ("llama", with_(lambda m: m.model.rotary_emb.inv_freq.mul_(1 + 2**-23))),
}


def state(model: Any) -> dict[str, Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tensor.dtype, tensor.detach().clone()) for name, tensor in tensors} | {
        "config": repr(model.config),
        "training": [module.training for module in model.modules()],
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        a == b if not isinstance(a, tuple) else a[0] == b[0] and torch.equal(a[1], b[1])
        for a, b in zip(one.values(), other.values(), strict=True)
    )


@pytest.mark.parametrize("change", REFUSED)
def test_one_change_is_refused_by_name_and_nothing_is_touched(change: str) -> None:
    field, (kind, make) = REFUSED[change]
    (_, trace), model = original(kind), make()
    live = caches.new_cache(ModelAdapter(model))
    feed(ModelAdapter(model), live, [1, 2, 3])
    before, kept = state(model), caches.fork(live)
    rows = [(keys.clone(), values.clone()) for keys, values in caches.rows_of(live)]
    with pytest.raises(MismatchError, match=rf"another model: {re.escape(field)}(:| is | differs|\.)"):
        to_cache(trace, model)
    assert same(before, state(model))
    assert caches.identical(live, kept)
    for (keys, values), now in zip(rows, caches.rows_of(live), strict=True):
        assert torch.equal(keys, now[0])
        assert torch.equal(values, now[1])


@pytest.mark.parametrize("change", ACCEPTED)
def test_what_changes_no_cache_is_no_difference(change: str) -> None:
    kind, make = ACCEPTED[change]
    (model, trace), other = original(kind), make()
    other.load_state_dict(model.state_dict())
    assert caches.identical(to_cache(trace, other), to_cache(trace, model))


def test_an_adapter_of_another_scale_is_named() -> None:
    model = with_(adapted)()
    recorded = fingerprint.of(model)
    adapted(model, alpha=32)
    assert fingerprint.difference(recorded, fingerprint.of(model)) == (
        "adapters.default.lora_alpha is 16 in the file and 32 here"
    )
    adapted(model)
    model.model.layers[0].self_attn.q_proj.scaling["default"] = 1.0
    assert fingerprint.difference(recorded, fingerprint.of(model)) == (
        "adapters.default.scaling is 2.0 in the file and 1.0 here"
    )


def add_a_token(tokenizer: Any) -> None:
    tokenizer.add_tokens(["new"])


def lower(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def split_differently(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def end_first(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", 256)]
    )


@pytest.mark.parametrize("change", [add_a_token, lower, split_differently, end_first])
def test_a_tokenizer_changed_in_place_is_refused_although_it_was_hashed(change: Callable[[Any], None]) -> None:
    (model, trace), tokenizer = original("llama"), models.byte_tokenizer()
    to_cache(trace, model, tokenizer=tokenizer)
    change(tokenizer)
    with pytest.raises(MismatchError, match="another model: tokenizer is "):
        to_cache(trace, model, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "asked", [{"padding": True}, {"truncation": True, "max_length": 5}, {"padding": "max_length", "max_length": 9}]
)
def test_how_a_tokenizer_was_last_called_is_no_difference(asked: dict[str, Any]) -> None:
    (model, trace), tokenizer = original("llama"), models.byte_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side, tokenizer.chat_template = tokenizer.eos_token, "left", "other"
    tokenizer(["a", "bcd"], **asked)
    held = tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation
    assert held != (None, None)
    to_cache(trace, model, tokenizer=tokenizer)
    assert (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation) == held
