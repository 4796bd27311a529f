"""How `tsc plan` reads the config of one model type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tsc_cli.checkpoints.config_fields import Fields

from .attention import Rule as LayerRule
from .attention import Shape
from .attention import shape as usual_shape
from .feed_forward import Rule as FeedForwardRule

# fields that published configs leave out, so that transformers' default for the model type counts
ASSUMED = frozenset(
    {
        # attention
        "head_dim",
        "kv_lora_rank",
        "multi_query",
        "num_key_value_heads",
        "num_kv_shared_layers",
        "q_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        # which layers have a window, chunks or attention at all
        "attention_chunk_size",
        "attn_layer_offset",
        "attn_layer_period",
        "full_attention_interval",
        "max_window_layers",
        "no_rope_layer_interval",
        "sliding_window",
        "use_sliding_window",
        # states
        "conv_L_cache",
        "conv_kernel",
        "expand",
        "linear_conv_kernel_dim",
        "linear_key_head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_value_head_dim",
        "mamba_d_conv",
        "mamba_d_head",
        "mamba_d_ssm",
        "mamba_d_state",
        "mamba_dt_rank",
        "mamba_expand",
        "mamba_n_groups",
        "mamba_n_heads",
        "n_groups",
        "num_heads",
        "state_size",
        "time_step_rank",
        # experts and sizes of matrices
        "block_auto_adjust_ff_dim",
        "block_ffn_dim_multiplier",
        "block_multiple_of",
        "decoder_sparse_step",
        "expert_layer_offset",
        "expert_layer_period",
        "first_k_dense_replace",
        "interleave_moe_layer_step",
        "n_shared_experts",
        "shared_intermediate_size",
    }
)


@dataclass(frozen=True)
class PlanRule:
    """How to read the config of one model type, beyond what transformers' configuration class says itself.

    Attributes:
        layers: what each layer caches.
        feed_forward: its feed-forward parts; None where parameters are not computed for this type.
        shape: heads and sizes.
        assumes: fields beyond `ASSUMED` whose default counts where a config leaves them out.
        aliases: older name of a field, under which published configs have it.
        harmless: fields whose names speak of caches or sizes, and which change neither for this type.
        positions: whether learned positions are a matrix of their own.
    """

    layers: LayerRule
    feed_forward: FeedForwardRule | None
    shape: Callable[[Fields], Shape] = usual_shape
    assumes: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    positions: bool = False
