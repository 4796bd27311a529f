"""Which layers a config describes: a rule for each way in which published configs say it.

A rule takes the fields of a config and the shape that all its layers share, and gives the layers,
first to last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from formats.limits import MAX_LAYERS, MAX_ROWS
from tsc_cli.checkpoints.config_fields import Fields, shown

from . import patterns, states
from .layers import Layer, attention, both
from .patterns import Pattern


@dataclass(frozen=True)
class Shape:
    """What the attention layers of a model have in common.

    Attributes:
        layers: how many layers of any kind.
        hidden: size of the residual stream.
        key_size: of one head.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    key_size: int


Rule = Callable[[Fields, Shape], list[Layer]]
Kind = Callable[[Fields, Shape], Layer]


def shape(fields: Fields) -> Shape:
    """Read the heads; they split the residual stream if `head_dim` is not stated.

    Raises:
        CorruptError: a field is missing or wrong, or heads do not divide what they share.
    """
    return _shape(fields, fields.optional("head_dim"))


def split_shape(fields: Fields) -> Shape:
    """Read heads that split the residual stream, whatever a config states (GPT-2, GPT-NeoX)."""
    return _shape(fields, None)


def bigcode_shape(fields: Fields) -> Shape:
    """One KV head, or as many as query heads."""
    of = split_shape(fields)
    return replace(of, kv_heads=1 if fields.flag("multi_query") else of.heads)


def falcon_shape(fields: Fields) -> Shape:
    """Read one KV head (Falcon-7B) or as many as query heads; refuse the newer form."""
    if fields.flag("new_decoder_architecture"):
        raise fields.unsupported(
            "new_decoder_architecture", "transformers caches its KV heads once for every query head, others do not"
        )
    fields.optional("num_kv_heads")  # used by the newer form alone
    return bigcode_shape(fields)


def latent_shape(fields: Fields) -> Shape:
    """Read heads of latent attention, whose stated number of KV heads does not affect the cache."""
    heads = fields.integer("num_attention_heads")
    return Shape(fields.integer("num_hidden_layers", 1, MAX_LAYERS), fields.integer("hidden_size"), heads, heads, 0)


def headless(fields: Fields) -> Shape:
    """Read models without attention, where a stated number of heads means something else."""
    return Shape(fields.integer("num_hidden_layers", 1, MAX_LAYERS), fields.integer("hidden_size"), 0, 0, 0)


def _shape(fields: Fields, key_size: int | None) -> Shape:
    layers, hidden = fields.integer("num_hidden_layers", 1, MAX_LAYERS), fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.optional("num_key_value_heads") or heads
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", f"{kv_heads} KV heads do not divide {heads} query heads")
    if key_size is None:
        if hidden % heads:
            raise fields.error("num_attention_heads", f"{heads} heads do not divide a hidden_size of {hidden}")
        key_size = hidden // heads
    return Shape(layers, hidden, heads, kv_heads, key_size)


def full_layer(fields: Fields, of: Shape) -> Layer:
    del fields
    return attention("full", of.heads, of.kv_heads, of.key_size, of.hidden)


def gated_layer(fields: Fields, of: Shape) -> Layer:
    """Full attention whose output has a gate (Qwen3-Next)."""
    if fields.stated("attn_output_gate") and not fields.flag("attn_output_gate"):
        raise fields.unsupported("attn_output_gate", "false is not known for this model type")
    return attention("full", of.heads, of.kv_heads, of.key_size, of.hidden, gated=True)


def sliding_layer(fields: Fields, of: Shape) -> Layer:
    window = fields.integer("sliding_window", 1, MAX_ROWS)
    return attention("sliding", of.heads, of.kv_heads, of.key_size, of.hidden, window=window)


def chunked_layer(fields: Fields, of: Shape) -> Layer:
    """Attention within chunks: no more rows are kept than a chunk has."""
    chunk = fields.integer("attention_chunk_size", 1, MAX_ROWS)
    return attention("chunked", of.heads, of.kv_heads, of.key_size, of.hidden, window=chunk)


def hybrid_layer(fields: Fields, of: Shape) -> Layer:
    """Attention and Mamba-2 side by side (Falcon-H1)."""
    return both(full_layer(fields, of), states.mamba2_hybrid(fields, of.hidden))


def latent_layer(fields: Fields, of: Shape) -> Layer:
    """Describe multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

    All heads share one latent and one rotary key.
    """
    rank, turned = fields.integer("kv_lora_rank"), fields.integer("qk_rope_head_dim")
    unturned, value_size = fields.integer("qk_nope_head_dim"), fields.integer("v_head_dim")
    query_rank = fields.optional("q_lora_rank")
    queries = of.heads * (unturned + turned)
    weights = of.hidden * queries if query_rank is None else query_rank * (of.hidden + queries)
    weights += of.hidden * (rank + turned) + rank * of.heads * (unturned + value_size)
    return Layer(
        "latent",
        rank + turned,
        query_heads=of.heads,
        pair_size=of.heads * (unturned + turned + value_size),
        weights=weights + of.heads * value_size * of.hidden,
    )


def every(kind: Kind) -> Rule:
    """All layers are of one kind."""
    return lambda fields, of: [kind(fields, of)] * of.layers


def window(fields: Fields, of: Shape) -> list[Layer]:
    """All layers have the window `sliding_window`, or none has one where that is null (Mistral)."""
    has = "sliding_attention" in patterns.windows(fields, of.layers)
    return every(sliding_layer if has else full_layer)(fields, of)


_WORDS: dict[str, Kind] = {
    "full_attention": full_layer,
    "attention": full_layer,
    "sliding_attention": sliding_layer,
    "chunked_attention": chunked_layer,
}


def typed(pattern: Pattern, **kinds: Kind) -> Rule:
    """Return a rule that reads `layer_types`, or the architecture's pattern if it is missing.

    Args:
        kinds: words beyond those of `_WORDS`, or instead of them.
    """

    def rule(fields: Fields, of: Shape) -> list[Layer]:
        stated = pattern(fields, of.layers)
        words = fields.words("layer_types", of.layers) or stated
        kinds_by_word = {**_WORDS, **kinds}
        for layer, word in enumerate(words):
            if word not in kinds_by_word:
                raise fields.unsupported(
                    "layer_types", f"layer {layer} is of the kind {shown(word)}, which is not known"
                )
        made = {word: kinds_by_word[word](fields, of) for word in dict.fromkeys(words)}
        return [made[word] for word in words]

    return rule


def qwen(fields: Fields, of: Shape) -> list[Layer]:
    """Read layers whose windows `use_sliding_window` enables from `max_window_layers` on (Qwen)."""
    used = fields.flag("use_sliding_window") and fields.optional("sliding_window", 1, MAX_ROWS) is not None
    first = fields.integer("max_window_layers", 0, MAX_LAYERS)
    words = ["sliding_attention" if used and layer >= first else "full_attention" for layer in range(of.layers)]
    return _qwen(fields, of, words, used=used)


def qwen_experts(fields: Fields, of: Shape) -> list[Layer]:
    """Read Qwen-MoE layers; with windows on, `layer_types` must say which layers have one."""
    used = fields.flag("use_sliding_window") and fields.optional("sliding_window", 1, MAX_ROWS) is not None
    fields.optional("max_window_layers", 0, MAX_LAYERS)
    if used and fields.words("layer_types", of.layers) is None:
        raise fields.unsupported(
            "use_sliding_window", "which layers have the window is not stated", "layer_types would state it"
        )
    return _qwen(fields, of, ["full_attention"] * of.layers, used=used)


def _qwen(fields: Fields, of: Shape, words: list[str], *, used: bool) -> list[Layer]:
    if not used and "sliding_attention" in (fields.words("layer_types", of.layers) or []):
        raise fields.error("layer_types", "has sliding_attention, but use_sliding_window is not true")
    return typed(lambda *_: words)(fields, of)


def sharing(rule: Rule) -> Rule:
    """Return a rule whose last `num_kv_shared_layers` reuse earlier layers' rows (Gemma 3n)."""

    def shared(fields: Fields, of: Shape) -> list[Layer]:
        layers = rule(fields, of)
        first = of.layers - fields.integer("num_kv_shared_layers", 0, of.layers)
        if missing := {layer.kind for layer in layers[first:]} - {layer.kind for layer in layers[:first]}:
            raise fields.error("num_kv_shared_layers", f"no layer is left that keeps rows of the kind {missing.pop()}")
        return layers[:first] + [replace(layer, kind="shared", row_values=0, weights=0) for layer in layers[first:]]

    return shared
