"""Which matrices are found in checkpoints of each family, against what the family's own code makes of its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from formats.errors import CorruptError, UnsupportedFileError, UsageError
from tests.support import checkpoints, models
from tsc_cli.probes.weights.layouts import TABLE
from tsc_cli.probes.weights.probe import check_same
from tsc_cli.probes.weights.stacks import stack_of

ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2}
Held = dict[str, np.ndarray[Any, Any]]


def saved(model: Any, folder: Path, experts: int = 4) -> tuple[Any, Held]:
    model.save_pretrained(folder)
    return checkpoints.read(folder, experts)


def same(found: np.ndarray[Any, Any], expected: torch.Tensor) -> None:
    np.testing.assert_array_equal(found, expected.detach().float().numpy())


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gemma3-mixed", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_a_matrix(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = models.FAMILIES[family](dtype)
    stack, found = saved(model, tmp_path / "m")
    assert [one.name for one in stack.types] == ["q", "k", "v", "o", "gate", "up", "down"]
    assert all(one.known for one in stack.types)
    for number, layer in enumerate(model.model.layers):
        for kind in "qkvo":
            same(found[f"{kind}.{number}"], getattr(layer.self_attn, f"{kind}_proj").weight)
        for kind in ("gate", "up", "down"):
            same(found[f"{kind}.{number}"], getattr(layer.mlp, f"{kind}_proj").weight)


def test_phi3(tmp_path: Path) -> None:
    config = transformers.Phi3Config(**models.SMALL, **ATTENTION, pad_token_id=0)
    model = models.build(config, torch.float32)
    stack, found = saved(model, tmp_path / "m")
    assert [one.name for one in stack.types] == ["q", "k", "v", "o", "gate", "up", "down"]
    for number, layer in enumerate(model.model.layers):
        q, k, v = layer.self_attn.qkv_proj.weight.split([48, 24, 24])
        gate, up = layer.mlp.gate_up_proj.weight.chunk(2)
        for kind, want in {"q": q, "k": k, "v": v, "gate": gate, "up": up}.items():
            same(found[f"{kind}.{number}"], want)


def test_gpt2_is_turned_round(tmp_path: Path) -> None:
    model = models.gpt2()
    stack, found = saved(model, tmp_path / "m")
    assert [(one.name, one.known) for one in stack.types] == [(n, True) for n in ("q", "k", "v", "o", "up", "down")]
    for number, layer in enumerate(model.transformer.h):
        for kind, want in zip("qkv", layer.attn.c_attn.weight.chunk(3, dim=1), strict=True):
            same(found[f"{kind}.{number}"], want.T)
        same(found[f"o.{number}"], layer.attn.c_proj.weight.T)
        same(found[f"up.{number}"], layer.mlp.c_fc.weight.T)
    (tmp_path / "m" / "config.json").unlink()  # its fused tensor tells as much
    _, again = checkpoints.read(tmp_path / "m")
    assert again.keys() == found.keys()
    np.testing.assert_array_equal(again["k.1"], found["k.1"])


def test_neox_interleaves_heads(tmp_path: Path) -> None:
    config = transformers.GPTNeoXConfig(**models.SMALL, num_attention_heads=4)
    model = models.build(config, torch.float32)
    stack, found = saved(model, tmp_path / "m")
    assert [(one.name, one.known) for one in stack.types] == [(n, True) for n in ("q", "k", "v", "o", "up", "down")]
    for number, layer in enumerate(model.gpt_neox.layers):
        # as GPTNeoXAttention does: [.., heads, 3 * size], in thirds of the last dimension
        fused = layer.attention.query_key_value.weight.T.view(48, 4, 36)
        for kind, want in zip("qkv", fused.chunk(3, dim=-1), strict=True):
            same(found[f"{kind}.{number}"], want.reshape(48, 48).T)


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({"multi_query": True, "new_decoder_architecture": False}, (48, 12, 12)),
        ({"multi_query": False, "new_decoder_architecture": False}, (48, 48, 48)),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, (48, 24, 24)),
    ],
)
def test_falcon_in_its_three_ways(settings: dict[str, Any], shapes: tuple[int, ...], tmp_path: Path) -> None:
    small = {name: value for name, value in models.SMALL.items() if name != "intermediate_size"}
    config = transformers.FalconConfig(**small, num_attention_heads=4, alibi=False, **settings)
    model = models.build(config, torch.float32)
    stack, found = saved(model, tmp_path / "m")
    assert [one.series[0].shape[0] for one in stack.types[:3]] == list(shapes)
    for number, layer in enumerate(model.transformer.h):
        attention = layer.self_attention
        # the family's own splitting, fed with one input channel a position
        split = attention._split_heads(attention.query_key_value.weight.T[None])  # noqa: SLF001
        size = 12
        for kind, want, rows in zip("qkv", split, shapes, strict=True):
            heads = want[0]  # [inputs, heads, size]; groups repeat their key head for each query head
            step = heads.shape[1] * size // rows
            same(found[f"{kind}.{number}"], heads[:, ::step].reshape(48, -1).T)


def test_experts_are_compared_each_with_itself_and_sampled(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**models.SMALL, **ATTENTION, num_local_experts=6)
    model = models.build(config, torch.float32)
    model.save_pretrained(tmp_path / "m")
    stack, found = checkpoints.read(tmp_path / "m", experts=3)
    kinds = {one.name: one for one in stack.types}
    assert set(kinds) == {"q", "k", "v", "o", "expert.gate", "expert.up", "expert.down", "router"}
    assert [series.expert for series in kinds["expert.gate"].series] == [0, 2, 4]
    assert kinds["expert.gate"].experts == 6
    held = checkpoints.opened(tmp_path / "m").tensors
    names = [n for n in held if n.endswith(".2.block_sparse_moe.experts.4.w1.weight")]
    assert len(names) == 1
    fused = model.model.layers[2].mlp.experts.gate_up_proj[4]
    same(found["expert.gate.2.4"], fused.chunk(2)[0])
    same(found["expert.up.2.4"], fused.chunk(2)[1])
    same(found["expert.down.2.4"], model.model.layers[2].mlp.experts.down_proj[4])
    reports = {one.type.name: one for one in checkpoints.probed(tmp_path / "m")}
    assert {(entry.layer, entry.reference, entry.expert) for entry in reports["expert.up"].entries} == {
        (layer, None if layer == 0 else layer - 1, expert) for layer in range(3) for expert in (0, 1, 3, 4)
    }
    # four experts stand for six
    assert reports["expert.up"].weights == 6 * 3 * 64 * 48


def test_stacked_experts(tmp_path: Path) -> None:
    """Llama 4: [experts, inputs, outputs], gate and up side by side."""
    made = {f"model.layers.{n}.feed_forward.experts.gate_up_proj": torch.randn(5, 8, 12) for n in range(2)}
    folder = checkpoints.write(tmp_path / "m", made, config={"text_config": {"model_type": "llama4_text"}})
    _, found = checkpoints.read(folder, experts=2)
    assert set(found) == {f"expert.{kind}.{n}.{e}" for kind in ("gate", "up") for n in (0, 1) for e in (0, 2)}
    same(found["expert.up.1.2"], made["model.layers.1.feed_forward.experts.gate_up_proj"][2][:, 6:].T)


def test_an_unknown_layout_is_taken_by_shape_and_says_so(tmp_path: Path) -> None:
    made = {}
    for n in range(3):
        made[f"backbone.layers.{n}.mixer.in_proj.weight"] = torch.randn(12, 8)
        made[f"backbone.layers.{n}.mixer.conv1d.weight"] = torch.randn(12, 3, 4)
        made[f"backbone.layers.{n}.mixer.odd.weight"] = torch.randn(4 + n, 8)
        made[f"backbone.layers.{n}.norm.weight"] = torch.randn(8)
    made["backbone.layers.1.mixer.once.weight"] = torch.randn(12, 8)
    made["backbone.layers.0.mixer.D.weight"] = torch.randn(1, 8)  # a vector
    made["vision.blocks.0.attn.q_proj.weight"] = torch.randn(4, 4)
    stack, found = checkpoints.read(checkpoints.write(tmp_path / "m", made, config={}))
    assert [(one.name, one.known) for one in stack.types] == [("mixer.in_proj", False)]
    same(found["mixer.in_proj.2"], made["backbone.layers.2.mixer.in_proj.weight"])
    assert dict(stack.skipped) == {
        "vision.blocks.*": "not the largest stack of layers",
        "mixer.conv1d.weight": "3 dimensions, and no line of the table of layouts",
        "mixer.odd": "shapes differ between layers",
        "mixer.once": "in one layer only",
    }


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "newfangled", "num_attention_heads": 2, "hidden_size": 8},
        {"model_type": "phi3", "num_attention_heads": 3, "hidden_size": 9},
    ],
)
def test_a_fused_tensor_that_nobody_explains_stays_whole(config: dict[str, Any], tmp_path: Path) -> None:
    made = {f"model.layers.{n}.self_attn.qkv_proj.weight": torch.randn(24, 8) for n in range(2)}
    stack, found = checkpoints.read(checkpoints.write(tmp_path / "m", made, config=config))
    assert [(one.name, one.known) for one in stack.types] == [("qkv", True)]
    same(found["qkv.1"], made["model.layers.1.self_attn.qkv_proj.weight"])


def test_hybrid_layers_are_compared_with_the_last_that_has_the_part(tmp_path: Path) -> None:
    made = {f"model.layers.{n}.mlp.up_proj.weight": torch.randn(6, 4) for n in range(6)}
    made |= {f"model.layers.{n}.self_attn.{k}_proj.weight": torch.randn(4, 4) for n in (2, 5) for k in "qkvo"}
    reports = {one.type.name: one for one in checkpoints.probed(checkpoints.write(tmp_path / "m", made))}
    assert [(entry.layer, entry.reference) for entry in reports["k"].entries] == [(2, None), (5, 2)]
    assert len(reports["up"].entries) == 6


def _broken(change: Callable[[dict[str, torch.Tensor]], object]) -> dict[str, torch.Tensor]:
    made = checkpoints.tensors(4)
    change(made)
    return made


NAME = "model.layers.2.self_attn.k_proj.weight"
EXPERTS = {f"layers.{n}.mlp.experts.{e}.up_proj.weight": torch.ones(4, 4) for n in range(3) for e in range(2)}
WRONG: dict[str, tuple[dict[str, torch.Tensor], type[Exception], str]] = {
    "a matrix is missing": (_broken(lambda made: made.pop(NAME)), CorruptError, "layer 2 has no k matrix"),
    "a layer is missing": (
        _broken(lambda made: [made.pop(n) for n in list(made) if ".2." in n]),
        CorruptError,
        "layer 2 is missing: no tensor model.layers.2.",
    ),
    "another shape": (
        _broken(lambda made: made.update({NAME: torch.ones(9, 16)})),
        UsageError,
        r"k of layer 2 \(model\.layers\.2\.self_attn\.k_proj\.weight\) is 9x16, of layer 0 8x16",
    ),
    "one layer": ({n: t for n, t in checkpoints.tensors(1).items() if ".0." in n}, UsageError, "has one layer only"),
    "no layers": ({"lm_head.weight": torch.ones(4, 4)}, UsageError, "no numbered layers"),
    "no matrices": ({f"layers.{n}.norm.weight": torch.ones(4) for n in range(2)}, UsageError, "nothing to compare"),
    "quantized": (
        {f"layers.{n}.self_attn.q_proj.qweight": torch.ones(4, 4, dtype=torch.int32) for n in range(2)},
        UnsupportedFileError,
        "is stored as I32, which is not read",
    ),
    "quantized to 8-bit floats": (
        {f"layers.{n}.self_attn.q_proj.weight": torch.ones(4, 4).to(torch.float8_e4m3fn) for n in range(2)},
        UnsupportedFileError,
        "is stored as F8_E4M3",
    ),
    "an expert is missing": (
        {n: t for n, t in EXPERTS.items() if "1.mlp.experts.1" not in n},
        CorruptError,
        r"layer 1 has no expert\.up matrix of expert 1",
    ),
    "one matrix twice": (
        _broken(lambda made: made.update({"model.layers.2.attn.k_proj.weight": torch.ones(8, 16)})),
        CorruptError,
        "two tensors of layer 2 are its k matrix",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_layers_that_do_not_agree_are_refused_by_name(case: str, tmp_path: Path) -> None:
    made, error, message = WRONG[case]
    with pytest.raises(error, match=message) as caught:
        checkpoints.read(checkpoints.write(tmp_path / "m", made))
    assert "\n" not in str(caught.value)


def test_the_rest_can_be_probed_without_the_type_that_does_not_agree(tmp_path: Path) -> None:
    for case in ("a matrix is missing", "another shape"):
        folder = checkpoints.write(tmp_path / case, WRONG[case][0])
        stack = stack_of(checkpoints.opened(folder), ["q", "up"])
        assert [one.name for one in stack.types] == ["q", "up"]


def test_fewer_layers_than_the_configuration_says(tmp_path: Path) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 5}
    folder = checkpoints.write(tmp_path / "m", checkpoints.tensors(4), config=config)
    with pytest.raises(CorruptError, match=r"config.json says 5 layers, the files hold 4"):
        checkpoints.read(folder)
    checkpoints.read(folder / "model.safetensors")  # one file, which may be one of many


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    one = stack_of(checkpoints.opened(checkpoints.write(tmp_path / "a", checkpoints.tensors(4))))
    for number, made in enumerate(
        [
            checkpoints.tensors(4, wide=2),
            checkpoints.tensors(3),
            {n: t for n, t in checkpoints.tensors(4).items() if "mlp" not in n},
        ]
    ):
        other = stack_of(checkpoints.opened(checkpoints.write(tmp_path / str(number), made)))
        with pytest.raises(UsageError, match=r"is 48x32 in 4 layers|is 24x16 in 3 layers|has no gate"):
            check_same(one, other, "OTHER")


def test_every_line_of_the_table_is_reached() -> None:
    """A line that an earlier one hides would never be used."""
    import re

    samples = {
        "self_attn.q_proj.weight",
        "mlp.gate_proj.weight",
        "self_attn.qkv_proj.weight",
        "mlp.gate_up_proj.weight",
        "self_attn.dense.weight",
        "mlp.fc1.weight",
        "mlp.fc2.weight",
        "attn.c_attn.weight",
        "attn.c_proj.weight",
        "mlp.c_fc.weight",
        "mlp.c_proj.weight",
        "attention.query_key_value.weight",
        "self_attention.query_key_value.weight",
        "attn.Wqkv.weight",
        "self_attn.kv_a_proj_with_mqa.weight",
        "attention.wq.weight",
        "feed_forward.w1.weight",
        "block_sparse_moe.experts.3.w2.weight",
        "mlp.experts.11.up_proj.weight",
        "feed_forward.experts.gate_up_proj",
        "feed_forward.experts.down_proj",
        "mlp.shared_experts.up_proj.weight",
        "mlp.gate.weight",
        "attn_q.weight",
        "attn_output.weight",
        "attn_qkv.weight",
        "ffn_up.weight",
        "ffn_down.weight",
        "ffn_gate_exps.weight",
        "ffn_up_shexp.weight",
        "ffn_gate_inp.weight",
    }
    for rule in TABLE:
        assert any(re.fullmatch(rule.pattern, one) for one in samples), rule
