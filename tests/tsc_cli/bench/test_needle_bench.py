"""`tsc bench --suite needle`: what is counted, and what it says where something is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from formats.codecs.klt import profile_store
from tests.formats.codecs.test_klt import profile_for
from tests.support import models
from tsc_cli.bench import needle_suite
from tsc_cli.bench.needle import Needle

NEEDLES = 2


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and a text; a profile is another matter."""
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(profile_store, "remembered", {})
    monkeypatch.setattr(needle_suite, "RATIOS", (6, 5_000))
    models.save_small_model(tmp_path / "model", models.llama(initializer_range=0.1))
    (tmp_path / "text.txt").write_text(" ".join(f"word{number % 7} of {number % 50}," for number in range(300)))
    return tmp_path


def bench(tsc: Any, place: Path) -> Any:
    words = ["--suite", "needle", "--prompts", NEEDLES, "-m", place / "model", "-o", place / "needle.json", "--json"]
    return tsc("bench", place / "text.txt", *words)


def test_what_is_kept_is_counted(tsc: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache answers where its keys are those of the exact one, which is asked first, to a hundredth."""
    exact: dict[str, Any] = {}

    def answers(model: Any, tokenizer: Any, cache: Any, needle: Needle) -> bool:
        keys = cache.layers[1].keys
        known = exact.setdefault(needle.answer, keys)
        return bool((keys - known).norm() < 0.1 * known.norm())

    monkeypatch.setattr(needle_suite, "answers", answers)
    profile = profile_for(models.llama(initializer_range=0.1))
    profile_store.install(profile)
    done = bench(tsc, place)
    assert done.code == 0, done.err
    facts = json.loads((place / "needle.json").read_text())
    assert facts["profile"]["digest"] == profile.digest
    assert facts["texts"][0]["name"] == "text.txt"
    assert facts["model"]["dtype"] == "float32"
    assert facts["protocol"]["needles"] == NEEDLES
    rows = {row["label"]: row for row in facts["rows"]}
    assert all(row["needles"] == row["answerable"] == NEEDLES for row in rows.values())
    assert {label: (row["kept"], row["not_met"]) for label, row in rows.items()} == {
        "klt 6x": (NEEDLES, 0),
        "klt 5000x": (0, NEEDLES),
        "KIVI-4": (NEEDLES, 0),
        "KIVI-2": (0, 0),
    }
    assert rows["klt 6x"]["ratio_final_fp32"] >= 6
    assert rows["klt 5000x"]["ratio_final_fp32"] is None
    assert rows["KIVI-4"]["share"] == 1
    assert rows["KIVI-2"]["ratio_final_fp32"] > rows["KIVI-4"]["ratio_final_fp32"] > 5


def test_what_the_exact_cache_does_not_know_is_not_asked(tsc: Any, place: Path) -> None:
    profile_store.install(profile_for(models.llama(initializer_range=0.1)))
    done = bench(tsc, place)
    assert done.code == 0, done.err
    assert all((row["answerable"], row["kept"], row["share"]) == (0, 0, None) for row in done.json["rows"])


def test_a_profile_is_needed(tsc: Any, place: Path) -> None:
    done = bench(tsc, place)
    assert done.code == 2
    assert "needs a profile" in done.err
    assert "tsc calibrate" in done.err
    assert not (place / "needle.json").exists()


@pytest.mark.parametrize("option", ["--context", "--steps", "--positions"])
def test_what_the_suite_does_not_heed_is_refused(tsc: Any, place: Path, option: str) -> None:
    done = tsc("bench", place / "text.txt", "--suite", "needle", option, "64", "-o", place / "n.json")
    assert done.code == 2
    assert f"{option} cannot be used with the needle suite" in done.err
