"""Fill the tables of README.md, docs/claims.md and docs/klt.md from docs/benchmarks/*.json.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; a test fails when it differs from
the measurements.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tables

DOCS = Path(__file__).parent
PAGES = [DOCS / "claims.md", DOCS / "klt.md", DOCS.parent / "README.md"]
# of other projects, beside codec klt in the README
IN_SHORT = ["q8_0", "KIVI-4", "nexusquant K4V4", "KIVI-2"]


def table(name: str) -> str:
    """The Markdown table of `SUITE` or `SUITE:KIND`."""
    suite, _, kind = name.partition(":")
    facts = json.loads((DOCS / "benchmarks" / f"{suite}.json").read_text("utf-8"))
    if suite.startswith("ladder"):
        by_kind = {"comparison": _compared, "short": _in_short}
        return by_kind[kind](facts) if kind in by_kind else _ladder(facts, kind)
    if suite == "needle":
        return _needle(facts)
    rows = [row for row in facts["rows"] if not kind or row["kind"] == kind]
    shares = any(row.get("coded_share") is not None for row in rows)
    codecs = kind == "promised"
    head = [
        "row",
        *(["codec"] if codecs else []),
        "ratio, trace",
        "of one cache in fp32",
        "mean KL",
        "same top-1",
        "perplexity change",
        *(["coded blocks"] if shares else []),
        "the report",
    ]
    lines = [head]
    for row in rows:
        lines.append([row["label"], *_cells(row, shares=shares, codecs=codecs), _stated(row["report"])])
    return tables.lines(lines)


def _ladder(facts: dict[str, Any], kind: str) -> str:
    limits = kind == "klt"
    lines = [
        [
            "row",
            "of fp32",
            "bits a value",
            "mean KL",
            *(["at most"] if limits else []),
            "same top-1",
            *(["at least"] if limits else []),
        ]
    ]
    for row in facts["rows"]:
        if row["kind"] != kind:
            continue
        if "kl_mean" not in row:
            lines.append([row["label"], "not met", *[""] * (len(lines[0]) - 2)])
            continue
        asked = row["limits"] or {}
        lines.append(
            [
                row["label"],
                f"{row['ratio_final_fp32']:.4g}x",
                f"{32 / row['ratio_final_fp32']:.3f}",
                f"{row['kl_mean']:.2g} ± {row['kl_mean_se_prompts']:.1g}",
                *([f"{asked['max_kl']:g}"] if limits else []),
                f"{row['top1']:.4f} ± {row['top1_se_prompts']:.1g}",
                *([f"{asked['min_top1']:g}"] if limits else []),
            ]
        )
    return tables.lines(lines)


def _in_short(facts: dict[str, Any]) -> str:
    """The README's table, with ratios to float32 and to bfloat16."""
    lines = [["", "of fp32", "of bf16", "bits a value", "mean KL", "same top-1"]]
    rows = {row["label"]: row for row in facts["rows"]}
    chosen = [label for label, row in rows.items() if row["kind"] == "klt"] + IN_SHORT
    for label in chosen:
        ratio = rows[label]["ratio_final_fp32"]
        lines.append(
            [
                f"`--tier {label.removeprefix('klt ')}`" if label.startswith("klt ") else label,
                f"{ratio:.4g}x",
                f"{ratio / 2:.4g}x",
                f"{32 / ratio:.3f}",
                f"{rows[label]['kl_mean']:.2g}",
                f"{rows[label]['top1']:.4f}",
            ]
        )
    return tables.lines(lines)


def _compared(facts: dict[str, Any]) -> str:
    from tsc_cli.bench.comparison import comparison

    lines = [["at a KL of", "klt, bits a value", "best other, bits a value", "which", "times fewer"]]
    for one in comparison(facts["rows"]):
        lines.append(
            [
                f"{one['kl']:g}",
                f"{one['bits']:.3f}",
                f"{one['best_other_bits']:.2f}",
                one["best_other"],
                f"{one['times']:.1f}",
            ]
        )
    return tables.lines(lines)


def _needle(facts: dict[str, Any]) -> str:
    lines = [["row", "of fp32", "codes kept", "share"]]
    for row in facts["rows"]:
        lines.append(
            [
                row["label"],
                f"{row['ratio_final_fp32']:.4g}x",
                f"{row['kept']} of {row['answerable']}",
                f"{100 * row['share']:.0f}%",
            ]
        )
    return tables.lines(lines)


def _cells(row: dict[str, Any], *, shares: bool, codecs: bool) -> list[str]:
    if "kl_mean" not in row:
        return ["not met", *[""] * (4 + shares + codecs)]
    names = sorted({prompt["codec"] for prompt in row["prompts"]})
    cells = [", ".join(names)] if codecs else []
    cells += [
        f"{row['ratio_trace']:.4g}x",
        f"{row['ratio_final_fp32']:.3g}x",
        f"{row['kl_mean']:.2g} ± {row['kl_mean_se_prompts']:.1g}",
        f"{row['top1']:.4f} ± {row['top1_se_prompts']:.1g}",
        f"{row['perplexity_change']:+.2g} ± {row['perplexity_change_se_prompts']:.1g}",
    ]
    if shares:
        cells.append("" if row["coded_share"] is None else f"{100 * row['coded_share']:.3g}%")
    return cells


def _stated(report: dict[str, Any] | None) -> str:
    if report is None:
        return ""
    parts = [f"{report['ratio']:g}x"]
    for key, name in (("kl", "KL"), ("top1", "top-1"), ("perplexity_change", "perplexity")):
        if report[key] is not None:
            parts.append(f"{name} {report[key]:g}")
    return ", ".join(parts)


def generate(page: str) -> str:
    return tables.filled(page, table)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(generate(page.read_text("utf-8")), "utf-8")
