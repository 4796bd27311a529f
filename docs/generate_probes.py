"""Fill the tables of docs/probes.md from docs/benchmarks/probe-*.json.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; a test fails when it differs from
the measurements. The documents are what `tsc probe-weights --json` prints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tables

DOCS = Path(__file__).parent
PAGE = DOCS / "probes.md"
# column, key of a type in the document, how it is written
_COLUMNS = {
    "ratios": (
        ("mean r", "ratio_mean", ".3f"),
        ("p90", "ratio_p90", ".3f"),
        ("max", "ratio_max", ".3f"),
        ("best reference, mean", "best_mean", ".3f"),
        ("least of all pairs", "best_min", ".3f"),
    ),
    "distances": (
        ("Frobenius ratio", "frobenius_mean", ".3f"),
        ("cosine", "cosine_mean", ".4f"),
        ("best factor", "factor_mean", ".4f"),
        ("left by it", "left_mean", ".5f"),
        ("effective rank of W", "rank_weight_mean", ".0f"),
        ("of W − R", "rank_delta_mean", ".0f"),
    ),
    "bits": (
        ("bits of W", "bits_weight_mean", ".2f"),
        ("of W − R", "bits_delta_mean", ".2f"),
        ("saved", "bits_saved_mean", "+.2f"),
        ("if Gaussian", "bits_saved_estimate_mean", "+.2f"),
        ("W − aR", "bits_saved_factor_mean", "+.5f"),
        ("best of all layers", "bits_saved_best_mean", "+.5f"),
    ),
    "against": (
        ("mean r", "ratio_mean", ".4f"),
        ("max r", "ratio_max", ".4f"),
        ("Frobenius ratio", "frobenius_mean", ".4f"),
        ("effective rank of W", "rank_weight_mean", ".0f"),
        ("of W − R", "rank_delta_mean", ".0f"),
        ("bits of W", "bits_weight_mean", ".2f"),
        ("of W − R", "bits_delta_mean", ".2f"),
        ("saved", "bits_saved_mean", "+.2f"),
        ("if Gaussian", "bits_saved_estimate_mean", "+.2f"),
    ),
}


def table(name: str) -> str:
    """The Markdown table of `DOCUMENT:KIND`, or of `controls`: one measure of two documents."""
    document, _, kind = name.partition(":")
    columns = _COLUMNS[kind]
    lines = [["type", "shape", *(column for column, _, _ in columns)]]
    for one in _types(document):
        shape = f"{one['outputs']} × {one['inputs']}"
        lines.append([one["type"], shape, *(f"{one[key]:{form}}" for _, key, form in columns)])
    return tables.lines(lines)


def _controls() -> str:
    lines = [
        [
            "type",
            "mean r",
            "of shuffled weights",
            "best reference",
            "of shuffled weights",
            "bits saved",
            "of shuffled weights",
        ]
    ]
    for one, other in zip(_types("probe-weights"), _types("probe-weights-shuffled"), strict=True):
        figures = (("ratio_mean", ".2f"), ("best_mean", ".2f"), ("bits_saved_mean", "+.2f"))
        lines.append([one["type"], *(f"{held[key]:{form}}" for key, form in figures for held in (one, other))])
    return tables.lines(lines)


def _types(document: str) -> list[dict[str, Any]]:
    facts = json.loads((DOCS / "benchmarks" / f"{document}.json").read_text("utf-8"))
    return list(facts["types"])


def generate(page: str) -> str:
    """The page with its tables as measured."""
    return tables.filled(page, lambda name: _controls() if name == "controls" else table(name))


if __name__ == "__main__":
    PAGE.write_text(generate(PAGE.read_text("utf-8")), "utf-8")
