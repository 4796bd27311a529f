"""`tsc calibrate`, `tsc profiles`, and `tsc compress` with a profile, as a person or a script meets them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from formats import load
from formats.codecs.klt import profile_store
from formats.container.safetensors_buffer import pack
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.errors import PromiseError
from tests.formats.codecs.test_klt import profile_for
from tests.support import models
from tsc_cli.cli.main import run
from tsc_cli.compression.compressor import Compressor

TEXT = "".join(f"line {n} of a text that is cut into windows, {n * n % 97}; " for n in range(80))
EFFORT = ["--tokens", "1024", "--rank", "64"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, its profile, a text and a capture, and a cache folder of its own."""
    folder = tmp_path_factory.mktemp("calibrate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSC_CACHE", str(folder / "cache"))
        patch.setattr(profile_store, "remembered", {})
        model = models.llama(initializer_range=0.1, max_position_embeddings=160)
        models.save_small_model(folder / "model", model)
        (folder / "text.txt").write_text(TEXT)
        words = ["calibrate", "-m", str(folder / "model"), "--text", str(folder / "text.txt"), *EFFORT]
        assert run([*words, "-o", str(folder / "profile.safetensors"), "-q"]) == 0
        words = ["capture", TEXT[:400], "-m", str(folder / "model"), "-o", str(folder / "t.tsc"), "--steps", "16"]
        assert run([*words, "--context", "100", "-q"]) == 0
        yield folder


@pytest.fixture(autouse=True)
def own_store(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSC_CACHE", str(place / "cache"))
    monkeypatch.setattr(profile_store, "remembered", {})


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another machine: nothing in its cache folder."""
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(profile_store, "remembered", {})
    return tmp_path / "elsewhere"


def digest_of(place: Path) -> str:
    return profile_store.read(place / "profile.safetensors").digest


def refused(done: Any, message: str, hint: str, code: int = 2) -> None:
    """One line and a hint."""
    assert done.code == code, done.err
    assert message in done.err
    first, *rest = done.err.strip().splitlines()
    assert first.startswith("tsc: error: ")
    assert len(rest) <= 1
    assert hint in done.err


# calibrate


def test_a_calibration_is_reported_and_repeatable(tsc: Any, place: Path, tmp_path: Path) -> None:
    words = ["-m", place / "model", "--text", place / "text.txt", *EFFORT]
    done = tsc("calibrate", *words, "-o", tmp_path / "p.safetensors", "--json")
    assert done.code == 0, done.err
    facts = done.json
    assert facts["schema"] == "tsc.profile/1"
    assert facts["digest"] == digest_of(place)
    assert facts["bytes"] == (tmp_path / "p.safetensors").stat().st_size
    assert facts["info"]["tokens"] == 8 * 128
    assert facts["groups"] == [{"first_layer": 0, "layer_count": 3, "values_a_token": 144, "rank": 64, "rotary": True}]
    assert [point["fineness"] for point in facts["curve"]] == [260, 300, 330, 360, 390, 420, 450]
    again = tsc("calibrate", *words)
    assert again.code == 0
    assert re.search(r"^ +rank +64 of 144$", again.out, re.MULTILINE)
    assert re.search(r"of fp32 +bits/value +KL +top-1", again.out)
    (installed,) = (place / "cache" / "profiles").iterdir()
    assert str(installed) in again.out
    assert tsc("calibrate", *words, "--seed", 1, "--json").json["digest"] != facts["digest"]
    for path in (place / "cache" / "profiles").iterdir():
        if path != installed:
            path.unlink()


def test_wrong_calibrations_are_refused_at_once(tsc: Any, place: Path, tmp_path: Path) -> None:
    model = ["-m", place / "model"]
    refused(tsc("calibrate", *model, "--rank", 9, "--energy", 0.9), "give either --rank or --energy", "")
    refused(tsc("calibrate", *model, "-o", "-"), "a profile is written to a file", "-o PROFILE.safetensors")
    refused(tsc("calibrate", *model, "--text", tmp_path / "none.txt"), "none.txt: cannot be read", "")
    refused(tsc("calibrate", *model, "-o", place / "text.txt"), "exists", "--force")
    refused(tsc("calibrate", *model, "--tokens", 5), "1024", "--help")
    refused(tsc("calibrate", *model, "--dtype", "int3"), "int3", "")
    (tmp_path / "short.txt").write_text("too short")
    short = tsc("calibrate", *model, "--text", tmp_path / "short.txt")
    refused(short, "fewer than a window of 160", "longer texts")
    assert len(list((place / "cache" / "profiles").iterdir())) == 1


# profiles


def test_profiles_are_listed(tsc: Any, place: Path, elsewhere: Path) -> None:
    assert "no profiles in" in tsc("profiles").out
    assert tsc("profiles", "--json").json["profiles"] == []
    assert tsc("profiles", "--import", place / "profile.safetensors").code == 0
    listed = tsc("profiles", "--json").json
    assert listed["folder"] == str(elsewhere / "profiles")
    (one,) = listed["profiles"]
    assert one["digest"] == digest_of(place)
    text = tsc("profiles").out
    assert re.search(rf"^{one['digest'][:12]} ", text, re.MULTILINE)
    assert tsc("profiles", "-q").out == f"{one['digest']}\n"


def test_profiles_travel(tsc: Any, place: Path, elsewhere: Path, tmp_path: Path) -> None:
    assert tsc("profiles", "--import", place / "profile.safetensors", "-q").code == 0
    profile_store.remembered.clear()
    digest = digest_of(place)
    done = tsc("profiles", "--export", digest[:8], "-o", tmp_path / "out.safetensors", "--json")
    assert done.json["digest"] == digest
    assert (tmp_path / "out.safetensors").read_bytes() == (place / "profile.safetensors").read_bytes()
    assert tsc("profiles", "--export", digest, "-o", tmp_path / "out.safetensors").code == 2  # it exists
    removed = tsc("profiles", "--remove", digest[:12])
    assert removed.code == 0
    assert removed.out.startswith("removed ")
    profile_store.remembered.clear()
    assert tsc("profiles", "--json").json["profiles"] == []
    assert not list((elsewhere / "profiles").iterdir())


def test_wrong_profiles_are_refused(tsc: Any, place: Path, elsewhere: Path, tmp_path: Path) -> None:
    unknown = "0123456789abcdef"
    for words in (["--remove", unknown], ["--export", unknown, "-o", tmp_path / "p"]):
        refused(tsc("profiles", *words), f"there is no profile {unknown} on this machine", "tsc profiles lists them")
    refused(tsc("profiles", "--remove", "abc"), "'abc' is not a profile", "tsc profiles lists")
    refused(tsc("profiles", "--export", unknown), "--export DIGEST and -o FILE go together", "")
    refused(tsc("profiles", "-o", tmp_path / "p"), "--export DIGEST and -o FILE go together", "")
    refused(tsc("profiles", "--remove", unknown, "--import", "x"), "give one of --import, --export and --remove", "")
    refused(tsc("profiles", "--import", tmp_path / "none"), "cannot be read", "")
    refused(tsc("profiles", "--import", place / "t.tsc"), "t.tsc: ", "", code=3)
    (tmp_path / "w.safetensors").write_bytes(pack({"weight": torch.zeros(2)}))
    refused(tsc("profiles", "--import", tmp_path / "w.safetensors"), "is a safetensors file, but not a profile", "", 3)
    assert not (elsewhere / "profiles").exists()


# compress


def compress(tsc: Any, place: Path, *words: object) -> Any:
    return tsc("compress", place / "t.tsc", *words)


def test_a_kl_is_kept_and_holds_when_it_is_measured_again(tsc: Any, place: Path, tmp_path: Path) -> None:
    sizes = []
    for max_kl in (0.002, 0.05):
        target = tmp_path / f"{max_kl}.tsc"
        words = ["--max-kl", max_kl, "-m", place / "model", "-o", target, "--positions", 40, "--json"]
        done = compress(tsc, place, *words)
        assert done.code == 0, done.err
        assert done.json["codec"] == "klt"
        again = tsc("verify", target, "-m", place / "model", "--json", "--positions", 40, "--greedy", 0)
        measured = again.json["results"][0]["kl_mean"]
        assert 0.3 * max_kl < measured <= max_kl * 1.001
        assert measured == pytest.approx(done.json["quality"]["kl_mean"], rel=1e-3)
        sizes.append(target.stat().st_size)
    assert sizes[1] < sizes[0]
    assert load(target).tier == "kl0.05"
    assert tsc("test", target).code == 0


def test_a_profile_makes_files_smaller(tsc: Any, place: Path, tmp_path: Path, elsewhere: Path) -> None:
    words = ["--max-kl", 0.01, "-m", place / "model", "--positions", 40, "--json"]
    without = compress(tsc, place, *words, "-o", tmp_path / "a.tsc")
    assert without.json["codec"] in ("scalar", "lossless")
    noted = compress(tsc, place, "--max-kl", 0.01, "-m", place / "model", "--positions", 40, "-o", tmp_path / "n.tsc")
    assert "no profile of this model" in noted.err
    given = compress(tsc, place, *words, "-o", tmp_path / "b.tsc", "--profile", place / "profile.safetensors")
    assert given.code == 0, given.err
    assert given.json["codec"] == "klt"
    assert (tmp_path / "b.tsc").stat().st_size < 0.8 * (tmp_path / "a.tsc").stat().st_size


def test_without_a_target_the_quality_is_high(tsc: Any, place: Path, tmp_path: Path) -> None:
    source = tmp_path / "book.tsc"
    source.write_bytes((place / "t.tsc").read_bytes())
    done = tsc("compress", source, "-m", place / "model", "--positions", 40, "--json")
    assert done.code == 0, done.err
    assert done.json["path"] == str(tmp_path / "book.high.tsc")
    assert done.json["quality"]["kl_mean"] <= 0.01
    assert load(tmp_path / "book.high.tsc").tier == "high"
    small = tsc("compress", source, "-m", place / "model", "--positions", 40, "--quality", "small", "--json")
    assert small.json["quality"]["kl_mean"] <= 0.15
    assert (tmp_path / "book.small.tsc").stat().st_size < (tmp_path / "book.high.tsc").stat().st_size


def test_a_top1_share_is_kept(tsc: Any, place: Path, tmp_path: Path) -> None:
    words = ["-m", place / "model", "--positions", 40, "-o", tmp_path / "x.tsc", "--json"]
    done = compress(tsc, place, "--min-top1", 0.975, *words)
    assert done.code == 0, done.err
    assert done.json["quality"]["top1"] >= 0.975
    both = compress(tsc, place, "--min-top1", 0.5, "--max-kl", 0.001, *words[:-3], "-o", tmp_path / "y.tsc", "--json")
    assert both.json["quality"]["kl_mean"] <= 0.001
    assert (tmp_path / "y.tsc").stat().st_size > 0


@pytest.mark.parametrize("bits", [3.0, 6.0])
def test_bits_are_kept(tsc: Any, place: Path, tmp_path: Path, bits: float) -> None:
    done = compress(tsc, place, "--bits", bits, "--no-verify", "-o", tmp_path / "x.tsc", "--json")
    assert done.code == 0, done.err
    values = 116 * 3 * 2 * 2 * 12
    assert 0.7 * bits < 8 * (tmp_path / "x.tsc").stat().st_size / values <= bits
    assert done.json["codec"] == "klt"


def test_a_file_is_read_where_its_profile_is(
    tsc: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = ["--codec", "klt", "--set", "fineness=300", "--no-verify", "-q"]
    assert compress(tsc, place, *by_hand, "-o", tmp_path / "named.tsc").code == 0
    assert compress(tsc, place, *by_hand, "-o", tmp_path / "held.tsc", "--embed-profile").code == 0
    digest = digest_of(place)
    for name in ("named.tsc", "held.tsc"):
        facts = json.loads(tsc("inspect", tmp_path / name, "--json").out)
        assert facts["parameters"]["profile"] == digest
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "elsewhere"))
    profile_store.remembered.clear()
    words = ["-m", place / "model", "--positions", 9, "--greedy", 0]
    refused(tsc("verify", tmp_path / "named.tsc", *words, "-q"), f"profile {digest[:12]} is needed", "--import", code=3)
    assert tsc("verify", tmp_path / "held.tsc", *words).code == 0
    profile_store.remembered.clear()
    assert tsc("profiles", "--import", place / "profile.safetensors").code == 0
    assert tsc("verify", tmp_path / "named.tsc", *words).code == 0


def test_a_profile_by_digest_and_one_that_does_not_fit(tsc: Any, place: Path, tmp_path: Path) -> None:
    by_hand = ["--codec", "klt", "--no-verify", "-o", tmp_path / "x.tsc"]
    assert compress(tsc, place, *by_hand, "--profile", digest_of(place)[:10]).code == 0
    other = profile_for(models.gpt2(), windows=2)
    (tmp_path / "gpt2.safetensors").write_bytes(other.data)
    done = compress(tsc, place, *by_hand, "-f", "--profile", tmp_path / "gpt2.safetensors")
    refused(done, "the profile does not fit the rows", "tsc calibrate")
    refused(compress(tsc, place, *by_hand, "-f", "--profile", "f" * 12), "is needed", "tsc profiles", code=3)
    layers = tmp_path / "two-layers.safetensors"
    chosen = ["--tier", "20x", "--no-verify", "-o", tmp_path / "y.tsc", "--profile", layers]
    layers.write_bytes(profile_for(models.llama(layers=2), windows=2).data)
    refused(compress(tsc, place, *chosen), "does not fit the file's layers", "tsc profiles")
    assert not (tmp_path / "y.tsc").exists()


def test_an_embedded_profile_counts(tsc: Any, place: Path, tmp_path: Path) -> None:
    """The promise is kept with the profile in the file, or by another codec."""
    source, profile = Source(load(place / "t.tsc")), profile_store.resolve(digest_of(place))
    compressor = Compressor(source, None, profile=profile, embed_profile=True)
    by_hand = Recipe("klt", {"profile": profile.digest, "fineness": 300})
    named, held = compressor.size(by_hand), compressor.size(replace(by_hand, embed_profile=True))
    assert held > named + 10_000  # zstd takes most of so small a one
    assert compressor.klt_within(held + 100, 0.0).embed_profile
    with pytest.raises(PromiseError):
        compressor.klt_within(held - named, 0.0)
    words = ["--bits", f"{8 * held / source.stored_values:.4f}", "--no-verify", "-o", tmp_path / "held.tsc"]
    assert compress(tsc, place, *words, "--embed-profile").code == 0
    assert (tmp_path / "held.tsc").stat().st_size <= held + 1


def test_wrong_words_are_refused(tsc: Any, place: Path, elsewhere: Path, tmp_path: Path) -> None:
    model = ["-m", place / "model", "-o", tmp_path / "x.tsc"]
    refused(compress(tsc, place, *model, "--quality", "hihg"), "there is no quality 'hihg'", "did you mean high?")
    refused(compress(tsc, place, *model, "--quality", "x"), "there is no quality 'x'", "near-exact, high, balanced")
    refused(
        compress(tsc, place, *model, "--quality", "high", "--max-kl", 0.1),
        "--quality and --max-kl or --min-top1 cannot be combined",
        "",
    )
    refused(compress(tsc, place, *model, "--bits", 2, "-t", "63x"), "--tier and --bits cannot be combined", "")
    refused(compress(tsc, place, *model, "--dry-run", "--max-kl", 0.1), "--dry-run shows tiers", "without --quality")
    refused(compress(tsc, place, "--no-verify", "-q", "-o", tmp_path / "x.tsc"), "the model is needed", "-m MODEL")
    refused(compress(tsc, place, *model, "--codec", "klt"), "codec klt needs a profile", "tsc calibrate makes one")
    refused(compress(tsc, place, *model, "--max-kl", -1), "--max-kl", "--help")
    assert not (tmp_path / "x.tsc").exists()
