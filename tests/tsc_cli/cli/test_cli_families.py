"""The commands on models with states, indexer keys and an encoder, and on a batch, from capture to decode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from formats import load, save
from tests.support import models
from tests.support.families import SUPPORTED
from tests.tsc_cli.huggingface.test_foreign import batch, build
from tsc_cli import capture

TEXT = "The quick brown fox jumps over the lazy dog, again and again."
SAYS = {
    "qwen3_next": ["1 layer of state conv.0 [192, 4] float32, state recurrent.0 [4, 16, 32] float32", "states"],
    "t5": ["2 layers of full attention, 4 KV heads, size 8; 2 layers of cross attention"],
    "gemma3n": ["2 layers of nothing of their own"],
    "deepseek_v32": ["indexer keys of size 16", "indexer_keys"],
}
TENSORS = {
    "qwen3_next": {"layers.0.conv.0", "layers.0.recurrent.0", "layers.1.keys", "layers.1.values", "layers.1.positions"},
    "t5": {f"layers.{layer}.{name}" for layer in range(4) for name in ("keys", "values", "positions")},
    "deepseek_v32": {
        f"layers.{layer}.{name}" for layer in range(2) for name in ("keys", "values", "positions", "indexer_keys")
    },
}


@pytest.mark.parametrize("family", SAYS)
def test_from_capture_to_decode(family: str, tsc: Any, tmp_path: Path) -> None:
    sample = SUPPORTED[family]
    more = {"vocab_size_per_layer_input": 300} if family == "gemma3n" else {}
    config = dict(sample.config) | {"vocab_size": 300} | more
    folder = models.save_small_model(tmp_path / "model", replace(sample, config=config).build(torch.float32))
    path = tmp_path / "t.tsc"
    assert tsc("capture", TEXT, "-m", folder, "--steps", 4, "--context", 50, "-o", path).code == 0
    assert bool(load(path).reference) == (family != "t5")  # the source's rest is not what the decoder says
    shown = tsc("inspect", path, "--layers", "--records").out
    assert all(words in shown for words in SAYS[family])
    assert f"{len(load(path).geometry.layers)}" in shown
    verified = tsc("verify", path, "-m", folder, "--positions", 8, "--greedy", 4, "--snapshots", "all", "--json").json
    assert all(result["identical"] and result["kl_mean"] == 0 for result in verified["results"])
    whole = tsc("resume", path, "-m", folder, "--snapshot", 0, "-n", 6, "--ignore-eos", "--json").json["tokens"]
    assert whole[4:] == tsc("resume", path, "-m", folder, "-n", 2, "--ignore-eos", "--json").json["tokens"]
    assert tsc("test", path).code == 0
    small = tmp_path / "small.tsc"
    done = tsc("compress", path, "-m", folder, "--codec", "scalar", "--set", "bits=4", "--positions", 16, "-o", small)
    assert (done.code, tsc("test", small).code) == (0, 0)
    assert tsc("decode", small, "-o", tmp_path / "t.safetensors").code == 0
    if family in TENSORS:
        assert load_file(tmp_path / "t.safetensors").keys() == TENSORS[family] | {"token_ids"}


def test_a_batch(tsc: Any, tmp_path: Path) -> None:
    model, (ids, mask) = build("llama"), batch()
    folder = models.save_small_model(tmp_path / "model", model)
    path = tmp_path / "t.tsc"
    save(capture(model, ids, attention_mask=mask, steps=2, tokenizer=models.byte_tokenizer()), path)
    assert "batch      4 sequences, with 0, 9, 17, 4 tokens of padding in front" in tsc("inspect", path).out
    result = tsc("verify", path, "-m", folder, "--sequence", 2, "--positions", 8, "--greedy", 4, "--json").json
    assert result["results"][0]["tokens"] == 25
    assert 0 <= result["results"][0]["kl_mean"] < 1e-9
    tokens = tsc("resume", path, "-m", folder, "--sequence", 3, "-n", 1, "--ignore-eos", "--json").json["tokens"]
    assert tokens == [load(path).views[-1].next_tokens[3]]
    refused = tsc("verify", path, "-m", folder, "--record")
    assert (refused.code, refused.err.splitlines()[-1]) == (
        2,
        "tsc: error: a measurement of one sequence is not recorded for its batch",
    )
    missing = tsc("resume", path, "-m", folder, "--sequence", 4)
    assert (missing.code, "there is no sequence 4" in missing.err) == (2, True)
    assert tsc("decode", path, "-o", tmp_path / "t.safetensors").code == 0
    found = load_file(tmp_path / "t.safetensors")
    assert found["padding"].tolist() == [0, 9, 17, 4]
    assert found["token_ids"].shape == (4, 42)
