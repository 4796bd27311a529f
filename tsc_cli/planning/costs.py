"""What a model's cache costs at a context: bytes, users, prefill, seconds on the wire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsc_cli.model_families.layers import Layer

from .model import DTYPE_BYTES, Model
from .rates import Rate, rates


@dataclass(frozen=True)
class PlanOptions:
    """What the plan is asked about; None where it is not.

    Attributes:
        users: how many caches.
        memory, weights: bytes; the caches get what the weights leave.
        bandwidth: bytes a second.
        compute: floating-point operations a second.
        active: numbers that a token is multiplied with in the layers, where the config does not
            tell.
    """

    users: int = 1
    memory: int | None = None
    weights: int = 0
    bandwidth: float | None = None
    compute: float | None = None
    active: int | None = None


def row_values(model: Model, context: int) -> int:
    """Values of all rows that are kept after `context` tokens."""
    return sum(layer.rows(context) * layer.row_values for layer in model.layers)


def state_bytes(model: Model) -> int:
    """Bytes of the states of constant size."""
    return sum(layer.state_bytes(DTYPE_BYTES[model.dtype]) for layer in model.layers)


def cache_bytes(model: Model, context: int, bits: float | None = None) -> int:
    """Bytes of one cache after `context` tokens.

    Args:
        bits: a value of the rows; None takes the dtype's.  States are always counted as they are.
    """
    values = row_values(model, context)
    rows = values * DTYPE_BYTES[model.dtype] if bits is None else math.ceil(values * bits / 8)
    return rows + state_bytes(model)


def token_bytes(layers: Sequence[Layer], dtype: str, context: int) -> int:
    """Bytes by which the token after `context` tokens makes the cache larger."""
    growing = [layer for layer in layers if layer.window is None or context < layer.window]
    return sum(layer.row_values for layer in growing) * DTYPE_BYTES[dtype]


def by_query_heads(model: Model, context: int) -> int:
    """Bytes of one cache if every query head had a KV head, as the published Table 4 counts."""
    dtype_bytes = DTYPE_BYTES[model.dtype]
    return state_bytes(model) + sum(
        layer.row_bytes(context, dtype_bytes) * (layer.query_heads // layer.kv_heads if layer.kv_heads else 1)
        for layer in model.layers
    )


def prefill_flops(model: Model, context: int, active: int | None = None) -> dict[str, int] | None:
    """Count the FLOPs of a causal prefill; None if the number of parameters is unknown.

    Two a weight and token in the layers, two a multiply-add of attention, and the logits of the
    last token. The recurrences of states, norms and activations are left out.
    """
    parameters = model.parameters
    weights = active if active is not None else parameters.layers_active if parameters is not None else None
    if weights is None:
        return None
    head = parameters.head if parameters is not None else 0
    parts = {
        "weights": 2 * weights * context,
        "attention": sum(2 * layer.pair_size * layer.pairs(context) for layer in model.layers),
        "logits": 2 * head,
    }
    return {**parts, "total": sum(parts.values())}


def at_context(model: Model, context: int, options: PlanOptions) -> dict[str, Any]:
    """Everything about one context, as `tsc.plan/1` has it."""
    flops = prefill_flops(model, context, options.active)
    seconds = flops["total"] / options.compute if flops and options.compute else None
    raw, heads = cache_bytes(model, context), by_query_heads(model, context)
    storage = [_stored(model, context, rate, options, seconds) for rate in rates(model.dtype, DTYPE_BYTES[model.dtype])]
    return {
        "tokens": context,
        "raw_bytes": raw,
        "state_bytes": state_bytes(model),
        "next_token_bytes": token_bytes(model.layers, model.dtype, context),
        "prefill_flop": flops,
        "recompute_seconds": seconds,
        "storage": storage,
        "reports_table_4": {"bytes": heads, "times": heads / raw} if heads != raw else None,
    }


def _stored(model: Model, context: int, rate: Rate, options: PlanOptions, seconds: float | None) -> dict[str, Any]:
    size = cache_bytes(model, context, None if rate.basis == "exact" else rate.bits)
    stored: dict[str, Any] = {
        "name": rate.name,
        "bits_per_value": rate.bits,
        "kl": rate.kl,
        "top1": rate.top1,
        "basis": rate.basis,
        "source": rate.source,
        "bytes": size,
        "bytes_all_users": size * options.users,
    }
    if options.memory is not None:
        stored["users_that_fit"] = (options.memory - options.weights) // size
        stored["all_users_fit"] = stored["users_that_fit"] >= options.users
    if options.bandwidth is not None:
        stored["transfer_seconds"] = size / options.bandwidth
    if seconds is not None:
        # as fast as recomputing at this bandwidth, faster above it
        stored["break_even_bytes_per_second"] = size / seconds
    return stored


def described(layers: Sequence[tuple[int, Layer]], dtype: str) -> list[Mapping[str, Any]]:
    """The different layers, as `tsc.plan/1` lists them."""
    size = DTYPE_BYTES[dtype]
    return [
        {
            "count": count,
            "kind": layer.kind,
            "query_heads": layer.query_heads,
            "kv_heads": layer.kv_heads,
            "values_per_token": layer.row_values,
            "bytes_per_token": layer.row_values * size,
            "rows_at_most": layer.window if layer.row_values else None,
            "state_bytes": layer.state_bytes(size),
        }
        for count, layer in layers
    ]
