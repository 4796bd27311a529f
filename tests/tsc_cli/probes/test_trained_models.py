"""Other families than the default model's, trained on Python's library for a minute: calibrate, compress, verify.

Random weights make caches that no transform compresses; what is shown here needs models that have learned something.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

from formats.codecs.klt import profile_store
from tests.support import models
from tsc_cli.calibration.texts import library_texts
from tsc_cli.cli.main import run

pytestmark = pytest.mark.full

POSITIONS, BATCH, STEPS = 512, 6, 200
SIZES = {"vocab_size": 257, "eos_token_id": 256, "bos_token_id": 256}


def gpt2() -> Any:
    return transformers.GPT2Config(n_embd=128, n_layer=4, n_head=4, n_positions=POSITIONS, **SIZES)


def qwen3() -> Any:
    return transformers.Qwen3Config(
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        **SIZES,
    )


def trained(config: Any, code: list[str]) -> Any:
    """A model after `STEPS` steps of AdamW on bytes, the learning rate rising and falling along a half sine."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    data = torch.tensor(models.byte_tokenizer()("".join(code)).input_ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: float(torch.sin(torch.tensor((step + 1) / (STEPS + 1) * torch.pi)))
    )
    for _ in range(STEPS):
        starts = torch.randint(len(data) - POSITIONS, (BATCH,))
        batch = torch.stack([data[start : start + POSITIONS] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


class Place(NamedTuple):
    folder: Path
    model: Path
    trace: Path


@pytest.fixture(scope="module", params=[gpt2, qwen3], ids=["gpt2", "qwen3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A trained model and its profile, and a capture of a module that neither has seen."""
    folder = tmp_path_factory.mktemp("trained")
    _, code = library_texts()
    unseen = code.pop(max(range(len(code)), key=lambda n: len(code[n])))
    (folder / "seen.txt").write_text("".join(code)[:600_000])
    (folder / "unseen.txt").write_text(unseen[2_000:6_000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSC_CACHE", str(folder / "cache"))
        patch.setattr(profile_store, "remembered", {})
        place = Place(folder, folder / "model", folder / "t.tsc")
        models.save_small_model(place.model, trained(request.param(), code))
        words = ["calibrate", "-m", str(place.model), "--text", str(folder / "seen.txt"), "--tokens", "16384"]
        assert run([*words, "--rank", "512", "-q"]) == 0
        words = ["capture", "-m", str(place.model), "--prompt-file", str(folder / "unseen.txt")]
        assert run([*words, "--context", "384", "--steps", "0", "-o", str(place.trace), "-q"]) == 0
        yield place


def test_it_goes_through_calibrate_compress_and_verify(tsc: Any, place: Place, capsys: Any) -> None:
    ratios = {}
    for quality, most in (("high", 0.01), ("balanced", 0.05)):
        target = place.folder / f"{quality}.tsc"
        done = tsc("compress", place.trace, "-m", place.model, "--quality", quality, "-o", target, "--json")
        assert done.code == 0, done.err
        assert done.json["codec"] == "klt"
        again = tsc("verify", target, "-m", place.model, "--json", "--greedy", 0)
        assert again.code == 0, again.err
        measured = again.json["results"][0]
        assert 0 < measured["kl_mean"] <= most * 1.001
        assert measured["top1"] > 0.85
        ratios[quality] = done.json["ratio_final"], measured["kl_mean"], measured["top1"]
    by_hand = place.folder / "scalar.tsc"
    words = ["--codec", "scalar", "--set", "bits=4", "-o", by_hand, "--json"]
    done = tsc("compress", place.trace, "-m", place.model, *words)
    assert done.code == 0, done.err
    with capsys.disabled():
        print(f"\n{place.model}: {ratios}; scalar 4 bits {done.json['ratio_final']}, {done.json.get('quality')}")
    assert (place.folder / "high.tsc").stat().st_size < 0.5 * by_hand.stat().st_size
