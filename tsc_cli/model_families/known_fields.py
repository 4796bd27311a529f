"""Fields of configs: those that may be left out, and those whose names look as if they mattered."""

from __future__ import annotations

# published configs leave these out, so that transformers' default for the model type counts
ASSUMED: frozenset[str] = frozenset().union(
    # attention
    {"head_dim", "kv_lora_rank", "multi_query", "num_key_value_heads", "num_kv_shared_layers", "q_lora_rank"},
    {"qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"},
    # which layers have a window, chunks or attention at all
    {"attention_chunk_size", "attn_layer_offset", "attn_layer_period", "full_attention_interval"},
    {"max_window_layers", "no_rope_layer_interval", "sliding_window", "use_sliding_window"},
    # states
    {"conv_L_cache", "conv_kernel", "expand", "linear_conv_kernel_dim", "linear_key_head_dim"},
    {"linear_num_key_heads", "linear_num_value_heads", "linear_value_head_dim", "mamba_d_conv", "mamba_d_head"},
    {"mamba_d_ssm", "mamba_d_state", "mamba_dt_rank", "mamba_expand", "mamba_n_groups", "mamba_n_heads", "n_groups"},
    {"num_heads", "state_size", "time_step_rank"},
    # experts and sizes of matrices
    {"block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of", "decoder_sparse_step"},
    {"expert_layer_offset", "expert_layer_period", "first_k_dense_replace", "interleave_moe_layer_step"},
    {"n_shared_experts", "shared_intermediate_size"},
)
# these change neither what is cached nor the sizes of matrices
HARMLESS: frozenset[str] = frozenset().union(
    # biases, norms, dropout, activations, scales of numbers
    {"attention_bias", "attention_dropout", "attention_in_multiplier", "attention_multiplier"},
    {"attention_out_multiplier", "attention_probs_dropout_prob", "attn_logit_softcapping", "attn_pdrop"},
    {"attn_scale", "attn_temperature_tuning", "clip_qkv", "conv_bias", "head_bias", "lm_head_bias"},
    {"lm_head_multiplier", "mamba_conv_bias", "mamba_norm_before_gate", "mamba_proj_bias", "mamba_rms_norm"},
    {"mlp_bias", "mlp_hidden_act", "mlp_multipliers", "num_ln_in_parallel_attn", "qkv_bias", "query_pre_attn_scalar"},
    {"scale_attn_by_inverse_layer_idx", "scale_attn_weights", "ssm_in_multiplier", "ssm_multipliers"},
    {"ssm_out_multiplier", "use_conv_bias", "use_qkv_bias"},
    # how it is computed
    {"_attn_implementation", "_attn_implementation_autoset", "attention_softmax_in_fp32", "attn_implementation"},
    {"cache_implementation", "chunk_size", "chunk_size_feed_forward", "mamba_chunk_size", "mamba_ssm_dtype"},
    {"parallel_attn", "reorder_and_upcast_attn", "scale_attention_softmax_in_fp32", "use_cache"},
    {"use_falcon_mambapy", "use_flash_attention", "use_flash_attn", "use_mamba_kernels", "use_mambapy"},
    # what is returned, and how the file was made
    {"for_llm_compressor", "output_attentions", "output_hidden_states"},
    # positions: a layer with RoPE caches what one without it does; model types that mean more by it
    # read these
    {"attn_rotary_emb", "no_rope_layer_interval", "no_rope_layers"},
    # further layers for predicting several tokens at once: left out, and said so
    {"mtp_num_hidden_layers", "num_mtp_layers", "num_nextn_predict_layers"},
    # of an image encoder
    {"vision_feature_layer"},
)
