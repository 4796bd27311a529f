"""Calibration: what is gathered, how groups predict each other, and going on after an interruption."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from formats import load
from formats.codecs.klt import profile_store
from formats.codecs.klt.fitting import Rank
from formats.codecs.klt.profile import Profile
from formats.codecs.klt.statistics import Statistics, flat
from formats.container.records import Part
from formats.encode.recipe import Recipe
from formats.errors import LimitError, UsageError
from formats.trace.geometry import Geometry, LayerSpec
from tests import ROOT
from tests.formats.codecs.test_klt import (
    CONTEXT,
    FOLLOWING,
    decoded,
    encoded,
    error,
    largest_error,
    profile_for,
    recipe_with,
    rows_of,
    tiny_model,
    tiny_profile,
    written,
)
from tests.support import families, models
from tsc_cli import capture, compress
from tsc_cli.calibration import calibrate as calibrating
from tsc_cli.calibration import checkpoint, gather, layer_groups
from tsc_cli.calibration import texts as calibration_texts
from tsc_cli.calibration.calibrate import calibrate
from tsc_cli.calibration.curve import coded, curve
from tsc_cli.calibration.effort import CURVE, QUICK, Effort, window_size
from tsc_cli.calibration.gather import CalibrationOptions, Gatherer
from tsc_cli.calibration.texts import library_texts, windows
from tsc_cli.calibration.texts import written as written_texts
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import prefill
from tsc_cli.scoring.fidelity import ENOUGH_POSITIONS


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(profile_store, "remembered", {})


# groups


@pytest.mark.parametrize(("widest", "layers"), [(60, [1, 1, 1]), (100, [2, 1])])
def test_a_wide_model_is_split_and_layers_predict_the_next(
    widest: int, layers: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layer_groups, "WIDEST", widest)
    profile = profile_for(tiny_model())
    assert [shape.layer_count for shape in profile.shapes] == layers
    assert [group.predict is not None for group in profile.groups] == [False, *[True] * (len(layers) - 1)]
    monkeypatch.setattr(gather, "continues_run", lambda *_: False)
    alone = profile_for(tiny_model())
    assert all(group.predict is None for group in alone.groups)
    rows = rows_of(256)
    for fineness in (360, 440):
        sizes, errors = [], []
        for one in (profile, alone):
            payload = encoded(rows, one, fineness=fineness, importance=0.0)
            sizes.append(len(payload))
            errors.append(error(rows, decoded(payload, rows, one)))
        assert sizes[0] < sizes[1]
        assert errors[0] < 1.1 * errors[1]
    profile_store.remember(profile)
    trace = capture(tiny_model(), models.prompt(60, seed=4), steps=2)
    assert largest_error(trace, written(trace, recipe_with(profile, 640), tmp_path / "t.tsc")) < 0.001


def test_layers_of_two_kinds_do_not_predict_each_other() -> None:
    profile = profile_for(models.gemma3_mixed(), windows=3)
    assert [shape.first_layer for shape in profile.shapes] == [0, 1, 2]
    assert all(group.predict is None for group in profile.groups)
    sliding, full, _ = profile.shapes
    assert sliding.rotary != full.rotary  # local and global layers turn at different speeds


# statistics


def test_statistics_are_those_of_all_rows_together() -> None:
    generator = torch.Generator().manual_seed(0)
    found = Statistics(1, 2, 3, 2, width_before=4)
    before = Statistics(1, 1, 2, 2)
    batches = [
        (torch.randn(20, 10, generator=generator) + 5, torch.randn(20, 4, generator=generator)) for _ in range(3)
    ]
    first = torch.arange(20) == 0
    for rows, others in batches:
        found.add_rows(rows, first, before.add_rows(others, first))
    rows, others = (torch.cat([batch[at][1:] for batch in batches]) for at in range(2))
    assert (found.tokens, found.firsts) == (57, 3)
    offset = found.sums / 57
    assert torch.allclose(found.origin + offset, rows.mean(0), atol=1e-4)
    covariance = found.covariance / 57 - torch.outer(offset, offset)
    assert torch.allclose(covariance, torch.cov(rows.T, correction=0), atol=1e-4)
    assert found.cross is not None
    cross = found.cross / 57 - torch.outer(offset, before.sums / 57)
    assert torch.allclose(cross, (rows - rows.mean(0)).T @ (others - others.mean(0)) / 57, atol=1e-4)
    assert torch.allclose(found.first_sums / 3, torch.stack([batch[0][0] for batch in batches]).mean(0), atol=1e-5)
    again = Statistics(1, 2, 3, 2, width_before=4)
    again.load(found.state())
    assert (again.tokens, again.firsts, again.positions) == (57, 3, 0)
    assert torch.equal(again.covariance, found.covariance)


def test_the_metric_is_the_root_of_the_fisher_information() -> None:
    generator = torch.Generator().manual_seed(0)
    found, first = Statistics(1, 1, 3, 3), torch.zeros(500, dtype=torch.bool)
    mixing = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
    gradients = torch.randn(500, 3, generator=generator) @ mixing.T
    found.add_gradients({part: gradients.view(1, 1, 500, 3) for part in (Part.KEYS, Part.VALUES)}, first, 10)
    fisher = gradients.T @ gradients / 5000
    floored = (fisher + fisher.trace() / 3 * torch.eye(3)) / 2
    metric = found.metric(Part.KEYS)[0, 0]
    assert torch.allclose(metric @ metric, floored, rtol=1e-4, atol=1e-6)
    assert torch.allclose(metric, metric.T, atol=1e-6)
    large = found.information({Part.KEYS: 2 * gradients.view(1, 1, 500, 3)})
    assert torch.allclose(large, 4 * found.information({Part.KEYS: gradients.view(1, 1, 500, 3)}), rtol=1e-3)


def test_vectors_are_keys_then_values() -> None:
    keys, values = torch.arange(24.0).view(2, 2, 2, 3), 100 + torch.arange(16.0).view(2, 2, 2, 2)
    vectors = flat({Part.KEYS: keys, Part.VALUES: values})
    assert vectors.shape == (2, 20)
    assert vectors[1].tolist() == [
        *[3, 4, 5, 9, 10, 11, 15, 16, 17, 21, 22, 23],
        *[102, 103, 106, 107, 110, 111, 114, 115],
    ]


def test_what_costs_much_is_weighted_much() -> None:
    """Values that the output projection blinds the model to cost nothing, and the metric finds that."""
    model = models.llama(initializer_range=0.1)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, :24].zero_()  # query heads 0 and 1, of KV head 0
    profile = profile_for(model, windows=4)
    cost = profile.groups[0].metric_values.diagonal(dim1=-2, dim2=-1).mean(-1)
    assert cost[1, 0] < 0.01 * cost[1, 1]
    assert cost[2, 0] > 0.2 * cost[2, 1]


def test_a_gatherer_is_put_aside_between_windows() -> None:
    options = CalibrationOptions(context=CONTEXT)
    texts = [models.prompt(CONTEXT + FOLLOWING, seed=seed) for seed in range(6)]
    whole, parts = Gatherer(ModelAdapter(tiny_model()), options), Gatherer(ModelAdapter(tiny_model()), options)
    for text in texts:
        whole.add(text)
    for text in texts[:5]:
        parts.add(text)
    state = {name: tensor.clone() for name, tensor in parts.state().items()}
    resumed = Gatherer(ModelAdapter(tiny_model()), options)
    resumed.load(state)
    assert resumed.done == 5
    resumed.add(texts[5])
    one, other = whole.state(), resumed.state()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(name.startswith("0.inputs.") for name in one)


# the whole


EFFORT = Effort(tokens=600, rank=64, held_out=2, curve=1)


def short_model() -> Any:
    """With 96 positions, so that windows are short."""
    return models.llama(initializer_range=0.1, max_position_embeddings=96)


def texts() -> list[list[int]]:
    return [models.prompt(900, seed=1), models.prompt(700, seed=2)]


def interrupting(stage: str, after: int) -> Any:
    """Opens progress bars of which that of one stage gives up after so many units."""

    @contextlib.contextmanager
    def bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(units: int) -> None:
            nonlocal done
            done += units
            if what == stage and done >= after:
                raise KeyboardInterrupt

        yield advance

    return bar


@pytest.fixture
def every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each item is put aside, which a machine does only where that is fast; and it is always the same day."""
    monkeypatch.setattr(checkpoint, "TIME_SHARE", 0.0)
    monkeypatch.setattr(calibrating.time, "strftime", lambda _: "2026-01-01")


def in_store() -> list[str]:
    return sorted(path.name for path in profile_store.folder().iterdir())


def test_an_interrupted_calibration_goes_on(every_item: None) -> None:
    model, said = short_model(), list[str]()
    want = calibrate(model, None, texts=texts(), effort=EFFORT)
    (installed,) = profile_store.folder().iterdir()
    assert installed == profile_store.path_of(want)
    installed.unlink()
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, None, texts=texts(), effort=EFFORT, stage=interrupting("gathering", 4))
    (left,) = profile_store.folder().iterdir()
    assert left.name.startswith(".calibration-")
    other = calibrate(model, None, texts=[models.prompt(1600, seed=3)], effort=EFFORT, say=said.append)
    assert not any("going on" in one for one in said)  # other texts
    assert left.exists()
    profile_store.path_of(other).unlink()
    moved = [[*texts()[0], texts()[1][0]], texts()[1][1:], *texts()[2:]]
    with pytest.raises(KeyboardInterrupt):  # the same tokens, cut elsewhere, are other texts
        calibrate(model, None, texts=moved, effort=EFFORT, say=said.append, stage=interrupting("gathering", 0))
    assert not any("going on" in one for one in said)
    have = calibrate(model, None, texts=texts(), effort=EFFORT, say=said.append)
    assert "going on after 4 of 8 windows that were gathered before" in said
    assert have.digest == want.digest != other.digest
    assert have.data == want.data
    assert list(profile_store.folder().glob("[!.]*")) == [profile_store.path_of(have)]
    assert not left.exists()


def without_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    prose, code = "prose about nothing. " * 60, "def f(x):\n    return x\n" * 60
    monkeypatch.setattr(calibrating, "library_texts", lambda: ([prose], [code]))
    monkeypatch.setattr(layer_groups, "WIDEST", 100)  # two bases, the second predicted from the first


STAGES = ("letting the model write", "gathering", "fitting", "counting symbols", "measuring")


def test_a_calibration_that_is_interrupted_after_every_item_gives_the_same_profile(
    every_item: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: each call gives up after the first item that it does, or the second, in each stage in turn."""
    without_texts(monkeypatch)
    model, tokenizer, said = short_model(), models.byte_tokenizer(), list[str]()
    seen: dict[str, list[int]] = {}

    @contextlib.contextmanager
    def counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        yield seen.setdefault(what, []).append

    effort = replace(EFFORT, own=24)
    want = calibrate(model, tokenizer, effort=effort, stage=counting)
    assert tuple(seen) == STAGES
    profile_store.path_of(want).unlink()
    largest = 0
    for what in STAGES:
        items = [units for units in seen[what] if units]
        assert len(items) >= 2
        for at in range(len(items)) if what != STAGES[0] else (0, 1, len(items) - 1):
            with pytest.raises(KeyboardInterrupt):
                calibrate(
                    model, tokenizer, effort=effort, say=said.append, stage=interrupting(what, sum(items[: at + 1]))
                )
            left = list(profile_store.folder().iterdir())
            assert left
            assert all(path.name.startswith(".calibration-") for path in left)
            assert all(path.stat().st_mode & 0o777 == 0o600 for path in left)
            largest = max(largest, len(left))
    assert largest <= 4
    have = calibrate(model, tokenizer, effort=effort, say=said.append)
    assert have.data == want.data
    assert in_store() == [profile_store.path_of(have).name]
    for start in ("going on after 2 of 2 bases", "going on after 1 of 2 bases", "going on after 3 of"):
        assert any(one.startswith(start) for one in said)


def test_nothing_that_was_done_is_done_again(every_item: None, monkeypatch: pytest.MonkeyPatch) -> None:
    without_texts(monkeypatch)
    model, tokenizer = short_model(), models.byte_tokenizer()
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, tokenizer, effort=EFFORT, stage=interrupting("measuring", 2))
    passes: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: passes.append(given["input_ids"].shape[1]), with_kwargs=True)
    calibrate(model, tokenizer, effort=EFFORT)
    # of the 7 finenesses 5 are left, each scored over 19 tokens, once the exact cache; its context is filled once
    assert sorted(passes)[-7:] == [19] * 6 + [76]
    assert sum(length > 8 for length in passes) == 7


@pytest.mark.parametrize("how", ["cut", "a bit", "foreign", "empty"])
def test_a_damaged_or_foreign_checkpoint_is_done_again(every_item: None, how: str) -> None:
    model, said = short_model(), list[str]()
    want = calibrate(model, None, texts=texts(), effort=EFFORT)
    profile_store.path_of(want).unlink()
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, None, texts=texts(), effort=EFFORT, stage=interrupting("gathering", 4))
    (left,) = profile_store.folder().iterdir()
    data = bytearray(left.read_bytes())
    if how == "foreign":
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, None, texts=texts()[:1], effort=EFFORT, stage=interrupting("gathering", 4))
        (other,) = (path for path in profile_store.folder().iterdir() if path != left)
        data = bytearray(other.read_bytes())
        other.unlink()
    data[-1000] ^= 4 if how == "a bit" else 0
    left.write_bytes({"cut": data[:1000], "empty": b""}.get(how, data))
    have = calibrate(model, None, texts=texts(), effort=EFFORT, say=said.append)
    assert not any("going on" in one for one in said)
    (told,) = (one for one in said if "earlier calibration" in one)
    assert ("belongs to another calibration" if how == "foreign" else "is damaged") in told
    assert str(left) in told
    assert have.data == want.data
    assert in_store() == [profile_store.path_of(have).name]


def test_what_nobody_went_on_with_is_removed(every_item: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrate(short_model(), None, texts=texts()[:1], effort=EFFORT, stage=interrupting("gathering", 4))
    (left,) = profile_store.folder().iterdir()
    os.utime(left, (0, 0))
    (profile_store.folder() / ".other").touch()
    profile = calibrate(short_model(), None, texts=texts(), effort=EFFORT)
    assert in_store() == [".other", profile_store.path_of(profile).name]


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from tests.support.models import llama, prompt
from tsc_cli.calibration import checkpoint
from tsc_cli.calibration.calibrate import calibrate
from tsc_cli.calibration.effort import QUICK, Effort

checkpoint.TIME_SHARE = 0.0
@contextmanager
def stage(what, total):
    done = 0
    def advance(units):
        nonlocal done
        done += units
        if what == sys.argv[1] and done >= int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
    yield advance
model = llama(initializer_range=0.1, max_position_embeddings=96)
texts = [prompt(900, seed=1), prompt(700, seed=2)]
calibrate(model, None, texts=texts, effort=Effort(tokens=600, rank=64, held_out=2, curve=1), stage=stage, say=print)
"""


@pytest.mark.full  # several processes; an interrupted one is tried in every run
def test_a_killed_calibration_goes_on(every_item: None) -> None:
    for what, after in (("gathering", 3), ("measuring", 2)):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, what, str(after)], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert "going on after 3 of 8 windows" in done.stdout
    said = list[str]()
    have = calibrate(short_model(), None, texts=texts(), effort=EFFORT, say=said.append)
    assert "going on after 1 of 1 bases that were fitted before" in said
    want = calibrate(short_model(), None, texts=texts(), effort=EFFORT)
    assert have.data == want.data
    assert in_store() == [profile_store.path_of(have).name]


@pytest.fixture(scope="module")
def calibrated() -> tuple[Any, Profile, list[tuple[str, int | None, int]]]:
    model = short_model()
    stages: list[tuple[str, int | None, int]] = []

    @contextlib.contextmanager
    def stage(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        done: list[int] = []
        yield done.append
        stages.append((what, total, sum(done)))

    return model, calibrate(model, None, name="small", texts=texts(), effort=EFFORT, stage=stage), stages


def test_a_calibration_says_what_it_did(calibrated: Any) -> None:
    _, profile, stages = calibrated
    assert profile.name == "small"
    assert profile.info | {"created": ""} == {
        "texts": "given",
        "tokens": 8 * 76,
        "windows": 8,
        "context": 76,
        "created": "",
        "rank": 64,
        "dtype": "float32",
        "seed": 0,
    }
    assert [what for what, _, _ in stages] == ["gathering", "fitting", "counting symbols", "measuring"]
    assert all(done == total for _, total, done in stages)


def test_a_quick_curve_has_fewer_points_and_positions(calibrated: Any) -> None:
    model, profile, _ = calibrated
    window = models.prompt(96, seed=8)
    whole = curve(ModelAdapter(model), profile, [window], lambda _: None, (300, 420))
    short = curve(ModelAdapter(model), profile, [window[: 76 + 1 + 10]], lambda _: None, (300, 420))
    assert [p["fineness"] for p in short] == [300, 420]
    assert [p["bits"] for p in short] == [p["bits"] for p in whole]
    assert all(a["kl"] != b["kl"] for a, b in zip(short, whole, strict=True))
    assert (len(QUICK.finenesses), QUICK.positions, QUICK.own) == (3, 128, 16)
    assert QUICK.positions >= ENOUGH_POSITIONS


def test_the_curve_is_what_files_give(calibrated: Any) -> None:
    model, profile, _ = calibrated
    points = profile.curve
    assert [p["fineness"] for p in points] == list(CURVE)
    assert [p["bits"] for p in points] == sorted(p["bits"] for p in points)
    assert points[-1]["kl"] < 0.2 * points[0]["kl"]
    assert points[-1]["top1"] >= points[0]["top1"]
    assert all(p["kl"] > 0 for p in points)
    window = models.prompt(96, seed=8)
    (first, *_) = curve(ModelAdapter(model), profile, [window], lambda _: None)
    cache, _ = prefill(ModelAdapter(model), window[:76], chunk=76)
    bits, twin = coded(cache, ModelAdapter(model), profile, 260)
    assert bits == first["bits"]
    assert twin.get_seq_length() == 76


def test_the_library_compresses_with_a_profile(calibrated: Any, tmp_path: Path) -> None:
    model, profile, _ = calibrated
    trace = capture(model, models.prompt(60, seed=6), steps=4)
    done = compress(trace, tmp_path / "a.tsc", max_kl=0.01, model=model, profile=profile, positions=20)
    assert done.header.codec == "klt"
    assert load(tmp_path / "a.tsc").quality[0]["kl_mean"] <= 0.01
    compress(trace, tmp_path / "b.tsc", recipe=Recipe("klt", {"fineness": 300}), profile=profile)
    assert load(tmp_path / "b.tsc").parameters["profile"] == profile.digest
    profile_store.install(profile)
    found = compress(trace, tmp_path / "c.tsc", recipe=Recipe("klt", {"fineness": 300}))
    assert found.header.parameters["profile"] == profile.digest  # the one that fits the model
    with pytest.raises(UsageError, match="give one of a tier, a quality, a KL and a recipe"):
        compress(trace, tmp_path / "d.tsc", max_kl=0.01, tier="63x")
    with pytest.raises(UsageError, match="the model is needed"):
        compress(trace, tmp_path / "d.tsc")


def test_counted_tables_save_bits() -> None:
    from formats.codecs.klt.profile import dumps
    from formats.codecs.klt.tables import assumed

    tiny, rows = tiny_profile(), rows_of(256)
    guessed = dumps("x", {}, tiny.groups, assumed(), {}, [])
    for fineness in (300, 400):
        assert len(encoded(rows, tiny, fineness=fineness)) < len(encoded(rows, guessed, fineness=fineness))


def test_windows_follow_the_models_positions() -> None:
    assert window_size(ModelAdapter(tiny_model())) == (1024, 256)
    assert window_size(ModelAdapter(short_model())) == (76, 20)
    assert window_size(ModelAdapter(models.gpt2())) == (204, 52)


def test_without_texts_the_library_and_the_model_itself_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    without_texts(monkeypatch)
    profile = calibrate(short_model(), models.byte_tokenizer(), effort=EFFORT)
    assert profile.info["texts"] == "library and own"
    assert 4 <= profile.info["windows"] <= 8
    assert list(profile_store.folder().iterdir()) == [profile_store.path_of(profile)]


def test_every_python_has_texts() -> None:
    (prose,), code = library_texts()
    assert len(prose) > 200_000
    assert len(code) > 15
    assert all("import" in module for module in code)


def test_a_model_writes_texts_of_its_own() -> None:
    model, tokenizer = short_model(), models.byte_tokenizer()
    ticks: list[int] = []
    found = list(written_texts(ModelAdapter(model), tokenizer, 18, 12, 5, ticks.append))
    assert [len(text) for text in found] == [12] * 18
    assert sum(ticks) == 18 * 12
    assert found == list(written_texts(ModelAdapter(model), tokenizer, 18, 12, 5))
    assert found != list(written_texts(ModelAdapter(model), tokenizer, 18, 12, 6))
    assert len({tuple(text) for text in found}) == 18


@pytest.mark.parametrize("family", ["", "gemma3", "jamba", "falcon_h1"])
def test_texts_do_not_depend_on_how_many_are_written_at_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own draws: alone, in batches, or gone on with at any token."""
    model = families.SUPPORTED[family].build(torch.float32) if family else short_model()
    tokenizer = None  # each text begins with a token of its own
    states: list[torch.Tensor] = []
    together = written_texts(
        ModelAdapter(model), tokenizer, 7, 20, 5, keep=lambda tokens: states.append(tokens.clone())
    )
    assert written_texts(ModelAdapter(model), tokenizer, 5, 20, 5) == together[:5]
    for size in (1, 3):
        monkeypatch.setattr(calibration_texts, "TOKENS_AT_ONCE", 20 * size)
        assert written_texts(ModelAdapter(model), tokenizer, 7, 20, 5) == together
    monkeypatch.setattr(calibration_texts, "TOKENS_AT_ONCE", 64 * 20)
    assert len(states) == 20
    for at in (0, 9, 19):
        assert written_texts(ModelAdapter(model), tokenizer, 7, 20, 5, before=states[at]) == together


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.0, 0.3, 0.2]).log().repeat(4000, 1)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = torch.bincount(calibration_texts.drawn_at(logits, uniform), minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.0, 0.3, 0.2]), atol=0.03)
    ends = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)  # float32 rounds the second to 1
    assert calibration_texts.drawn_at(logits[:2], ends).tolist() == [0, 3]


def test_a_model_that_takes_no_batches_writes_one_text_at_a_time() -> None:
    """Whether it refuses them or mixes their sequences."""
    tokenizer = models.byte_tokenizer()
    want = written_texts(ModelAdapter(short_model()), tokenizer, 3, 12, 5)
    mixes, refuses = short_model(), short_model()
    mixes.register_forward_hook(_mix)
    refuses.register_forward_pre_hook(lambda _, __, given: _one_only(given["input_ids"]), with_kwargs=True)
    for model in (mixes, refuses):
        assert written_texts(ModelAdapter(model), tokenizer, 3, 12, 5) == want


def _mix(model: Any, given: Any, output: Any) -> None:
    output.logits.copy_(output.logits.mean(0, keepdim=True))


def _one_only(tokens: torch.Tensor) -> None:
    if len(tokens) > 1:
        raise ValueError("one sequence at a time")


def test_windows_take_turns_and_are_spread() -> None:
    long, longer = list(range(100)), list(range(1000, 1300))
    found = windows([long, longer], 6, 20)
    assert [window[0] for window in found] == [0, 1000, 40, 1140, 80, 1280]
    assert all(len(window) == 20 for window in found)
    assert windows([[1] * 8, [2] * 8, [3] * 8], 1, 20) == [[1] * 8 + [2] * 8 + [3] * 4]
    with pytest.raises(UsageError, match="the texts have 16 tokens together, fewer than a window of 20"):
        windows([[1] * 8, [2] * 8], 1, 20)
    assert len(windows([list(range(25))], 50, 20)) <= 4  # a short text is not repeated for ever


def test_texts_that_are_too_short_are_refused() -> None:
    with pytest.raises(UsageError, match="fewer than a window of 96"):
        calibrate(short_model(), None, texts=[models.prompt(50)], effort=EFFORT)


def test_geometry_of_the_tiny_model_is_what_these_tests_assume() -> None:
    gatherer = Gatherer(ModelAdapter(tiny_model()), CalibrationOptions(context=CONTEXT))
    assert gatherer.geometry == Geometry("float32", (LayerSpec("full", 2, 12, 12),) * 3)


def test_longer_texts_give_what_shorter_ones_cannot() -> None:
    short, long = list(range(30)), list(range(1000, 1900))
    found = windows([short, long], 12, 20)
    assert len(found) == 12
    assert sum(window[0] < 1000 for window in found) == 2  # they overlap by half at most


def test_short_texts_are_said_to_be_short() -> None:
    said: list[str] = []
    profile = calibrate(short_model(), None, texts=[models.prompt(400)], effort=EFFORT, say=said.append)
    (told,) = (one for one in said if "were wanted" in one)
    assert told.startswith("the texts give 7 windows of 76 tokens, 10 were wanted")
    assert profile.info["windows"] == 6  # one of them is held out, not two


def test_what_cannot_be_held_is_refused_before_hours_are_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_groups, "MAX_BASIS", 144 * 20)
    with pytest.raises(UsageError, match="bases of rank 64 for 144 values a token") as caught:
        calibrate(short_model(), None, texts=texts(), effort=EFFORT)
    assert caught.value.hint == "--rank 20"
    monkeypatch.undo()
    monkeypatch.setenv("TSC_MEMORY_BUDGET", str(4 * 144**2 - 1))
    with pytest.raises(LimitError, match=f"take {4 * 144**2} bytes"):
        calibrate(short_model(), None, texts=texts(), effort=EFFORT)
    with pytest.raises(UsageError, match="a tokenizer is needed"):
        calibrate(short_model(), None, effort=EFFORT)


def test_gradients_beyond_the_dtype_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    gatherer, sound = (Gatherer(ModelAdapter(model), CalibrationOptions(Rank(64), 40)) for _ in range(2))
    tokens = [models.prompt(60, seed=n) for n in range(2)]
    monkeypatch.setitem(gather.LOSS_SCALE, torch.float32, float("inf"))
    gatherer.add(tokens[0])
    monkeypatch.undo()
    sound.add(tokens[0])
    assert (gatherer.overflowed, sound.overflowed) == (1, 0)
    assert gatherer.statistics[0].positions == 0 < sound.statistics[0].positions
    assert torch.equal(gatherer.statistics[0].covariance, sound.statistics[0].covariance)


def test_a_disk_that_is_full_does_not_end_a_calibration(every_item: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    said: list[str] = []
    profile = calibrate(short_model(), None, texts=texts(), effort=EFFORT, say=said.append)
    assert profile.info["windows"] == 8
    (told,) = (one for one in said if "cannot be put aside" in one)  # once, not for every item
    assert "No space left" in told
    assert in_store() == [profile_store.path_of(profile).name]


@pytest.mark.parametrize("family", ["gemma3n", "qwen3_next", pytest.param("deepseek_v32", marks=pytest.mark.full)])
def test_layers_without_rows_and_what_is_beside_rows(family: str, tmp_path: Path) -> None:
    model, tokens = families.SUPPORTED[family].build(torch.float32), [[t % 120 for t in text] for text in texts()]
    profile = calibrate(model, None, texts=tokens, effort=EFFORT)
    trace = capture(model, families.PROMPT, steps=1)
    with_rows = [number for number, spec in enumerate(trace.geometry.layers) if spec.parts]
    covered = [shape.first_layer + at for shape in profile.shapes for at in range(shape.layer_count)]
    assert covered == with_rows
    compress(trace, tmp_path / "t.tsc", recipe=Recipe("klt", {"profile": profile.digest, "fineness": 1000}))
    have, want = load(tmp_path / "t.tsc").snapshot(), trace.snapshot()
    for layer in with_rows:
        assert float((have.values[layer] - want.values[layer]).norm() / want.values[layer].norm()) < 0.5
    for layer, states in enumerate(want.states):  # in 8 bits
        for name, state in states.items():
            assert 0 < float((have.states[layer][name] - state).norm() / state.norm()) < 0.02
    indexed = [(a, b) for a, b in zip(have.indexer_keys, want.indexer_keys, strict=True) if a is not None]
    assert all(b is not None and 0 < float((a - b).norm() / b.norm()) < 0.02 for a, b in indexed)


@pytest.mark.parametrize(("family", "message"), [("mamba", "keeps states and no keys"), ("t5", "has an encoder")])
def test_models_that_codec_klt_is_not_for(family: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        calibrate(families.SUPPORTED[family].build(torch.float32), None, texts=texts(), effort=EFFORT)


def test_each_of_two_texts_is_run_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of two texts take turns, and so do those that gradients come from: one of every two, of both texts."""
    gatherer = Gatherer(ModelAdapter(tiny_model()), CalibrationOptions(context=CONTEXT, following=3))
    backwards: list[tuple[int, int]] = []
    monkeypatch.setattr(gatherer, "_gradients", lambda cache, ids: backwards.append((gatherer.done, len(ids))))
    for number in range(12):
        gatherer.add(models.prompt(CONTEXT + FOLLOWING, seed=number))
    numbers = [number for number, _ in backwards]
    assert [number // 2 for number in numbers] == list(range(6))  # one of every two
    assert {number % 2 for number in numbers} == {0, 1}
    assert {length for _, length in backwards} == {3}  # no more of what follows than was asked for
