"""Configs for `tsc plan`: published ones, as far as they matter, and a small one of every known model type."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

# published values, from the config.json of each model on the hub
LLAMA_3_8B: Config = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "attention_bias": False, "attention_dropout": 0.0,
    "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "initializer_range": 0.02, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0, "use_cache": True,
}  # fmt: skip
LLAMA_3_70B: Config = {
    **LLAMA_3_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
}  # fmt: skip
QWEN3_8B: Config = {
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_sliding_window": False, "sliding_window": None, "max_window_layers": 36, "attention_bias": False,
    "rope_theta": 1000000, "hidden_act": "silu",
}  # fmt: skip
GEMMA_3_27B: Config = {
    "model_type": "gemma3", "torch_dtype": "bfloat16", "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 262144, "mm_tokens_per_image": 256,
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
        "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024,
        "query_pre_attn_scalar": 168, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16,
    },
}  # fmt: skip
DEEPSEEK_V3: Config = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
    "first_k_dense_replace": 3, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "ep_size": 1,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"},
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "routed_scaling_factor": 2.5, "attention_bias": False,
}  # fmt: skip
MIXTRAL_8X7B: Config = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": 32000, "max_position_embeddings": 32768, "sliding_window": None, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "output_router_logits": False, "router_aux_loss_coef": 0.02, "rope_theta": 1000000.0,
}  # fmt: skip
MISTRAL_7B_V01: Config = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096, "vocab_size": 32000,
    "max_position_embeddings": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rope_theta": 10000.0,
}  # fmt: skip
QWEN3_NEXT_80B: Config = {
    "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 48,
    "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936,
    "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "num_experts": 512,
    "num_experts_per_tok": 10, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "max_position_embeddings": 262144, "use_sliding_window": False,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "partial_rotary_factor": 0.25,
}  # fmt: skip
PUBLISHED: dict[str, Config] = {
    "Llama-3-8B": LLAMA_3_8B, "Llama-3-70B": LLAMA_3_70B, "Qwen3-8B": QWEN3_8B, "Gemma-3-27B": GEMMA_3_27B,
    "DeepSeek-V3": DEEPSEEK_V3, "Mixtral-8x7B": MIXTRAL_8X7B, "Mistral-7B-v0.1": MISTRAL_7B_V01,
    "Qwen3-Next-80B": QWEN3_NEXT_80B,
}  # fmt: skip

_SMALL: Config = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 80, "num_attention_heads": 4,
}  # fmt: skip
_GQA: Config = {**_SMALL, "num_key_value_heads": 2}
_EXPERTS: Config = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_DELTA: Config = {
    **_GQA, "head_dim": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 32, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}  # fmt: skip
_MAMBA2: Config = {
    **_GQA, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 12, "mamba_n_groups": 2, "mamba_chunk_size": 8,
}  # fmt: skip
_LATENT: Config = {
    **_SMALL, "num_key_value_heads": 4, "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 12, "n_routed_experts": 8, "first_k_dense_replace": 1, **_EXPERTS,
}  # fmt: skip
_SLIDING: Config = {**_GQA, "sliding_window": 8}
_MAMBA: Config = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 80, "state_size": 6}

# what transformers' configuration classes are given; the models have random weights and are never trained
SMALL: dict[str, Config] = {
    "llama": {**_GQA, "head_dim": 24},
    "gemma": {**_GQA, "head_dim": 24},
    "glm4": {**_GQA, "head_dim": 24, "pad_token_id": 0},
    "granite": _GQA,
    "olmo": _GQA,
    "olmo2": _GQA,
    "cohere": _GQA,
    "stablelm": _GQA,
    "phi": _GQA,
    "gpt_neox": _SMALL,
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 80, "n_positions": 64},
    "gpt_bigcode": {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 80, "n_positions": 64, "n_inner": 40},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 80},
    "qwen2_moe": {**_GQA, "num_experts": 4, "shared_expert_intermediate_size": 48, **_EXPERTS, "mlp_only_layers": [1]},
    "qwen3_moe": {**_GQA, "head_dim": 24, "num_experts": 4, **_EXPERTS, "decoder_sparse_step": 2},
    "olmoe": {**_GQA, "num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "minimax_m2": {**_GQA, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "glm4_moe": {**_GQA, "head_dim": 16, "n_routed_experts": 4, "first_k_dense_replace": 2, **_EXPERTS, "n_group": 1},
    "mistral": _SLIDING,
    "ministral": {**_SLIDING, "head_dim": 24},
    "ministral3": {**_SLIDING, "head_dim": 24, "pad_token_id": 0},
    "mixtral": {**_SLIDING, "num_local_experts": 4},
    "phi3": {**_SLIDING, "pad_token_id": 0},
    "starcoder2": _SLIDING,
    "qwen2": {**_SLIDING, "use_sliding_window": True, "max_window_layers": 3},
    "qwen3": {**_SLIDING, "head_dim": 24, "use_sliding_window": True, "max_window_layers": 1},
    "smollm3": {**_SLIDING, "use_sliding_window": True, "pad_token_id": 0},
    "gemma2": {**_SLIDING, "head_dim": 16},
    "gemma3_text": {**_SLIDING, "head_dim": 16, "num_hidden_layers": 7},
    "gemma3n_text": {
        **_SLIDING, "head_dim": 16, "num_hidden_layers": 10, "num_kv_shared_layers": 5, "laurel_rank": 4,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 80, "altup_num_inputs": 2,
    },
    "cohere2": _SLIDING,
    "olmo3": _SLIDING,
    "gpt_oss": {**_SLIDING, "head_dim": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {
        **_GQA, "head_dim": 16, "attention_chunk_size": 8, "intermediate_size_mlp": 72, "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
    },
    "deepseek_v2": {**_LATENT, "q_lora_rank": None, "topk_method": "greedy"},
    "deepseek_v3": {**_LATENT, "q_lora_rank": 20, "n_group": 2, "topk_group": 1},
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "mamba2": {**_MAMBA, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "jamba": {
        **_GQA, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "mamba_d_state": 6, "mamba_dt_rank": 3, "use_mamba_kernels": False, "pad_token_id": 0,
    },
    "qwen3_next": {**_DELTA, "num_experts": 4, "shared_expert_intermediate_size": 48, **_EXPERTS},
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": {**_DELTA, "num_experts": 4, "shared_expert_intermediate_size": 48, **_EXPERTS},
    "lfm2": {**_GQA, "full_attn_idxs": [1, 2], "block_multiple_of": 16},
    "bamba": {**_MAMBA2, "attn_layer_indices": [2]},
    "granitemoehybrid": {
        **_MAMBA2, "layer_types": ["mamba", "attention", "mamba", "mamba"], "num_local_experts": 4,
        "shared_intermediate_size": 40,
    },
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 128},
}  # fmt: skip
