"""Codec klt: rows through a profile that was calibrated on a tiny model, block by block and in files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from formats import Snapshot, Trace, deduplicate, load
from formats.codecs import CODECS, BlockContext
from formats.codecs.klt import importance, profile_store, symbols
from formats.codecs.klt.ans import Decoder, Encoder
from formats.codecs.klt.codec import Klt, KltSettings
from formats.codecs.klt.fitting import Rank
from formats.codecs.klt.profile import Profile
from formats.codecs.klt.tables import assumed
from formats.container.records import Part
from formats.container.safetensors_buffer import pack, parse
from formats.container.safetensors_buffer import to_torch as tensor_of
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import write
from formats.errors import CorruptError, UnsupportedFileError, UsageError
from formats.file.check import check
from formats.trace.blocks import BlockShape
from formats.trace.distortion import relative_error
from formats.trace.geometry import Geometry, LayerSpec
from tests.support import models
from tests.support.traces import same_bits, same_snapshots
from tsc_cli import capture
from tsc_cli.calibration.gather import CalibrationOptions, Gatherer
from tsc_cli.calibration.symbol_counting import joint_blocks, profile_of
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import prefill
from tsc_cli.session.decode_loop import CaptureOptions

CONTEXT, FOLLOWING = 64, 32
Rows = dict[Part, torch.Tensor]


def profile_for(
    model: Any, *, windows: int = 8, rank: int = 4096, context: int = CONTEXT, name: str = "tiny"
) -> Profile:
    """The profile of a model out of a few windows of random tokens."""
    gatherer = Gatherer(ModelAdapter(model), CalibrationOptions(Rank(rank), context))
    for number in range(windows):
        gatherer.add(models.prompt(context + FOLLOWING, seed=100 + number))
    return profile_of(
        gatherer, gatherer.groups(), [models.prompt(context, seed=n) for n in (1, 2)], name, {"tokens": 1}
    )


@lru_cache(maxsize=1)
def tiny_model() -> Any:
    return models.llama(initializer_range=0.1)


@lru_cache(maxsize=4)
def tiny_profile(rank: int = 4096) -> Profile:
    """Of the tiny model; by default its basis leaves next to nothing."""
    return profile_for(tiny_model(), rank=rank)


@pytest.fixture(scope="session")
def profile() -> Profile:
    return tiny_profile()


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of profiles and a memory of its own for each test."""
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(profile_store, "remembered", {})


@lru_cache(maxsize=8)
def rows_of(length: int = 96, seed: int = 7) -> Rows:
    """The cache of a prompt of the tiny model, as the codec takes it."""
    cache, _ = prefill(ModelAdapter(tiny_model()), models.prompt(length, seed=seed), chunk=length)
    ((rows, _),) = joint_blocks(cache, Geometry("float32", (LayerSpec("full", 2, 12, 12),) * 3))
    return rows


def encoded(rows: Rows, profile: Profile, positions: Sequence[int] | None = None, **settings: Any) -> bytes:
    positions = range(rows[Part.KEYS].shape[3]) if positions is None else positions
    around = BlockContext(positions=positions, end=max(positions) + 1, profile=lambda: profile)
    return pack(Klt(KltSettings(**settings)).encode(rows, around))


def decoded(payload: bytes, rows: Rows, profile: Profile, positions: Sequence[int] | None = None) -> Rows:
    """Rows of the shape and dtype of `rows` out of a payload; a decoder knows no settings and no end."""
    keys, values = rows[Part.KEYS], rows[Part.VALUES]
    layers, batch, heads, count, size = keys.shape
    dtype = str(keys.dtype).removeprefix("torch.")
    shape = BlockShape(
        dtype, keys.element_size(), layers, batch, count, LayerSpec("full", heads, size, values.shape[-1])
    )
    tensors = parse(payload, "test")
    codec = CODECS[Klt.id]()
    codec.check(tensors, Part.JOINT, shape, "test")
    around = BlockContext(positions=range(count) if positions is None else positions, profile=lambda: profile)
    return dict(codec.decode(tensors, Part.JOINT, shape, "cpu", around))


def there_and_back(rows: Rows, profile: Profile, positions: Sequence[int] | None = None, **settings: Any) -> Rows:
    back = decoded(encoded(rows, profile, positions, **settings), rows, profile, positions)
    for part, tensor in rows.items():
        assert back[part].shape == tensor.shape
        assert back[part].dtype == tensor.dtype
        assert torch.isfinite(back[part]).all()
    return back


def error(rows: Rows, back: Rows, tokens: slice | Sequence[int] = slice(None)) -> float:
    """The larger relative error of keys and of values, norms over the given tokens."""
    pairs = [(rows[part][..., tokens, :].float(), back[part][..., tokens, :].float()) for part in rows]
    return max(float((a - b).norm() / a.norm()) for a, b in pairs)


def written(trace: Trace, recipe: Recipe, path: Path) -> Trace:
    with path.open("wb") as sink:
        write(Source(trace), recipe, sink)
    check(path)
    return load(path)


def recipe_with(profile: Profile, fineness: int = 500, **more: Any) -> Recipe:
    settings = more.pop("settings", {})
    return Recipe("klt", {"profile": profile.digest, "fineness": fineness, **settings}, **more)


# one block


def test_finer_steps_cost_more_and_err_less(profile: Profile) -> None:
    rows = rows_of()
    payloads = [encoded(rows, profile, fineness=fineness) for fineness in (200, 264, 328, 392, 456, 520)]
    errors = [error(rows, decoded(payload, rows, profile)) for payload in payloads]
    assert [len(payload) for payload in payloads] == sorted(len(payload) for payload in payloads)
    # a step is a quarter of the one before, and so is the error where the step is all that matters
    assert all(0.15 < finer / coarser < 0.7 for coarser, finer in pairwise(errors)), errors
    assert errors[-1] < 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 2])
def test_dtypes_and_batches(profile: Profile, dtype: torch.dtype, batch: int) -> None:
    whole = [rows_of(seed=seed) for seed in range(batch)]
    rows = {part: torch.cat([one[part] for one in whole], 1).to(dtype) for part in whole[0]}
    back = there_and_back(rows, profile, fineness=520)
    rounding = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    assert error(rows, back) < 0.005 + rounding
    for number in range(batch):  # each sequence comes back in its own place
        pair = [{part: tensor[:, number : number + 1] for part, tensor in one.items()} for one in (rows, back)]
        assert error(*pair) < 0.005 + rounding


def test_a_row_far_outside_the_basis_is_coded_at_coarse_steps() -> None:
    """One row in a hundred may hold most of the error: auto codes what the basis leaves of it, and of few others."""
    narrow, rows = tiny_profile(rank=40), {part: tensor.clone() for part, tensor in rows_of().items()}
    generator = torch.Generator().manual_seed(0)
    for tensor in rows.values():
        tensor[:, :, :, 30] += 20 * torch.randn(tensor[:, :, :, 30].shape, generator=generator)
    sizes = {rest: len(encoded(rows, narrow, fineness=150, rest=rest)) for rest in ("auto", "no")}
    back, without = (there_and_back(rows, narrow, fineness=150, rest=rest) for rest in ("auto", "no"))
    assert error(rows, back, [30]) < 0.3 * error(rows, without, [30])
    assert sizes["no"] < sizes["auto"] < sizes["no"] + 2_000


def test_a_first_token_has_no_coefficients_and_comes_back(profile: Profile) -> None:
    rows = rows_of()
    back = there_and_back(rows, profile, fineness=300)
    # its step is six octaves finer, since so much depends on it
    assert error(rows, back, [0]) < 0.2 * error(rows, back, slice(1, None))
    alone = {part: tensor[..., :1, :] for part, tensor in rows.items()}
    payload = encoded(alone, profile, fineness=300)
    *_, rank, _ = parse(payload, "test")["layout"].integers()
    assert rank == 0
    assert error(alone, decoded(payload, alone, profile)) < 0.02


def test_the_rest_is_worth_its_bits() -> None:
    narrow, rows = tiny_profile(rank=40), rows_of()
    with_rest, without = (encoded(rows, narrow, fineness=450, rest=rest) for rest in ("yes", "no"))
    errors = [error(rows, decoded(payload, rows, narrow)) for payload in (with_rest, without)]
    assert errors[0] < 0.1 * errors[1]
    assert len(with_rest) > len(without)
    assert encoded(rows, narrow, fineness=450) == with_rest  # auto: the basis leaves more than a step
    assert encoded(rows, narrow, fineness=100) == encoded(rows, narrow, fineness=100, rest="no")


def steps_of(payload: bytes, profile: Profile, count: int) -> list[int]:
    """How much finer the step of each row is, in quarter octaves."""
    words = tensor_of(parse(payload, "test")["words"]).numpy().view(np.uint32)
    taken = Decoder(words).take(profile.tables.importance, np.zeros(count, np.uint8))
    return [int(symbol) - 128 for symbol in taken]


def test_importance_sets_the_steps_of_rows(profile: Profile) -> None:
    rows = rows_of()
    plain = steps_of(encoded(rows, profile, importance=0.0), profile, 96)
    assert plain == [importance.FIRST, *[0] * 95]
    chosen = steps_of(encoded(rows, profile, importance=1.0), profile, 96)
    assert chosen[0] == importance.FIRST
    assert len(set(chosen[1:])) > 2
    assert min(chosen) >= importance.COARSEST
    assert max(chosen) <= importance.FINEST
    doubled = steps_of(encoded(rows, profile, importance=2.0), profile, 96)
    assert sum(map(abs, doubled[1:])) > 1.5 * sum(map(abs, chosen[1:]))


def test_a_finer_step_is_a_smaller_error(profile: Profile) -> None:
    rows = rows_of()
    finer = torch.tensor(steps_of(encoded(rows, profile, fineness=300), profile, 96))
    back = there_and_back(rows, profile, fineness=300)
    distance = sum((rows[part] - back[part]).square().sum((0, 1, 2, 4)) for part in rows)
    order = finer[1:].argsort()
    coarse, fine = (distance[1:][places].mean() for places in (order[:20], order[-20:]))
    assert fine < coarse


def test_very_fine_steps_use_raw_bits(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    low: list[int] = []
    put = symbols.put

    def spy(encoder: Encoder, tables: Any, integers: Any, classes: symbols.Classes) -> list[int]:
        low.append(int(classes.low.max()))
        return put(encoder, tables, integers, classes)

    monkeypatch.setattr(symbols, "put", spy)
    rows = rows_of()
    back = there_and_back(rows, profile, fineness=720)
    assert max(low) > 8
    assert error(rows, back) < 1e-4


def test_rows_unlike_any_before_escape_the_tables(profile: Profile) -> None:
    rows = {part: tensor.clone() for part, tensor in rows_of().items()}
    rows[Part.VALUES][1, 0, 1, 33] *= 1e5
    rows[Part.KEYS][2, 0, 0, 50, 3] = -3e4
    payload = encoded(rows, profile, fineness=400, rest="yes")
    assert parse(payload, "test")["apart"].shape[0] > 0
    back = decoded(payload, rows, profile)
    assert error(rows, back, [33, 50]) < 1e-4
    others = [token for token in range(96) if token not in (33, 50)]
    assert error(rows, back, others) < 0.1


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e9])
def test_steps_are_no_finer_than_integers_hold(profile: Profile, scale: float) -> None:
    rows = {part: tensor.clone() for part, tensor in rows_of().items()}
    for tensor in rows.values():
        tensor[..., 20:30, :] *= scale
    for fineness in (400, 700):
        back = there_and_back(rows, profile, fineness=fineness, rest="yes")
        assert error(rows, back, range(20, 30)) < 1e-4
        assert error(rows, back, range(40, 90)) < 0.1


def test_a_step_beyond_all_integers_is_refused(profile: Profile) -> None:
    with pytest.raises(UsageError, match="fineness=2048 is finer than 32 bits hold"):
        encoded(rows_of(), profile, fineness=2048)
    rows = rows_of()
    assert error(rows, there_and_back(rows, profile, fineness=1200)) < 1e-5


def test_positions_turn_the_keys(profile: Profile) -> None:
    """Rows that begin anywhere come back, and cost what they cost at the beginning."""
    model, prompt = tiny_model(), models.prompt(80, seed=3)
    places = torch.arange(500, 580)[None]
    cache = models.cache_in(model(input_ids=torch.tensor([prompt]), position_ids=places, use_cache=True))
    rows = {
        Part.KEYS: torch.stack([layer.keys for layer in cache.layers]).detach(),
        Part.VALUES: torch.stack([layer.values for layer in cache.layers]).detach(),
    }
    tail = {part: tensor[..., 8:, :] for part, tensor in rows.items()}
    there = there_and_back(tail, profile, range(508, 580), fineness=450)
    assert error(tail, there) < 0.02
    right = encoded(tail, profile, range(508, 580), fineness=450, importance=0.0)
    wrong = encoded(tail, profile, range(208, 280), fineness=450, importance=0.0)
    assert len(right) < 0.97 * len(wrong)
    assert error(tail, decoded(right, tail, profile, range(208, 280))) > 0.3


def test_the_bytes_and_the_rows_are_always_the_same(profile: Profile) -> None:
    rows = rows_of()
    once, again = (encoded(rows, profile, fineness=350) for _ in range(2))
    assert once == again
    one, other = (decoded(once, rows, profile) for _ in range(2))
    assert all(same_bits(one[part], other[part]) for part in one)


def test_settings_are_bounded() -> None:
    for wrong in ({"fineness": 3000}, {"importance": -0.1}, {"price": 2.0}, {"rest": "perhaps"}):
        with pytest.raises(UsageError):
            KltSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "layout": t["layout"][:-1]},
        lambda t: {**t, "layout": torch.cat([t["layout"], t["layout"]])},
        lambda t: {**t, "layout": t["layout"] + torch.tensor([0, 0, 0, 2], dtype=torch.int32)},
        lambda t: {**t, "layout": t["layout"] + torch.tensor([0, 0, 999, 0], dtype=torch.int32)},
        lambda t: {**t, "words": t["words"][:-3]},
        lambda t: {**t, "words": t["words"][2:]},
        lambda t: {**t, "apart": torch.ones(3, dtype=torch.int32)},
        lambda t: {name: tensor for name, tensor in t.items() if name != "apart"},
    ],
)
def test_damaged_payloads_are_refused(profile: Profile, change: Any) -> None:
    rows = rows_of()
    tensors = {name: tensor_of(view) for name, view in parse(encoded(rows, profile), "test").items()}
    kinds = {"layout": torch.int32, "words": torch.uint32, "apart": torch.int32}
    tensors = {name: tensor.view(kinds[name]) for name, tensor in tensors.items()}
    assert error(rows, decoded(pack(tensors), rows, profile)) < 0.2
    with pytest.raises(CorruptError):
        decoded(pack(change(tensors)), rows, profile)


# files


@pytest.fixture(scope="module")
def trace() -> Trace:
    return capture(tiny_model(), models.prompt(90, seed=5), options=CaptureOptions(steps=6, attention=True))


def test_a_file_holds_every_snapshot(profile: Profile, trace: Trace, tmp_path: Path) -> None:
    profile_store.install(profile)
    small = written(trace, recipe_with(profile), tmp_path / "t.tsc")
    assert small.codec == "klt"
    assert small.parameters["fineness"] == 500
    assert relative_error(trace, small) < 1e-4
    assert len(small) == len(trace) == 7
    for number in (0, 3, 6):
        have, want = small.snapshot(number), trace.snapshot(number)
        assert have.token_ids == want.token_ids
        assert all(torch.equal(a, b) for a, b in zip(have.row_positions, want.row_positions, strict=True))
    assert same_snapshots(small.snapshot(2), load(tmp_path / "t.tsc").snapshot(2))
    one = small.snapshot(-1, layers=[1])
    assert same_bits(one.values[0], small.snapshot(-1).values[1])


def test_the_file_is_deterministic(profile: Profile, trace: Trace) -> None:
    profile_store.remember(profile)
    sinks = [io.BytesIO(), io.BytesIO()]
    for sink in sinks:
        write(Source(trace), recipe_with(profile), sink, file_id=bytes(16))
    assert sinks[0].getvalue() == sinks[1].getvalue()


def test_blocks_of_tokens_are_decoded_alone(
    profile: Profile, trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Klt, "block_rows", 20)
    profile_store.remember(profile)
    small = written(trace, recipe_with(profile), tmp_path / "t.tsc")
    want = trace.snapshot(-1)
    spans = []
    for block in reversed(small.blocks):
        rows = block.read()
        spans.append((block.key.first_row, block.key.span.stop))
        assert block.key.layer_count == 3
        for layer in range(3):
            exact = want.keys[layer][:, :, slice(*spans[-1])]
            assert float((rows[Part.KEYS][layer] - exact).norm() / exact.norm()) < 0.015
    assert sorted(spans) == [(0, 20), (20, 40), (40, 60), (60, 80), (80, 96)]


def test_exact_rows_keep_their_promise(profile: Profile, trace: Trace, tmp_path: Path) -> None:
    profile_store.remember(profile)
    recipe = recipe_with(profile, 240, exact_sinks=4, exact_last=8)
    small, want = written(trace, recipe, tmp_path / "t.tsc").snapshot(-1), trace.snapshot(-1)
    assert len(want.token_ids) == 96
    for have, exact in zip(small.keys + small.values, want.keys + want.values, strict=True):
        distance = (have - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert same_bits(have[:, :, -8:].contiguous(), exact[:, :, -8:].contiguous())
        assert distance[:, :, :4].max() < 0.002  # 12 bits
        assert distance[:, :, 4:-8].mean() > 0.02
    assert load(tmp_path / "t.tsc").parameters["exact_last"] == 8


@pytest.mark.parametrize(("evict", "settings"), [("h2o", {"keep": 0.5}), ("streaming", {"sinks": 4, "window": 40})])
def test_evicted_rows_stay_away(
    profile: Profile, trace: Trace, tmp_path: Path, evict: str, settings: dict[str, Any]
) -> None:
    profile_store.remember(profile)
    recipe = recipe_with(profile, evict=evict, evict_settings=settings)
    small = written(trace, recipe, tmp_path / "klt.tsc").snapshot(-1)
    exact = written(trace, replace(recipe, codec="lossless", settings={}), tmp_path / "exact.tsc").snapshot(-1)
    assert small.keys[0].shape[2] < 60
    for have, want in zip(small.keys + small.values, exact.keys + exact.values, strict=True):
        assert float((have - want).norm() / want.norm()) < 0.02


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(profile: Profile, value: float) -> None:
    broken = capture(tiny_model(), models.prompt(30), steps=2)
    profile_store.remember(profile)
    (block,) = broken.blocks
    block.rows[Part.VALUES][1, 0, 1, 9, 3] = value  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"the values of layer 1 hold a value that is not finite.*klt"):
        write(Source(broken), recipe_with(profile), io.BytesIO())


def test_one_token_is_enough(profile: Profile, tmp_path: Path) -> None:
    profile_store.remember(profile)
    short = capture(tiny_model(), [5], steps=0)
    small = written(short, recipe_with(profile), tmp_path / "t.tsc")
    assert relative_error(short, small) < 1e-4


# the profile of a file


def test_a_file_needs_its_profile(profile: Profile, trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "t.tsc"
    profile_store.install(profile)
    written(trace, recipe_with(profile), path)
    assert path.stat().st_size < profile.size
    load(path).snapshot(0)
    profile_store.path_of(profile).unlink()
    profile_store.remembered.clear()
    with pytest.raises(UnsupportedFileError, match=f"profile {profile.digest[:12]} is needed") as caught:
        load(path).snapshot(0)
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None
    assert "tsc profiles --import" in caught.value.hint
    profile_store.install(profile)
    load(path).snapshot(0)


def test_an_embedded_profile_is_read_anywhere(profile: Profile, trace: Trace, tmp_path: Path) -> None:
    profile_store.remember(profile)
    named = written(trace, recipe_with(profile), tmp_path / "named.tsc").snapshot(-1)
    written(trace, recipe_with(profile, embed_profile=True), tmp_path / "t.tsc")
    assert (tmp_path / "t.tsc").stat().st_size > (tmp_path / "named.tsc").stat().st_size + profile.size // 3
    profile_store.remembered.clear()
    assert not profile_store.folder().exists()
    assert same_snapshots(load(tmp_path / "t.tsc").snapshot(-1), named)


def test_another_embedded_profile_than_the_named_one_is_refused(profile: Profile, trace: Trace, tmp_path: Path) -> None:
    from formats.codecs.klt.profile_store import ProfileReference

    other = tiny_profile(rank=40)
    with pytest.raises(CorruptError, match="not the one that the file names"):
        ProfileReference(other.digest, memoryview(profile.data)).load()


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(vocab_size=300, n_embd=48, n_layer=3, n_head=4, n_positions=256),
        transformers.LlamaConfig(**models.SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=20),
        *(
            transformers.LlamaConfig(
                **(models.SMALL | {"num_hidden_layers": layers}), num_attention_heads=4, num_key_value_heads=2
            )
            for layers in (2, 4)
        ),
    ],
    ids=["heads", "head size", "fewer layers", "more layers"],
)
def test_a_profile_of_another_shape_is_refused(config: Any, trace: Trace) -> None:
    other = profile_store.remember(profile_for(built(config), windows=2))
    with pytest.raises(UsageError, match="the profile does not fit the rows") as caught:
        write(Source(trace), recipe_with(other), io.BytesIO())
    assert caught.value.hint is not None


def test_a_profile_of_another_shape_cannot_decode(profile: Profile) -> None:
    rows = rows_of()
    payload = encoded(rows, profile)
    with pytest.raises(CorruptError, match="do not fit the profile"):
        decoded(payload, rows, profile_for(models.gpt2(), windows=3))


# families


FAMILIES = {
    "llama": lambda: models.llama(initializer_range=0.1),
    "gpt2": models.gpt2,
    "qwen3": models.qwen3,
    "mistral-sliding": models.mistral_sliding,
    "gemma3-mixed": models.gemma3_mixed,
    "mqa": lambda: built(transformers.LlamaConfig(**models.SMALL, num_attention_heads=4, num_key_value_heads=1)),
    "bfloat16": lambda: models.llama(torch.bfloat16, initializer_range=0.1),
}


def built(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def largest_error(trace: Trace, small: Trace) -> float:
    """Of keys or values of any layer and snapshot: the norm of the difference over the norm."""
    found = []
    for number in range(len(trace)):
        have, want = small.snapshot(number), trace.snapshot(number)
        for one, other in zip(have.keys + have.values, want.keys + want.values, strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            found.append(float((one.float() - other.float()).norm() / other.float().norm()))
    return max(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    profile = profile_for(model, windows=6)
    profile_store.remember(profile)
    trace = capture(model, models.prompt(70, seed=9), steps=2)
    assert any(rotary.channels for shape in profile.shapes for rotary in shape.rotary) == (family != "gpt2")
    errors, sizes = [], []
    for fineness in (400, 560, 720):  # such models feel little of an error, so that steps have to be fine
        small = written(trace, recipe_with(profile, fineness), tmp_path / f"{fineness}.tsc")
        errors.append(largest_error(trace, small))
        sizes.append((tmp_path / f"{fineness}.tsc").stat().st_size)
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)
    assert errors[-1] < 0.03
    if family == "mistral-sliding":
        assert small.snapshot(-1).keys[0].shape[2] == 15


# symbols


@pytest.fixture(scope="module")
def tables() -> Any:
    return assumed().coefficients


PUT = st.lists(
    st.tuples(st.integers(-(2**30), 2**30), st.integers(0, symbols.CLASSES - 1), st.integers(0, 16)), max_size=60
)


@hypothesis_settings(max_examples=60, deadline=None)
@given(rows=PUT)
def test_taking_is_the_inverse_of_putting(tables: Any, rows: list[tuple[int, int, int]]) -> None:
    integers, table, low = (np.array([row[at] for row in rows], dtype=np.int32) for at in range(3))
    classes = symbols.Classes(table.astype(np.uint8), low.astype(np.uint8))
    encoder = Encoder()
    apart = symbols.put(encoder, tables, integers, classes)
    decoder = Decoder(encoder.words())
    left = list(apart)
    assert symbols.take(decoder, tables, classes, left).tolist() == integers.tolist()
    assert left == []
    decoder.finish()
    if apart:
        with pytest.raises(CorruptError, match="too few integers"):
            symbols.take(Decoder(encoder.words()), tables, classes, apart[:-1])


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    scaled=st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=40),
    exponent=st.integers(-600, 400),
    price=st.floats(0.0, 1.0),
)
def test_quantizing_never_moves_away_from_zero(tables: Any, scaled: list[float], exponent: int, price: float) -> None:
    values = np.array(scaled, dtype=np.float32)
    classes = symbols.classes_of(np.full(len(values), exponent, dtype=np.int32))
    nearest = symbols.quantize(values, classes, tables.bits, 0.0)
    assert nearest.tolist() == np.rint(values).astype(np.int32).tolist()
    found = symbols.quantize(values, classes, tables.bits, price)
    assert (np.abs(found) <= np.abs(nearest)).all()
    assert (found * nearest >= 0).all()


def test_a_price_saves_bits(tables: Any) -> None:
    values = np.random.default_rng(0).laplace(0, 0.5, 4000).astype(np.float32)
    classes = symbols.classes_of(np.full(4000, -16, dtype=np.int32))
    free, dear = (symbols.quantize(values, classes, tables.bits, price) for price in (0.0, 0.2))
    assert np.count_nonzero(dear) < 0.8 * np.count_nonzero(free)


@hypothesis_settings(max_examples=100, deadline=None)
@given(exponent=st.integers(-5000, 5000))
def test_classes_cover_every_spread(exponent: int) -> None:
    classes = symbols.classes_of(np.array([exponent], dtype=np.int32))
    table, low = int(classes.table[0]), int(classes.low[0])
    assert 0 <= table < symbols.CLASSES
    if symbols.LOWEST * 8 <= exponent <= symbols.HIGHEST * 8 + 16 * 32:
        # what the table covers, shifted by the low bits, is the spread to an eighth of an octave
        assert abs((table + symbols.LOWEST) * 8 + 32 * low - exponent) <= 4
    assert low == 0 or table + symbols.LOWEST > symbols.HIGHEST - 4 or low == 16


def test_importance_is_predicted_from_what_explains_it() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 2, 300, 8, generator=generator) for _ in range(2))
    sizes = torch.rand(300, generator=generator) * 3
    keys *= sizes.exp()[:, None]
    inputs = importance.features(keys, values, torch.arange(300), 300)
    assert inputs.shape == (300, importance.POSITION_FEATURES + 8)
    weights = importance.fit([inputs[:150], inputs[150:]], [(2 * sizes[:150]).exp(), (2 * sizes[150:]).exp()])
    predicted = inputs @ weights
    assert abs(float(predicted.mean())) < 0.01
    assert float(torch.corrcoef(torch.stack([predicted, sizes]))[0, 1]) > 0.98
    first = torch.arange(300) == 0
    finer = importance.finer(predicted, 1.0, first)
    assert finer[0] == importance.FIRST
    # four times the information is half the step: one octave, four quarters
    assert torch.equal(importance.finer(torch.tensor([4.0, 0.25]).log(), 1.0, first[1:3]), torch.tensor([4, -4]))
    extreme = importance.finer(torch.tensor([1e3, -1e3]), 1.0, first[1:3])
    assert extreme.tolist() == [importance.FINEST, importance.COARSEST]


# rows that a profile cannot take


def test_layers_that_hold_different_rows_are_refused_by_name(profile: Profile, trace: Trace) -> None:
    """An edit that changes layers from 1 on: layer 0 keeps its row, the others store a second one."""
    first = trace.snapshot(0)
    edited = Snapshot(
        [k + 0.5 if layer else k for layer, k in enumerate(first.keys)],
        list(first.values),
        first.row_positions,
        first.token_ids,
        first.positions,
        1,
    )
    edited.values[1:] = [values + 0.5 for values in edited.values[1:]]
    uneven = deduplicate([first, edited], trace.geometry)
    profile_store.remember(profile)
    with pytest.raises(UsageError, match="the profile has no layers 0 to 0"):
        write(Source(uneven), recipe_with(profile), io.BytesIO())
