"""Heat maps: the bits a value that every direction saves, by layer and head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from formats.errors import UsageError
from tsc_cli import figures
from tsc_cli.text_format import plain

from .directions import MEAN, PARTS
from .job import Probe
from .report import NAMES, PARTS_SHOWN

_WAYS = (("bits", "plain difference"), ("map_bits", "linear map"))


def draw(result: Probe, output: Path, title: str) -> None:
    """Draw a column of panels per direction and part: the difference above, the map below.

    Raises:
        UsageError: nothing was measured.
    """
    lines = [line for line in result.lines() if line[0] != MEAN]
    values = [
        value
        for line in lines
        for entry in result.chosen(*line)
        for value in (entry.bits, entry.map_bits)
        if value is not None
    ]
    if not values:
        raise UsageError("no direction could be measured: there is nothing to draw")
    plt = figures.pyplot()
    # one colour scale; a few cells may lie beyond it
    reach = max(float(np.percentile(np.abs(values), 99)), 0.1)
    figure, panels = plt.subplots(
        2, len(lines), figsize=(1.35 * len(lines) + 1.8, 7.6), sharey=True, squeeze=False, layout="constrained"
    )
    image: Any = None
    colours = plt.get_cmap("RdBu").with_extremes(bad="#d9d9d9")
    for row, (way, name) in enumerate(_WAYS):
        for axes, line in zip(panels[row], lines, strict=True):
            grid = _grid(result, line, way)
            image = axes.imshow(
                grid, cmap=colours, vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest", origin="lower"
            )
            axes.set_xticks(range(grid.shape[1]) if grid.shape[1] <= 4 else [0, grid.shape[1] - 1])
            axes.tick_params(labelsize=8)
            if row == 0:
                axes.set_title(f"{NAMES[line[0]]}\n{PARTS_SHOWN[line[1]]}", fontsize=8)
            else:
                axes.set_xlabel("KV head", fontsize=8)
            if line[0] == PARTS and way == "bits":
                axes.text(0.5, 0.5, "no difference", transform=axes.transAxes, ha="center", rotation=90, fontsize=8)
        panels[row][0].set_ylabel(f"{name}\nlayer", fontsize=9)
    bar = figure.colorbar(image, ax=panels, extend="both", fraction=0.03, pad=0.01)
    bar.set_label("bits a value saved (blue) or cost (red); grey: no figure", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(plain(title), fontsize=10)
    figures.save(figure, [output])


def _grid(result: Probe, line: tuple[str, str], way: str) -> Any:
    """(layers, heads), NaN where there is no figure."""
    entries = result.chosen(*line)
    grid = np.full((result.layers, 1 + max(entry.head for entry in entries)), np.nan)
    for entry in entries:
        value = getattr(entry, way)
        grid[entry.layer, entry.head] = np.nan if value is None else value
    return grid
