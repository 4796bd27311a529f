"""What `tsc probe-cache` says: a table and a verdict for a person, facts for a program."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tsc_cli.text_format import columns

from .directions import HEADS, LAYERS, MEAN, PARTS, TOKENS, Entry
from .job import Probe, mean
from .rows import KEYS, UNDONE, VALUES

SCHEMA = "tsc.probe-cache/1"
NAMES = {
    MEAN: "channel mean",
    TOKENS: "token before",
    LAYERS: "layer before",
    HEADS: "other heads",
    PARTS: "other part",
}
PARTS_SHOWN = {KEYS: "keys as cached", UNDONE: "keys, no RoPE", VALUES: "values"}
_BRIEF = {TOKENS: "tok", LAYERS: "lay", HEADS: "head", PARTS: "part"}
_FIGURES = ("ratio", "ratio_raw", "bits", "own_r2", "own_bits", "map_r2", "map_bits")
_WAYS = {"bits": "a plain difference", "own_bits": "a line a channel", "map_bits": "a linear map"}
_NOTHING = 0.05  # bits a value that are not worth a sentence


@dataclass(frozen=True)
class Saving:
    """Bits a value that one direction saves, mean of keys (without RoPE if known) and values."""

    direction: str
    way: str
    bits: float

    @property
    def worth(self) -> bool:
        return self.bits >= _NOTHING


@dataclass(frozen=True)
class Verdict:
    """Where a snapshot is redundant, and what differences of tokens are worth.

    Attributes:
        most: what saves most; None if nothing was measured.
        in_order: what saves most of what a decoder knows by then for every row: tokens and layers
            come one by one, while heads, and keys and values, cannot each be told by the others.
        token_bits: what plain differences of tokens save, by part.
    """

    most: Saving | None
    in_order: Saving | None
    token_bits: dict[str, float | None]


def verdict_of(result: Probe) -> Verdict:
    parts = [part for direction, part in result.lines() if direction == TOKENS]
    tokens = {part: mean(result.chosen(TOKENS, part), "bits") for part in parts}
    return Verdict(_most(result, (TOKENS, LAYERS, HEADS, PARTS)), _most(result, (TOKENS, LAYERS)), tokens)


def _most(result: Probe, directions: Sequence[str]) -> Saving | None:
    savings = [
        Saving(direction, way, saved)
        for direction in directions
        for way in _WAYS
        if (saved := _saved(result, direction, way)) is not None
    ]
    return max(savings, key=lambda saving: saving.bits, default=None)


def _saved(result: Probe, direction: str, way: str) -> float | None:
    """Bits a value, the mean of keys and values; None unless both were measured."""
    parts = (UNDONE if result.chosen(TOKENS, UNDONE) else KEYS, VALUES)
    values = [mean(result.chosen(direction, part), way) for part in parts]
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if len(measured) == len(values) else None


def facts(result: Probe, verdict: Verdict) -> dict[str, Any]:
    """Return the report for JSON: missing figures are null, means are over those that exist."""
    shared = result.held
    return {
        "snapshot": result.snapshot,
        "tokens": result.tokens,
        "skip": result.skip,
        "layer_count": result.layers,
        "directions": [
            {"direction": direction, "part": part, **_means(result.chosen(direction, part))}
            for direction, part in result.lines()
        ],
        "snapshot_before": None
        if shared is None
        else {
            "rows": shared.rows,
            "rows_identical": shared.identical,
            "rows_differing": shared.differing,
            "rows_new": shared.new,
            "share_identical": shared.identical / shared.rows,
            "ratio_differing": shared.ratio,
        },
        "regressors_unfitted": result.unfitted,
        "rows_a_regressor_weak": result.weak,
        "notes": result.notes,
        "verdict": dataclasses.asdict(verdict),
        "entries": [dataclasses.asdict(entry) for entry in result.entries],
    }


def _means(entries: Sequence[Entry]) -> dict[str, Any]:
    return {"entries": len(entries), **{name: mean(entries, name) for name in _FIGURES}}


def text(result: Probe, head: str, verdict: Verdict, *, layers: bool) -> str:
    """Tables of at most 80 columns, what they leave out, and the verdict."""
    rows = [_row(result, direction, part) for direction, part in result.lines()]
    if not result.chosen(HEADS, VALUES):
        rows.append([NAMES[HEADS], "", *["none"] * 6])
    parts = [
        head,
        columns(rows, ("known", "signal", "|d|^2", "bits", "line R2", "bits", "map R2", "bits")),
        _fill(
            "|d|^2: energy of signal - known over that of the signal, channel means removed from both (of the channel "
            "mean itself: what it leaves of the signal). bits: saved a value by coding the rest at equal error; below "
            "zero it costs them. line: a slope and an offset a channel; map: linear, from all of the known rows' keys "
            "and values; both fitted on the first half of the tokens, scored on the second. Means over layers and "
            "heads."
        ),
    ]
    if layers:
        parts += _by_layer(result)
    if result.held is not None:
        parts.append(_fill(_held(result)))
    notes = [_fill(f"note: {note}") for note in [*result.notes, *_fits(result)]]
    if notes:
        parts.append("\n".join(notes))
    parts.append(_fill(f"verdict: {sentence(result, verdict)}"))
    return "\n\n".join(parts)


def sentence(result: Probe, verdict: Verdict) -> str:
    """Where redundancy is, and where it is not, in the figures that were measured."""
    parts = []
    if result.held is not None:
        parts.append(f"{_percent(result.held.identical / result.held.rows)} of the rows are in the snapshot before")
    within = "within a snapshot " if parts else ""
    most, in_order = verdict.most, verdict.in_order
    if most is None or not most.worth:
        parts.append(f"{within}no direction saves {_NOTHING} bits a value")
    else:
        advice = f"{within}{_WAYS[most.way]} from the {NAMES[most.direction]} saves most, {most.bits:.2f} bits a value"
        if most.direction in (HEADS, PARTS):
            advice += ", though not on all of them at once"
            if in_order is not None and in_order.worth:
                advice += f"; {_WAYS[in_order.way]} from the {NAMES[in_order.direction]} saves {in_order.bits:.2f}"
        parts.append(advice)
    worth = [
        f"{'saves' if saved >= 0 else 'costs'} {abs(saved):.2f} on {PARTS_SHOWN[part]}"
        for part, saved in verdict.token_bits.items()
        if saved is not None
    ]
    if worth:
        parts.append(f"the difference of neighbouring tokens {', '.join(worth)}")
    return "; ".join(parts)


def _row(result: Probe, direction: str, part: str) -> list[str]:
    entries = result.chosen(direction, part)
    figures = (
        ("ratio", ".3f"),
        ("bits", "+.2f"),
        ("own_r2", ".3f"),
        ("own_bits", "+.2f"),
        ("map_r2", ".3f"),
        ("map_bits", "+.2f"),
    )
    shown = ["" if direction == MEAN and "_" in name else _figure(mean(entries, name), form) for name, form in figures]
    return [NAMES[direction], PARTS_SHOWN[part], *shown]


def _by_layer(result: Probe) -> list[str]:
    """Bits saved, layer by layer: by the difference, and by the map."""
    short = {KEYS: "K", UNDONE: "K'", VALUES: "V"}
    tables = []
    for way, title in (("bits", "a plain difference"), ("map_bits", "a linear map")):
        lines = [line for line in result.lines() if line[0] != MEAN and mean(result.chosen(*line), way) is not None]
        if not lines:
            continue
        rows = [
            [str(layer), *(_figure(_of_layer(result, line, layer, way), "+.2f") for line in lines)]
            for layer in sorted({entry.layer for entry in result.entries})
        ]
        head = ("layer", *(f"{_BRIEF[direction]} {short[part]}" for direction, part in lines))
        tables.append(
            f"bits a value saved by {title}, by layer (tok: from the token\n"
            "before; lay: the layer before; head: the other heads; part: values or keys;\n"
            f"K: keys as cached, K': keys without RoPE, V: values)\n{columns(rows, head)}"
        )
    return tables


def _of_layer(result: Probe, line: tuple[str, str], layer: int, way: str) -> float | None:
    return mean((entry for entry in result.chosen(*line) if entry.layer == layer), way)


def _held(result: Probe) -> str:
    shared = result.held
    assert shared is not None
    share = _percent(shared.identical / shared.rows)
    summary = f"snapshot before: {shared.identical} of {shared.rows} rows ({share}) stand in it"
    rest = [f"{shared.new} are new"] if shared.new else []
    if shared.differing:
        energy = "" if shared.ratio is None else f", |d|^2 {shared.ratio:.3f}"
        rest.append(f"{shared.differing} are other bits{energy}")
    return f"{summary} bit for bit{''.join('; ' + part for part in rest)}"


def _fits(result: Probe) -> list[str]:
    lines = [
        f"{NAMES[direction]}: no map, too few tokens to fit {regressors} regressors in half of them"
        for direction, regressors in result.unfitted.items()
    ]
    if result.weak:
        weak = ", ".join(f"{NAMES[name]} {result.weak[name]:.1f}" for name in NAMES if name in result.weak)
        lines.append(f"maps had few rows to fit a regressor ({weak}): with more tokens they explain more")
    return lines


def _percent(share: float) -> str:
    """A share that is not whole never reads as whole."""
    shown = f"{100 * share:.1f}%"
    return f"{100 * share:.4f}%" if shown == "100.0%" and share < 1 else shown


def _figure(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def _fill(text: str) -> str:
    return textwrap.fill(text, 80)
