"""`tsc probe-cache` as a person or a script meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from formats.codecs.klt import profile_store
from tests.formats.codecs.test_klt import profile_for
from tests.support import models
from tsc_cli.cli.main import run
from tsc_cli.huggingface.models.loading import load

TEXT = "".join(chr(97 + number % 26) for number in models.prompt(320))


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(profile_store, "remembered", {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_small_model(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def captured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "t.tsc"
    assert run(["capture", TEXT, "-m", str(folder), "-o", str(path), "--steps", "4", "-q"]) == 0
    return path


def test_the_report(tsc: Any, folder: Path, captured: Path) -> None:
    done = tsc("probe-cache", captured, "-m", folder, "--layers")
    assert done.code == 0
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= max(80, len(str(captured)) + 1)
    starts = [line[:28].strip() for line in lines]
    for known, signals in {
        "channel mean": ("keys as cached", "keys, no RoPE", "values"),
        "token before": ("keys as cached", "keys, no RoPE", "values"),
        "layer before": ("keys, no RoPE", "values"),
        "other heads": ("keys, no RoPE", "values"),
        "other part": ("keys, no RoPE", "values"),
    }.items():
        for signal in signals:
            assert f"{known}  {signal}" in [re.sub(" {2,}", "  ", start) for start in starts]
    assert "969 of 972 rows (99.7%) stand in it bit for bit; 3 are new" in done.out.replace("\n", " ")
    assert done.out.count("by layer (tok") == 2
    assert re.search(r"^verdict: 99\.7% of the rows are in the snapshot before; within a snapshot", done.out, re.M)
    quiet = tsc("probe-cache", captured, "-m", folder, "-q")
    assert re.fullmatch(r"[+-]\d\.\d{3}\n", quiet.out)
    assert quiet.err == ""


def test_json(tsc: Any, folder: Path, captured: Path) -> None:
    facts = tsc("probe-cache", captured, "-m", folder, "--json", "--snapshot", 1).json
    assert facts["schema"] == "tsc.probe-cache/1"
    assert (facts["snapshot"], facts["tokens"], facts["skip"], facts["rope"]) == (1, 321, 4, "model")
    assert (facts["codec"], facts["dtype"], facts["layer_count"], facts["figure"]) == ("lossless", "float32", 3, None)
    assert facts["snapshot_before"]["rows"] == 3 * 321
    assert facts["snapshot_before"]["share_identical"] == 320 / 321
    assert [(one["direction"], one["part"]) for one in facts["directions"]] == [
        *((name, part) for name in ("mean", "tokens") for part in ("keys", "keys_undone", "values")),
        *((name, part) for name in ("layers", "heads", "parts") for part in ("keys_undone", "values")),
    ]
    tokens = [one for one in facts["entries"] if (one["direction"], one["part"]) == ("tokens", "values")]
    assert [(one["layer"], one["head"]) for one in tokens] == [(n, h) for n in range(3) for h in range(2)]
    total = next(one for one in facts["directions"] if (one["direction"], one["part"]) == ("tokens", "values"))
    assert total["ratio"] == pytest.approx(sum(one["ratio"] for one in tokens) / 6)
    assert facts["verdict"]["most"]["bits"] == pytest.approx(
        float(tsc("probe-cache", captured, "-m", folder, "-q", "--snapshot", -4).out), abs=5e-4
    )
    first = tsc("probe-cache", captured, "--no-rope", "--json", "--snapshot", 0).json
    assert (first["snapshot_before"], first["rope"]) == (None, None)
    assert {one["part"] for one in first["directions"]} == {"keys", "values"}


def test_where_rope_comes_from(tsc: Any, folder: Path, captured: Path) -> None:
    """The file names a model that nobody else can find: without a profile the keys stay as they are, with a note."""
    unknown = tsc("probe-cache", captured)
    assert unknown.code == 0
    assert "no RoPE" not in unknown.out
    assert "note: keys as cached only: neither a profile nor the model says how they turn" in unknown.out
    assert "note: keys as cached only" not in tsc("probe-cache", captured, "--no-rope").out
    by_model = tsc("probe-cache", captured, "-m", folder, "--json").json
    profile_store.install(profile_for(load(str(folder), say=lambda _: None).model, windows=4, rank=32))
    by_profile = tsc("probe-cache", captured, "--json").json
    assert (by_model.pop("rope"), by_profile.pop("rope")) == ("model", "profile")
    assert by_profile == by_model


def test_another_model_is_refused(tsc: Any, captured: Path, tmp_path: Path) -> None:
    other = models.save_small_model(tmp_path / "other", models.llama(layers=2))
    done = tsc("probe-cache", captured, "-m", other)
    assert (done.code, done.out) == (2, "")
    assert "belongs to another model" in done.err


def test_lossy_files_say_so(tsc: Any, folder: Path, captured: Path, tmp_path: Path) -> None:
    small = tmp_path / "s.tsc"
    assert tsc("compress", captured, "-m", folder, "--codec", "scalar", "--set", "bits=4", "-o", small, "-q").code == 0
    done = tsc("probe-cache", small, "--no-rope")
    assert "note: rows as codec scalar restores them" in done.out
    assert tsc("probe-cache", small, "--no-rope", "--json").json["codec"] == "scalar"
    assert "restores them" not in tsc("probe-cache", captured, "--no-rope").out


def test_windows_and_one_head(tsc: Any, tmp_path: Path) -> None:
    model = models.save_small_model(tmp_path / "gemma", models.gemma3_mixed())
    path = tmp_path / "g.tsc"
    assert tsc("capture", TEXT, "-m", model, "-o", path, "--steps", 1, "-q").code == 0
    done = tsc("probe-cache", path, "-m", model)
    assert done.code == 0
    assert re.search(r"^other heads +none", done.out, re.M)
    assert "note: layers with fewer than 16 rows are left out" in done.out


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_figure(tsc: Any, captured: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / f"f.{kind}"
    done = tsc("probe-cache", captured, "--no-rope", "--plot", target)
    assert (done.code, done.out.endswith(f"\n\n{target}\n")) == (0, True)
    first = target.read_bytes()
    assert first[:4] == {"png": b"\x89PNG", "svg": b"<?xm"}[kind]
    refused = tsc("probe-cache", captured, "--no-rope", "--plot", target)
    assert (refused.code, refused.out) == (2, "")
    assert "exists already" in refused.err
    again = tsc("probe-cache", captured, "--no-rope", "--plot", target, "--force", "--json")
    assert again.json["figure"] == str(target)
    assert target.read_bytes() == first


BAD = {
    "missing": (["no.tsc"], 2, "cannot be opened"),
    "snapshot": (["FILE", "--snapshot", "5"], 2, "there is no snapshot 5"),
    "figure of another kind": (["FILE", "--plot", "x.pdf"], 2, "only PNG and SVG are drawn"),
    "figure nowhere": (["FILE", "--plot", "no/where.png"], 2, "the folder does not exist"),
    "skip": (["FILE", "--skip", "310"], 2, "has 14 rows after the first 310 tokens"),
    "negative skip": (["FILE", "--skip", "-1"], 2, "Invalid value for '--skip'"),
    "model unused": (["FILE", "-m", "x", "--no-rope"], 2, "--no-rope leaves that out"),
    "no model": (["FILE", "-m", "./nowhere"], 2, "no such model"),
    "one token": (["ONE"], 2, "has 0 rows after the first 4 tokens"),
    "damaged": (["CUT"], 3, ""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_what_and_where(
    tsc: Any, case: str, folder: Path, captured: Path, tmp_path: Path
) -> None:
    words, code, message = BAD[case]
    one, cut = tmp_path / "one.tsc", tmp_path / "cut.tsc"
    if case == "one token":
        assert run(["capture", "a", "-m", str(folder), "-o", str(one), "--steps", "0", "-q"]) == 0
    data = bytearray(captured.read_bytes())
    data[len(data) // 2] ^= 1
    cut.write_bytes(data)
    named = {"FILE": str(captured), "ONE": str(one), "CUT": str(cut)}
    before = sorted(tmp_path.rglob("*"))
    done = tsc("probe-cache", *(named.get(word, word) for word in words))
    assert (done.code, done.out) == (code, "")
    lines = done.err.splitlines()
    assert lines[0].startswith("tsc: error: ")
    assert message in lines[0]
    assert len(lines) <= 2
    assert sorted(tmp_path.rglob("*")) == before


def test_the_figure_shows_what_was_measured(
    tsc: Any, captured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    done = tsc("probe-cache", captured, "--no-rope", "--plot", tmp_path / "f.png", "--json")
    facts = json.loads(done.out)
    figure = plt.gcf()
    panels = [axes for axes in figure.axes if axes.images]
    lines = [(one["direction"], one["part"]) for one in facts["directions"] if one["direction"] != "mean"]
    assert len(panels) == 2 * len(lines)
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    for number, axes in enumerate(panels):
        line, way = lines[number % len(lines)], ("bits", "map_bits")[number // len(lines)]
        grid = axes.images[0].get_array().filled(float("nan"))
        for one in facts["entries"]:
            if (one["direction"], one["part"]) == line and one[way] is not None:
                assert grid[one["layer"], one["head"]] == pytest.approx(one[way])
    monkeypatch.undo()
    plt.close(figure)
