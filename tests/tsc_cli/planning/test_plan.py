"""`tsc plan`: figures against calculations by hand, the measured bits against the measurements, the report's form."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.support.plan_models import LLAMA_3_8B, PUBLISHED, SMALL, Config
from tsc_cli import PlanOptions, plan
from tsc_cli.model_families.layers import Layer
from tsc_cli.model_store import config_file
from tsc_cli.planning import rates
from tsc_cli.planning.costs import cache_bytes, prefill_flops
from tsc_cli.planning.model import Model, understand
from tsc_cli.planning.notes import MEASURED_VALUES_PER_DIMENSION
from tsc_cli.scoring.published import QUALITIES

K = 1024
LADDER = json.loads((ROOT / "docs" / "benchmarks" / "ladder.json").read_text())


def model_of(config: Config, dtype: str = "auto") -> Model:
    return understand(config_file.Config("m", "config.json", config), dtype)


# by hand: layers x (key + value) x KV heads x head size x bytes of bfloat16 x tokens
BY_HAND: dict[str, dict[int, int]] = {
    "Llama-3-8B": {
        1: 32 * 2 * 8 * 128 * 2,  # 131,072
        8 * K: 32 * 2 * 8 * 128 * 2 * 8192,
        128 * K: 17_179_869_184,
    },
    "Llama-3-70B": {
        1: 80 * 2 * 8 * 128 * 2,  # 327,680: 8,192 / 64 heads = 128
        128 * K: 42_949_672_960,
    },
    "Qwen3-8B": {
        1: 36 * 2 * 8 * 128 * 2,  # 147,456
        32 * K: 4_831_838_208,
    },
    # 62 layers: 10 times (5 with a window of 1,024, 1 without) and 2 with; 16 KV heads of 128
    "Gemma-3-27B": {
        1: 62 * 2 * 16 * 128 * 2,  # 507,904
        1024: 62 * 2 * 16 * 128 * 2 * 1024,
        1025: (10 * 1025 + 52 * 1024) * 2 * 16 * 128 * 2,
        128 * K: (10 * 131_072 + 52 * 1024) * 2 * 16 * 128 * 2,  # 11,173,625,856
    },
    # one latent of 512 and one rotary key of 64 a layer, for all 128 heads
    "DeepSeek-V3": {
        1: 61 * (512 + 64) * 2,  # 70,272
        128 * K: 9_210_691_584,
    },
    "Mixtral-8x7B": {1: 32 * 2 * 8 * 128 * 2, 32 * K: 4_294_967_296},
    # the window of 4,096 bounds every layer
    "Mistral-7B-v0.1": {
        1: 32 * 2 * 8 * 128 * 2,
        4 * K: 32 * 2 * 8 * 128 * 2 * 4096,
        32 * K: 32 * 2 * 8 * 128 * 2 * 4096,  # 536,870,912
    },
    # 12 layers of 2 KV heads of 256; 36 with the last 4 inputs of (2 x 16 x 128 + 32 x 128) channels in bfloat16 and
    # 32 matrices of 128 x 128 in float32
    "Qwen3-Next-80B": {
        1: 12 * 2 * 2 * 256 * 2 + 36 * ((2 * 16 * 128 + 32 * 128) * 4 * 2 + 32 * 128 * 128 * 4),
        128 * K: 12 * 2 * 2 * 256 * 2 * 131_072 + 77_856_768,
    },
}


@pytest.mark.parametrize("name", BY_HAND)
def test_bytes_are_those_of_a_calculation_by_hand(name: str) -> None:
    model = model_of(PUBLISHED[name])
    for context, want in BY_HAND[name].items():
        assert cache_bytes(model, context) == want


def test_every_published_config_is_calculated() -> None:
    assert set(BY_HAND) == set(PUBLISHED)


def test_a_dtype_changes_rows_and_not_float32_states() -> None:
    assert cache_bytes(model_of(LLAMA_3_8B, "float32"), 1) == 2 * 131_072
    assert cache_bytes(model_of(LLAMA_3_8B, "float8"), 1) == 131_072 // 2
    state = 36 * 32 * 128 * 128 * 4
    convolutions = 36 * (2 * 16 * 128 + 32 * 128) * 4 * 4
    rows = 12 * 2 * 2 * 256 * 4
    assert cache_bytes(model_of(PUBLISHED["Qwen3-Next-80B"], "float32"), 1) == rows + convolutions + state


@pytest.mark.parametrize("model_type", ["gemma2", "qwen3_moe", "smollm3"])
def test_kv_heads_that_a_config_leaves_out_are_those_of_transformers(model_type: str) -> None:
    config = {key: value for key, value in SMALL[model_type].items() if key != "num_key_value_heads"}
    config |= {"model_type": model_type, "dtype": "bfloat16", "use_sliding_window": False}
    model = model_of({**config, "num_attention_heads": 16, "head_dim": 4})
    assert {layer.row_values for layer in model.layers} == {2 * 4 * 4}  # four of them, and not one for each query head
    assert model.assumed["num_key_value_heads"] == 4


def test_parameters_by_hand() -> None:
    embeddings = 128256 * 4096
    attention = 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 4096
    gate_up_down = 3 * 4096 * 14336
    found = model_of(LLAMA_3_8B).parameters
    assert found is not None
    assert found.layers_active == found.layers_total == 32 * (attention + gate_up_down) == 6_979_321_856
    assert found.total == 32 * (attention + gate_up_down) + 2 * embeddings  # 8,030,261,248 with 65 norms of 4,096
    assert found.total + 65 * 4096 == 8_030_261_248
    found = model_of(PUBLISHED["Mixtral-8x7B"]).parameters
    assert found is not None
    router = 8 * 4096
    assert found.layers_total == 32 * (attention + router + 8 * gate_up_down)
    assert found.layers_active == 32 * (attention + router + 2 * gate_up_down)
    found = model_of(PUBLISHED["DeepSeek-V3"]).parameters
    assert found is not None
    latent = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    expert = 3 * 7168 * 2048
    dense, sparse = 3 * 3 * 7168 * 18432, 58 * (256 * 7168 + expert)
    assert found.layers_total == 61 * latent + dense + sparse + 58 * 256 * expert
    assert found.layers_active == 61 * latent + dense + sparse + 58 * 8 * expert
    assert round(found.total / 1e9) == 671  # as published
    gemma = model_of(PUBLISHED["Gemma-3-27B"]).parameters
    assert gemma is not None
    assert gemma.embeddings == 0  # one matrix for both ends
    assert gemma.head == 262208 * 5376


def test_attention_is_counted_pair_by_pair() -> None:
    for window, kind in ((None, "full"), (1, "sliding"), (7, "sliding"), (7, "chunked"), (50, "chunked")):
        layer = Layer(kind, row_values=2, window=window, pair_size=1)
        for context in (1, 6, 7, 8, 14, 23, 50):
            seen = 0
            for token in range(context):
                first = 0
                if window is not None:
                    first = token // window * window if kind == "chunked" else max(0, token - window + 1)
                seen += token - first + 1
            assert layer.pairs(context) == seen, (kind, window, context)


def test_prefill_by_hand() -> None:
    found = prefill_flops(model_of(LLAMA_3_8B), 1000)
    assert found is not None
    assert found["weights"] == 2 * 6_979_321_856 * 1000
    # scores and their sum of values: 32 layers, 32 heads of 128, two multiply-adds a pair
    assert found["attention"] == 32 * 32 * (2 * 128 + 2 * 128) * (1000 * 1001 // 2)
    assert found["logits"] == 2 * 4096 * 128256
    assert found["total"] == sum(found[key] for key in ("weights", "attention", "logits"))
    latent = prefill_flops(model_of(PUBLISHED["DeepSeek-V3"]), 1000)
    assert latent is not None
    assert latent["attention"] == 61 * 128 * (2 * (128 + 64) + 2 * 128) * (1000 * 1001 // 2)
    given = prefill_flops(model_of(LLAMA_3_8B), 10, active=7)
    assert given is not None
    assert given["weights"] == 2 * 7 * 10


def test_the_measured_bits_are_the_measurements() -> None:
    rows = {row["label"]: row for row in LADDER["rows"]}
    assert LADDER["model"]["name"] == rates.MEASURED_ON
    assert LADDER["model"]["dtype"] == "float32"
    for rate in (*rates.SCALAR, *rates.KLT):
        row = rows[re.sub(" of fp32$|^scalar ", "", rate.name)]
        assert rate.bits == pytest.approx(32 / row["ratio_final_fp32"], abs=5e-5)
        assert rate.kl == pytest.approx(row["kl_mean"], rel=5e-4)
        assert rate.top1 == pytest.approx(row["top1"], abs=5e-5)
    assert {rate.name for rate in rates.KLT} == {f"{n} of fp32" for n in rows if n.startswith("klt")}
    page = (ROOT / "docs" / "measurements.md").read_text()
    line = re.search(r"^\| encyclopedia .*\| ([\d.]+)x \| ([\d.]+)x \| ([\d.]+)x \|$", page, re.MULTILINE)
    assert line is not None
    assert [rates.LOSSLESS[name] for name in ("float32", "bfloat16", "float16")] == [
        float(one) for one in line.groups()
    ]


def test_qualities_lie_between_the_measured_tiers() -> None:
    found = {rate.name: rate for rate in rates.rates("float32", 4)}
    assert found["klt near-exact"].basis == found["klt high"].basis == "interpolated"
    assert found["klt 63x of fp32"].bits < found["klt near-exact"].bits < found["klt 16x of fp32"].bits
    assert found["klt 219x of fp32"].bits < found["klt high"].bits < found["klt 125x of fp32"].bits
    assert (found["klt balanced"].basis, found["klt balanced"].bits) == ("bound", found["klt 429x of fp32"].bits)
    assert "klt small" not in found  # of a KL that high nothing was measured
    assert {name: QUALITIES[name] for name in QUALITIES if f"klt {name}" in found} == {
        name.removeprefix("klt "): rate.kl for name, rate in found.items() if rate.basis in ("interpolated", "bound")
    }
    bits = [rate.bits for rate in rates.rates("float8", 1)]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] == 8


def test_the_default_model_comes_out_as_it_was_measured(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "dtype": "float32",
        "tie_word_embeddings": True,
    }
    model = model_of(config)
    raw = cache_bytes(model, 1024)
    assert raw == 30 * 2 * 3 * 64 * 4 * 1024 == 47_185_920
    for rate, row in zip(rates.KLT, (one for one in LADDER["rows"] if one["kind"] == "klt"), strict=True):
        measured = sum(prompt["file_bytes"] for prompt in row["prompts"]) / len(row["prompts"])
        assert cache_bytes(model, 1024, rate.bits) == pytest.approx(measured, rel=0.01)
    assert MEASURED_VALUES_PER_DIMENSION == 30 * 2 * 3 * 64 / 576 == 20
    assert model.parameters is not None
    assert model.parameters.total == 134_479_872  # 134,515,008 with 61 norms of 576


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, config in PUBLISHED.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_everything_is_in_the_json(tsc: Any, folder: Path) -> None:
    done = tsc(
        "plan",
        folder / "Llama-3-70B",
        "--context",
        "8k",
        "--context",
        "4096",
        "--users",
        16,
        "--memory",
        "640GB",
        "--weights",
        "141GB",
        "--bandwidth",
        "10Gbit/s",
        "--flops",
        "400TFLOP/s",
        "--json",
    )
    assert (done.code, done.err) == (0, "")
    facts = done.json
    assert facts["schema"] == "tsc.plan/1"
    assert facts["layers"] == [
        {
            "count": 80,
            "kind": "full",
            "query_heads": 64,
            "kv_heads": 8,
            "values_per_token": 2048,
            "bytes_per_token": 4096,
            "rows_at_most": None,
            "state_bytes": 0,
        }
    ]
    assert facts["bytes_per_token"] == facts["bytes_per_token_windows_full"] == 327_680
    assert [one["tokens"] for one in facts["contexts"]] == [4096, 8192]
    context = facts["contexts"][1]
    raw = 8192 * 327_680
    assert context["raw_bytes"] == raw
    assert context["reports_table_4"] == {"bytes": 8 * raw, "times": 8.0}
    assert context["recompute_seconds"] == context["prefill_flop"]["total"] / 400e12
    first = context["storage"][0]
    assert (first["name"], first["bits_per_value"], first["bytes"], first["bytes_all_users"]) == (
        "as it is",
        16,
        raw,
        16 * raw,
    )
    assert first["users_that_fit"] == (640_000_000_000 - 141_000_000_000) // raw == 185
    assert first["transfer_seconds"] == pytest.approx(raw * 8 / 10e9)
    assert first["break_even_bytes_per_second"] == pytest.approx(raw / context["recompute_seconds"])
    klt = next(one for one in context["storage"] if one["name"] == "klt 125x of fp32")
    assert klt["bytes"] == math.ceil(raw / 16 * klt["bits_per_value"])
    assert klt["bits_per_value"] == rates.KLT[2].bits
    assert all(one["all_users_fit"] for one in context["storage"])
    sizes = [one["bytes"] for one in context["storage"]]
    assert sizes == sorted(sizes, reverse=True)


def test_the_function_gives_what_the_command_reports(tsc: Any, folder: Path) -> None:
    options = PlanOptions(users=3, memory=80 * 10**9, weights=16 * 10**9)
    facts = plan(folder / "Llama-3-8B", [8 * K, 128 * K], options=options)
    words = ["--context", "128k", "--context", "8k", "--users", 3, "--memory", "80GB", "--weights", "16GB", "--json"]
    reported = tsc("plan", folder / "Llama-3-8B", *words).json
    assert reported.pop("schema") == "tsc.plan/1"
    assert json.loads(json.dumps(facts)) == reported
    assert [at["raw_bytes"] for at in facts["contexts"]] == [BY_HAND["Llama-3-8B"][size] for size in (8 * K, 128 * K)]


def test_table_4_is_named_where_query_heads_share_kv_heads(tsc: Any, folder: Path, tmp_path: Path) -> None:
    said = tsc("plan", folder / "Llama-3-70B", "--context", "128k").out
    assert "Table 4 of the TSC reports counts query heads instead of KV heads" in said
    assert "343.60 GB at 131,072 tokens instead of 42.95 GB, 8 times" in " ".join(said.split())
    alike = tmp_path / "alike.json"
    alike.write_text(json.dumps({**LLAMA_3_8B, "num_key_value_heads": 32}))
    assert "Table 4" not in tsc("plan", alike).out
    assert "Table 4" not in tsc("plan", folder / "DeepSeek-V3").out


@pytest.mark.parametrize("name", PUBLISHED)
def test_reports_fit_80_columns_and_say_what_is_assumed(tsc: Any, folder: Path, name: str) -> None:
    contexts = [word for one in ("1", "8k", "128k", "1M", "2M", "64M") for word in ("--context", one)]
    for more in ([], ["--users", 1_000_000, "--memory", "900PB", "--flops", "1P", "--bandwidth", "3kbit/s"]):
        done = tsc("plan", folder / name, *contexts, *more)
        assert done.code == 0
        path = str(folder / name)
        assert max(len(line.replace(path, "")) for line in done.out.splitlines()) <= 80
        assert "assumption" in done.out
    quiet = tsc("plan", folder / name, "--context", "8k", "-q")
    assert quiet.out == f"{cache_bytes(model_of(PUBLISHED[name]), 8192)}\n"


def test_what_is_left_out_is_said(tsc: Any, folder: Path) -> None:
    def said(name: str, *more: object) -> str:
        return " ".join(tsc("plan", folder / name, *more).out.split())

    assert "A further layer for predicting several tokens at once" in said("DeepSeek-V3")
    assert "4.9 values a token for each dimension" in said("DeepSeek-V3")
    assert "capture" not in said("Qwen3-Next-80B")  # it can be captured, which needs no note
    assert "States of constant size" in said("Qwen3-Next-80B")
    assert "vocab_size 262208" in said("Gemma-3-27B")
    assert "keeps one row less" in said("Mistral-7B-v0.1")
    assert "The config states 8,192 positions; 131,072 tokens are more" in said("Llama-3-8B", "--context", "128k")
    assert "16 caches of 131,072 tokens fit stored klt 16x of fp32 or smaller" in said(
        "Llama-3-8B", "--context", "128k", "--users", 16, "--memory", "40GB"
    )
    assert "fit in no way that was measured" in said("Llama-3-8B", "--users", 10**6, "--memory", "1GB")
    # without --context as far as the model goes
    assert [one["tokens"] for one in tsc("plan", folder / "Llama-3-8B", "--json").json["contexts"]] == [8192]


def test_it_starts_without_torch_or_a_hub(folder: Path) -> None:
    script = (
        "import sys; from tsc_cli.cli.main import run; code = run(['plan', sys.argv[1]]); "
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules); "
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", script, folder / "Qwen3-8B"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_shows_what_is_printed(tsc: Any, folder: Path, monkeypatch: Any) -> None:
    page = (ROOT / "docs" / "plan.md").read_text()
    monkeypatch.chdir(folder)
    shown = re.findall(r"```\n\$ tsc (.*?)\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 2
    for words, output in shown:
        assert tsc(*words.split()).out == output
