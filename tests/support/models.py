"""Models small enough to build in a test: real architectures, random weights, a byte-level tokenizer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

SMALL = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 300}
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def build(config: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def llama(dtype: torch.dtype = torch.float32, *, layers: int = 3, **changes: Any) -> Any:
    """GQA with RoPE: full attention."""
    settings = SMALL | {"num_hidden_layers": layers} | changes
    return build(transformers.LlamaConfig(**settings, num_attention_heads=4, num_key_value_heads=2), dtype)


def mistral_sliding(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Every layer with a sliding window of 16."""
    settings = {"sliding_window": 16, **changes}
    return build(transformers.MistralConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2, **settings), dtype)


def gemma3_mixed(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Sliding windows of 16 and full attention in turn, QK-norm."""
    settings = {"sliding_window": 16, "sliding_window_pattern": 2, "head_dim": 16, **changes}
    config = transformers.Gemma3TextConfig(**SMALL, num_attention_heads=4, num_key_value_heads=1, **settings)
    return build(config, dtype)


def gpt2(dtype: torch.dtype = torch.float32, positions: int = 256) -> Any:
    """Learned positions, no RoPE, as many KV heads as query heads."""
    config = transformers.GPT2Config(vocab_size=300, n_embd=48, n_layer=3, n_head=4, n_positions=positions)
    return build(config, dtype)


def qwen3(dtype: torch.dtype = torch.float32) -> Any:
    """QK-norm and a head size that is not hidden size / heads."""
    config = transformers.Qwen3Config(**SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=20)
    return build(config, dtype)


LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 0.5,
}


def phi3_long(dtype: torch.dtype = torch.float32) -> Any:
    """LongRoPE: beyond 32 positions every key turns at other rates."""
    config = transformers.Phi3Config(
        **SMALL | {"hidden_size": 64},
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=None,
        original_max_position_embeddings=32,
        rope_parameters=LONGROPE,
        pad_token_id=0,
    )
    return build(config, dtype)


FAMILIES: dict[str, Callable[[torch.dtype], Any]] = {
    "llama": llama,
    "mistral-sliding": mistral_sliding,
    "gemma3-mixed": gemma3_mixed,
    "gpt2": gpt2,
    "qwen3": qwen3,
}


def byte_tokenizer() -> Any:
    """One token a byte; ids 0 to 255, end of text 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.chat_template = CHAT
    return tokenizer


def save_small_model(folder: Path, model: Any | None = None) -> Path:
    """A folder that `-m` takes."""
    (model or llama()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path) -> Any:
    """The model of a folder as commands load it: on some machines the last bits depend on where weights lie in memory.

    Those of a file begin where its header ends, those of a model that is built at multiples of 64 bytes.
    """
    from tsc_cli.huggingface.models.loading import load

    return load(str(folder), dtype="float32", device="cpu", fetch=False, say=print).model


def cache_name(function: Any) -> str:
    """By which name a function of transformers takes a cache: versions differ, and so did Mamba."""
    names = inspect.signature(function).parameters
    return next(name for name in ("cache", "past_key_values", "cache_params") if name in names)


def given(model: Any, cache: Any) -> dict[str, Any]:
    """The cache as an argument of a pass."""
    return {cache_name(model.forward): cache, "use_cache": True}


def given_to_generate(cache: Any) -> dict[str, Any]:
    """The cache as an argument of `generate`, which hands it on."""
    return {cache_name(transformers.GenerationMixin.prepare_inputs_for_generation): cache}


def cache_in(output: Any) -> Any:
    """The cache of what a pass, or `generate`, returned."""
    return next(output[name] for name in ("cache", "past_key_values", "cache_params") if name in output)


def must_not_run(model: Any) -> Any:
    """The model, with a forward of the same signature that fails when it is called."""

    @functools.wraps(model.forward)
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model ran")

    model.forward = fail
    return model


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length,), generator=generator).tolist()
