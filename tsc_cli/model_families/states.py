"""Layers whose memory does not grow: state-space models, linear attention, short convolutions.

Sizes are those of transformers 5: the last inputs of a convolution in the dtype of the model, as
many as its kernel is wide, and the recurrent state in float32.
"""

from __future__ import annotations

from formats.limits import MAX_EXTENT
from tsc_cli.checkpoints.config_fields import Fields

from .layers import Layer


def mamba(inner: int, kernel: int, state: int, rank: int, hidden: int) -> Layer:
    """A Mamba layer (arXiv 2312.00752): `state` values for each of `inner` channels."""
    weights = hidden * 2 * inner + inner * kernel + inner * (rank + 2 * state) + rank * inner + inner * state
    return Layer(
        "mamba", state_values=inner * kernel, state_values_float32=inner * state, weights=weights + inner * hidden
    )


def mamba2(inner: int, heads: int, groups: int, kernel: int, state: int, hidden: int) -> Layer:
    """Describe a Mamba-2 layer (arXiv 2405.21060).

    Args:
        inner: heads times head size.
        groups: whose B and C pass the convolution.
    """
    mixed = inner + 2 * groups * state
    weights = hidden * (inner + mixed + heads) + mixed * kernel + inner * hidden
    return Layer("mamba", state_values=mixed * kernel, state_values_float32=inner * state, weights=weights)


def gated_delta(fields: Fields, hidden: int) -> Layer:
    """Describe a gated delta rule layer (arXiv 2412.06464; Qwen3-Next).

    Each head's state is a matrix of key size by value size.
    """
    key_heads, heads = fields.integer("linear_num_key_heads"), fields.integer("linear_num_value_heads")
    key_size, value_size = fields.integer("linear_key_head_dim"), fields.integer("linear_value_head_dim")
    kernel = fields.integer("linear_conv_kernel_dim")
    keys, values = key_heads * key_size, heads * value_size
    mixed = 2 * keys + values
    weights = hidden * (2 * keys + 2 * values + 2 * heads) + mixed * kernel + values * hidden
    state = heads * key_size * value_size
    return Layer("linear", state_values=mixed * kernel, state_values_float32=state, weights=weights)


def short_convolution(fields: Fields, hidden: int) -> Layer:
    """A gated short convolution (LFM2): the last inputs of each channel."""
    kernel = fields.integer("conv_L_cache")
    return Layer("conv", state_values=hidden * kernel, weights=4 * hidden * hidden + hidden * kernel)


def mamba_plain(fields: Fields, hidden: int) -> Layer:
    """The names of model types mamba and falcon_mamba."""
    inner = _expanded(fields, "expand", hidden)
    rank = _rank(fields, "time_step_rank", hidden)
    return mamba(inner, fields.integer("conv_kernel"), fields.integer("state_size"), rank, hidden)


def mamba_jamba(fields: Fields, hidden: int) -> Layer:
    """The names of model type jamba."""
    inner = _expanded(fields, "mamba_expand", hidden)
    rank = _rank(fields, "mamba_dt_rank", hidden)
    return mamba(inner, fields.integer("mamba_d_conv"), fields.integer("mamba_d_state"), rank, hidden)


def mamba2_plain(fields: Fields, hidden: int) -> Layer:
    """The names of model type mamba2."""
    heads, size = fields.integer("num_heads"), fields.integer("head_dim")
    if heads * size != _expanded(fields, "expand", hidden):
        raise fields.error("num_heads", "times head_dim is not hidden_size times expand")
    groups, kernel = fields.integer("n_groups"), fields.integer("conv_kernel")
    return mamba2(heads * size, heads, groups, kernel, fields.integer("state_size"), hidden)


def mamba2_hybrid(fields: Fields, hidden: int) -> Layer:
    """The names of model types bamba, falcon_h1 and granitemoehybrid."""
    heads = fields.integer("mamba_n_heads")
    inner = fields.optional("mamba_d_ssm") or _expanded(fields, "mamba_expand", hidden)
    if heads * (fields.automatic("mamba_d_head") or inner // heads) != inner:
        raise fields.error("mamba_n_heads", "times mamba_d_head is not the inner size")
    groups, kernel = fields.integer("mamba_n_groups"), fields.integer("mamba_d_conv")
    return mamba2(inner, heads, groups, kernel, fields.integer("mamba_d_state"), hidden)


def _expanded(fields: Fields, name: str, hidden: int) -> int:
    return int(fields.number(name, 1 / hidden, MAX_EXTENT) * hidden)


def _rank(fields: Fields, name: str, hidden: int) -> int:
    """A rank; "auto" is a sixteenth of the residual stream, rounded up."""
    return fields.automatic(name) or -(-hidden // 16)
