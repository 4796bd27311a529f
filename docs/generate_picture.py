"""Draw the README's picture, docs/figures/ratio.png, from docs/benchmarks/ladder.json.

Run `python docs/generate_picture.py`. `python docs/generate_claims.py` writes the table beside it
from the same file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
LADDER = DOCS / "benchmarks" / "ladder.json"
PICTURE = DOCS / "figures" / "ratio.png"

# the calibrated codec, formats of llama.cpp and KIVI, and quantizers of other projects
STYLES = {
    "klt": {"label": "tsc, codec klt", "color": "#1f6fb4", "marker": "D"},
    "baseline": {"label": "llama.cpp's and KIVI's formats", "color": "#d9822b", "marker": "s"},
    "peer": {"label": "other projects' quantizers", "color": "#5b9a58", "marker": "o"},
}
# points with a label, and the offset of its text in points
LABELS = {
    "klt 16x": (8, -4),
    "klt 63x": (8, -4),
    "klt 125x": (8, -4),
    "klt 219x": (8, -4),
    "klt 429x": (-4, 10),
    "q8_0": (8, -4),
    "q4_0": (8, -4),
    "KIVI-2": (-42, -2),
    "nexusquant K4V4": (8, -4),
    "nexusquant K3V2": (8, -4),
    "nexusquant K2V2": (8, -4),
}


def points() -> dict[str, dict[str, tuple[float, float]]]:
    """Ratio to bfloat16 and mean KL in nats of each row, by kind and label."""
    rows = json.loads(LADDER.read_text("utf-8"))["rows"]
    placed: dict[str, dict[str, tuple[float, float]]] = {kind: {} for kind in STYLES}
    for row in rows:
        placed[row["kind"]][row["label"]] = (row["ratio_final_fp32"] / 2, row["kl_mean"])
    return placed


def draw(path: Path) -> None:
    """Write the picture as PNG to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    for kind, rows in points().items():
        style: dict[str, Any] = STYLES[kind]
        ratios, divergences = zip(*rows.values(), strict=True)
        line = "-" if kind == "klt" else ""
        axes.plot(ratios, divergences, linestyle=line, linewidth=1.2, markersize=6, **style)
        for label, place in rows.items():
            if label in LABELS:
                text = label.removeprefix("klt ") if kind != "klt" else f"--tier {label.removeprefix('klt ')}"
                axes.annotate(text, place, LABELS[label], textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlim=(1.7, 420), ylim=(2e-5, 3))
    axes.set_xlabel("times smaller than bfloat16")
    axes.set_ylabel("mean KL to the exact cache, nats (lower is better)")
    axes.set_xticks([2, 5, 10, 20, 50, 100, 200], ["2x", "5x", "10x", "20x", "50x", "100x", "200x"])
    axes.minorticks_off()
    top = axes.secondary_xaxis("top", functions=(lambda ratio: 2 * ratio, lambda ratio: ratio / 2))
    top.set_xlabel("times smaller than float32")
    top.set_xticks([4, 10, 20, 40, 100, 200, 400], ["4x", "10x", "20x", "40x", "100x", "200x", "400x"])
    top.minorticks_off()
    axes.grid(visible=True, alpha=0.25)
    axes.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw(PICTURE)
