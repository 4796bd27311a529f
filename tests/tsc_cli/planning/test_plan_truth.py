"""`tsc plan` against transformers: small models of every known type, whose caches and matrices are counted."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from formats.errors import CorruptError, UnsupportedFileError
from tests.support import models
from tests.support.plan_models import SMALL
from tsc_cli.model_families.config_class import config_class
from tsc_cli.model_families.families import RULES, SYNONYMS, WRAPPERS
from tsc_cli.model_families.known_fields import ASSUMED
from tsc_cli.model_families.layers import Layer
from tsc_cli.model_store.config_file import Config
from tsc_cli.planning.costs import cache_bytes
from tsc_cli.planning.model import Model, understand

TOKENS = 24  # more than any window of the small models


def saved(model_type: str, folder: Path, **changes: Any) -> tuple[Any, Config]:
    """(transformers' config, the config as transformers writes it)."""
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL[model_type], **changes}, dtype="bfloat16")
    config.save_pretrained(folder)
    path = folder / "config.json"
    return config, Config("small", str(path), json.loads(path.read_text()))


def build(config: Any) -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some types complain about kernels that are not installed
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def filled(model: Any) -> list[Any]:
    """The layers of the cache after `TOKENS` tokens."""
    ids = torch.arange(TOKENS)[None] % 50 + 3
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        out = model(ids, use_cache=True)
    return list(models.cache_in(out).layers)


def held(layer: Any) -> int:
    """Bytes of every tensor that a cache layer holds for the sequence."""
    tensors = [getattr(layer, name, None) for name in ("keys", "values")]
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name, None)
        tensors += states.values() if isinstance(states, dict) else []
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, torch.Tensor))


def expected(layer: Layer) -> int:
    """What the plan says, less the one row of a full window that transformers drops between two steps."""
    dropped = layer.row_values * 2 if layer.window is not None and layer.window <= TOKENS else 0
    return layer.row_bytes(TOKENS, 2) - dropped + layer.state_bytes(2)


def compare(planned: Model, model: Any) -> None:
    """Cache layer by layer, and the matrices of the whole model."""
    assert [expected(layer) for layer in planned.layers] == [held(layer) for layer in filled(model)]
    if planned.parameters is not None:
        matrices = [one for name, one in model.named_parameters() if one.ndim > 1 and not name.endswith("_bias")]
        assert planned.parameters.total == sum(one.numel() for one in matrices)


def test_every_known_type_has_a_small_model() -> None:
    assert set(SMALL) == set(RULES)
    assert set(WRAPPERS.values()) | set(SYNONYMS.values()) <= set(RULES)


@pytest.mark.parametrize("model_type", SMALL)
def test_bytes_and_matrices_are_those_of_the_model(model_type: str, tmp_path: Path) -> None:
    config, written = saved(model_type, tmp_path)
    planned = understand(written)
    model = build(config)
    compare(planned, model)
    rows = sum(layer.row_values * 2 for layer in planned.layers if layer.window)
    assert cache_bytes(planned, TOKENS) == rows + sum(held(layer) for layer in filled(model))


@pytest.mark.parametrize("model_type", SMALL)
def test_a_parsed_configuration_class_says_what_the_imported_one_does(model_type: str) -> None:
    known, imported = config_class(model_type), transformers.CONFIG_MAPPING[model_type]
    config = imported()
    assert known is not None
    assert known.defaults.get("tie_word_embeddings", False) == config.tie_word_embeddings
    assert known.aliases == imported.attribute_map
    for name in ASSUMED | RULES[model_type].assumes:
        declared = inspect.getattr_static(imported, name, None)
        if declared is not None and not callable(declared) and not isinstance(declared, property):
            assert known.defaults[name] == declared, name
        elif name in known.defaults and hasattr(config, name):
            # filled from other fields, or set by a validator
            assert known.defaults[name] in (None, "auto", getattr(config, name)), name


def test_a_class_that_is_not_there_is_not_known() -> None:
    assert config_class("no_such_model") is None
    assert config_class("gemma3") is not None  # found by the type that it states, beside gemma3_text


@pytest.mark.parametrize("model_type", SMALL)
def test_a_field_that_is_left_out_means_what_transformers_takes_it_for(model_type: str, tmp_path: Path) -> None:
    """Or it is an error: nothing is assumed that transformers would not assume."""
    made = transformers.CONFIG_MAPPING[model_type]
    _, written = saved(model_type, tmp_path)
    # infinite bounds are written in a way that only files are read with; nothing here depends on them
    values = {name: value for name, value in written.values.items() if name != "time_step_limit"}
    accepted = 0
    for name in values:
        rest = {key: value for key, value in values.items() if key != name}
        try:
            planned = understand(Config("less", written.path, rest))
        except (CorruptError, UnsupportedFileError):
            continue
        completed = json.loads(made.from_dict(rest).to_json_string(use_diff=False))
        theirs = understand(Config("completed", written.path, {**completed, "model_type": model_type}))
        assert (planned.layers, planned.parameters) == (theirs.layers, theirs.parameters), name
        accepted += 1
    assert accepted > 10


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "layer_types": ("qwen3", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
    "windows off": ("qwen2", {"use_sliding_window": False}),
    "no window": ("mistral", {"sliding_window": None}),
    "one KV head": ("llama", {"num_key_value_heads": 1}),
    "as many KV heads": ("llama", {"num_key_value_heads": 4}),
    "no sharing": ("gemma3n_text", {"num_kv_shared_layers": 0}),
    "pattern": ("gemma3_text", {"sliding_window_pattern": 3}),
    "bigcode with many heads": ("gpt_bigcode", {"multi_query": False}),
    "falcon with many heads": ("falcon", {"multi_query": False}),
    "interval": ("qwen3_next", {"full_attention_interval": 2}),
    "expanded": ("falcon_h1", {"mamba_d_ssm": None, "mamba_expand": 2}),
    "rank": ("mamba", {"time_step_rank": 9, "expand": 3}),
    "no experts": ("granitemoehybrid", {"num_local_experts": 0, "num_experts_per_tok": 0}),
    "windows here and there": ("ministral", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
    "dense layers alone": ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3]}),
    "one shared expert less": ("deepseek_v3", {"n_shared_experts": 2, "first_k_dense_replace": 0}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "convolutions everywhere else": ("lfm2", {"full_attn_idxs": [0], "block_auto_adjust_ff_dim": False}),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_what_a_config_can_switch(case: str, tmp_path: Path) -> None:
    model_type, changes = VARIANTS[case]
    config, written = saved(model_type, tmp_path, **changes)
    compare(understand(written), build(config))
