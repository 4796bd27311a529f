"""Profiles: the bytes, read strictly; the folder of them; what fitting does with statistics."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from formats.codecs.klt import fitting, profile, profile_store
from formats.codecs.klt.fitting import Rank, leading
from formats.codecs.klt.group import DESCRIPTION, Group
from formats.codecs.klt.profile import Profile, dumps, loads
from formats.codecs.klt.rotary import Rotary
from formats.codecs.klt.shape import Shape
from formats.codecs.klt.statistics import Statistics
from formats.codecs.klt.tables import assumed
from formats.codecs.klt.transform import Transform
from formats.container import strict_json
from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView, pack, parse, to_torch
from formats.errors import CorruptError, LimitError, StorageError, UnsupportedFileError, UsageError
from formats.trace.geometry import Geometry, LayerSpec
from tests.formats.codecs.test_klt import tiny_profile
from tests.support.traces import same_bits
from tsc_cli.calibration.curve import with_curve
from tsc_cli.calibration.layer_groups import WIDEST, plan


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(profile_store, "remembered", {})


def named(name: str, **fingerprint: str) -> Profile:
    """The tiny profile under another name."""
    tiny = tiny_profile()
    return dumps(name, tiny.fingerprint | fingerprint, tiny.groups, tiny.tables, {"made": name}, [])


# bytes


def test_a_profile_is_read_back_as_it_was_written() -> None:
    tiny = tiny_profile()
    again = loads(tiny.data)
    assert again.digest == tiny.digest == hashlib.sha256(tiny.data).hexdigest()
    assert (again.name, again.fingerprint, again.info, again.shapes) == (
        tiny.name,
        tiny.fingerprint,
        tiny.info,
        tiny.shapes,
    )
    for name in ("mean", "first_mean", "metric_keys", "basis", "scale", "residual_scale", "importance"):
        one, other = (getattr(p.groups[0], name) for p in (tiny, again))
        assert same_bits(one.contiguous(), other.contiguous())
    assert dumps(tiny.name, tiny.fingerprint, tiny.groups, tiny.tables, tiny.info, tiny.curve).data == tiny.data
    curve = [{"fineness": 300.0, "bits": 1.5, "kl": 0.01, "top1": 0.9}]
    assert loads(with_curve(tiny, curve).data).curve == curve


def test_a_basis_of_every_integer_comes_back() -> None:
    tiny = tiny_profile()
    shape = tiny.shapes[0]
    values = torch.randint(-32767, 32768, (shape.rank, shape.width), generator=torch.Generator().manual_seed(0))
    values.view(-1)[:8] = torch.tensor([0, 1, -1, 127, -128, 32767, -32767, -32768])
    group = replace(tiny.groups[0], basis=values.to(torch.int16))
    again = dumps("x", {}, [group], tiny.tables, {}, [])
    assert torch.equal(again.groups[0].basis, values.to(torch.int16))


def test_every_truncation_is_refused() -> None:
    data = tiny_profile().data
    generator = random.Random(0)
    places = [*range(64), *(generator.randrange(len(data)) for _ in range(60)), len(data) - 1]
    for place in places:
        with pytest.raises(CorruptError):
            loads(data[:place])
    with pytest.raises(CorruptError):
        loads(data + b"\0")


def test_every_flipped_byte_makes_another_profile() -> None:
    tiny = tiny_profile()
    generator = random.Random(1)
    for _ in range(60):
        data = bytearray(tiny.data)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        try:
            found = loads(bytes(data))
            assert found.digest != tiny.digest
            found.groups, found.tables  # noqa: B018 - unpacked on demand
        except CorruptError:
            continue


def tensors() -> dict[str, torch.Tensor]:
    """The tensors of the tiny profile."""
    kinds = {"U8": torch.uint8, "F32": torch.float32, "F16": torch.float16, "I16": torch.int16, "U32": torch.uint32}

    def tensor(view: TensorView) -> torch.Tensor:
        return to_torch(view).view(kinds[view.dtype]).view(view.shape)

    return {name: tensor(view) for name, view in parse(tiny_profile().data, "test").items()}


def with_description(change: Any) -> bytes:
    found = tensors()
    described = strict_json.loads(found[DESCRIPTION].numpy().tobytes(), "test")
    change(described)
    found[DESCRIPTION] = torch.frombuffer(bytearray(strict_json.dumps(described)), dtype=torch.uint8)
    return pack(found)


def test_the_pieces_make_the_whole() -> None:
    assert pack(tensors()) == with_description(lambda d: None) == tiny_profile().data


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(color="blue"),
        lambda d: d.pop("curve"),
        lambda d: d.update(schema="tsc.profile/2"),
        lambda d: d.update(name=3),
        lambda d: d.update(groups=[]),
        lambda d: d.update(fingerprint=["a"]),
        lambda d: d.update(fingerprint={"weights": 3}),
        lambda d: d.update(curve=[{"kl": "small"}]),
        lambda d: d["groups"][0].update(color="blue"),
        lambda d: d["groups"][0].pop("heads"),
        lambda d: d["groups"][0].update(rank=0),
        lambda d: d["groups"][0].update(rank=10**6),
        lambda d: d["groups"][0].update(heads=3),
        lambda d: d["groups"][0].update(basis_step=0),
        lambda d: d["groups"][0].update(basis_step=-1.5),
        lambda d: d["groups"][0].update(bands=[8, 24]),
        lambda d: d["groups"][0].update(bands=[24, 8, d["groups"][0]["rank"]]),
        lambda d: d["groups"][0].update(metric_exponent=1000),
        lambda d: d["groups"][0]["rotary"].update(layers=[0, 0]),
        lambda d: d["groups"][0]["rotary"].update(layers=[0, 0, 9]),
        lambda d: d["groups"][0]["rotary"]["kinds"][0].update(frequencies=["fast"]),
        lambda d: d["groups"][0]["rotary"]["kinds"][0].update(frequencies=[0.5] * 40),
        lambda d: d["groups"].append(dict(d["groups"][0])),
    ],
)
def test_a_wrong_description_is_refused(change: Any) -> None:
    with pytest.raises(CorruptError):
        loads(with_description(change))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("0.mean"),
        lambda t: t.pop("tables.activity"),
        lambda t: t.pop("profile"),
        lambda t: t.update({"0.extra": torch.zeros(3)}),
        lambda t: t.update({"0.predict": torch.zeros(3, 3).half()}),
        lambda t: t.update({"0.mean": t["0.mean"][:-1]}),
        lambda t: t.update({"0.mean": t["0.mean"].double()}),
        lambda t: t.update({"0.scale": t["0.scale"].int()}),
        lambda t: t.update({"1.mean": t["0.mean"].clone()}),
        lambda t: t.update({"0.importance": t["0.importance"][1:]}),
    ],
)
def test_wrong_tensors_are_refused(change: Any) -> None:
    found = tensors()
    change(found)
    with pytest.raises(CorruptError):
        loads(pack(found))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.mean", float("nan")),
        ("0.metric_keys", float("inf")),
        ("0.importance", float("-inf")),
        ("tables.coefficients", 0),
        ("tables.activity", 9),
    ],
)
def test_a_wrong_value_is_refused_when_it_is_unpacked(name: str, value: float) -> None:
    found = tensors()
    if found[name].dtype == torch.uint32:
        changed = found[name].view(torch.int32).clone()
        changed.view(-1)[0] = int(value)
        found[name] = changed.view(torch.uint32)
    else:
        found[name].view(-1)[0] = value
    broken = loads(pack(found))
    with pytest.raises(CorruptError):
        broken.groups, broken.tables  # noqa: B018


def test_a_damaged_basis_is_refused() -> None:
    found = tensors()
    found["0.basis"] = found["0.basis"][:-4]
    with pytest.raises(CorruptError):
        loads(pack(found)).groups  # noqa: B018


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(pack({"weight": torch.zeros(3)}))
    with pytest.raises(CorruptError, match=r"weights\.safetensors: .*is a safetensors file, but not a profile"):
        profile_store.read(tmp_path / "weights.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CorruptError):
        profile_store.read(tmp_path / "text")
    with pytest.raises(StorageError, match="cannot be read"):
        profile_store.read(tmp_path / "none")


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_store, "MAX_PROFILE_BYTES", 1000)
    (tmp_path / "p").write_bytes(tiny_profile().data)
    with pytest.raises(LimitError, match="larger than a profile may be"):
        profile_store.read(tmp_path / "p")
    monkeypatch.setattr(profile, "MAX_PROFILE_BYTES", 1000)
    with pytest.raises(CorruptError, match="more than 1000 bytes"):
        loads(tiny_profile().data)


def test_runs_of_layers() -> None:
    tiny = tiny_profile()
    (group,) = tiny.groups

    def at(layer: int) -> Group:
        copies = {name: tensor.clone() for name, tensor in vars(group).items() if isinstance(tensor, torch.Tensor)}
        return replace(group, shape=replace(group.shape, first_layer=layer), **copies)

    three = [at(layer) for layer in (0, 3, 9)]
    whole = dumps("x", {}, three, tiny.tables, {}, [])
    assert whole.run(0, 3) == [0]
    assert whole.run(0, 6) == [0, 1]
    assert whole.run(9, 3) == [2]
    for wrong in ((0, 2), (1, 3), (3, 6), (0, 12), (12, 1)):
        with pytest.raises(CorruptError, match="the profile has no layers"):
            whole.run(*wrong)


# the folder


def test_a_profile_is_installed_and_found_by_its_digest() -> None:
    one = named("A Model/7B")
    path = profile_store.install(one)
    assert path.parent == profile_store.folder()
    assert path.name == f"a-model-7b-{one.digest[:12]}.safetensors"
    assert path.read_bytes() == one.data
    modified = path.stat().st_mtime_ns
    assert profile_store.install(one) == path
    assert path.stat().st_mtime_ns == modified
    for digits in (6, 11, 12, 40, 64):
        profile_store.remembered.clear()
        assert profile_store.resolve(one.digest[:digits]).digest == one.digest
    wrong = one.digest[:20] + ("0" if one.digest[20] != "0" else "1")
    with pytest.raises(UnsupportedFileError, match=f"profile {one.digest[:12]} is needed"):
        profile_store.resolve(wrong)
    for not_a_digest in ("", "abc", "hello1", one.digest.upper(), one.digest + "0", "../../../etc"):
        with pytest.raises(UsageError, match="is not a profile"):
            profile_store.resolve(not_a_digest)
    path.unlink()
    assert profile_store.resolve(one.digest).digest == one.digest  # this process knows it
    profile_store.remembered.clear()
    with pytest.raises(UnsupportedFileError):
        profile_store.resolve(one.digest)


def test_a_damaged_profile_is_replaced_and_hidden_files_are_passed_over() -> None:
    one = named("one")
    path = profile_store.install(one)
    path.write_bytes(one.data[:-1])
    assert not list(profile_store.installed())
    assert profile_store.install(one) == path
    assert path.read_bytes() == one.data
    (profile_store.folder() / ".calibration-0.gathered.safetensors").write_bytes(one.data)
    assert [found for found, _ in profile_store.installed()] == [path]
    copied = path.rename(profile_store.folder() / "copied by hand.safetensors")
    profile_store.remembered.clear()
    assert profile_store.find(one.digest[:6])[0] == copied
    assert profile_store.resolve(one.digest).digest == one.digest


def test_what_is_only_listed_is_not_kept() -> None:
    for name in ("one", "other"):
        profile_store.install(named(name))
    profile_store.remembered.clear()
    assert len(list(profile_store.installed())) == 2
    assert not profile_store.remembered
    chosen = profile_store.for_model(tiny_profile().fingerprint)
    assert chosen is not None
    assert list(profile_store.remembered) == [chosen.digest]


def test_an_ambiguous_beginning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = named("one"), named("other")
    for found, digest in ((one, "abcdef" + "0" * 58), (other, "abcdef" + "1" * 58)):
        found.__dict__["digest"] = digest
        profile_store.remember(found)
    with pytest.raises(UsageError, match="2 profiles begin with abcdef") as caught:
        profile_store.resolve("abcdef")
    assert caught.value.hint == "give more digits"
    assert profile_store.resolve("abcdef0") is one


def test_equal_weights_come_first_then_the_newest() -> None:
    fingerprint = tiny_profile().fingerprint
    assert profile_store.for_model(fingerprint) is None
    finetuned, older, newer = (named("finetuned", weights="f" * 64), named("older"), named("newer", weights="e" * 64))
    for age, one in ((30, older), (20, finetuned), (10, newer)):
        path = profile_store.install(one)
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    profile_store.install(named("another", config="0" * 64))
    (profile_store.folder() / "noise.safetensors").write_bytes(b"noise")

    def chosen(**changes: str) -> str | None:
        found = profile_store.for_model(fingerprint | changes)
        return None if found is None else found.name

    assert chosen() == "older"
    assert chosen(weights="f" * 64) == "finetuned"
    assert chosen(weights="1" * 64) == "newer"
    assert chosen(tokenizer="any", dtype="bfloat16", attention="eager") == "older"
    for field in ("architecture", "config", "layers", "kv_heads", "rope"):
        assert chosen(**{field: "other"}) is None
    assert [p.name for _, p in profile_store.installed()] == ["another", "newer", "finetuned", "older"]


# fitting


def test_the_leading_eigenvalues_of_a_wide_matrix() -> None:
    width = 2300
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    values = 10.0 * 0.93 ** torch.arange(width).float() + 1e-3
    matrix = (vectors * values) @ vectors.T
    matrix = (matrix + matrix.T) / 2
    found, columns = leading(matrix, 40)
    assert columns.shape == (width, 40)
    assert torch.allclose(found, values[:40].double(), rtol=1e-3)
    assert torch.allclose(columns.T @ columns, torch.eye(40, dtype=torch.float64), atol=1e-4)
    overlap = (columns * vectors[:, :40]).sum(0).abs()
    assert overlap.min() > 0.999
    exact = torch.linalg.eigvalsh(matrix[:300, :300].double()).flip(0)[:20]
    assert torch.allclose(leading(matrix[:300, :300], 20)[0], exact, rtol=1e-9)


def statistics_of(rows: torch.Tensor, size: int, gradient: float = 1.0) -> Statistics:
    """Of one layer and head with keys and values of this size; rows are (tokens, 2 x size)."""
    found = Statistics(1, 1, size, size)
    first = torch.arange(len(rows)) == 0
    found.add_rows(rows, first)
    generator = torch.Generator().manual_seed(3)
    gradients = {
        part: torch.randn(1, 1, len(rows), size, generator=generator) * gradient for part in (Part.KEYS, Part.VALUES)
    }
    found.add_gradients(gradients, first, 1)
    return found


def fitted(rows: torch.Tensor, rank: Rank, gradient: float = 1.0) -> Group:
    size = rows.shape[1] // 2
    shape = Shape(0, 1, 1, size, size, 1, 0, 1.0, (1,), (Rotary(()),))
    return fitting.fit(statistics_of(rows, size, gradient), shape, rank, torch.zeros(8), None).group


def some_rows(tokens: int = 400, size: int = 16, dimensions: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(dimensions, 2 * size, generator=generator)
    noise = 0.01 * torch.randn(tokens, 2 * size, generator=generator)
    return torch.randn(tokens, dimensions, generator=generator) @ mixing + noise + 3


def test_rank_and_energy_say_what_is_kept() -> None:
    rows = some_rows()
    assert fitted(rows, Rank(99)).shape.rank == 32
    assert fitted(rows, Rank(5)).shape.rank == 5
    assert fitted(rows, Rank(99, 0.999)).shape.rank == 6
    one = fitted(rows, Rank(6))
    assert torch.allclose(one.mean, rows[1:].mean(0), atol=1e-4)
    assert torch.allclose(one.first_mean, rows[0])
    assert one.shape.bands[-1] == 6
    scales = torch.exp2(one.scale.double() / 32)
    assert scales.tolist() == sorted(scales.tolist(), reverse=True)


def stored(group: Group) -> Group:
    """As a reader has it."""
    return dumps("x", {}, [group], assumed(), {}, []).groups[0]


@pytest.mark.parametrize("gradient", [1.0, 1e-9, 1e9])
def test_a_metric_far_from_float16_survives(gradient: float) -> None:
    rows = some_rows()
    group = stored(fitted(rows, Rank(32), gradient))
    plain = fitted(rows, Rank(32)).metric_keys
    assert torch.isfinite(group.metric_keys).all()
    assert torch.allclose(group.metric_keys / gradient, plain, rtol=2e-3, atol=1e-4)
    assert same_bits(group.metric_values.contiguous(), fitted(rows, Rank(32), gradient).metric_values.contiguous())
    transform = Transform(group, "cpu")
    none = torch.zeros(len(rows), dtype=torch.bool)
    parts = {Part.KEYS: rows[:, :16].view(1, 1, -1, 16), Part.VALUES: rows[:, 16:].view(1, 1, -1, 16)}
    weighted = transform.weigh(parts, none)
    prepared = transform.prepared(transform.analyse(weighted, group.shape.rank))
    back = transform.restore(prepared, None, none, torch.arange(len(rows)), 1, 0)
    for part, tensor in parts.items():
        assert torch.allclose(back[part][0], tensor[0], atol=0.02)


def lengths(group: Group) -> torch.Tensor:
    """Of the rows of a basis, over the scales of their coefficients: 1 but for rounding."""
    return (group.basis.float() * group.shape.basis_step).norm(dim=1) / torch.exp2(group.scale.double() / 32)


@pytest.mark.parametrize("decades", [0, 3, 4, 5, 6, 7, 8, 9])
def test_coefficients_are_computed_over_a_wide_range_of_scales(decades: int) -> None:
    """The rounding of large rows of a basis does not fill small coefficients with large ones."""
    size = 16
    generator = torch.Generator().manual_seed(5)
    mixing = torch.linalg.qr(torch.randn(2 * size, 2 * size, generator=generator))[0]
    scales = 10.0 ** -(torch.arange(2 * size) * decades / (2 * size))
    rows = (torch.randn(600, 2 * size, generator=generator) * scales) @ mixing
    group = stored(fitted(rows, Rank(2 * size)))
    assert 0.6 < lengths(group).min() < lengths(group).max() < 1.5
    transform = Transform(group, "cpu")
    none = torch.zeros(len(rows), dtype=torch.bool)
    parts = {Part.KEYS: rows[:, :size].view(1, 1, -1, size), Part.VALUES: rows[:, size:].view(1, 1, -1, size)}
    weighted = transform.weigh(parts, none)
    coefficients = transform.analyse(weighted, group.shape.rank)
    assert float(coefficients.square().mean(0).sqrt().max()) < 12
    left = (weighted - transform.synthesise(coefficients)).norm() / weighted.norm()
    assert left < (0.005 if decades else 0.2)  # a flat spectrum is rounded coarsely: the rest has what is left


@pytest.mark.parametrize(("small", "ranks"), [(4e-4, range(100, 257)), (1.5e-4, range(1, 20))])
def test_a_channel_far_larger_than_all_others(small: float, ranks: range) -> None:
    """Its component fits 16 bits, and rows that its rounding step would drown are left out of the basis."""
    size = 128
    rows = torch.randn(600, 2 * size, generator=torch.Generator().manual_seed(6)) * small
    rows[:, 7] /= small
    group = stored(fitted(rows, Rank(2 * size)))
    assert group.basis.abs().max() <= 32767
    assert (group.basis.abs() == 32767).sum() <= 1
    assert 0.99 < lengths(group)[0] < 1.01
    assert 0.8 < lengths(group).min() <= lengths(group).max() < 1.25
    assert group.shape.rank in ranks


# groups


def test_groups_of_a_large_model_stay_narrow() -> None:
    large = Geometry("bfloat16", (LayerSpec("full", 8, 128, 128),) * 32)
    shapes = plan(large, [Rotary(())] * 32)
    assert all(shape.width <= WIDEST for shape in shapes)
    assert [(s.first_layer, s.layer_count) for s in shapes][:2] == [(0, 5), (5, 5)]
    assert sum(shape.layer_count for shape in shapes) == 32
    assert sum(4 * shape.width**2 for shape in shapes) < 4e9
    small = plan(Geometry("float32", (LayerSpec("full", 3, 64, 64),) * 30), [Rotary(())] * 30)
    assert [s.layer_count for s in small] == [30]
    wide = plan(Geometry("float32", (LayerSpec("full", 64, 128, 128),) * 2), [Rotary(())] * 2)
    assert [s.layer_count for s in wide] == [1, 1]  # one layer is never split
    mixed = (LayerSpec("sliding", 2, 8, 8, 16), LayerSpec("full", 2, 8, 8)) * 2
    assert [s.first_layer for s in plan(Geometry("float32", mixed), [Rotary(())] * 4)] == [0, 1, 2, 3]
