"""What one layer caches, and what attending to it costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

FLOAT32 = 4


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Attributes:
        kind: full, sliding, chunked, latent (MLA), linear, mamba, conv, shared (it reads another
            layer's rows), or two of them with a plus between them, where a layer has both.
        row_values: values that one token adds to the cache; 0 if the layer keeps no rows.
        window: rows that are kept at most, of the newest tokens; None keeps all.
        state_values: values of a state of constant size, in the dtype of the cache.
        state_values_float32: values of a state that is kept in float32 whatever the dtype of the
            cache.
        query_heads, kv_heads: 0 where the layer has none.
        pair_size: multiply-adds of one query token with one row: query heads times (key size +
            value size).
        weights: numbers in the matrices of the layer's token mixing, biases and norms left out.
    """

    kind: str
    row_values: int = 0
    window: int | None = None
    state_values: int = 0
    state_values_float32: int = 0
    query_heads: int = 0
    kv_heads: int = 0
    pair_size: int = 0
    weights: int = 0

    def rows(self, context: int) -> int:
        """Rows that are kept after `context` tokens."""
        if not self.row_values:
            return 0
        return context if self.window is None else min(context, self.window)

    def row_bytes(self, context: int, dtype_bytes: int) -> int:
        """Bytes of the rows after `context` tokens."""
        return self.rows(context) * self.row_values * dtype_bytes

    def state_bytes(self, dtype_bytes: int) -> int:
        """Bytes of the state, which does not grow."""
        return self.state_values * dtype_bytes + self.state_values_float32 * FLOAT32

    def pairs(self, context: int) -> int:
        """Pairs of a query token and a row that a causal prefill of `context` tokens attends to."""
        if not self.pair_size:
            return 0
        span = context if self.window is None else min(context, self.window)
        ramp = span * (span + 1) // 2  # the first tokens see one row, two rows, and so on
        if self.kind != "chunked":
            return ramp + (context - span) * span
        # a chunk begins anew: no token sees the chunks before its own
        whole, rest = divmod(context, span)
        return whole * ramp + rest * (rest + 1) // 2


def runs(layers: Iterable[Layer]) -> list[tuple[int, Layer]]:
    """Count the layers that are alike: (how many, layer), the most frequent first."""
    ordered = sorted(layers, key=repr)
    counted = [(len(list(same)), layer) for layer, same in groupby(ordered)]
    return sorted(counted, key=lambda entry: -entry[0])


def attention(
    kind: str, heads: int, kv_heads: int, key_size: int, hidden: int, *, window: int | None = None, gated: bool = False
) -> Layer:
    """Describe a layer that caches a key and a value of `key_size` per KV head (MHA, GQA, MQA).

    Args:
        hidden: size of the residual stream, for the weights.
        gated: the query projection also gives a gate for the output.
    """
    queries = heads * key_size * (2 if gated else 1)
    weights = hidden * (queries + 2 * kv_heads * key_size + heads * key_size)
    return Layer(
        kind,
        2 * kv_heads * key_size,
        window,
        query_heads=heads,
        kv_heads=kv_heads,
        pair_size=2 * heads * key_size,
        weights=weights,
    )


def both(rows: Layer, state: Layer) -> Layer:
    """Join two layers that stand side by side: the rows of the first, the state of the second."""
    return Layer(
        f"{rows.kind}+{state.kind}",
        rows.row_values,
        rows.window,
        state.state_values,
        state.state_values_float32,
        rows.query_heads,
        rows.kv_heads,
        rows.pair_size,
        rows.weights + state.weights,
    )
