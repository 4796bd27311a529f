"""The table of model families: what each caches, whether it is captured, how its config is read.

`tsc capture --list-supported` and docs/models.md show it, capture refuses by it, `tsc plan` counts
by it, and the tests build a small model of every model type in it. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tsc_cli.checkpoints.config_fields import Fields

from . import attention as a
from . import feed_forward as f
from . import patterns as p
from . import states as s
from .attention import Shape, every, sharing, typed
from .feed_forward import Experts, gated, plain
from .layers import Layer
from .plan_rule import PlanRule

HINT = "tsc capture --list-supported says which families can be captured"

_STATES = "states that each token replaces"
_HYBRID = f"{_STATES}, and rows"
_SPARSE = "every row; experts cache nothing"
_MIXED = "windows beside every row"
MROPE = "it keeps rope_deltas outside of its cache"
_OWN = "its cache is of a kind of its own, which cannot be stored yet"


@dataclass(frozen=True)
class Family:
    """Models whose caches are alike.

    Attributes:
        name: as its users know it.
        rules: how a plan reads the config of each model type, by transformers' name of the type;
            None where it cannot.
        holds: what its cache holds, in plain words.
        refused: empty if the family can be captured; else the layer class that cannot be stored, or
            the reason, in words that the error says.
        by_type: refused for its model type, since nothing else shows why.
        tried: whether tests capture it.
    """

    name: str
    rules: Mapping[str, PlanRule | None]
    holds: str
    refused: str = ""
    by_type: bool = False
    tried: bool = True

    @property
    def model_types(self) -> tuple[str, ...]:
        """Transformers' names of its model types."""
        return tuple(self.rules)

    @property
    def status(self) -> str:
        """Either "yes", "refused" or "untried"."""
        return "refused" if self.refused else "yes" if self.tried else "untried"


def _unplanned(*model_types: str) -> dict[str, PlanRule | None]:
    return dict.fromkeys(model_types)


def _untried(name: str, holds: str = "every row", **rules: PlanRule | None) -> Family:
    return Family(name, rules, holds, tried=False)


def _mamba2(fields: Fields, of: Shape) -> Layer:
    return s.mamba2_hybrid(fields, of.hidden)


_FULL = PlanRule(every(a.full_layer), gated)
_GPT2 = PlanRule(every(a.full_layer), plain("n_inner", times=4), a.split_shape, positions=True)
_WINDOW = PlanRule(a.window, gated)
_SHARED_EXPERT = Experts(
    "num_experts", "moe_intermediate_size", f.stepped, shared_size="shared_expert_intermediate_size", shared_gate=True
)
_LOCAL_EXPERTS = Experts("num_local_experts", "intermediate_size")
_DEEPSEEK = Experts("n_routed_experts", "moe_intermediate_size", f.after_first, shared_count="n_shared_experts")
_LATENT = PlanRule(
    every(a.latent_layer),
    _DEEPSEEK,
    a.latent_shape,
    harmless=frozenset({"head_dim", "qk_head_dim", "num_key_value_heads"}),
)
_GATED_DELTA_LAYERS = typed(
    p.one_in(4, "linear_attention", field="full_attention_interval"),
    full_attention=a.gated_layer,
    linear_attention=lambda fields, of: s.gated_delta(fields, of.hidden),
)
_MAMBA = PlanRule(
    every(lambda fields, of: s.mamba_plain(fields, of.hidden)),
    f.none,
    a.headless,
    aliases={"num_hidden_layers": "n_layer"},
    harmless=frozenset({"intermediate_size", "time_step_rank"}),
)
_MAMBA2 = replace(_MAMBA, layers=every(lambda fields, of: s.mamba2_plain(fields, of.hidden)), aliases={})
_LISTED_ATTENTION = p.listed("attn_layer_indices", "linear_attention", missing_means_all=False)
_MISTRAL = {"mistral": _WINDOW}

FAMILIES = (
    # full attention
    Family("GPT-2", {"gpt2": _GPT2}, "every row, learned positions"),
    Family("Llama", {"llama": _FULL}, "every row"),
    Family("Mistral", _MISTRAL, "every row"),
    Family("Qwen2", {"qwen2": PlanRule(a.qwen, gated)}, "every row"),
    Family("Qwen3", {"qwen3": PlanRule(a.qwen, gated)}, "every row, normalized keys"),
    Family("Phi-3", {"phi3": _WINDOW}, "every row, partial rotary or LongRoPE"),
    Family(
        "GPT-NeoX, Pythia",
        {"gpt_neox": PlanRule(every(a.full_layer), plain("intermediate_size"), a.split_shape)},
        "every row, partial rotary",
    ),
    Family(
        "Falcon",
        {"falcon": PlanRule(every(a.full_layer), plain("ffn_hidden_size", times=4), a.falcon_shape)},
        "every row of one head, rotary or ALiBi",
    ),
    Family("BLOOM", _unplanned("bloom"), "every row, ALiBi"),
    Family("OLMo", {"olmo": _FULL}, "every row"),
    Family(
        "StarCoder2",
        {"starcoder2": PlanRule(a.window, plain("intermediate_size"), harmless=frozenset({"mlp_type"}))},
        "every row",
    ),
    Family("Cohere Command R", {"cohere": _FULL}, "every row"),
    Family("Mixtral", {"mixtral": PlanRule(a.window, _LOCAL_EXPERTS)}, _SPARSE),
    Family(
        "Qwen3-MoE",
        {"qwen3_moe": PlanRule(a.qwen_experts, Experts("num_experts", "moe_intermediate_size", f.stepped))},
        _SPARSE,
    ),
    Family("DeepSeek-V2, -V3", {"deepseek_v2": _LATENT, "deepseek_v3": _LATENT}, "one latent and one rotary key a row"),
    # sliding windows, alone or beside full attention
    Family("Mistral v0.1", _MISTRAL, "the rows of a window"),
    Family(
        "Gemma-2, -3",
        {
            "gemma2": PlanRule(typed(p.one_in(2)), gated, aliases={"sliding_window": "sliding_window_size"}),
            "gemma3_text": PlanRule(
                typed(p.one_in(6, field="sliding_window_pattern")),
                gated,
                assumes=frozenset({"num_attention_heads", "vocab_size", "max_position_embeddings"}),
                aliases={"sliding_window_pattern": "_sliding_window_pattern"},
            ),
        },
        _MIXED,
    ),
    Family(
        "gpt-oss",
        {
            "gpt_oss": PlanRule(
                typed(p.one_in(2)),
                _LOCAL_EXPERTS,
                aliases={"num_local_experts": "num_experts", "num_experts_per_tok": "experts_per_token"},
            )
        },
        _MIXED,
    ),
    Family(
        "Llama 4",
        {
            "llama4_text": PlanRule(
                typed(p.unturned("full_attention", turned="chunked_attention")),
                Experts(
                    "num_local_experts", "intermediate_size", f.llama4, "intermediate_size_mlp", "intermediate_size"
                ),
            )
        },
        "chunks beside every row",
    ),
    Family(
        "Cohere Command R7B",
        {
            "cohere2": PlanRule(
                typed(p.one_in(4, field="sliding_window_pattern")),
                gated,
                aliases={"sliding_window_pattern": "layer_switch"},
                harmless=frozenset({"order_of_interleaved_layers", "use_embedding_sharing", "use_parallel_block"}),
            )
        },
        _MIXED,
    ),
    Family("OLMo 3", {"olmo3": PlanRule(typed(p.one_in(4)), gated)}, _MIXED),
    # rows beside which there is something else
    Family(
        "Gemma-3n, -4",
        {
            "gemma3n_text": PlanRule(
                sharing(typed(p.one_in(5))),
                None,
                harmless=frozenset(
                    {"intermediate_size", "hidden_size_per_layer_input", "vocab_size_per_layer_input", "laurel_rank"}
                ),
            ),
            "gemma4_text": None,
        },
        "windows beside every row, some layers share rows",
    ),
    Family("DeepSeek-V3.2, GLM-5", _unplanned("deepseek_v32", "glm_moe_dsa"), "every row, with indexer keys"),
    # states, alone or beside rows
    Family(
        "Jamba",
        {
            "jamba": PlanRule(
                typed(p.jamba, linear_attention=lambda fields, of: s.mamba_jamba(fields, of.hidden)),
                Experts("num_experts", "intermediate_size", f.jamba),
                assumes=frozenset({"num_experts", "num_experts_per_tok"}),
            )
        },
        _HYBRID,
    ),
    Family("Bamba", {"bamba": PlanRule(typed(_LISTED_ATTENTION, linear_attention=_mamba2), gated)}, _HYBRID),
    Family(
        "Granite 4",
        {
            "granitemoehybrid": PlanRule(
                typed(_LISTED_ATTENTION, linear_attention=_mamba2, mamba=_mamba2),
                replace(_LOCAL_EXPERTS, shared_size="shared_intermediate_size"),
                aliases={"layer_types": "layers_block_type"},
            )
        },
        _HYBRID,
    ),
    Family("Nemotron-H", _unplanned("nemotron_h"), _HYBRID),
    Family(
        "Falcon-H1",
        {"falcon_h1": PlanRule(every(a.hybrid_layer), gated, harmless=frozenset({"mlp_expansion_factor"}))},
        _HYBRID,
    ),
    Family(
        "Qwen3-Next, Qwen3.5",
        {
            "qwen3_next": PlanRule(_GATED_DELTA_LAYERS, _SHARED_EXPERT),
            "qwen3_5_text": PlanRule(_GATED_DELTA_LAYERS, gated),
        },
        _HYBRID,
    ),
    Family("Kimi Linear", _unplanned("kimi_linear"), f"{_STATES}, and latent rows"),
    Family("OLMo Hybrid", _unplanned("olmo_hybrid"), _HYBRID),
    Family(
        "LFM2",
        {
            "lfm2": PlanRule(
                typed(
                    p.listed("full_attn_idxs", "conv", missing_means_all=True),
                    conv=lambda fields, of: s.short_convolution(fields, of.hidden),
                ),
                f.lfm2,
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
            )
        },
        _HYBRID,
    ),
    Family("Zamba2", _unplanned("zamba2"), _HYBRID),
    Family("Mamba, Mamba-2", {"mamba": _MAMBA, "mamba2": _MAMBA2}, _STATES),
    Family("Falcon-Mamba", {"falcon_mamba": _MAMBA}, _STATES),
    # an encoder beside the decoder
    Family("T5", _unplanned("t5"), "every row of decoder and encoder"),
    Family("BART", _unplanned("bart"), "every row of decoder and encoder"),
    Family("Whisper", _unplanned("whisper"), "every row of decoder and encoder"),
    # layers that cannot be stored yet
    Family("DeepSeek-V4", _unplanned("deepseek_v4"), "windows and compressed rows", "DeepseekV4HCACache"),
    # what no cache layer shows
    Family(
        "RecurrentGemma",
        _unplanned("recurrent_gemma"),
        "windows; states in the modules",
        "its state is kept in its modules, outside of the cache",
        by_type=True,
    ),
    Family(
        "Qwen2-VL, 2.5, 3",
        _unplanned("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        "every row; image offsets in the model",
        MROPE,
    ),
    Family("GLM-4.1V", _unplanned("glm4v"), "every row; image offsets in the model", MROPE),
    Family("MiniMax-Text-01", _unplanned("minimax"), _HYBRID, _OWN, by_type=True),
    Family("xLSTM", _unplanned("xlstm"), _STATES, _OWN, by_type=True),
    Family("RWKV", _unplanned("rwkv"), _STATES, _OWN, by_type=True),
    Family("Reformer", _unplanned("reformer"), "buckets and hidden states", _OWN, by_type=True),
    Family("XLNet", _unplanned("xlnet"), "hidden states", _OWN, by_type=True),
    # counted by a plan alone: a capture tests itself first
    _untried("Gemma", gemma=_FULL),
    _untried("GLM-4", glm4=_FULL),
    _untried("Granite", granite=_FULL),
    _untried("OLMo 2", olmo2=_FULL),
    _untried("StableLM", stablelm=_FULL),
    _untried("Phi", phi=PlanRule(every(a.full_layer), plain("intermediate_size"))),
    _untried(
        "GPT-BigCode, StarCoder",
        "every row of one head",
        gpt_bigcode=replace(_GPT2, shape=a.bigcode_shape, harmless=frozenset({"pre_allocate_kv_cache"})),
    ),
    _untried("SmolLM3", smollm3=PlanRule(typed(p.smollm3), gated)),
    _untried("Ministral", _MIXED, ministral=PlanRule(typed(p.windows), gated), ministral3=_WINDOW),
    _untried("Qwen2-MoE", _SPARSE, qwen2_moe=PlanRule(a.qwen_experts, _SHARED_EXPERT)),
    _untried("OLMoE", _SPARSE, olmoe=PlanRule(every(a.full_layer), Experts("num_experts", "intermediate_size"))),
    _untried("Granite MoE", _SPARSE, granitemoe=PlanRule(every(a.full_layer), _LOCAL_EXPERTS)),
    _untried("MiniMax-M2", _SPARSE, minimax_m2=PlanRule(every(a.full_layer), _LOCAL_EXPERTS)),
    _untried("GLM-4-MoE", _SPARSE, glm4_moe=PlanRule(every(a.full_layer), _DEEPSEEK)),
    _untried(
        "Qwen3.5-MoE",
        _HYBRID,
        qwen3_5_moe_text=PlanRule(_GATED_DELTA_LAYERS, replace(_SHARED_EXPERT, where=f.everywhere)),
    ),
)
# families that tests capture, or see refused
TRIED = tuple(family for family in FAMILIES if family.tried)
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
# model types of checkpoints that bring their own code, which builds a model type of the table
SYNONYMS: dict[str, str] = {"kimi_k2": "deepseek_v3"}
# how a plan reads each model type that it can
RULES: dict[str, PlanRule] = {
    model_type: rule for family in FAMILIES for model_type, rule in family.rules.items() if rule is not None
}

_OF_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}
_BY_TYPE = {model_type: family for family in FAMILIES if family.by_type for model_type in family.model_types}


def family_of(model_type: str) -> Family | None:
    """The family of a model type as a config states it, or None for one that is not in the table.

    A type that holds a language model beside others, such as "gemma3", is of the family of that
    language model.
    """
    return _OF_TYPE.get(model_type) or _OF_TYPE.get(f"{model_type}_text")


def refusal_of(model_type: str) -> str | None:
    """Why models of this type are refused whatever their cache looks like, or None."""
    family = _BY_TYPE.get(model_type)
    return family.refused if family else None
