"""The model types that are known: how each says what it caches, one row a type.

To teach a further type: find the rules in `attention.py`, `patterns.py` and `feed_forward.py` that read its config as
transformers does (or write them), add a row to `ARCHITECTURES` with the defaults of its configuration class, a small
config to `tests/plan_models.py`, and its name to `docs/plan.md`.  The tests build that model and count its cache and
its matrices.
"""

from __future__ import annotations

from dataclasses import replace

from tsc_cli.checkpoints.config_fields import Fields

from . import attention as a
from . import feed_forward as f
from . import patterns as p
from . import states as s
from .architecture import Architecture
from .attention import Shape, every, sharing, typed
from .feed_forward import Experts, gated, plain
from .layers import Layer

_OF_GPT2 = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_SHARED_EXPERT = Experts(
    "num_experts", "moe_intermediate_size", f.stepped, shared_size="shared_expert_intermediate_size", shared_gate=True
)
_DEEPSEEK = Experts("n_routed_experts", "moe_intermediate_size", f.after_first, shared_count="n_shared_experts")
_LATENT = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
_OF_LATENT = frozenset({"head_dim", "qk_head_dim", "num_key_value_heads"})
_GATED_DELTA = {
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "full_attention_interval": 4,
}
_GATED_DELTA_LAYERS = typed(
    p.one_in(4, "linear_attention", field="full_attention_interval"),
    full_attention=a.gated_layer,
    linear_attention=lambda fields, of: s.gated_delta(fields, of.hidden),
)
_MAMBA = {"state_size": 16, "conv_kernel": 4, "expand": 2, "time_step_rank": "auto"}
_OF_MAMBA = frozenset({"intermediate_size", "time_step_rank"})
_NAMES_OF_MAMBA = {"num_hidden_layers": "n_layer"}
_MAMBA2 = {
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_head": "auto",
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}


def _mamba2(fields: Fields, of: Shape) -> Layer:
    return s.mamba2_hybrid(fields, of.hidden)


ARCHITECTURES: dict[str, Architecture] = {
    # full attention
    "llama": Architecture(every(a.full_layer), gated),
    "gemma": Architecture(every(a.full_layer), gated, tied=True, defaults={"num_key_value_heads": 16, "head_dim": 256}),
    "glm4": Architecture(every(a.full_layer), gated, defaults={"num_key_value_heads": 2, "head_dim": 128}),
    "granite": Architecture(every(a.full_layer), gated),
    "olmo": Architecture(every(a.full_layer), gated),
    "olmo2": Architecture(every(a.full_layer), gated),
    "cohere": Architecture(every(a.full_layer), gated, tied=True),
    "stablelm": Architecture(every(a.full_layer), gated, defaults={"num_key_value_heads": 32}),
    "phi": Architecture(every(a.full_layer), plain("intermediate_size")),
    "gpt_neox": Architecture(every(a.full_layer), plain("intermediate_size"), shape=a.split_shape),
    "gpt2": Architecture(
        every(a.full_layer), plain("n_inner", times=4), tied=True, aliases=_OF_GPT2, shape=a.split_shape, positions=True
    ),
    "gpt_bigcode": Architecture(
        every(a.full_layer),
        plain("n_inner", times=4),
        tied=True,
        defaults={"multi_query": True},
        aliases=_OF_GPT2,
        shape=a.bigcode_shape,
        harmless=frozenset({"pre_allocate_kv_cache"}),
        positions=True,
    ),
    "falcon": Architecture(
        every(a.full_layer),
        plain("ffn_hidden_size", times=4),
        tied=True,
        defaults={"multi_query": True},
        shape=a.falcon_shape,
    ),
    # full attention, experts
    "qwen2_moe": Architecture(
        a.qwen_experts, _SHARED_EXPERT, defaults={**_QWEN, "num_key_value_heads": 16, "decoder_sparse_step": 1}
    ),
    "qwen3_moe": Architecture(
        a.qwen_experts,
        Experts("num_experts", "moe_intermediate_size", f.stepped),
        defaults={"use_sliding_window": False, "sliding_window": 4096, "decoder_sparse_step": 1},
        aliases={"num_experts": "num_local_experts"},
    ),
    "olmoe": Architecture(every(a.full_layer), Experts("num_experts", "intermediate_size")),
    "granitemoe": Architecture(every(a.full_layer), Experts("num_local_experts", "intermediate_size")),
    "minimax_m2": Architecture(
        every(a.full_layer),
        Experts("num_local_experts", "intermediate_size"),
        defaults={"num_key_value_heads": 8, "head_dim": 128},
    ),
    "glm4_moe": Architecture(
        every(a.full_layer),
        _DEEPSEEK,
        defaults={"num_key_value_heads": 8, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    # windows
    "mistral": Architecture(a.window, gated, defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "ministral": Architecture(typed(p.windows), gated, defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "ministral3": Architecture(a.window, gated, defaults={"num_key_value_heads": 8, "head_dim": 128}),
    "mixtral": Architecture(
        a.window, Experts("num_local_experts", "intermediate_size"), defaults={"num_key_value_heads": 8}
    ),
    "phi3": Architecture(a.window, gated),
    "starcoder2": Architecture(
        a.window,
        plain("intermediate_size"),
        tied=True,
        defaults={"num_key_value_heads": 2},
        harmless=frozenset({"mlp_type"}),
    ),
    "qwen2": Architecture(a.qwen, gated, defaults={**_QWEN, "num_key_value_heads": 32}),
    "qwen3": Architecture(a.qwen, gated, defaults={**_QWEN, "num_key_value_heads": 32, "head_dim": 128}),
    "smollm3": Architecture(typed(p.smollm3), gated, tied=True, defaults={"no_rope_layer_interval": 4}),
    "gemma2": Architecture(
        typed(p.one_in(2)),
        gated,
        tied=True,
        defaults={"head_dim": 256, "sliding_window": 4096},
        aliases={"sliding_window": "sliding_window_size"},
    ),
    "gemma3_text": Architecture(
        typed(p.one_in(6, field="sliding_window_pattern")),
        gated,
        tied=True,
        defaults={
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 4096,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
        },
        aliases={"sliding_window_pattern": "_sliding_window_pattern"},
    ),
    "gemma3n_text": Architecture(
        sharing(typed(p.one_in(5))),
        None,
        tied=True,
        defaults={"head_dim": 256, "sliding_window": 512, "num_kv_shared_layers": 15, "num_key_value_heads": 2},
        harmless=frozenset(
            {"intermediate_size", "hidden_size_per_layer_input", "vocab_size_per_layer_input", "laurel_rank"}
        ),
    ),
    "cohere2": Architecture(
        typed(p.one_in(4, field="sliding_window_pattern")),
        gated,
        tied=True,
        defaults={"sliding_window": 4096},
        aliases={"sliding_window_pattern": "layer_switch"},
        harmless=frozenset({"order_of_interleaved_layers", "use_embedding_sharing", "use_parallel_block"}),
    ),
    "olmo3": Architecture(typed(p.one_in(4)), gated, defaults={"sliding_window": 4096}),
    "gpt_oss": Architecture(
        typed(p.one_in(2)),
        Experts("num_local_experts", "intermediate_size"),
        defaults={"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128},
        aliases={"num_local_experts": "num_experts", "num_experts_per_tok": "experts_per_token"},
    ),
    "llama4_text": Architecture(
        typed(p.unturned("full_attention", turned="chunked_attention")),
        Experts("num_local_experts", "intermediate_size", f.llama4, "intermediate_size_mlp", "intermediate_size"),
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "attention_chunk_size": 8192,
            "no_rope_layer_interval": 4,
            "interleave_moe_layer_step": 1,
        },
    ),
    # one latent for all heads
    "deepseek_v2": Architecture(
        every(a.latent_layer),
        _DEEPSEEK,
        harmless=_OF_LATENT,
        shape=a.latent_shape,
        defaults={**_LATENT, "n_shared_experts": 2, "first_k_dense_replace": 0},
    ),
    "deepseek_v3": Architecture(
        every(a.latent_layer),
        _DEEPSEEK,
        harmless=_OF_LATENT,
        shape=a.latent_shape,
        defaults={**_LATENT, "n_shared_experts": 1, "first_k_dense_replace": 3},
    ),
    # states of constant size, alone or beside attention
    "mamba": Architecture(
        every(lambda fields, of: s.mamba_plain(fields, of.hidden)),
        f.none,
        True,
        _MAMBA,
        shape=a.headless,
        harmless=_OF_MAMBA,
        aliases=_NAMES_OF_MAMBA,
    ),
    "falcon_mamba": Architecture(
        every(lambda fields, of: s.mamba_plain(fields, of.hidden)),
        f.none,
        True,
        _MAMBA,
        shape=a.headless,
        harmless=_OF_MAMBA,
        aliases=_NAMES_OF_MAMBA,
    ),
    "mamba2": Architecture(
        every(lambda fields, of: s.mamba2_plain(fields, of.hidden)),
        f.none,
        shape=a.headless,
        harmless=_OF_MAMBA,
        defaults={"num_heads": 128, "head_dim": 64, "state_size": 128, "conv_kernel": 4, "expand": 2, "n_groups": 8},
    ),
    "jamba": Architecture(
        typed(p.jamba, linear_attention=lambda fields, of: s.mamba_jamba(fields, of.hidden)),
        Experts("num_experts", "intermediate_size", f.jamba),
        defaults={
            "num_key_value_heads": 8,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_dt_rank": "auto",
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    "qwen3_next": Architecture(
        _GATED_DELTA_LAYERS,
        _SHARED_EXPERT,
        defaults={**_GATED_DELTA, "num_key_value_heads": 2, "decoder_sparse_step": 1},
    ),
    "qwen3_5_text": Architecture(_GATED_DELTA_LAYERS, gated, defaults={**_GATED_DELTA, "num_key_value_heads": 4}),
    "qwen3_5_moe_text": Architecture(
        _GATED_DELTA_LAYERS,
        replace(_SHARED_EXPERT, where=f.everywhere),
        defaults={**_GATED_DELTA, "num_key_value_heads": 2},
    ),
    "lfm2": Architecture(
        typed(
            p.listed("full_attn_idxs", "conv", missing_means_all=True),
            conv=lambda fields, of: s.short_convolution(fields, of.hidden),
        ),
        f.lfm2,
        tied=True,
        aliases={"intermediate_size": "block_ff_dim"},
        harmless=frozenset(
            {
                "block_dim",
                "block_mlp_init_scale",
                "block_norm_eps",
                "block_out_init_scale",
                "block_use_swiglu",
                "block_use_xavier_init",
                "conv_dim",
                "conv_dim_out",
                "conv_use_xavier_init",
                "num_heads",
            }
        ),
        defaults={
            "num_key_value_heads": 8,
            "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.0,
            "block_multiple_of": 256,
        },
    ),
    "bamba": Architecture(
        typed(p.listed("attn_layer_indices", "linear_attention", missing_means_all=False), linear_attention=_mamba2),
        gated,
        defaults={**_MAMBA2, "num_key_value_heads": 8},
    ),
    "granitemoehybrid": Architecture(
        typed(
            p.listed("attn_layer_indices", "linear_attention", missing_means_all=False),
            linear_attention=_mamba2,
            mamba=_mamba2,
        ),
        Experts("num_local_experts", "intermediate_size", shared_size="shared_intermediate_size"),
        defaults={**_MAMBA2, "shared_intermediate_size": 1024},
        aliases={"layer_types": "layers_block_type"},
    ),
    "falcon_h1": Architecture(
        every(a.hybrid_layer),
        gated,
        defaults={**_MAMBA2, "num_key_value_heads": 8, "mamba_d_ssm": 1024},
        harmless=frozenset({"mlp_expansion_factor"}),
    ),
}
# model types that wrap a language model, and its type where `text_config` does not name it
WRAPPERS: dict[str, str] = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "kimi_k25": "deepseek_v3",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
# model types of checkpoints that bring their own code, which builds an architecture of the table
SYNONYMS: dict[str, str] = {"kimi_k2": "deepseek_v3"}
