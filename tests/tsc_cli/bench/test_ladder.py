"""The ladder: what is compared, and at which KL."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tsc_cli.bench.comparison import COMPARED_AT, comparison
from tsc_cli.bench.suites import BASELINES, RUNGS, ladder_rows
from tsc_cli.scoring.interpolation import bits_at_kl


def row(label: str, kl: float, bits: float, kind: str = "baseline") -> dict[str, Any]:
    return {"label": label, "kind": kind, "kl_mean": kl, "ratio_final_fp32": 32 / bits}


def test_bits_lie_on_a_line_of_logarithms() -> None:
    points = [(0.001, 4.0), (0.1, 1.0)]
    assert bits_at_kl(points, 0.01) == pytest.approx(2.0)
    assert bits_at_kl(points, 0.001) == pytest.approx(4.0)
    assert bits_at_kl(points, 0.1) == pytest.approx(1.0)
    assert bits_at_kl(points, 0.0009) is None
    assert bits_at_kl(points, 0.11) is None
    assert bits_at_kl([(0.001, 4.0), (0.01, 3.0), (0.1, 1.0)], math.sqrt(0.001)) == pytest.approx(math.sqrt(3))
    assert bits_at_kl([], 0.01) is None
    assert bits_at_kl([(0.01, 3.0)], 0.01) is None
    assert bits_at_kl([(0.01, 3.0), (0.01, 2.0)], 0.01) is None


def ours() -> list[dict[str, Any]]:
    """A tenth of the KL for twice the bits, 1 bit at 0.01."""
    return [row(f"klt {n}", 0.01 / 10**n, 2.0**n, "klt") for n in (-1, 0, 1)]


def test_the_best_other_row_at_the_same_kl() -> None:
    kl = COMPARED_AT[1]
    bits = 2 ** -math.log10(kl / 0.01)
    found = comparison([*ours(), row("a", kl, 3 * bits), row("b", kl / 2, 2.5 * bits), row("c", kl * 2, 0.1)])
    one = next(entry for entry in found if entry["kl"] == kl)
    assert one["bits"] == pytest.approx(bits)
    assert (one["best_other"], one["best_other_bits"]) == ("b", pytest.approx(2.5 * bits))
    assert one["times"] == pytest.approx(2.5)


def test_a_family_of_settings_lies_on_a_line_too() -> None:
    kl = COMPARED_AT[1]
    family = [row("KIVI-4", kl / 10, 8.0), row("KIVI-2", kl * 10, 2.0)]
    one = next(entry for entry in comparison([*ours(), *family]) if entry["kl"] == kl)
    assert (one["best_other"], one["best_other_bits"]) == ("KIVI", pytest.approx(4.0))
    # two baselines of different families do not make a line
    strangers = [row("q8_0", kl / 10, 8.0), row("q4_0", kl * 10, 2.0)]
    one = next(entry for entry in comparison([*ours(), *strangers]) if entry["kl"] == kl)
    assert (one["best_other"], one["best_other_bits"]) == ("q8_0", pytest.approx(8.0))
    # the settings of one peer do
    peers = [row("hqq 4b, keys by channel", kl / 10, 8.0, "peer"), row("hqq 2b, keys by channel", kl * 10, 2.0, "peer")]
    one = next(entry for entry in comparison([*ours(), *peers]) if entry["kl"] == kl)
    assert one["best_other_bits"] == pytest.approx(4.0)


def test_what_cannot_be_compared_is_left_out() -> None:
    assert comparison([]) == []
    assert comparison(ours()) == []
    assert comparison([row("a", 0.001, 4.0)]) == []
    assert comparison([*ours(), row("a", 5.0, 0.1)]) == []  # worse than every KL compared at
    assert comparison([row("klt", 0.5, 1.0, "klt"), row("klt", 0.9, 0.5, "klt"), row("a", 0.001, 4.0)]) == []
    exact = {"label": "exact", "kind": "baseline", "kl_mean": 0.0, "ratio_final_fp32": 1.2}
    failed = {"label": "klt 429x", "kind": "klt", "failures": ["no"]}
    found = comparison([*ours(), row("a", 0.001, 4.0), exact, failed])
    assert [entry["kl"] for entry in found] == list(COMPARED_AT)
    assert all(entry["best_other"] == "a" for entry in found)


def test_the_rows_are_rungs_baselines_and_peers() -> None:
    found = ladder_rows()
    kinds = [one.kind for one in found]
    assert kinds[: len(RUNGS) + len(BASELINES)] == ["klt"] * len(RUNGS) + ["baseline"] * len(BASELINES)
    assert set(kinds[len(RUNGS) + len(BASELINES) :]) <= {"peer"}
    for ratio, one in zip(RUNGS, found, strict=False):
        assert one.tier is not None
        assert (one.label, one.tier.ratio, one.limits) == (f"klt {ratio}x", ratio, RUNGS[ratio])
        assert one.tier.max_kl == math.inf
    for recipe in BASELINES.values():
        assert recipe.parameters()
