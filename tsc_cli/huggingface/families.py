"""Which model families can be captured: the one table that the command line shows, the documentation prints, the bridge
refuses by and the tests walk.  No torch here: a table must be there at once.
"""

from __future__ import annotations

from dataclasses import dataclass

HINT = "tsc capture --list-supported says which families can be captured"

_STATES = "states that each token replaces"
MROPE = "it keeps rope_deltas outside of its cache"
_OWN = "its cache is of a kind of its own, which cannot be stored yet"


@dataclass(frozen=True)
class Family:
    """Models whose caches are alike.

    Attributes:
        name: as its users know it.
        model_types: transformers' names of it, all of them tested.
        holds: what its cache holds, in plain words.
        refused: empty if the family is supported; else the layer class that cannot be stored, or the reason, in words
            that the error says.
        by_type: refused for its model type, since nothing else shows why.
    """

    name: str
    model_types: tuple[str, ...]
    holds: str
    refused: str = ""
    by_type: bool = False

    @property
    def status(self) -> str:
        """Either "yes" or "refused"."""
        return "refused" if self.refused else "yes"


FAMILIES = (
    # full attention
    Family("GPT-2", ("gpt2",), "every row, learned positions"),
    Family("Llama", ("llama",), "every row"),
    Family("Mistral", ("mistral",), "every row"),
    Family("Qwen2", ("qwen2",), "every row"),
    Family("Qwen3", ("qwen3",), "every row, normalized keys"),
    Family("Phi-3", ("phi3",), "every row, partial rotary or LongRoPE"),
    Family("GPT-NeoX, Pythia", ("gpt_neox",), "every row, partial rotary"),
    Family("Falcon", ("falcon",), "every row of one head, rotary or ALiBi"),
    Family("BLOOM", ("bloom",), "every row, ALiBi"),
    Family("OLMo", ("olmo",), "every row"),
    Family("StarCoder2", ("starcoder2",), "every row"),
    Family("Cohere Command R", ("cohere",), "every row"),
    Family("Mixtral", ("mixtral",), "every row; experts cache nothing"),
    Family("Qwen3-MoE", ("qwen3_moe",), "every row; experts cache nothing"),
    Family("DeepSeek-V2, -V3", ("deepseek_v2", "deepseek_v3"), "one latent and one rotary key a row"),
    # sliding windows, alone or beside full attention
    Family("Mistral v0.1", ("mistral",), "the rows of a window"),
    Family("Gemma-2, -3", ("gemma2", "gemma3_text"), "windows beside every row"),
    Family("gpt-oss", ("gpt_oss",), "windows beside every row"),
    Family("Llama 4", ("llama4_text",), "chunks beside every row"),
    Family("Cohere Command R7B", ("cohere2",), "windows beside every row"),
    Family("OLMo 3", ("olmo3",), "windows beside every row"),
    # rows beside which there is something else
    Family("Gemma-3n, -4", ("gemma3n_text", "gemma4_text"), "windows beside every row, some layers share rows"),
    Family("DeepSeek-V3.2, GLM-5", ("deepseek_v32", "glm_moe_dsa"), "every row, with indexer keys"),
    # states, alone or beside rows
    Family("Jamba", ("jamba",), f"{_STATES}, and rows"),
    Family("Bamba", ("bamba",), f"{_STATES}, and rows"),
    Family("Granite 4", ("granitemoehybrid",), f"{_STATES}, and rows"),
    Family("Nemotron-H", ("nemotron_h",), f"{_STATES}, and rows"),
    Family("Falcon-H1", ("falcon_h1",), f"{_STATES}, and rows"),
    Family("Qwen3-Next, Qwen3.5", ("qwen3_next", "qwen3_5_text"), f"{_STATES}, and rows"),
    Family("Kimi Linear", ("kimi_linear",), f"{_STATES}, and latent rows"),
    Family("OLMo Hybrid", ("olmo_hybrid",), f"{_STATES}, and rows"),
    Family("LFM2", ("lfm2",), f"{_STATES}, and rows"),
    Family("Zamba2", ("zamba2",), f"{_STATES}, and rows"),
    Family("Mamba, Mamba-2", ("mamba", "mamba2"), _STATES),
    Family("Falcon-Mamba", ("falcon_mamba",), _STATES),
    # an encoder beside the decoder
    Family("T5", ("t5",), "every row of decoder and encoder"),
    Family("BART", ("bart",), "every row of decoder and encoder"),
    Family("Whisper", ("whisper",), "every row of decoder and encoder"),
    # layers that cannot be stored yet
    Family("DeepSeek-V4", ("deepseek_v4",), "windows and compressed rows", "DeepseekV4HCACache"),
    # what no cache layer shows
    Family(
        "RecurrentGemma",
        ("recurrent_gemma",),
        "windows; states in the modules",
        "its state is kept in its modules, outside of the cache",
        by_type=True,
    ),
    Family("Qwen2-VL, 2.5, 3", ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "every row; image offsets in the model", MROPE),
    Family("GLM-4.1V", ("glm4v",), "every row; image offsets in the model", MROPE),
    Family("MiniMax-Text-01", ("minimax",), f"{_STATES}, and rows", _OWN, by_type=True),
    Family("xLSTM", ("xlstm",), _STATES, _OWN, by_type=True),
    Family("RWKV", ("rwkv",), _STATES, _OWN, by_type=True),
    Family("Reformer", ("reformer",), "buckets and hidden states", _OWN, by_type=True),
    Family("XLNet", ("xlnet",), "hidden states", _OWN, by_type=True),
)

_OF_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}
_BY_TYPE = {model_type: family for family in FAMILIES if family.by_type for model_type in family.model_types}


def family_of(model_type: str) -> Family | None:
    """The family of a type as a config states it, or None for one that was not tried.

    A type that holds a language model beside others, such as "gemma3", is of the family of that language model.
    """
    return _OF_TYPE.get(model_type) or _OF_TYPE.get(f"{model_type}_text")


def refusal_of(model_type: str) -> str | None:
    """Why models of this type are refused whatever their cache looks like, or None."""
    family = _BY_TYPE.get(model_type)
    return family.refused if family else None
