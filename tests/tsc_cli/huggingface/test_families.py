"""The table of supported families, walked: each is captured and resumed bit for bit, or refused before it runs."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from formats import load
from formats.encode.recipe import Recipe
from formats.errors import UnsupportedCacheError
from tests import ROOT
from tests.support import models
from tests.support.families import DTYPES, PROMPT, REFUSED, SUPPORTED, TABLE
from tests.support.family_runs import STEPS, capture_small, tokens_after
from tests.tsc_cli.huggingface.test_foreign import build
from tsc_cli import compress, verify
from tsc_cli.model_families import families
from tsc_cli.session.capture import capture_to_file
from tsc_cli.session.decode_loop import CaptureOptions
from tsc_cli.verification.verify import VerifyOptions

# one of each kind of cache; in the quick suite these alone are followed over twelve snapshots, some in bfloat16, too
KINDS = {"llama", "gemma3", "gemma3n", "deepseek_v32", "jamba", "falcon_h1", "qwen3_next", "lfm2", "mamba2", "t5"}
HALF = {"gemma3", "deepseek_v32", "qwen3_next", "t5"}


def share(*dtypes: str) -> Any:
    """Every family in these dtypes, as one snapshot and as twelve.  The quick share has one snapshot of each."""
    full = pytest.mark.full

    def quick(family: str, dtype: str, kind: str) -> bool:
        return (family in (KINDS if dtype == "float32" else HALF)) if kind == "trace" else dtype == "float32"

    return pytest.mark.parametrize(
        ("family", "dtype", "kind"),
        [
            pytest.param(*one, marks=() if quick(*one) else full, id="-".join(one))
            for one in product(SUPPORTED, dtypes, STEPS)
        ],
    )


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a capture of every family that was asked for, resumed by other processes; two at a time."""
    folder = tmp_path_factory.mktemp("families")
    asked = [item.callspec.params for item in request.session.items if "runs" in getattr(item, "fixturenames", ())]
    names = sorted({f"{one['family']}.{one['dtype']}.{one['kind']}" for one in asked})
    subprocess.run([sys.executable, "-m", "tests.support.family_runs", str(folder), *names], cwd=ROOT, check=True)
    return folder


def result(path: Path) -> dict[str, torch.Tensor]:
    for error in (path.with_suffix("").with_suffix(".error"), path.with_suffix(".error")):
        if error.exists():
            pytest.fail(error.read_text())
    return load_file(path)


@share(*DTYPES)
def test_every_snapshot_resumes_as_the_run_went_on(family: str, dtype: str, kind: str, runs: Path) -> None:
    resumed = result(runs / f"{family}.{dtype}.{kind}.resumed")
    exact = load_file(runs / f"{family}.{dtype}.exact")["logits"]
    differ = [
        (snapshot, step)
        for snapshot in range(STEPS[kind] + 1)
        for step in range(tokens_after(snapshot, STEPS[kind]))
        if not torch.equal(resumed[f"logits.{snapshot}"][step], exact[snapshot + step])
    ]
    assert not differ, "(snapshot, token after it)"


@share(*DTYPES)
def test_lost_rows_or_a_wrong_state_would_have_shown(family: str, dtype: str, kind: str, runs: Path) -> None:
    found = result(runs / f"{family}.{dtype}.{kind}.resumed")
    controls = {name: logits for name, logits in found.items() if name.startswith("control.")}
    exact = load_file(runs / f"{family}.{dtype}.exact")["logits"][STEPS[kind]]
    assert controls
    assert not [name for name, logits in controls.items() if torch.equal(logits, exact)]


@share("float32")
def test_the_file_holds_what_the_table_says(family: str, dtype: str, kind: str, runs: Path) -> None:
    trace = load(runs / f"{family}.{dtype}.{kind}.tsc")
    assert len(trace) == STEPS[kind] + 1
    specs = trace.geometry.layers
    kinds = {spec.kind for spec in specs}
    holds = TABLE[SUPPORTED[family].family].holds
    assert ("sliding" in kinds) == ("window" in holds or "chunk" in holds)
    assert (kinds == {"sliding"}) == (holds == "the rows of a window")
    assert ("cross" in kinds) == ("encoder" in holds)
    assert any(spec.states for spec in specs) == ("states" in holds)
    assert any(spec.index_size for spec in specs) == ("indexer" in holds)
    assert ("none" in kinds) <= ("share" in holds or "states" in holds)
    for number, view in enumerate(trace.views):
        moment = trace.snapshot(number)
        for layer, spec in enumerate(specs):
            length = {"none": 0, "cross": view.rows(layer), "sliding": (spec.window or 0) - 1}
            assert view.rows(layer) == length.get(spec.kind, len(PROMPT) + number)
            assert [state.name for state in spec.states] == list(moment.states[layer])


@pytest.mark.parametrize("family", REFUSED)
def test_a_refused_family_is_refused_before_it_runs(family: str, tmp_path: Path) -> None:
    model = models.must_not_run(REFUSED[family].build(torch.float32))
    with pytest.raises(UnsupportedCacheError) as caught:
        capture_to_file(model, PROMPT, tmp_path / "t.tsc", options=CaptureOptions(steps=2))
    assert TABLE[REFUSED[family].family].refused in str(caught.value)
    assert type(model).__name__ in str(caught.value)
    assert (caught.value.exit_code, caught.value.hint) == (2, families.HINT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("samples", "status"), [(SUPPORTED, "yes"), (REFUSED, "refused")], ids=["yes", "refused"])
def test_the_table_and_the_tests_name_the_same_model_types(samples: Any, status: str) -> None:
    listed = {
        (one.name, model_type) for one in TABLE.values() if one.status == status for model_type in one.model_types
    }
    assert listed == {(sample.family, sample.model_type) for sample in samples.values()}


@pytest.mark.parametrize(
    "family", [pytest.param(one, marks=() if one in KINDS else pytest.mark.full) for one in SUPPORTED]
)
def test_fewer_bits_cost_more(family: str, tmp_path: Path) -> None:
    sample, model = SUPPORTED[family], build(family)
    trace = capture_small(sample, model, steps=0)
    kl = []
    for bits in (8, 4, 2):
        path = tmp_path / f"{bits}.tsc"
        compress(trace, path, recipe=Recipe("scalar", {"bits": bits}))
        # the exact cache is made again once; not for Whisper, as the file does not hold what it heard
        against = None if bits == 8 and sample.model_type != "whisper" else trace
        verified = verify(load(path), model, options=VerifyOptions(positions=16, greedy=0), against=against)
        kl.append(verified.fidelity.kl_mean)
    assert 0 < kl[0] < kl[1] < kl[2]
    for codec, settings in (("vq", {}), ("pq", {}), ("delta", {"keyframe_bits": 6})):
        path = tmp_path / f"{codec}.tsc"
        compress(trace, path, recipe=Recipe(codec, settings))
        verified = verify(load(path), model, options=VerifyOptions(positions=8, greedy=0), against=trace)
        assert 0 < verified.fidelity.kl_mean < 5


def test_the_list_needs_neither_prompt_nor_torch() -> None:
    code = (
        "import sys; from tsc_cli.cli.main import run; code = run(['capture', '--list-supported']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    words = done.stdout.split()
    assert all(
        model_type in [word.strip(",") for word in words] for one in TABLE.values() for model_type in one.model_types
    )


def test_the_list_as_json(tsc: Any) -> None:
    done = tsc("capture", "--list-supported", "--json")
    assert (done.code, done.json["schema"]) == (0, "tsc.supported/1")
    assert [one["name"] for one in done.json["families"]] == list(TABLE)
    assert {one["status"] for one in done.json["families"] if one["refused"]} == {"refused"}
    assert {one["status"] for one in done.json["families"] if not one["refused"]} == {"yes"}


def test_the_command_line_refuses_alike(tsc: Any, tmp_path: Path) -> None:
    folder = models.save_small_model(tmp_path / "model", REFUSED["recurrent_gemma"].build(torch.float32))
    done = tsc("capture", "abc", "-m", folder, "-o", tmp_path / "t.tsc", "-q")
    assert (done.code, done.out) == (2, "")
    assert "RecurrentGemmaForCausalLM cannot be captured: its state is kept in its modules" in done.err
    assert f"hint: {families.HINT}\n" in done.err
    assert not (tmp_path / "t.tsc").exists()
