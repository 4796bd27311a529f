"""Draw the ratios of adjacent layers and of the best reference, layer by layer.

One panel a type.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from formats.errors import UsageError
from tsc_cli import figures
from tsc_cli.text_format import plain

from .probe import TypeReport

_MOST = 16  # panels
_ADJACENT, _BEST = "#c44e52", "#4c72b0"


def draw(reports: Sequence[TypeReport], output: Path, title: str, against: str | None) -> None:
    """Draw r against the layer into a .png or .svg file.

    Experts of one layer are drawn as points, their mean as the line.

    Raises:
        UsageError: no matrix has a ratio.
    """
    shown = [report for report in reports if report.values("ratio")][:_MOST]
    if not shown:
        raise UsageError("all matrices are zero: there is nothing to draw")
    plt = figures.pyplot()
    wide = min(4, len(shown) + 1)
    high = -(-(len(shown) + 1) // wide)
    figure = plt.figure(figsize=(3.2 * wide, 2.5 * high + 0.9), layout="constrained")
    names = {"ratio": "R: the layer before" if against is None else f"R: the same layer of {plain(against)}"}
    colours = {"ratio": _ADJACENT, "best": _BEST}
    if against is None:
        names["best"] = "R: the best of all other layers"
    first: Any = None
    for panel, report in enumerate(shown):
        axes = figure.add_subplot(high, wide, panel + 1, sharex=first, sharey=first)
        first = first or axes
        for field, label in names.items():
            _line(axes, report, field, label, colours[field])
        if against is None:
            axes.axhline(1, color="black", linewidth=0.8, linestyle=":", label="a difference as large as R")
        outputs, inputs = report.type.series[0].shape
        axes.set_title(f"{plain(report.type.name)}  ({outputs} x {inputs})", fontsize=9)
        axes.set_xlabel("layer", fontsize=8)
        if panel % wide == 0:
            axes.set_ylabel("r = max|W - R| / max|R|", fontsize=8)
        _finish(axes)
    top = _scale(first, shown, list(names))
    if top is not None:
        for axes, report in zip(figure.axes, shown, strict=True):
            for field in names:
                _name_clipped(axes, report, field, top, colours[field])
    _bits(figure.add_subplot(high, wide, len(shown) + 1), shown)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    left_out = f", {_MOST} of {len(reports)} types" if len(reports) > len(shown) == _MOST else ""
    figure.suptitle(plain(title) + left_out, fontsize=11)
    figures.save(figure, [output])


def _line(axes: Any, report: TypeReport, field: str, label: str, colour: str) -> None:
    points = [(entry.layer, getattr(entry, field)) for entry in report.entries if getattr(entry, field) is not None]
    layers = sorted({layer for layer, _ in points})
    means = [float(np.mean([value for entry_layer, value in points if entry_layer == layer])) for layer in layers]
    if len(points) > len(layers):
        axes.plot(*zip(*points, strict=True), ".", color=colour, markersize=3, alpha=0.35)
    axes.plot(layers, means, "o-", color=colour, markersize=2.5, linewidth=1.1, label=label)


def _scale(axes: Any, reports: Sequence[TypeReport], fields: Sequence[str]) -> float | None:
    """Share one axis: from 0, or logarithmic where the ratios span too much for that.

    Returns:
        where the axis was cut off, if a few ratios would have pressed all others flat.
    """
    values = [value for report in reports for field in fields for value in report.values(field)]
    usual = float(np.percentile(values, 98))
    positive = [value for value in values if value > 0]
    if positive and usual > 10 * min(positive):
        axes.set_yscale("log")
        return None
    top = 1.15 * usual if max(values) > 1.5 * usual else 1.05 * max(values)
    axes.set_ylim(0, top or 1)
    return top if max(values) > top else None


def _name_clipped(axes: Any, report: TypeReport, field: str, top: float, colour: str) -> None:
    """What an axis that was cut off does not show is written where the line leaves it."""
    for entry in report.entries:
        value = getattr(entry, field)
        if value is not None and value > top:
            axes.annotate(
                f"{value:.2g}",
                (entry.layer, top),
                textcoords="offset points",
                xytext=(-7, -9),
                fontsize=8,
                color=colour,
                ha="right",
            )


def _bits(axes: Any, reports: Sequence[TypeReport]) -> None:
    """The decisive figure beside the published one: what coding the differences saves."""
    measured = [report for report in reports if report.saved is not None]
    saved = [report.saved or 0.0 for report in measured]
    axes.bar(range(len(measured)), saved, color=[_ADJACENT if value < 0 else "#55a868" for value in saved], width=0.6)
    axes.set_xticks(
        range(len(measured)), [plain(report.type.name) for report in measured], rotation=90 if len(measured) > 8 else 0
    )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title("bits a weight saved by coding W - R", fontsize=9)
    axes.margins(y=0.15)
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
