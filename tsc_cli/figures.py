"""Set up Matplotlib to draw without a display, and the same figure with the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from formats.errors import optional_packages


def pyplot() -> Any:
    """Import `matplotlib.pyplot`.

    Raises:
        UsageError: the extra that installs it is missing.
    """
    with optional_packages("plot", "a figure"):
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    mpl.rcParams["svg.hashsalt"] = "tsc"
    return plt


def save(figure: Any, outputs: Iterable[Path]) -> None:
    """Write a figure to files, .png or .svg, and release it."""
    for output in outputs:
        figure.savefig(output, dpi=150, metadata={"Date": None} if output.suffix.lower() == ".svg" else None)
    pyplot().close(figure)
