"""What `tsc probe-weights` says: tables for a person, facts for a program."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from tsc_cli.text_format import columns, printable

from .probe import TypeReport, Verdict
from .stacks import Stack

SCHEMA = "tsc.probe-weights/1"
_MEANS = (
    "best",
    "frobenius",
    "cosine",
    "factor",
    "left",
    "rank_weight",
    "rank_delta",
    "bits_weight",
    "bits_delta",
    "bits_saved_estimate",
    "bits_saved_factor",
    "bits_saved_best",
)
_WIDEST = 20  # characters of a name in a table
_LISTED = 8  # names in a sentence; --json has all


def facts(reports: Sequence[TypeReport], stack: Stack, verdict: Verdict | None) -> dict[str, Any]:
    """Return the report for JSON: missing figures are null, means are over those that exist."""
    return {
        "layers": stack.layers,
        "types": [_type_facts(report) for report in reports],
        "skipped": [{"name": name, "why": why} for name, why in stack.skipped],
        "verdict": None
        if verdict is None
        else {
            "answer": "yes" if verdict.yes else "no",
            "bits_saved": verdict.saved,
            "bits_saved_best": verdict.saved_best,
            "yes_for": verdict.yes_for,
        },
    }


def _type_facts(report: TypeReport) -> dict[str, Any]:
    outputs, inputs = report.type.series[0].shape
    return {
        "type": report.type.name,
        "known": report.type.known,
        "outputs": outputs,
        "inputs": inputs,
        "layers": len(report.type.series[0].layers),
        "experts": report.type.experts,
        "experts_probed": len(report.type.series) if report.type.experts else 0,
        "weights": report.weights,
        **dict(zip(("ratio_mean", "ratio_p90", "ratio_max"), ratio_figures(report), strict=True)),
        "best_min": min(report.values("best"), default=None),
        **{f"{name}_mean": report.mean(name) for name in _MEANS},
        "bits_saved_mean": report.saved,
        "entries": [dataclasses.asdict(entry) for entry in report.entries],
    }


def ratio_figures(report: TypeReport) -> tuple[float | None, float | None, float | None]:
    """Mean, interpolated 90th percentile and maximum of r, as in the published Table 3."""
    values = report.values("ratio")
    if not values:
        return None, None, None
    return float(np.mean(values)), float(np.percentile(values, 90)), max(values)


def text(reports: Sequence[TypeReport], stack: Stack, name: str, against: str | None) -> str:
    """Three tables of at most 80 columns, and what they leave out."""
    of = "the same layer's of " + against if against is not None else "the layer's before"
    best = "" if against is not None else "; best: over all other layers' as R"
    parts = [
        textwrap.fill(f"{printable(name)}: {stack.layers} layers. W is a layer's matrix, R {printable(of)}.", 80),
        f"r = max|W-R| / max|R|{best}\n"
        + columns(
            [_ratios(report, against) for report in reports],
            ("type", "shape", "matrices", "mean", "p90", "max", *([] if against is not None else ["best", "least"])),
        ),
        "distances, means over the matrices; aR: the best multiple of R\n"
        + columns(
            [_distances(report) for report in reports],
            ("type", "|W-R|/|W|", "cosine", "a", "|W-aR|/|W|", "rank W", "rank W-R"),
        ),
        "bits a weight at equal error; saved by coding W-R (below zero: it costs more);\n"
        "then what W-R and W-aR would save if all were Gaussian\n"
        + columns(
            [_bits(report, against) for report in reports],
            ("type", "W", "W-R", "saved", "if W-R", "if W-aR", *([] if against is not None else ["if best aR"])),
        ),
    ]
    unknown = [report.type.name for report in reports if not report.type.known]
    if unknown:
        parts.append(_listed("not in the table of layouts, taken by shape", unknown))
    sampled = [report.type for report in reports if report.type.experts > len(report.type.series)]
    if sampled:
        parts.append(f"experts: {len(sampled[0].series)} of {sampled[0].experts} in a layer")
    if stack.skipped:
        parts.append(_listed("not probed", [name for name, _ in stack.skipped]))
    return "\n\n".join(parts)


def sentence(reports: Sequence[TypeReport], verdict: Verdict | None) -> str:
    """The verdict in one line, for a person."""
    if verdict is None:
        return "global: none, all matrices are zero"
    ranges = [
        _range("r", [report.mean("ratio") for report in reports]),
        _range("best", [report.mean("best") for report in reports]),
    ]
    word = "save" if verdict.saved >= 0 else "cost"
    parts = [", ".join(filter(None, ranges)), f"deltas {word} {abs(verdict.saved):.2f} bits a weight"]
    if verdict.yes and verdict.saved < 0 and verdict.saved_best is not None:
        parts.append(f"the best scaled reference saves {verdict.saved_best:.2f}")
    if not verdict.yes and verdict.yes_for:
        parts.append(f"yes for {', '.join(map(_short, verdict.yes_for))}")
    return f"global: {'yes' if verdict.yes else 'no'}; {'; '.join(filter(None, parts))}"


def _range(what: str, means: Sequence[float | None]) -> str:
    values = [value for value in means if value is not None]
    if not values:
        return ""
    low, high = (f"{end:.2f}" if end >= 0.1 else f"{end:.2g}" for end in (min(values), max(values)))
    return f"{what} {low} to {high}"


def _ratios(report: TypeReport, against: str | None) -> list[str]:
    outputs, inputs = report.type.series[0].shape
    row = [_short(report.type.name), f"{outputs}x{inputs}", str(len(report.entries))]
    row += [_figure(value, "ratio") for value in ratio_figures(report)]
    least = min(report.values("best"), default=None)
    return row if against is not None else [*row, _figure(report.mean("best"), "ratio"), _figure(least, "ratio")]


def _distances(report: TypeReport) -> list[str]:
    kinds = {
        "frobenius": "ratio",
        "cosine": ".4f",
        "factor": ".4f",
        "left": "ratio",
        "rank_weight": ".1f",
        "rank_delta": ".1f",
    }
    return [_short(report.type.name), *(_figure(report.mean(name), kind) for name, kind in kinds.items())]


def _bits(report: TypeReport, against: str | None) -> list[str]:
    row = [
        _short(report.type.name),
        _figure(report.mean("bits_weight"), ".2f"),
        _figure(report.mean("bits_delta"), ".2f"),
    ]
    row += [_figure(report.saved, "+.2f"), _figure(report.mean("bits_saved_estimate"), "+.2f")]
    row.append(_figure(report.mean("bits_saved_factor"), "+.4f"))
    return row if against is not None else [*row, _figure(report.mean("bits_saved_best"), "+.4f")]


def _figure(value: float | None, kind: str) -> str:
    """A number as `kind` writes it; `ratio`: three decimals, or two digits of a small one."""
    if value is None:
        return "none"
    if kind == "ratio":
        kind = ".2g" if 0 < value < 0.01 else ".3f"
    return format(value, kind)


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return textwrap.fill(f"{what}: {', '.join(map(_short, names[:_LISTED]))}{more}", 80)


def _short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _WIDEST else f"{shown[:9]}..{shown[-9:]}"
