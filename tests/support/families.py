"""A small model of every family in `tsc_cli.model_families`: real config classes, random weights, windows of 8.

Weights are larger than at initialization: with those, many a random model repeats one token for ever, or hardly looks
at its cache, and a wrong restore would not show.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)

from tests.support.models import LONGROPE
from tsc_cli.model_families.families import TRIED

TABLE = {family.name: family for family in TRIED}

VOCABULARY = 120
PROMPT = torch.randint(3, VOCABULARY, (40,), generator=torch.Generator().manual_seed(5)).tolist()

_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = _TOKENS | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_GROUPED = _SMALL | {"num_key_value_heads": 2}
_WINDOW = _GROUPED | {"sliding_window": 8}
_MIXED = _WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = (
    _SMALL
    | _EXPERTS
    | {
        "num_key_value_heads": 4,
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "n_routed_experts": 8,
        "first_k_dense_replace": 1,
    }
)
_INDEXED = _LATENT | {
    "q_lora_rank": 20,
    "n_group": 2,
    "topk_group": 1,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 16,
}
_MAMBA2 = _GROUPED | {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 12,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}
_DELTA = _GROUPED | {
    "head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
_PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
_STATE = _TOKENS | {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 6}
_SHARED = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "head_dim": 16}
_ENCODER_DECODER = _TOKENS | {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 2,
}
_SEEING = {
    "text_config": _GROUPED
    | {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
    "vision_config": {
        "depth": 1,
        "hidden_size": 32,
        "embed_dim": 32,
        "num_heads": 4,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "deepstack_visual_indexes": [0],
        "fullatt_block_indexes": [0],
    },
}


@dataclass(frozen=True)
class Sample:
    """One small model.

    Attributes:
        family: the name in the table of `tsc_cli.model_families.families`.
        chunk: tokens of the prompt in one forward pass; models with states are fed it in one all the same.
        scale: what weight matrices are multiplied by.
    """

    family: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    chunk: int = 16
    scale: float = 2.0
    auto: Any = AutoModelForCausalLM

    @property
    def encodes(self) -> bool:
        """Whether there is an encoder beside the decoder."""
        return self.auto in (AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq)

    @property
    def in_chunks(self) -> bool:
        """Whether a prompt may be fed in several passes: with states, or an indexer, they mean another cache."""
        states = "state" in TABLE[self.family].holds or "indexer" in TABLE[self.family].holds
        return not states

    def build(self, dtype: torch.dtype) -> Any:
        """The same model each time, in any process."""
        config = AutoConfig.for_model(self.model_type, **self.config)
        torch.manual_seed(0)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            transformers.utils.logging.set_verbosity_error()
            model = self.auto.from_config(config, dtype=dtype).eval()
            for name, weights in model.named_parameters():
                if weights.ndim > 1 and "embed" not in name:
                    weights.mul_(self.scale)
        return model


SUPPORTED = {
    "gpt2": Sample("GPT-2", "gpt2", _TOKENS | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "llama": Sample("Llama", "llama", _GROUPED),
    "mistral": Sample("Mistral", "mistral", _GROUPED | {"sliding_window": None}),
    "qwen2": Sample("Qwen2", "qwen2", _GROUPED),
    "qwen3": Sample("Qwen3", "qwen3", _GROUPED | {"head_dim": 24}),
    "phi3": Sample("Phi-3", "phi3", _GROUPED | {"sliding_window": None, "rope_parameters": _PARTIAL}),
    # beyond the switch a prompt is fed in one pass
    "phi3-longrope": Sample(
        "Phi-3",
        "phi3",
        _GROUPED | {"sliding_window": None, "original_max_position_embeddings": 32, "rope_parameters": LONGROPE},
        chunk=64,
    ),
    "gpt_neox": Sample("GPT-NeoX, Pythia", "gpt_neox", _SMALL | {"rotary_pct": 0.25}),
    "falcon": Sample("Falcon", "falcon", _SMALL),
    "falcon-alibi": Sample("Falcon", "falcon", _SMALL | {"alibi": True}),
    "bloom": Sample("BLOOM", "bloom", _TOKENS | {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "olmo": Sample("OLMo", "olmo", _GROUPED),
    "starcoder2": Sample("StarCoder2", "starcoder2", _GROUPED | {"sliding_window": None}),
    "cohere": Sample("Cohere Command R", "cohere", _GROUPED),
    "mixtral": Sample("Mixtral", "mixtral", _GROUPED | {"num_local_experts": 4, "sliding_window": None}),
    "qwen3_moe": Sample("Qwen3-MoE", "qwen3_moe", _GROUPED | _EXPERTS | {"head_dim": 24, "num_experts": 4}),
    "deepseek_v2": Sample("DeepSeek-V2, -V3", "deepseek_v2", _LATENT | {"q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek_v3": Sample(
        "DeepSeek-V2, -V3", "deepseek_v3", _LATENT | {"q_lora_rank": 20, "n_group": 2, "topk_group": 1}
    ),
    "mistral-sliding": Sample("Mistral v0.1", "mistral", _WINDOW),
    "gemma2": Sample("Gemma-2, -3", "gemma2", _MIXED | {"head_dim": 16}),
    "gemma3": Sample("Gemma-2, -3", "gemma3_text", _MIXED | {"head_dim": 16}),
    "gpt_oss": Sample(
        "gpt-oss", "gpt_oss", _MIXED | {"head_dim": 24, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "llama4": Sample(
        "Llama 4",
        "llama4_text",
        _GROUPED
        | {
            "head_dim": 16,
            "attention_chunk_size": 8,
            "intermediate_size_mlp": 72,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    "cohere2": Sample("Cohere Command R7B", "cohere2", _MIXED),
    "olmo3": Sample("OLMo 3", "olmo3", _MIXED),
    "gemma3n": Sample(
        "Gemma-3n, -4",
        "gemma3n_text",
        _WINDOW
        | _SHARED
        | {
            "num_hidden_layers": 5,
            "num_kv_shared_layers": 2,
            "layer_types": [*["sliding_attention", "full_attention"] * 2, "sliding_attention"],
            "laurel_rank": 4,
            "altup_num_inputs": 2,
        },
    ),
    "gemma4": Sample(
        "Gemma-3n, -4",
        "gemma4_text",
        _WINDOW
        | _SHARED
        | {
            "global_head_dim": 16,
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
        },
    ),
    "deepseek_v32": Sample("DeepSeek-V3.2, GLM-5", "deepseek_v32", _INDEXED),
    "glm_moe_dsa": Sample("DeepSeek-V3.2, GLM-5", "glm_moe_dsa", _INDEXED),
    "jamba": Sample(
        "Jamba",
        "jamba",
        _GROUPED
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 6,
            "mamba_dt_rank": 3,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": Sample("Bamba", "bamba", _MAMBA2 | {"attn_layer_indices": [1]}),
    "granitemoehybrid": Sample(
        "Granite 4",
        "granitemoehybrid",
        _MAMBA2
        | {
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 40,
        },
    ),
    "nemotron_h": Sample(
        "Nemotron-H",
        "nemotron_h",
        _TOKENS
        | _EXPERTS
        | {
            "hidden_size": 64,
            "intermediate_size": 96,
            "layers_block_type": ["mamba", "attention", "moe", "mamba"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 12,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_shared_expert_intermediate_size": 32,
            "use_mamba_kernels": False,
        },
    ),
    "falcon_h1": Sample("Falcon-H1", "falcon_h1", _MAMBA2 | {"mamba_d_ssm": 128}),
    "qwen3_next": Sample(
        "Qwen3-Next, Qwen3.5",
        "qwen3_next",
        _DELTA | _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 48},
    ),
    "qwen3_5": Sample("Qwen3-Next, Qwen3.5", "qwen3_5_text", _DELTA),
    "kimi_linear": Sample(
        "Kimi Linear",
        "kimi_linear",
        _LATENT | {"num_experts": 8, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "olmo_hybrid": Sample(
        "OLMo Hybrid", "olmo_hybrid", _GROUPED | {"layer_types": ["linear_attention", "full_attention"]}
    ),
    "lfm2": Sample("LFM2", "lfm2", _GROUPED | {"full_attn_idxs": [1], "block_multiple_of": 16}),
    "zamba2": Sample(
        "Zamba2",
        "zamba2",
        _SMALL
        | {
            "num_key_value_heads": 4,
            "layers_block_type": ["mamba", "hybrid"],
            "mamba_d_state": 12,
            "mamba_ngroups": 2,
            "n_mamba_heads": 8,
            "chunk_size": 8,
            "num_mem_blocks": 1,
            "use_mem_eff_path": False,
            "use_mem_rope": True,
        },
    ),
    "mamba": Sample("Mamba, Mamba-2", "mamba", _STATE),
    "mamba2": Sample(
        "Mamba, Mamba-2", "mamba2", _STATE | {"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8}
    ),
    "falcon_mamba": Sample("Falcon-Mamba", "falcon_mamba", _STATE),
    "t5": Sample(
        "T5",
        "t5",
        _TOKENS
        | {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 1,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        auto=AutoModelForSeq2SeqLM,
    ),
    "bart": Sample("BART", "bart", _ENCODER_DECODER, auto=AutoModelForSeq2SeqLM),
    "whisper": Sample(
        "Whisper",
        "whisper",
        _ENCODER_DECODER
        | {
            "num_mel_bins": 8,
            "max_source_positions": 30,
            "max_target_positions": 256,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        auto=AutoModelForSpeechSeq2Seq,
    ),
}
REFUSED = {
    "deepseek_v4": Sample(
        "DeepSeek-V4",
        "deepseek_v4",
        _SMALL
        | _EXPERTS
        | {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "num_key_value_heads": 1,
            "q_lora_rank": 20,
            "o_groups": 2,
            "o_lora_rank": 8,
            "sliding_window": 8,
            "index_n_heads": 2,
            "index_head_dim": 16,
            "index_topk": 8,
            "n_routed_experts": 4,
        },
    ),
    "recurrent_gemma": Sample(
        "RecurrentGemma",
        "recurrent_gemma",
        _SMALL
        | {
            "num_hidden_layers": 3,
            "lru_width": 64,
            "attention_window_size": 8,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
    ),
    "qwen2_vl": Sample("Qwen2-VL, 2.5, 3", "qwen2_vl", _SEEING, auto=AutoModelForImageTextToText),
    "qwen2_5_vl": Sample("Qwen2-VL, 2.5, 3", "qwen2_5_vl", _SEEING, auto=AutoModelForImageTextToText),
    "qwen3_vl": Sample("Qwen2-VL, 2.5, 3", "qwen3_vl", _SEEING, auto=AutoModelForImageTextToText),
    "glm4v": Sample("GLM-4.1V", "glm4v", _SEEING, auto=AutoModelForImageTextToText),
    "minimax": Sample(
        "MiniMax-Text-01",
        "minimax",
        _GROUPED | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8},
    ),
    "xlstm": Sample("xLSTM", "xlstm", _TOKENS | {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4}),
    "rwkv": Sample("RWKV", "rwkv", _TOKENS | {"hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": 2}),
    "reformer": Sample(
        "Reformer",
        "reformer",
        _TOKENS
        | {
            "hidden_size": 64,
            "num_attention_heads": 2,
            "attention_head_size": 32,
            "feed_forward_size": 64,
            "attn_layers": ["local", "lsh"],
            "is_decoder": True,
            "axial_pos_embds_dim": [32, 32],
            "axial_pos_shape": [8, 8],
        },
    ),
    "xlnet": Sample("XLNet", "xlnet", _TOKENS | {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 64}),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
