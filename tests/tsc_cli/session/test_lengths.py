"""One rule for lengths: the positions that a model was made for, scaling included, hold wherever it is run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from formats import load, save
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.errors import UsageError
from tests.support import models
from tests.support.families import SUPPORTED
from tests.support.traces import same_snapshots
from tsc_cli import capture, compress, generate_inputs, to_cache, verify
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import feed
from tsc_cli.huggingface.positions import Positions
from tsc_cli.scoring.scorer import Judge
from tsc_cli.session.append import append
from tsc_cli.session.decode_loop import CaptureOptions
from tsc_cli.session.resume import resume
from tsc_cli.verification.recompute import recompute
from tsc_cli.verification.verify import VerifyOptions

BASE = {"rope_theta": 10000.0}


def scaled(stated: int, **rope: Any) -> Any:
    return models.llama(max_position_embeddings=stated, rope_parameters=BASE | rope)


LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0] * 6}


@pytest.mark.parametrize(
    ("reach", "stated", "rope"),
    [
        (40, 40, {"rope_type": "default"}),
        (160, 40, {"rope_type": "linear", "factor": 4.0}),
        (100, 40, {"rope_type": "dynamic", "factor": 2.5}),
        (160, 40, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}),
        # as published: the stated number leaves room for an answer, and is not the scaled one
        (128, 40, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
        (160, 160, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}),
        (160, 40, LLAMA3 | {"factor": 4.0, "original_max_position_embeddings": 40}),
        # Llama 3.2: a factor of 32 on 8,192, made for 131,072
        (160, 160, LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 40}),
        (160, 160, LONGROPE | {"original_max_position_embeddings": 40}),
        (160, 40, LONGROPE | {"original_max_position_embeddings": 40, "factor": 4.0}),
    ],
)
def test_the_scaling_factor_counts(reach: int, stated: int, rope: dict[str, Any]) -> None:
    model = scaled(stated, **rope)
    assert Positions(model).reach == reach
    assert len(capture(model, models.prompt(reach - 2), steps=2)) == 3
    with pytest.raises(UsageError) as refused:
        capture(model, models.prompt(reach - 1), steps=2)
    total = f"{reach - 1} tokens and 2 steps make {reach + 1}, which do not fit into the model's {reach} positions"
    assert refused.value.message == total
    assert "at most --steps 1" in str(refused.value.hint)
    beyond = capture(model, models.prompt(reach - 1), options=CaptureOptions(steps=2, allow_beyond_positions=True))
    assert beyond.views[-1].tokens_seen == reach + 1


def test_layers_that_are_scaled_each_in_its_way_go_by_what_is_stated() -> None:
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert Positions(models.gemma3_mixed(max_position_embeddings=90, rope_parameters=ropes)).reach == 90


@pytest.mark.parametrize("family", sorted(SUPPORTED))
def test_every_family_has_an_end_or_none(family: str) -> None:
    model = SUPPORTED[family].build(torch.float32)
    hard = {"gpt2": 256, "bart": 1024, "whisper": 256}
    without = {
        "falcon-alibi",
        "bloom",
        "jamba",
        "nemotron_h",
        "kimi_linear",
        "granitemoehybrid",
        "mamba",
        "mamba2",
        "falcon_mamba",
        "t5",
    }
    assert Positions(model).end == hard.get(family)
    reach = None if family in without else hard.get(family, 131072 if family == "gpt_oss" else 512)
    assert Positions(model).reach == reach


_TINY: dict[str, Any] = {"vocab_size": 300}
_NAMED: dict[str, Any] = _TINY | {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
_GPT: dict[str, Any] = _TINY | {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 48}
TABLES = {
    "opt": transformers.OPTConfig(
        **_TINY,
        hidden_size=32,
        num_hidden_layers=1,
        ffn_dim=32,
        num_attention_heads=4,
        max_position_embeddings=48,
        word_embed_proj_dim=32,
    ),
    "mpt": transformers.MptConfig(**_TINY, d_model=32, n_heads=4, n_layers=1, max_seq_len=48),
    "gptj": transformers.GPTJConfig(**_GPT, rotary_dim=8),
    "gpt_neo": transformers.GPTNeoConfig(
        **_TINY,
        hidden_size=32,
        num_layers=1,
        num_heads=4,
        max_position_embeddings=48,
        attention_types=[[["global"], 1]],
    ),
    "biogpt": transformers.BioGptConfig(**_NAMED, max_position_embeddings=48),
    "gpt_bigcode": transformers.GPTBigCodeConfig(**_GPT),
    "codegen": transformers.CodeGenConfig(**_GPT, rotary_dim=8),
    "roberta": transformers.RobertaConfig(**_NAMED, max_position_embeddings=50, is_decoder=True),
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_the_end_is_where_the_model_itself_fails(name: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(TABLES[name]).eval()
    positions = Positions(model)
    assert positions.end == positions.reach == 48
    with torch.no_grad():
        model(torch.full((1, 48), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, 49), 5))


def test_learned_positions_are_an_end_that_nothing_goes_beyond(tmp_path: Path) -> None:
    model, path = models.gpt2(positions=48), tmp_path / "t.tsc"
    with pytest.raises(UsageError, match="47 tokens and 2 steps make 49, which do not fit") as refused:
        capture(model, models.prompt(47), options=CaptureOptions(steps=2, allow_beyond_positions=True))
    assert "beyond" not in str(refused.value.hint)
    save(capture(model, models.prompt(44), steps=4), path)
    trace = load(path)
    for goes_on in (
        lambda: append(model, [], path, options=CaptureOptions(steps=1, allow_beyond_positions=True)),
        lambda: list(islice(resume(trace, model, allow_beyond_positions=True), 2)),
        lambda: generate_inputs(trace, model, append=[1], allow_beyond_positions=True),
        lambda: verify(trace, model, options=VerifyOptions(allow_beyond_positions=True)),
    ):
        with pytest.raises(UsageError, match="48"):
            goes_on()


def test_the_rule_is_the_same_everywhere(tmp_path: Path) -> None:
    model, path = models.llama(max_position_embeddings=40), tmp_path / "t.tsc"
    save(capture(model, models.prompt(30), steps=4), path)
    before, trace = path.read_bytes(), load(path)
    with pytest.raises(UsageError, match=r"34 tokens, 4 more and 3 steps make 41, which do not fit into .* 40"):
        append(model, [1, 2, 3], path, steps=3)
    with pytest.raises(UsageError, match="34 tokens and 7 steps make 41") as refused:
        resume(trace, model, most=8)
    assert "at most -n 7" in str(refused.value.hint)
    assert len(list(islice(resume(trace, model, most=7), 7))) == 7
    with pytest.raises(UsageError, match="34 tokens and 7 steps make 41"):
        list(resume(trace, model))  # until there is no position left
    with pytest.raises(UsageError, match="34 tokens, 7 more and 0 steps make 41"):
        generate_inputs(trace, model, append=[1] * 6)
    assert path.read_bytes() == before
    # what is measured is cut to what there is
    cut = verify(trace, model, options=VerifyOptions(positions=30, greedy=30))
    assert (cut.fidelity.positions, cut.greedy) == (6, 7)
    assert Judge(Source(trace), ModelAdapter(model), positions=30).of_trace(trace).positions == 6
    # all of it goes on for those who mean it
    whole = verify(trace, model, options=VerifyOptions(positions=30, greedy=30, allow_beyond_positions=True))
    assert (whole.fidelity.positions, whole.greedy) == (30, 30)
    assert len(list(islice(resume(trace, model, most=20, allow_beyond_positions=True), 20))) == 20
    generate_inputs(trace, model, append=[1] * 6, allow_beyond_positions=True)
    append(model, [1, 2, 3], path, options=CaptureOptions(steps=6, allow_beyond_positions=True))
    longer = load(path)
    assert longer.views[-1].tokens_seen == 44
    for measure in (
        lambda: verify(longer, model),
        lambda: compress(longer, tmp_path / "c.tsc", recipe=Recipe("scalar"), model=model),
    ):
        with pytest.raises(UsageError, match=r"nothing can be measured: snapshot 11 takes all positions .* 44 tokens"):
            measure()
    assert not recompute(longer, model).lies  # what was fed is fed again
    compress(longer, tmp_path / "c.tsc", recipe=Recipe("scalar"), model=model, allow_beyond_positions=True)


def test_the_commands(tsc: Any, tmp_path: Path) -> None:
    folder, path = models.save_small_model(tmp_path / "m", models.llama(max_position_embeddings=40)), tmp_path / "t.tsc"
    text = "a" * 40
    refused = tsc("capture", text, "-m", folder, "--steps", 2, "-o", path)
    assert (refused.code, "40 tokens and 2 steps make 42" in refused.err, path.exists()) == (2, True, False)
    assert "--allow-beyond-positions" in refused.err
    yes = "--allow-beyond-positions"
    assert tsc("capture", text, "-m", folder, "--steps", 2, "-o", path, yes).code == 0
    for given in (
        ("capture", "--append", path, "more", "-m", folder, "--steps", 1),
        ("resume", path, "-m", folder, "-n", 3),
        ("verify", path, "-m", folder, "--positions", 4),
        ("compress", path, "-m", folder, "-o", tmp_path / "c.tsc", "--codec", "scalar", "--positions", 4),
    ):
        refused = tsc(*given)
        assert (refused.code, "positions" in refused.err, yes in refused.err) == (2, True, True), refused.err
        assert tsc(*given, yes).code == 0


def test_dynamic_scaling_goes_on_after_another_text(tmp_path: Path) -> None:
    """In transformers its rates are those of the longest text that the model ever saw: no cache may depend on it."""
    model = scaled(32, rope_type="dynamic", factor=4.0)
    path = tmp_path / "t.tsc"
    whole = capture(model, models.prompt(30), steps=20)
    capture(model, models.prompt(90), steps=2)  # a longer one in between
    save(capture(model, models.prompt(30), steps=9), path)
    capture(model, models.prompt(100), steps=2)
    append(model, [], path, steps=11)
    parts = load(path)
    assert same_snapshots(parts.snapshot(), whole.snapshot())
    assert caches.identical(to_cache(parts, model), to_cache(whole, model))
    assert verify(parts, model, 20, options=VerifyOptions(positions=9)).identical
    assert not recompute(parts, model).lies
    fresh = scaled(32, rope_type="dynamic", factor=4.0)  # transformers alone, on a model that has seen nothing else
    cache, tokens = caches.new_cache(ModelAdapter(fresh)), whole.token_ids()
    with torch.no_grad():
        fresh(torch.tensor([tokens[:30]]), past_key_values=cache, use_cache=True)
        for token in tokens[30:]:
            fresh(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
    assert caches.identical(cache, to_cache(whole, model))
    long = capture(
        model, models.prompt(50), options=CaptureOptions(steps=2, chunk=8)
    )  # in one pass, as `generate` feeds it
    assert same_snapshots(long.snapshot(), capture(model, models.prompt(50), steps=2).snapshot())
    feed(ModelAdapter(model), to_cache(long, model), [1])


def test_an_encoder_has_an_end_of_its_own() -> None:
    model = SUPPORTED["bart"].build(torch.float32)
    with pytest.raises(UsageError, match="1025 tokens do not fit into the 1024 positions of the model's encoder"):
        capture(model, [5] * 1025, decoder_input_ids=[2], steps=0)
    speech = SUPPORTED["whisper"].build(torch.float32)
    noise = torch.randn(1, 8, 60, generator=torch.Generator().manual_seed(9))
    with pytest.raises(UsageError, match="255 tokens and 2 steps make 257, which do not fit into the model's 256"):
        capture(speech, input_features=noise, decoder_input_ids=[2] + [5] * 254, steps=2)
