"""`tsc plan` given something wrong: one line that says what and where, a hint where there is one, exit 2 or 3."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from formats.errors import CorruptError, UnsupportedFileError, UsageError
from formats.limits import MAX_ROWS
from tests.support.plan_models import DEEPSEEK_V3, GEMMA_3_27B, LLAMA_3_8B, MISTRAL_7B_V01, QWEN3_8B, SMALL
from tsc_cli.model_families.config_class import config_class
from tsc_cli.model_families.families import RULES
from tsc_cli.model_families.known_fields import ASSUMED
from tsc_cli.model_store import default_model
from tsc_cli.model_store.config_file import Config
from tsc_cli.planning import quantities
from tsc_cli.planning.costs import PlanOptions, at_context
from tsc_cli.planning.model import understand

Values = dict[str, Any]
TEXT = GEMMA_3_27B["text_config"]


def without(config: Values, *names: str) -> Values:
    return {name: value for name, value in config.items() if name not in names}


def gemma(**changes: Any) -> Values:
    return {**GEMMA_3_27B, "text_config": {**TEXT, **changes}}


def one_line(done: Any, code: int, message: str) -> None:
    """The error is of the form that every command keeps."""
    assert (done.code, done.out) == (code, ""), done.err
    assert message in done.err
    lines = done.err.splitlines()
    assert lines[0].startswith("tsc: error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert max(map(len, lines)) < 500


# what the file holds, exit code, what is said
FILES: dict[str, tuple[bytes | Values | list[Any], int, str]] = {
    "not JSON": (b"{", 3, "not JSON"),
    "not UTF-8": (b"\xff\xfe{}", 3, "not UTF-8"),
    "empty": (b"", 3, "not JSON"),
    "no object": ([1, 2], 3, "is not a JSON object"),
    "too deep": (b'{"a":' * 40 + b"1" + b"}" * 40, 3, "nested deeper"),
    "twice the same": (b'{"model_type": "llama", "model_type": "gpt2"}', 3, "duplicate key"),
    "an integer without end": (b'{"model_type": ' + b"9" * 5000 + b"}", 3, "integer out of range"),
    "no model type": (without(LLAMA_3_8B, "model_type"), 3, "field 'model_type': is missing"),
    "no model": ({}, 3, "field 'model_type': is missing"),
    "model type no string": ({**LLAMA_3_8B, "model_type": 7}, 3, "field 'model_type': a string was expected"),
    "unknown model type": ({**LLAMA_3_8B, "model_type": "lama"}, 3, "field 'model_type': 'lama' is not known"),
    "very long model type": ({**LLAMA_3_8B, "model_type": "x" * 60000}, 3, "is not known"),
    "unknown inner type": (gemma(model_type="nemo"), 3, "field 'text_config.model_type': 'nemo' is not known"),
    "inner type no string": (gemma(model_type=[1]), 3, "field 'text_config.model_type': [1] is not known"),
    "no text_config": (without(GEMMA_3_27B, "text_config"), 3, "field 'text_config': an object was expected"),
    "text_config no object": ({**GEMMA_3_27B, "text_config": 1}, 3, "field 'text_config': an object was expected"),
    "no layers": (without(LLAMA_3_8B, "num_hidden_layers"), 3, "field 'num_hidden_layers': is missing"),
    "layers null": ({**LLAMA_3_8B, "num_hidden_layers": None}, 3, "field 'num_hidden_layers': is missing"),
    "0 layers": ({**LLAMA_3_8B, "num_hidden_layers": 0}, 3, "field 'num_hidden_layers': an integer from 1 to 4,096"),
    "absurdly many": ({**LLAMA_3_8B, "num_hidden_layers": 10**9}, 3, "'num_hidden_layers': an integer from 1 to 4,096"),
    "negative": ({**LLAMA_3_8B, "hidden_size": -4096}, 3, "field 'hidden_size': an integer from 1 to"),
    "a float": ({**LLAMA_3_8B, "hidden_size": 4096.0}, 3, "field 'hidden_size': an integer from 1 to"),
    "a string": ({**LLAMA_3_8B, "num_attention_heads": "32"}, 3, "field 'num_attention_heads': an integer"),
    "true": ({**LLAMA_3_8B, "num_key_value_heads": True}, 3, "field 'num_key_value_heads': an integer"),
    "a list": ({**LLAMA_3_8B, "vocab_size": [1]}, 3, "field 'vocab_size': an integer"),
    "inside": (gemma(head_dim="128"), 3, "field 'text_config.head_dim': an integer"),
    "heads that do not divide": ({**LLAMA_3_8B, "num_key_value_heads": 5}, 3, "5 KV heads do not divide 32 query"),
    "size that does not divide": ({**LLAMA_3_8B, "hidden_size": 4100}, 3, "32 heads do not divide a hidden_size of"),
    "no flag": ({**QWEN3_8B, "use_sliding_window": 1}, 3, "field 'use_sliding_window': true or false was expected"),
    "a window of 0": ({**MISTRAL_7B_V01, "sliding_window": 0}, 3, "field 'sliding_window': an integer from 1 to"),
    "too few kinds": (gemma(layer_types=["full_attention"]), 3, "'text_config.layer_types': a list of 62 strings"),
    "kinds no strings": (gemma(layer_types=[1] * 62), 3, "'text_config.layer_types': a list of 62 strings"),
    "kinds no list": (gemma(layer_types="full_attention"), 3, "a list of at most 4,096 entries was expected"),
    "unknown kind": (gemma(layer_types=["ring"] * 62), 3, "layer 0 is of the kind 'ring', which is not known"),
    "windows that are off": (
        {**QWEN3_8B, "layer_types": ["sliding_attention"] * 36},
        3,
        "use_sliding_window is not true",
    ),
    "windows nobody places": (
        {
            **QWEN3_8B,
            "model_type": "qwen3_moe",
            "use_sliding_window": True,
            "sliding_window": 8,
            "num_experts": 2,
            "moe_intermediate_size": 8,
            "num_experts_per_tok": 1,
        },
        3,
        "which layers have the window is not stated",
    ),
    "more experts than there are": ({**DEEPSEEK_V3, "num_experts_per_tok": 999}, 3, "999 of 256 experts"),
    "another rhythm of experts": ({**DEEPSEEK_V3, "moe_layer_freq": 2}, 3, "field 'moe_layer_freq': only 1 is known"),
    "no experts": (without(DEEPSEEK_V3, "n_routed_experts"), 3, "field 'n_routed_experts': is missing"),
    "everything shared": (
        {**TEXT, "model_type": "gemma3n_text", "num_kv_shared_layers": 62, "dtype": "bfloat16"},
        3,
        "no layer is left that keeps rows",
    ),
    "Falcon-40B": (
        {**without(LLAMA_3_8B, "intermediate_size"), "model_type": "falcon", "new_decoder_architecture": True},
        3,
        "field 'new_decoder_architecture'",
    ),
    "two names that differ": (
        {"model_type": "gpt2", "n_layer": 2, "num_hidden_layers": 3, "n_embd": 8, "n_head": 2, "vocab_size": 9},
        3,
        "field 'num_hidden_layers': and 'n_layer' mean the same and differ",
    ),
    "heads of Mamba-2": (
        {"model_type": "mamba2", "num_hidden_layers": 2, "hidden_size": 64, "num_heads": 3, "vocab_size": 9},
        3,
        "times head_dim is not hidden_size times expand",
    ),
    "infinite": (
        b'{"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 9, "expand": Infinity}',
        3,
        "field 'expand': a number from",
    ),
    "unknown field": ({**LLAMA_3_8B, "kv_bottleneck": 64}, 3, "field 'kv_bottleneck': is not known for this"),
    "unknown field inside": (gemma(num_kv_shared_layers=20), 3, "'text_config.num_kv_shared_layers': is not known"),
    "unknown field outside": ({**GEMMA_3_27B, "cache_ratio": 2}, 3, "field 'cache_ratio': is not known"),
    "a slip": ({**LLAMA_3_8B, "num_key_value_head": 8}, 3, "field 'num_key_value_head': is not known"),
    "a window in a model without": ({**LLAMA_3_8B, "sliding_window": 4096}, 3, "field 'sliding_window': is not known"),
    "heads of another size": (
        {
            "model_type": "gpt2",
            "n_layer": 2,
            "n_embd": 8,
            "n_head": 2,
            "vocab_size": 9,
            "n_positions": 8,
            "head_dim": 2,
        },
        3,
        "field 'head_dim': is not known",
    ),
    "encoder and decoder": ({**LLAMA_3_8B, "is_encoder_decoder": True}, 3, "'is_encoder_decoder': True is not known"),
    "both directions": (gemma(use_bidirectional_attention=True), 3, "'text_config.use_bidirectional_attention': True"),
    "no dtype": (without(LLAMA_3_8B, "torch_dtype"), 3, "field 'dtype': is missing"),
    "odd dtype": ({**LLAMA_3_8B, "torch_dtype": "int8"}, 3, "field 'torch_dtype': 'int8' is not a dtype of a cache"),
    "dtype no string": ({**LLAMA_3_8B, "torch_dtype": 16}, 3, "field 'torch_dtype': a string was expected"),
    "a quantized cache": (
        {**LLAMA_3_8B, "quantization_config": {"kv_cache_scheme": {"num_bits": 8}}},
        3,
        "field 'quantization_config'",
    ),
    "positions beyond all": ({**LLAMA_3_8B, "max_position_embeddings": 10**12}, 3, "'max_position_embeddings': an"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_config_is_named(tsc: Any, tmp_path: Path, case: str) -> None:
    content, code, message = FILES[case]
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    done = tsc("plan", path)
    one_line(done, code, message)
    assert str(path) in done.err


ODD: list[Any] = [None, True, False, -1, 0, 1, 3, 1.5, 1e300, 10**9, 10**18, "", "auto", "x", [], [0], [-1], ["x"], {}]


@pytest.mark.parametrize("model_type", SMALL)
def test_no_value_of_any_field_is_a_bug(model_type: str) -> None:
    """A wrong value is an error by name or changes the figures; it is never an exception of another kind."""
    rule, known = RULES[model_type], config_class(model_type)
    assert known is not None
    assumed = {name: known.defaults[name] for name in ASSUMED | rule.assumes if name in known.defaults}
    config = {"model_type": model_type, "dtype": "bfloat16", **assumed, **SMALL[model_type]}
    for name in [*config, *rule.aliases, *known.aliases, "layer_types", "no_rope_layers", "mlp_only_layers"]:
        for value in ODD:
            changed = {**config, name: value}
            said = ""
            try:
                model = understand(Config("m", "config.json", changed))
            except (CorruptError, UnsupportedFileError) as error:
                said = str(error)
            if said:
                assert "field '" in said
                continue
            facts = at_context(model, 100, PlanOptions(2, memory=10**9, bandwidth=1.0, compute=1.0, active=1))
            assert facts["raw_bytes"] > 0
            assert all(stored["bytes"] > 0 for stored in facts["storage"])


# words after MODEL, exit code, what is said
WORDS: dict[str, tuple[list[str], str]] = {
    "no number": (["--context", "many"], "--context 'many' is not understood"),
    "zero tokens": (["--context", "0"], "out of range"),
    "negative tokens": (["--context", "-5"], "--context '-5' is not understood"),
    "part of a token": (["--context", "0.3"], "is not a whole number of tokens"),
    "too many tokens": (["--context", str(MAX_ROWS + 1)], "is not a whole number of tokens from 1 to 67,108,864"),
    "an endless number": (["--context", "9" * 5000], "is not understood"),
    "no tokens": (["--context", ""], "is not understood"),
    "digits of another script": (["--context", "\u0661\u0662\u0663"], "is not understood"),
    "too many contexts": (["--context", "1"] * 65, "65 contexts"),
    "no unit": (["--memory", "80XB"], "--memory '80XB' is not understood"),
    "bits": (["--memory", "80Gb"], "--memory '80Gb' is not understood"),
    "no memory": (["--memory", "0GB"], "out of range"),
    "less than a byte": (["--memory", "0.5B"], "is less than one"),
    "absurd memory": (["--memory", "999999999999PB"], "out of range"),
    "weights alone": (["--weights", "16GB"], "--memory, which is not given"),
    "weights that fill it": (["--memory", "16GB", "--weights", "16GB"], "--weights leaves nothing of --memory"),
    "bandwidth without a unit": (["--bandwidth", "10G"], "--bandwidth '10G' is not understood"),
    "bits or bytes": (["--bandwidth", "10Gbps"], "--bandwidth '10Gbps' is not understood"),
    "no compute": (["--flops", "fast"], "--flops 'fast' is not understood"),
    "no users": (["--users", "0"], "Invalid value for '--users'"),
    "users as a word": (["--users", "x"], "Invalid value for '--users'"),
    "no dtype": (["--dtype", "int4"], "there is no dtype 'int4'"),
    "no parameters": (["--parameters", "7X"], "--parameters '7X' is not understood"),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_wrong_use_is_named(tsc: Any, tmp_path: Path, case: str) -> None:
    words, message = WORDS[case]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_3_8B))
    one_line(tsc("plan", path, *words), 2, message)


def test_a_model_that_is_not_there(tsc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_line(tsc("plan", tmp_path / "none.json"), 2, "no such model: neither a config.json, nor a folder")
    one_line(tsc("plan", tmp_path), 2, "there is no config.json in it")
    one_line(tsc("plan", "model.gguf"), 2, "a GGUF file has no config.json")
    one_line(tsc("plan", "a/b/c"), 2, "nor a hub id")
    one_line(tsc("plan", "nobody/nothing-of-this-name", "-q"), 2, "not in the local hub cache")
    one_line(tsc("plan"), 2, "Missing argument 'MODEL'")
    monkeypatch.setattr(default_model, "is_ready", lambda: False)
    one_line(tsc("plan", default_model.NAME), 2, "the default model is not on this machine")


def test_a_config_that_may_not_be_read(tsc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    one_line(tsc("plan", path), 2, "cannot be read: Permission denied")


def test_a_hub_id_is_found_in_the_cache(tsc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_3_8B))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("the cache has it"))
    kept = tsc("plan", "somebody/llama", "--json")
    assert (kept.code, kept.err) == (0, "")
    assert (kept.json["model"], kept.json["config_path"]) == ("somebody/llama", str(path))


def test_what_somebody_vouches_for_is_ignored(tsc: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA_3_8B, "kv_bottleneck": 64, "attention_of_mine": 1}))
    one_line(tsc("plan", path, "--ignore", "kv_bottleneck"), 3, "field 'attention_of_mine'")
    words = ("--ignore", "kv_bottleneck", "--ignore", "attention_of_mine", "-q")
    assert tsc("plan", path, *words).out == f"{8192 * 131_072}\n"
    path.write_text(json.dumps({**LLAMA_3_8B, "is_encoder_decoder": True}))
    assert tsc("plan", path, "--ignore", "is_encoder_decoder").code == 0


def test_an_infinite_bound_that_does_not_matter_is_read(tsc: Any, tmp_path: Path) -> None:
    """Python writes Infinity into JSON, and published Mamba-2 configs have it."""
    path = tmp_path / "config.json"
    config = {"model_type": "mamba2", **SMALL["mamba2"], "dtype": "bfloat16", "time_step_limit": [0.0, float("inf")]}
    path.write_text(json.dumps(config))
    assert "Infinity" in path.read_text()
    # 2 layers: (8 x 16 + 2 x 2 x 6) channels of 4 inputs in bfloat16, 8 heads of 16 by 6 in float32
    assert tsc("plan", path, "-q", "--context", "9").out == f"{2 * ((128 + 24) * 4 * 2 + 8 * 16 * 6 * 4)}\n"


def test_a_config_as_long_as_its_experts_are_many_is_read(tsc: Any, tmp_path: Path) -> None:
    """Quantizers list every matrix that they left out; others write whole templates and integers of any size."""
    names = [f"model.layers.{layer}.mlp.experts.{n}.down_proj" for layer in range(61) for n in range(512)]
    vouched = {"left_out": names, "template": "x" * 100_000, "longest": 10**30}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA_3_8B, **vouched}))
    assert path.stat().st_size > 1 << 20
    words = [word for name in vouched for word in ("--ignore", name)]
    assert tsc("plan", path, *words, "-q").out == f"{8192 * 131_072}\n"
    path.write_text(json.dumps({**LLAMA_3_8B, "max_position_embeddings": 10**30}))
    one_line(tsc("plan", path), 3, "'max_position_embeddings': an integer from")


def test_a_config_that_the_memory_does_not_hold(tsc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    monkeypatch.setenv("TSC_MEMORY_BUDGET", str(1 << 20))
    path.write_text(json.dumps({**LLAMA_3_8B, "left_out": [0] * 10_000}))  # of 30 kB
    one_line(tsc("plan", path), 2, "what it says may take")
    path.write_bytes(b" " * (1 << 20))
    one_line(tsc("plan", path), 2, "its text may take")
    monkeypatch.delenv("TSC_MEMORY_BUDGET")
    os.truncate(path, 1 << 40)  # sparse: nothing of it is read
    one_line(tsc("plan", path), 2, "bytes of JSON, at most")


def test_a_dtype_that_the_config_does_not_give(tsc: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA_3_8B, "quantization_config": {"kv_cache_scheme": {"num_bits": 8}}}))
    assert tsc("plan", path, "--dtype", "float8", "-q").out == f"{8192 * 131_072 // 2}\n"


def test_a_model_whose_parameters_are_not_computed(tsc: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config = {**TEXT, "model_type": "gemma3n_text", "num_kv_shared_layers": 15, "dtype": "bfloat16"}
    path.write_text(json.dumps(config))
    done = tsc("plan", path)
    assert "Prefill" not in done.out
    assert "--parameters N gives the prefill" in " ".join(done.out.split())
    assert "capture" not in done.out  # such a model can be captured, which needs no note
    one_line(tsc("plan", path, "--flops", "1T"), 2, "parameters are not computed for gemma3n_text")
    assert "Prefill" in tsc("plan", path, "--flops", "1T", "--parameters", "4B").out


def test_a_name_cannot_steer_the_terminal(tsc: Any, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2Jb.json"
    path.write_text(json.dumps({**LLAMA_3_8B, "kv\x1b[31m\nx": 1}))
    done = tsc("plan", path)
    assert (done.code, done.err.count("\n")) == (3, 2)
    assert "\x1b" not in done.err
    path.write_text(json.dumps(LLAMA_3_8B))
    assert "\x1b" not in tsc("plan", path).out


def test_quantities() -> None:
    assert quantities.tokens("128k") == quantities.tokens("128K") == 131_072
    assert (quantities.tokens("1M"), quantities.tokens("1.5k"), quantities.tokens(" 7 ")) == (1 << 20, 1536, 7)
    assert quantities.size("80GB", "--memory") == 80_000_000_000
    assert quantities.size("80 GiB", "--memory") == 80 << 30
    assert quantities.size("1.5kB", "--memory") == 1500
    assert quantities.size("999999999999999999", "--memory") == 999999999999999999
    assert quantities.bandwidth("10Gbit/s") == 1.25e9
    assert quantities.bandwidth("1.25GB/s") == 1.25e9
    assert quantities.flops("400T") == quantities.flops("400TFLOP/s") == quantities.flops("0.4PFLOPS") == 4e14
    assert quantities.count("6.98B", "--parameters") == 6_980_000_000
    for text in ("1e9GB", "0x10", "1__0", "1,000", "--1", "1 2", "inf", "nan", "\u2155"):
        with pytest.raises(UsageError):
            quantities.size(text, "--memory")
