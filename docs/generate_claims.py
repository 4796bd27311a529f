"""Fills the tables of docs/claims.md from docs/benchmarks/*.json: `python docs/generate_claims.py`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; a test fails when it differs from the measurements.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGE = DOCS / "claims.md"
_TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(name: str) -> str:
    """The Markdown table of `SUITE` or `SUITE:KIND`."""
    suite, _, kind = name.partition(":")
    facts = json.loads((DOCS / "benchmarks" / f"{suite}.json").read_text("utf-8"))
    rows = [row for row in facts["rows"] if not kind or row["kind"] == kind]
    shares = any(row.get("coded_share") is not None for row in rows)
    codecs = kind == "promised"
    head = ["row", *(["codec"] if codecs else []), "ratio, trace", "of one cache in fp32", "mean KL", "same top-1",
            "perplexity change", *(["coded blocks"] if shares else []), "the report"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in rows:
        lines.append([row["label"], *_cells(row, shares=shares, codecs=codecs), _stated(row["report"])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: dict[str, Any], *, shares: bool, codecs: bool) -> list[str]:
    if "kl_mean" not in row:
        return ["not met", *[""] * (4 + shares + codecs)]
    names = sorted({prompt["codec"] for prompt in row["prompts"]})
    cells = [", ".join(names)] if codecs else []
    cells += [
        f"{row['ratio_trace']:.4g}x", f"{row['ratio_final_fp32']:.3g}x",
        f"{row['kl_mean']:.2g} ± {row['kl_mean_se_prompts']:.1g}", f"{row['top1']:.4f} ± {row['top1_se_prompts']:.1g}",
        f"{row['perplexity_change']:+.2g} ± {row['perplexity_change_se_prompts']:.1g}",
    ]  # fmt: skip
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
    return _TABLE.sub(lambda match: match[1] + table(match[2]) + match[3], page)


if __name__ == "__main__":
    PAGE.write_text(generate(PAGE.read_text("utf-8")), "utf-8")
