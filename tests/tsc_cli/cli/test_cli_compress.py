"""`tsc compress`, `bench`, `plot` and `tiers` as a person or a script meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from formats import load, save
from formats.container.strict_json import writable
from tests.conftest import Result
from tests.support import models
from tests.support.traces import growing_trace
from tsc_cli.bench import plot
from tsc_cli.bench.codecs import windows
from tsc_cli.cli.main import run

TEXT = "".join(f"line {n} of a text that is cut into windows, {n * n % 97}; " for n in range(60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_small_model(tmp_path_factory.mktemp("model") / "small", models.llama(initializer_range=0.1))


@pytest.fixture(scope="module")
def captured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "t.tsc"
    words = ["capture", TEXT[:400], "-m", str(folder), "-o", str(path), "--steps", "20", "--attention", "-q"]
    assert run([*words, "--context", "120"]) == 0
    return path


def compress(tsc: Any, captured: Path, *words: object) -> Result:
    done: Result = tsc("compress", captured, *words)
    return done


def test_a_tier_is_kept_and_recorded(tsc: Any, captured: Path, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.tsc"
    done = compress(tsc, captured, "--tier", "60x", "-m", folder, "-o", target, "--json", "--positions", 120)
    assert done.code == 0, done.err
    facts = done.json
    assert facts["schema"] == "tsc.compress/1"
    assert facts["ratio_trace"] == facts["raw_bytes_trace"] / target.stat().st_size >= 60
    assert facts["quality"]["positions"] == 120
    (record,) = load(target).quality
    assert record["kl_mean"] == facts["quality"]["kl_mean"]
    assert record["verdict"] == facts["verdict"]
    # anyone can measure it again
    again = tsc("verify", target, "-m", folder, "--json", "--positions", 120, "--greedy", 0)
    assert again.json["results"][0]["kl_mean"] == pytest.approx(record["kl_mean"], rel=1e-3)
    assert tsc("test", target).code == 0
    text = tsc("inspect", target).out
    assert re.search(r"^tier +60x$", text, re.MULTILINE)
    assert re.search(r"^codec +scalar", text, re.MULTILINE)


def test_a_promise_that_cannot_be_kept(tsc: Any, captured: Path, folder: Path, tmp_path: Path) -> None:
    for extra in (["--no-verify"], ["-m", folder]):
        done = compress(tsc, captured, "-t", "9000x", "-o", tmp_path / "x.tsc", *extra)
        assert done.code == 4
        assert "9000x cannot be met" in done.err
        assert "a longer trace" in done.err
    best = re.search(r"at most ([\d.]+)x can be had at a KL of at most 0\.5", done.err)
    assert best, done.err
    assert not list(tmp_path.iterdir())
    # what the message promises can be had
    again = compress(tsc, captured, "-t", f"{best[1]}x", "-m", folder, "-o", tmp_path / "x.tsc")
    assert again.code == 0, again.err


def test_as_published(tsc: Any, captured: Path, folder: Path, tmp_path: Path) -> None:
    for tier, codec in (
        ("lossless", "lossless"),
        ("63x", "delta"),
        ("84x", "h2o+delta"),
        ("125x", "vq"),
        ("219x", "pq"),
        ("429x", "vq"),
        ("1034x", "vq"),
    ):
        target = tmp_path / f"{tier}.tsc"
        done = compress(
            tsc, captured, "-t", tier, "--as-published", "-m", folder, "-o", target, "--json", "--positions", 9
        )
        assert done.code == 0, done.err
        assert done.json["codec"] == codec
        assert done.json["report"]["where"]
        assert tsc("test", target).code == 0
    shown = compress(tsc, captured, "-t", "219x", "--as-published", "--no-verify", "-o", tmp_path / "p.tsc")
    assert re.search(r"the report +219x, KL 0\.053 \(tiers\)", shown.out)


def test_by_hand(tsc: Any, captured: Path, tmp_path: Path) -> None:
    words = ["--codec", "scalar", "--set", "bits=5", "--set", "group=32", "--no-verify"]
    done = compress(tsc, captured, *words, "-o", tmp_path / "a.tsc", "-q")
    assert (done.code, done.out) == (0, f"{tmp_path / 'a.tsc'}\n")
    parameters = json.loads(tsc("inspect", tmp_path / "a.tsc", "--json").out)["parameters"]
    assert parameters["bits"] == 5
    assert parameters["group"] == 32
    done = compress(
        tsc,
        captured,
        "--codec",
        "delta",
        "--evict",
        "h2o",
        "--set",
        "keep=0.5",
        "-o",
        tmp_path / "b.tsc",
        "--no-verify",
    )
    assert done.code == 0
    assert load(tmp_path / "b.tsc").snapshot(0).keys[0].shape[2] == 60


def test_the_same_command_gives_the_same_bytes(tsc: Any, captured: Path, tmp_path: Path) -> None:
    for name in ("a.tsc", "b.tsc"):
        words = ["--codec", "pq", "--no-verify", "--deterministic", "-o", tmp_path / name]
        assert compress(tsc, captured, *words).code == 0
    assert (tmp_path / "a.tsc").read_bytes() == (tmp_path / "b.tsc").read_bytes()


def test_a_dry_run_writes_nothing(tsc: Any, captured: Path, folder: Path) -> None:
    before = sorted(captured.parent.iterdir())
    done = compress(tsc, captured, "--dry-run", "-m", folder, "--json", "--positions", 9)
    assert done.code == 0, done.err
    assert sorted(captured.parent.iterdir()) == before
    tiers = {one["tier"]: one for one in done.json["tiers"]}
    assert list(tiers) == ["lossless", "63x", "84x", "125x", "219x", "429x", "1034x"]
    assert tiers["lossless"]["met"]
    assert not tiers["1034x"]["met"]
    assert "cannot be met" in tiers["1034x"]["reason"]
    table = compress(tsc, captured, "--dry-run", "--as-published", "--no-verify").out
    assert re.search(r"^84x +h2o\+delta +[\d.]+x .*84x, KL 0\.08 \(tiers\)$", table, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tier", "63x", "--codec", "vq"], "--tier and --codec cannot be combined: give one of them"),
        (["--quality", "high", "--bits", "2", "-t", "9x"], "--tier and --quality and --bits cannot be combined"),
        (["--quality", "blanced"], "there is no quality 'blanced'"),
        (["--quality", "high", "--as-published"], "--as-published needs --tier"),
        (["--bits", "2", "--dry-run"], "--dry-run shows tiers"),
        ([], "missing.tsc: cannot be opened"),
        (["--tier", "219"], "there is no tier '219'"),
        (["--tier", "70x", "--as-published"], "no recipe was published for tier 70x"),
        (["--codec", "vq", "--as-published"], "--as-published needs --tier"),
        (["--tier", "63x", "--set", "bits=4"], "--set and --evict go with --codec"),
        (["--codec", "vq", "--set", "block"], "--set block: KEY=VALUE was expected"),
        (["--codec", "vq", "--set", "size=4"], "codec vq has no setting 'size'"),
        (["--codec", "qv"], "there is no codec 'qv'"),
        (["--codec", "vq", "--evict", "h3o"], "there is no filter 'h3o'"),
    ],
)
def test_wrong_words_are_refused_at_once(tsc: Any, words: list[str], message: str) -> None:
    done = tsc("compress", "missing.tsc", *words)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 2


def test_outputs_are_named_after_the_tier_and_never_replaced(tsc: Any, captured: Path, tmp_path: Path) -> None:
    source = tmp_path / "book.tsc"
    source.write_bytes(captured.read_bytes())
    done = tsc("compress", source, "-t", "lossless", "--no-verify", "-q")
    assert done.out == f"{tmp_path / 'book.lossless.tsc'}\n"
    assert tsc("compress", source, "-t", "lossless", "--no-verify").code == 2
    assert tsc("compress", source, "-t", "lossless", "--no-verify", "-f").code == 0


def test_h2o_without_attention_says_what_to_do(tsc: Any, tmp_path: Path) -> None:
    save(growing_trace(dtype="float32"), tmp_path / "t.tsc")
    done = tsc("compress", tmp_path / "t.tsc", "-t", "84x", "--as-published", "--no-verify")
    assert done.code == 2
    assert "hint: capture it with --attention" in done.err


def test_without_the_model_nothing_is_measured(tsc: Any, captured: Path, tmp_path: Path) -> None:
    done = compress(tsc, captured, "-t", "50x", "-o", tmp_path / "x.tsc")
    assert done.code == 0
    assert "not on this machine" in done.err
    assert re.search("quality +not measured", done.out)
    assert load(tmp_path / "x.tsc").quality == []


def test_tiers_are_listed(tsc: Any) -> None:
    done = tsc("tiers", "--json")
    tiers = {tier["name"]: tier for tier in done.json["tiers"]}
    assert tiers["125x"]["published"]["parameters"]["threshold"] == 0.05
    assert done.json["verdicts"][0]["word"] == "exact"
    assert max(len(line) for line in tsc("tiers").out.splitlines()) <= 80


# bench and plot


@pytest.fixture(scope="module")
def benched(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bench")
    (place / "text.txt").write_text(TEXT)
    words = ["bench", str(place / "text.txt"), "-m", str(folder), "--prompts", "2", "--context", "60", "--steps", "3"]
    small = [
        "--codec",
        "scalar:bits=8",
        "--codec",
        "vq:block=4,samples=256,iterations=3,threshold=0.3",
        "--codec",
        "h2o+delta:keep=0.5",
    ]
    assert run([*words, "--positions", "40", *small, "-o", str(place / "a.json"), "-q"]) == 0
    return place / "a.json"


def test_a_benchmark_is_complete(benched: Path) -> None:
    facts = json.loads(benched.read_text())
    assert facts["schema"] == "tsc.bench/1"
    assert facts["protocol"]["positions"] == 40
    assert len(facts["texts"][0]["sha256"]) == 64
    assert {"torch", "transformers", "tsc", "python"} <= facts["versions"].keys()
    assert facts["hardware"]["cpus"]
    scalar, vq, h2o = facts["rows"]
    assert scalar["positions"] == 80
    assert len(scalar["prompts"]) == 2
    assert scalar["kl_mean"] == pytest.approx(sum(p["kl_mean"] for p in scalar["prompts"]) / 2)
    assert scalar["kl_mean"] < 1e-3 < h2o["kl_mean"]
    assert scalar["kl_mean_se"] > 0
    assert scalar["kl_mean_se_prompts"] > 0
    assert 0 < vq["coded_share"] < 1
    assert scalar["coded_share"] is None
    one = scalar["prompts"][0]
    assert one["ratio_final_fp32"] == pytest.approx(2 * one["ratio_final_fp16"])


def test_windows_are_spread_over_the_texts() -> None:
    first, second = list(range(100)), list(range(1000, 1040))
    assert [w[0] for w in windows([first, second], 4, 20)] == [0, 80, 1000, 1020]
    assert all(len(w) == 20 for w in windows([first, second], 4, 20))
    with pytest.raises(Exception, match="text 2 has 40 tokens, too few for 2 windows of 21"):
        windows([first, second], 4, 21)


def test_suites_are_the_reports_tables(tsc: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["-m", folder, "--prompts", 1, "--context", 80, "--steps", 2, "--positions", 20]
    for suite, labels in (
        ("block-size", ["vq-8", "vq-4", "vq-2", "scalar-8"]),
        ("threshold", [f"threshold {t}" for t in ("0.100", "0.070", "0.050", "0.030", "0.000")]),
    ):
        target = tmp_path / f"{suite}.json"
        done = tsc("bench", tmp_path / "text.txt", "--suite", suite, "-o", target, *words)
        assert done.code == 0, done.err
        assert [row["label"] for row in json.loads(target.read_text())["rows"]] == labels
        assert "report" in done.out.splitlines()[0]


def test_the_hierarchy_lists_what_is_not_met(tsc: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["-m", folder, "--prompts", 1, "--context", 80, "--steps", 2, "--positions", 20]
    done = tsc("bench", tmp_path / "text.txt", "--suite", "hierarchy", "-o", tmp_path / "h.json", *words)
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "h.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["published"] * 7 + ["promised"] * 7
    assert not rows[-1]["met"]
    assert rows[-1]["failures"]
    assert re.search(r"1034x +promised +not met", done.out)


def test_plots_are_drawn(tsc: Any, benched: Path, tmp_path: Path) -> None:
    done = tsc("plot", benched, "-o", tmp_path / "figure")
    assert done.code == 0, done.err
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    drawing = (tmp_path / "figure.svg").read_text()
    assert "<svg" in drawing
    assert tsc("plot", benched, benched, "-o", tmp_path / "two.svg", "--title", "twice").code == 0
    assert tsc("plot", benched, "-o", tmp_path / "figure").code == 2  # both exist


def test_what_cannot_be_drawn_is_refused(tsc: Any, benched: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": "tsc.verify/1"}')
    (tmp_path / "broken.json").write_text("{")
    for words, message in (
        ([benched, "-o", tmp_path / "f.pdf"], "only PNG and SVG are drawn"),
        ([tmp_path / "other.json", "-o", tmp_path / "f.png"], "is not a tsc.bench/1 document"),
        ([tmp_path / "broken.json", "-o", tmp_path / "f.png"], "is not JSON"),
        ([tmp_path / "none.json", "-o", tmp_path / "f.png"], "cannot be read"),
    ):
        done = tsc("plot", *words)
        assert done.code == 2
        assert message in done.err
    with pytest.raises(Exception, match="nothing to draw"):
        plot.draw([("empty", {"rows": [{"label": "x", "kind": "promised", "failures": ["no"]}]})], [])


def test_json_has_no_nan() -> None:
    assert writable({"a": [float("nan"), 1.5], "b": float("inf")}) == {"a": [None, 1.5], "b": None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "speed", "-o", "x.json"], "there is no suite 'speed'"),
        (["-o", "x.txt"], "name the JSON file to write"),
        ([], "name the JSON file to write"),
        (["--codec", "vq:block", "-o", "x.json"], "--set block: KEY=VALUE was expected"),
        (["--codec", "h2o+zip", "-o", "x.json"], "there is no codec 'zip'"),
        (["missing.txt", "-o", "x.json"], "missing.txt: cannot be read"),
    ],
)
def test_bench_refuses_at_once(
    tsc: Any, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tsc("bench", *words)
    assert done.code == 2
    assert message in done.err
