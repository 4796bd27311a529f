"""The names of a layer's tensors and what is fused in them: one table for all families.

To teach the probe a family, add a line to `TABLE`. Types of matrices have short names: q, k, v, o
of attention, gate, up, down of the feed-forward part; an expert's are `expert.gate` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tsc_cli.checkpoints.matrices import Band, Matrix, Tensor

Config = Mapping[str, Any]
Split = Callable[[int, Config], "list[Band] | None"]


def one(outputs: int, config: Config) -> list[Band]:
    """One matrix a tensor."""
    del config
    return [Band(0, outputs, outputs)]


def halves(outputs: int, config: Config) -> list[Band] | None:
    """gate, then up."""
    del config
    return None if outputs % 2 else [Band(start, outputs // 2, outputs) for start in (0, outputs // 2)]


def sections(outputs: int, config: Config) -> list[Band] | None:
    """All of q, then all of k, then all of v."""
    queries, groups, size = _heads(config)
    if not queries or (queries + 2 * groups) * size != outputs:
        return None
    q, kv = queries * size, groups * size
    return [Band(0, q, outputs), Band(q, kv, outputs), Band(q + kv, kv, outputs)]


def by_group(outputs: int, config: Config) -> list[Band] | None:
    """Split q, k and v of each group of heads; without grouping a group is one head."""
    queries, groups, size = _heads(config)
    if not queries or queries % groups or (queries + 2 * groups) * size != outputs:
        return None
    q = queries // groups * size
    stride = q + 2 * size
    return [Band(0, q, stride, groups), Band(q, size, stride, groups), Band(q + size, size, stride, groups)]


def falcon(outputs: int, config: Config) -> list[Band] | None:
    """Split Falcon's fused tensor: one KV head (7B), groups (40B and later), or all heads (RW)."""
    queries = _integer(config, "num_attention_heads") or _integer(config, "n_head")
    shared = config.get("multi_query", True) is True
    if config.get("new_decoder_architecture") is True:
        groups = _integer(config, "num_kv_heads") or _integer(config, "n_head_kv") or queries
    else:
        groups = 1 if shared else queries
    return by_group(outputs, {**config, "num_attention_heads": queries, "num_key_value_heads": groups})


def _heads(config: Config) -> tuple[int, int, int]:
    """Query heads, key heads, size of a head; zeros where the configuration does not say."""
    names = ("num_attention_heads", "n_head")
    queries = next((n for n in (_integer(config, name) for name in names) if n), 0)
    hidden = next((n for n in (_integer(config, name) for name in ("hidden_size", "n_embd")) if n), 0)
    if not queries:
        return 0, 0, 0
    size = _integer(config, "head_dim") or hidden // queries
    return (queries, _integer(config, "num_key_value_heads") or queries, size) if size else (0, 0, 0)


def _integer(config: Config, name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20 else 0


@dataclass(frozen=True)
class Rule:
    """A line of the table.

    Attributes:
        pattern: of a tensor's name after the layer's number; a group `expert` is an expert's
            number, and a group `kind` may be used in `types`.
        types: of the matrices in it, in the order of their bands.
        split: where they lie.
        models: `model_type` of the configurations it holds for; empty for all.
        transposed: stored [inputs, outputs].
    """

    pattern: str
    types: tuple[str, ...]
    split: Split = one
    models: tuple[str, ...] = ()
    transposed: bool = False


# of a name that no line has: all experts' matrices are one type
_EXPERT = re.compile(r"\bexperts\.([0-9]{1,6})\.")
_GATED = {"1": "gate", "2": "down", "3": "up"}  # Llama's own names and Mixtral's: w1, w2, w3
_QKV = ("q", "k", "v")
_LLAMA4 = ("llama4", "llama4_text")

TABLE = (
    # Llama, Mistral, Qwen, Gemma and most others: a tensor a matrix
    Rule(r"(?:self_attn|attn|attention)\.(?P<kind>[qkvo])_proj\.weight", ("{kind}",)),
    Rule(r"mlp\.(?P<kind>gate|up|down)_proj\.weight", ("{kind}",)),
    # Phi-3; GLM-4 fuses the second pair alike
    Rule(r"self_attn\.qkv_proj\.weight", _QKV, sections, ("phi3", "phi4mm", "phi4_multimodal")),
    Rule(r"mlp\.gate_up_proj\.weight", ("gate", "up"), halves),
    # Phi-2, OPT, GPT-J, GPT-NeoX, Falcon, BLOOM
    Rule(r"(?:self_attn|attn|attention|self_attention)\.(?:dense|out_proj)\.weight", ("o",)),
    Rule(r"(?:mlp\.)?(?:fc1|fc_in|dense_h_to_4h|up_proj)\.weight", ("up",)),
    Rule(r"(?:mlp\.)?(?:fc2|fc_out|dense_4h_to_h|down_proj)\.weight", ("down",)),
    # GPT-2: Conv1D keeps [inputs, outputs]
    Rule(r"attn\.c_attn\.weight", _QKV, sections, ("gpt2",), transposed=True),
    Rule(r"attn\.c_proj\.weight", ("o",), one, ("gpt2",), transposed=True),
    Rule(r"mlp\.c_fc\.weight", ("up",), one, ("gpt2",), transposed=True),
    Rule(r"mlp\.c_proj\.weight", ("down",), one, ("gpt2",), transposed=True),
    # GPT-NeoX and Pythia, Falcon, BLOOM: q, k and v head by head
    Rule(r"attention\.query_key_value\.weight", _QKV, by_group, ("gpt_neox", "gpt_neox_japanese")),
    Rule(r"self_attention\.query_key_value\.weight", _QKV, falcon, ("falcon", "RefinedWeb", "RefinedWebModel")),
    Rule(r"self_attention\.query_key_value\.weight", _QKV, by_group, ("bloom",)),
    # a fused tensor of a model that is not known to fuse in one of these ways: its parts stay
    # together
    Rule(r"(?:\w+\.)?(?:qkv_proj|c_attn|query_key_value|Wqkv|wqkv)\.weight", ("qkv",)),
    # DeepSeek's latent attention
    Rule(r"self_attn\.(?P<kind>q_a|q_b|kv_a|kv_b)_proj(?:_with_mqa)?\.weight", ("{kind}",)),
    # Llama's and Mistral's own files
    Rule(r"attention\.w(?P<kind>[qkvo])\.weight", ("{kind}",)),
    Rule(r"feed_forward\.w(?P<gated>[123])\.weight", ("{gated}",)),
    # experts: Mixtral, Qwen and DeepSeek with a tensor each, Llama 4 with all in one of three
    # dimensions
    Rule(r"block_sparse_moe\.experts\.(?P<expert>[0-9]{1,6})\.w(?P<gated>[123])\.weight", ("expert.{gated}",)),
    Rule(r"mlp\.experts\.(?P<expert>[0-9]{1,6})\.(?P<kind>gate|up|down)_proj\.weight", ("expert.{kind}",)),
    Rule(r"feed_forward\.experts\.gate_up_proj", ("expert.gate", "expert.up"), halves, _LLAMA4, transposed=True),
    Rule(r"feed_forward\.experts\.down_proj", ("expert.down",), one, _LLAMA4, transposed=True),
    Rule(
        r"(?:mlp\.shared_experts?|feed_forward\.shared_expert)\.(?P<kind>gate|up|down)_proj\.weight", ("shared.{kind}",)
    ),
    Rule(r"(?:mlp\.gate|block_sparse_moe\.gate|feed_forward\.router)\.weight", ("router",)),
    # GGUF: llama.cpp's conversion puts fused parts one after the other; experts have three
    # dimensions
    Rule(r"attn_(?P<kind>[qkv])\.weight", ("{kind}",)),
    Rule(r"attn_output\.weight", ("o",)),
    Rule(r"attn_qkv\.weight", _QKV, sections),
    Rule(r"attn_qkv\.weight", ("qkv",)),
    Rule(r"ffn_up\.weight", ("gate", "up"), halves, ("phi3",)),
    Rule(r"ffn_(?P<kind>gate|up|down)\.weight", ("{kind}",)),
    Rule(r"ffn_(?P<kind>gate|up|down)_exps\.weight", ("expert.{kind}",)),
    Rule(r"ffn_(?P<kind>gate|up|down)_shexp\.weight", ("shared.{kind}",)),
    Rule(r"ffn_gate_inp\.weight", ("router",)),
)

# a layer that has one of a group has all of those that other layers have
GROUPS = (("q", "k", "v", "o"), ("gate", "up", "down"), ("expert.gate", "expert.up", "expert.down"))


@dataclass(frozen=True)
class Part:
    """A matrix of one layer, its type, its expert, and whether the table has its name."""

    type: str
    matrix: Matrix
    expert: int | None = None
    known: bool = True


def parts(rest: str, tensor: Tensor, config: Config, experts: int) -> list[Part]:
    """The matrices in a tensor.

    Args:
        rest: the tensor's name after the layer's number.
        config: of the model; may be empty.
        experts: how many of a layer's experts are taken, evenly spread, where a tensor holds
            several.
    Returns:
        nothing for a tensor that is no weight matrix; one part of type `rest` for a matrix of a
            name that no line of
        the table has.
    """
    shape = tensor.shape
    if len(shape) not in (2, 3) or min(shape) < 1 or min(shape[-2:]) < 2:
        return []
    for rule, groups in _matching(rest):
        if rule.models and config.get("model_type") not in rule.models:
            continue
        stacked = len(shape) == 3
        if stacked != (rule.types[0].startswith("expert.") and "expert" not in groups):
            continue
        bands = rule.split(shape[-1] if rule.transposed else shape[-2], config)
        if bands is None:
            continue  # the configuration does not give this shape: a later line may take it as one
        words: dict[str, Any] = dict(groups)
        words["gated"] = _GATED.get(words.get("gated") or "", "")
        types = [name.format(**words) for name in rule.types]
        expert = int(words["expert"]) if words.get("expert") else None
        return [
            Part(
                name,
                Matrix(tensor, band, (shape[-2], shape[-1]), first * shape[-2], rule.transposed),
                first if stacked else expert,
            )
            for name, band in zip(types, bands, strict=True)
            for first in (_spread(shape[0], experts) if stacked else (0,))
        ]
    if len(shape) == 3:
        return []
    band = Band(0, shape[0], shape[0])
    one_of = _EXPERT.search(rest)
    name = rest if one_of is None else f"{rest[: one_of.start(1)]}*{rest[one_of.end(1) :]}"
    expert_number = None if one_of is None else int(one_of[1])
    return [Part(name.removesuffix(".weight"), Matrix(tensor, band, (shape[0], shape[1])), expert_number, known=False)]


@lru_cache(maxsize=1 << 14)  # names are the same in every layer
def _matching(rest: str) -> list[tuple[Rule, dict[str, Any]]]:
    """The lines of the table whose pattern a name has, and its groups."""
    matches = ((rule, re.fullmatch(rule.pattern, rest)) for rule in TABLE)
    return [(rule, match.groupdict()) for rule, match in matches if match is not None]


def _spread(count: int, asked: int) -> list[int]:
    return sorted({index * count // asked for index in range(asked)}) if asked < count else list(range(count))


def guessed(names: Mapping[str, Tensor]) -> Config:
    """Guess a configuration by GPT-2's fused tensor, which is three times as wide as high."""
    for name, tensor in names.items():
        if name.endswith("attn.c_attn.weight") and len(tensor.shape) == 2 and tensor.shape[1] == 3 * tensor.shape[0]:
            return {"model_type": "gpt2", "n_head": 1, "n_embd": tensor.shape[0]}
    return {}
