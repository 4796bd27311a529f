"""`tsc probe-weights` as a person or a script meets it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import checkpoints, models

TYPES = ["q", "k", "v", "o", "gate", "up", "down"]
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers that have nothing to do with each other."""
    return checkpoints.write(tmp_path_factory.mktemp("probe") / "far", checkpoints.tensors(5, wide=4), shards=2)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after a little training."""
    generator = torch.Generator().manual_seed(1)
    made = {
        name: tensor + 0.0005 * torch.randn(tensor.shape, generator=generator) if "proj" in name else tensor
        for name, tensor in checkpoints.tensors(5, wide=4).items()
    }
    return checkpoints.write(tmp_path_factory.mktemp("probe") / "tuned", made)


def test_both_verdicts(tsc: Any, far: Path, tuned: Path) -> None:
    no = tsc("probe-weights", far, "--global")
    assert no.code == 0
    last = no.out.splitlines()[-1]
    assert re.fullmatch(r"global: no; r 1\.\d+ to 1\.\d+, best \S+ to \S+; deltas cost 0\.\d\d bits a weight", last)
    assert len(last) <= 80
    yes = tsc("probe-weights", tuned, "--against", far, "--global").out.splitlines()[-1]
    assert re.fullmatch(r"global: yes; r 0\.\d+ to 0\.\d+; deltas save 5\.\d\d bits a weight", yes)
    assert tsc("probe-weights", far).out.count("global") == 0
    assert float(tsc("probe-weights", far, "-q").out) == pytest.approx(-0.5, abs=0.1)
    assert float(tsc("probe-weights", tuned, "--against", far, "-q").out) == pytest.approx(5.3, abs=0.3)


def test_json_has_every_figure_of_every_layer(tsc: Any, far: Path) -> None:
    facts = tsc("probe-weights", far, "--json").json
    assert facts["schema"] == "tsc.probe-weights/1"
    assert (facts["model"], facts["form"], facts["against"], facts["layers"]) == ("far", "safetensors", None, 5)
    assert [one["type"] for one in facts["types"]] == TYPES
    gate = facts["types"][4]
    assert (gate["outputs"], gate["inputs"], gate["layers"], gate["experts"]) == (160, 64, 5, 0)
    assert gate["weights"] == 5 * 160 * 64
    entries = gate["entries"]
    assert [(entry["layer"], entry["reference"]) for entry in entries] == [(n, n - 1 if n else None) for n in range(5)]
    assert entries[0]["ratio"] is None
    ratios = [entry["ratio"] for entry in entries[1:]]
    assert gate["ratio_mean"] == pytest.approx(sum(ratios) / 4)
    assert gate["ratio_max"] == max(ratios)
    assert gate["best_min"] == min(entry["best"] for entry in entries)
    assert gate["bits_saved_mean"] == pytest.approx(gate["bits_weight_mean"] - gate["bits_delta_mean"])
    assert facts["verdict"]["answer"] == "no"
    assert facts["verdict"]["yes_for"] == []
    assert facts["skipped"] == []


def test_tables_fit_a_terminal(tsc: Any, tmp_path: Path, tuned: Path, far: Path) -> None:
    made = {}
    for n in range(3):
        made[f"backbone.layers.{n}.a_rather_long_name_of_a_part.of_a_model.weight"] = 1e-4 * torch.randn(2048, 16)
        made[f"backbone.layers.{n}.mlp.down_proj.weight"] = torch.zeros(16, 2048)
        made[f"backbone.layers.{n}.odd.weight"] = torch.zeros(16, 4 + n)
        made |= {f"backbone.layers.{n}.mlp.experts.{e}.up_proj.weight": torch.randn(8, 16) for e in range(5)}
    wide = checkpoints.write(tmp_path / "wide", made)
    for words in ([wide, "--global"], [tuned, "--against", far, "--global"], [far, "--global"]):
        text = tsc("probe-weights", *words).out
        assert max(map(len, text.splitlines())) <= 80
    text = tsc("probe-weights", wide).out
    assert "not in the table of layouts, taken by shape: a_rather_..f_a_model" in text
    assert "experts: 4 of 5 in a layer" in text
    assert "not probed: odd" in text
    assert re.search(r"^down +16x2048 +3 +none +none +none +none +none$", text, re.MULTILINE)


def test_types_and_samples(tsc: Any, far: Path) -> None:
    facts = tsc("probe-weights", far, "--types", "up, q", "--sample", 16, "--json").json
    assert [one["type"] for one in facts["types"]] == ["q", "up"]
    assert facts["sampled_rows"] == 16
    whole = tsc("probe-weights", far, "--types", "q", "--json").json
    assert whole["types"][0]["entries"] != facts["types"][0]["entries"]
    assert whole["sampled_rows"] is None


def test_experts_are_as_many_as_were_asked_for(tsc: Any, tmp_path: Path) -> None:
    made = {f"layers.{n}.mlp.experts.{e}.up_proj.weight": torch.randn(8, 16) for n in range(2) for e in range(9)}
    folder = checkpoints.write(tmp_path / "m", made)
    facts = tsc("probe-weights", folder, "--experts", 3, "--json").json["types"][0]
    assert (facts["experts"], facts["experts_probed"]) == (9, 3)
    assert sorted({entry["expert"] for entry in facts["entries"]}) == [0, 3, 6]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_figure(tsc: Any, far: Path, tuned: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / f"f.{kind}"
    done = tsc("probe-weights", far, "--plot", target)
    assert done.code == 0
    assert done.out.endswith(f"\n\n{target}\n")
    first = target.read_bytes()
    assert first[:4] == {"png": b"\x89PNG", "svg": b"<?xm"}[kind]
    refused = tsc("probe-weights", far, "--plot", target)
    assert (refused.code, refused.out) == (2, "")
    assert "exists already" in refused.err
    assert tsc("probe-weights", far, "--plot", target, "--force", "--json").json["figure"] == str(target)
    assert target.read_bytes() == first
    assert tsc("probe-weights", tuned, "--against", far, "--plot", target, "-f").code == 0
    assert target.read_bytes() != first


def test_what_the_figure_shows(far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One panel a type, with the reports' two lines, through the measured points; and one with the bits."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from tsc_cli.probes.weights.figure import draw

    monkeypatch.setattr(plt, "close", lambda figure: None)
    reports = checkpoints.probed(far)
    draw(reports, tmp_path / "f.png", "a $name$", None)
    figure = plt.gcf()
    panels = figure.axes
    assert [axes.get_title().split()[0] for axes in panels[:7]] == TYPES
    assert len(panels) == 8
    for axes, one in zip(panels, reports, strict=False):
        adjacent, best = axes.get_lines()[:2]
        assert list(adjacent.get_xdata()) == [1, 2, 3, 4]
        assert list(adjacent.get_ydata()) == pytest.approx(one.values("ratio"))
        assert list(best.get_ydata()) == pytest.approx(one.values("best"))
    assert [bar.get_height() for bar in panels[7].patches] == pytest.approx([one.saved for one in reports])
    monkeypatch.undo()
    plt.close(figure)


def test_no_model_is_built(tmp_path: Path) -> None:
    models.save_small_model(tmp_path / "m")
    script = (
        "import sys; from tsc_cli.cli.main import run; code = run(sys.argv[1:]); "
        "sys.exit(code or 50 * ('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    command = [sys.executable, "-c", script, "probe-weights", str(tmp_path / "m"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [one["type"] for one in json.loads(done.stdout)["types"]] == TYPES


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def weight(value: float) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        made = checkpoints.tensors(3)
        made["model.layers.2.mlp.gate_proj.weight"][0, 0] = value
        for path in folder.glob("model*"):
            path.unlink()
        checkpoints.write(folder, made)

    return change


def pickled(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def pointing(where: str) -> Callable[[Path], object]:
    return lambda folder: (folder / INDEX).write_text(json.dumps({"weight_map": {"a": where}}))


def unchanged(folder: Path) -> None:
    del folder


BAD: dict[str, tuple[Callable[[Path], object], list[str], int, str]] = {
    "missing shard": (remove("model-00002-of-00002.safetensors"), [], 2, "model-00002-of-00002.safetensors is missing"),
    "corrupt shard": (cut, [], 3, "it is cut short"),
    "pickle": (pickled, [], 3, "pytorch_model.bin is a pickle"),
    "index outside": (pointing("../x.safetensors"), [], 3, "names a file outside the folder"),
    "index absolute": (pointing("/x.safetensors"), [], 3, "names a file outside the folder"),
    "index is no JSON": (lambda folder: (folder / INDEX).write_text("weights"), [], 3, "not JSON"),
    "NaN": (weight(float("nan")), [], 3, "'model.layers.2.mlp.gate_proj.weight' holds NaN"),
    "infinity": (weight(float("inf")), [], 3, "holds values beyond 1e+15"),
    "unknown type": (unchanged, ["--types", "gat"], 2, "did you mean 'gate'?"),
    "sample of one": (unchanged, ["--sample", "1"], 2, "Invalid value for '--sample'"),
    "figure of another kind": (unchanged, ["--plot", "x.pdf"], 2, "only PNG and SVG are drawn"),
    "figure nowhere": (unchanged, ["--plot", "no/where.png"], 2, "the folder does not exist"),
    "against nothing": (unchanged, ["--against", "./nowhere"], 2, "no such model"),
    "against no GGUF": (unchanged, ["--against", "GGUF"], 3, "is not a GGUF file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_what_and_where(tsc: Any, case: str, far: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(far, folder)
    change, words, code, message = BAD[case]
    change(folder)
    (tmp_path / "x.gguf").write_bytes(b"GGML" * 9)
    before = sorted(tmp_path.rglob("*"))
    done = tsc("probe-weights", folder, *(str(tmp_path / "x.gguf") if word == "GGUF" else word for word in words))
    assert (done.code, done.out) == (code, "")
    lines = done.err.splitlines()
    assert len(lines) <= 2
    assert lines[0].startswith("tsc: error: ")
    assert message in lines[0]
    assert case.startswith(("sample", "figure", "against")) or str(folder) in lines[0]
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert sorted(tmp_path.rglob("*")) == before


def test_two_forms_are_not_compared(tsc: Any, far: Path, tmp_path: Path) -> None:
    checkpoints.write_gguf(tmp_path / "m.gguf")
    done = tsc("probe-weights", far, "--against", tmp_path / "m.gguf", "--types", "q")
    assert (done.code, done.out) == (2, "")
    assert "is gguf, far is safetensors" in done.err
    assert tsc("probe-weights", tmp_path / "m.gguf", "--against", tmp_path / "m.gguf", "--types", "q").code == 0


def test_all_zeros(tsc: Any, tmp_path: Path) -> None:
    made = {f"layers.{n}.mlp.up_proj.weight": torch.zeros(8, 16) for n in range(2)}
    folder = checkpoints.write(tmp_path / "m", made)
    assert tsc("probe-weights", folder, "--global").out.endswith("global: none, all matrices are zero\n")
    assert tsc("probe-weights", folder, "-q").out == "none\n"
    assert tsc("probe-weights", folder, "--json").json["verdict"] is None


@pytest.mark.full
def test_the_default_model_says_no(tsc: Any) -> None:
    """The reports' Table 3 on the default model: 7 types in 30 layers."""
    facts = tsc("probe-weights", "--json").json
    assert [(one["type"], one["layers"]) for one in facts["types"]] == [(name, 30) for name in TYPES]
    for one in facts["types"]:
        assert 1.15 < one["ratio_mean"] < 1.44
        assert 0.85 < one["best_mean"] < 1.05
        assert -0.65 < one["bits_saved_mean"] < -0.45
        assert one["bits_saved_best_mean"] < 0.001
    assert facts["verdict"]["answer"] == "no"
