"""Drawing benchmarks: ratio against KL and against top-1 agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from formats.errors import UsageError
from tsc_cli import figures
from tsc_cli.text_format import plain

_MARKERS = {"published": "o", "promised": "D", "hand": "s", "klt": "D", "baseline": "s", "peer": "o"}
_NAMES = {
    "published": "as published",
    "promised": "as promised",
    "hand": "by hand",
    "klt": "codec klt",
    "baseline": "known formats",
    "peer": "other projects",
}
_FLOOR = 1e-7  # where an exact cache is drawn: a logarithm has no zero


def draw(documents: Sequence[tuple[str, Mapping[str, Any]]], outputs: Sequence[Path], title: str | None = None) -> None:
    """Draw the rows of one or more `tsc.bench/1` documents.

    Args:
        documents: (name, document).
        outputs: files to write, .png or .svg.
    Raises:
        UsageError: there is nothing to draw.
    """
    rows = [(name, row) for name, facts in documents for row in facts["rows"] if "kl_mean" in row]
    if not rows:
        raise UsageError("no row was measured: there is nothing to draw")
    plt = figures.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.6), constrained_layout=True)
    groups = list(dict.fromkeys((name, row["kind"]) for name, row in rows))
    colours = plt.get_cmap("tab10")
    for number, (name, kind) in enumerate(groups):
        chosen = [row for other, row in rows if (other, row["kind"]) == (name, kind)]
        label = plain(_NAMES.get(kind, kind) if len(documents) == 1 else f"{name}, {_NAMES.get(kind, kind)}")
        style = {"marker": _MARKERS.get(kind, "^"), "linestyle": "none", "color": colours(number % 10), "capsize": 3}
        ratios = [row["ratio_trace"] for row in chosen]
        left.errorbar(
            ratios,
            [max(row["kl_mean"], _FLOOR) for row in chosen],
            yerr=[_bar(row) for row in chosen],
            label=label,
            **style,
        )
        errors = [row["top1_se_prompts"] or row["top1_se"] or 0.0 for row in chosen]
        right.errorbar(ratios, [row["top1"] for row in chosen], yerr=errors, label=label, **style)
    stated = [row["report"] for _, row in rows if row.get("report")]
    for axes, key in ((left, "kl"), (right, "top1")):
        points = sorted({(one["ratio"], max(one[key], _FLOOR)) for one in stated if one.get(key) is not None})
        if points:
            axes.plot(*zip(*points, strict=True), "x", color="black", label="stated in the reports")
    _finish(left, right, [row["ratio_trace"] for _, row in rows])
    figure.canvas.draw()  # places everything, so that names can be put where nothing is
    named = [row for _, row in rows]
    _name(left, [(row["label"], row["ratio_trace"], max(row["kl_mean"], _FLOOR)) for row in named])
    _name(right, [(row["label"], row["ratio_trace"], row["top1"]) for row in named])
    if title:
        figure.suptitle(title)
    figures.save(figure, outputs)


def _bar(row: Mapping[str, Any]) -> float:
    """The standard error, kept from reaching below the axis."""
    error = row["kl_mean_se_prompts"] or row["kl_mean_se"] or 0.0
    return min(float(error), 0.9 * float(row["kl_mean"]))


_OFFSETS = [(7, -3), (7, 6), (7, -12), (-7, -3), (-7, 6), (-7, -12), *((9, -12 - 10 * n) for n in range(1, 3))]


def _name(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each point's name beside it, where it covers no other name and no point; equal names
    once.
    """
    from matplotlib.transforms import Bbox

    places = [axes.transData.transform((x, y)) for _, x, y in points]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in places]
    for number, (label, x, y) in enumerate(points):
        others = taken[:number] + taken[number + 1 :]
        for offset in _OFFSETS:
            side = "left" if offset[0] > 0 else "right"
            text = axes.annotate(plain(label), (x, y), textcoords="offset points", xytext=offset, fontsize=8, ha=side)
            box = text.get_window_extent()
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in others):
                taken.append(box)
                break
            text.remove()  # a crowd has no room for every name; the table has them all


def _finish(left: Any, right: Any, ratios: Sequence[float]) -> None:
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("ratio: captured trace / file")
        low, high = min(ratios) * 0.8, max(ratios) * 1.5
        ticks = [n for n in (5, 10, 20, 50, 70, 100, 200, 300, 500, 700, 1000, 2000, 5000, 10000) if low <= n <= high]
        axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(low, high)
        axes.margins(y=0.1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    left.set_yscale("log")
    left.set_ylabel("mean KL(exact || restored), nats (lower is better; at least 1e-7 is drawn)")
    right.set_ylabel("same top-1 token (higher is better)")
