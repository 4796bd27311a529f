"""What is compared with what: a row with the token, the layer, the heads or the part beside it.

A codec that has been told the reference may code the difference (no fit), what a line a channel
leaves, or what a linear map from all that is known leaves. All are measured against the signal
without its channel means: a large mean makes any two rows alike, and costs a codec nothing (KIVI's
zero points, arXiv 2402.02750).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .measures import bits, energies, ratios
from .ridge import LEAST_ROWS, enough, halves, mapped, own, rows_a_regressor
from .rows import KEYS, VALUES, Layer

MEAN, TOKENS, LAYERS, HEADS, PARTS = "mean", "tokens", "layers", "heads", "parts"
LEAST = 2 * LEAST_ROWS  # rows that are worth comparing
_FEW = 4  # rows a regressor below which more rows would show noticeably more


@dataclass
class Entry:
    """One head of one layer in one direction; None is what does not exist or has too few rows.

    Attributes:
        ratio: energy of the difference over that of the signal, both without their channel means.
        ratio_raw: the same with the means.
        bits: a value, saved by coding the difference.
        negative: it costs them.
        own_r2, own_bits: of a line a channel, fitted on the first half of the tokens, scored on the
            second.
        map_r2, map_bits: of a linear map from all that is known, fitted and scored so.
    """

    direction: str
    part: str
    layer: int
    head: int
    ratio: float | None = None
    ratio_raw: float | None = None
    bits: float | None = None
    own_r2: float | None = None
    own_bits: float | None = None
    map_r2: float | None = None
    map_bits: float | None = None


class Directions:
    """Compares layers in turn, and collects why some figures are missing or weak.

    Attributes:
        few: by direction, the least rows a regressor of a map that was fitted, and of those that
            were not.
        notes: what could not be compared, by name.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.fitted: dict[str, float] = {}
        self.unfitted: dict[str, int] = {}
        self.notes: dict[str, None] = {}

    def add(self, layer: Layer, before: Layer | None) -> None:
        """Measure one layer, with the one before it."""
        if layer.rows < LEAST:
            self.notes[f"layers with fewer than {LEAST} rows are left out"] = None
            return
        for part, rows in layer.parts.items():
            self._mean(layer, part, rows)
        if not layer.aligned:
            self.notes["heads hold different tokens: layers, heads and parts are not compared"] = None
            self._tokens_by_head(layer)
            return
        self._tokens(layer)
        self._parts(layer)
        self._heads(layer)
        if before is not None:
            self._layers(layer, before)

    def _mean(self, layer: Layer, part: str, rows: torch.Tensor) -> None:
        """Measure the share of energy outside the channel means, and the bits to gain from them."""
        tokens = rows.transpose(1, 2)
        whole, varying = energies(tokens, centred=False), energies(tokens)
        figures = zip(ratios(whole, varying), bits(whole, varying), strict=True)
        self.entries += [Entry(MEAN, part, layer.number, head, r, r, b) for head, (r, b) in enumerate(figures)]

    def _tokens(self, layer: Layer) -> None:
        """Rows against those of the token before; a gap in the positions is none."""
        now = (layer.positions.diff() == 1).nonzero()[:, 0] + 1
        for keys in dict.fromkeys((KEYS, layer.plain)):
            # the values' map is told the plain keys: there is one table row of values
            parts = [keys] if keys != layer.plain else [keys, VALUES]
            self._compare(
                TOKENS,
                layer.number,
                {part: layer.parts[part][..., now, :] for part in parts},
                {part: layer.parts[part][..., now - 1, :] for part in parts},
                layer.vectors(keys, VALUES)[:, now - 1],
            )

    def _tokens_by_head(self, layer: Layer) -> None:
        for head, positions in enumerate(layer.positions):
            now = (positions.diff() == 1).nonzero()[:, 0] + 1
            here, there = (
                {part: rows[:, head : head + 1, rows_at] for part, rows in layer.parts.items()}
                for rows_at in (now, now - 1)
            )
            self._compare(TOKENS, layer.number, here, there, None, head)

    def _layers(self, layer: Layer, before: Layer) -> None:
        """Compare rows with the same tokens' in the layer before; skip tokens that one lacks."""
        here, there = common(layer.positions, before.positions) if before.aligned else (None, None)
        if here is None or there is None or len(here) < LEAST:
            self.notes["some neighbouring layers hold too few tokens in common, or none that can be told"] = None
            return
        parts = dict.fromkeys((layer.plain, VALUES))
        now = {part: layer.parts[part][..., here, :] for part in parts}
        then = {part: before.parts[part][..., there, :] for part in parts if part in before.parts}
        alike = {part: rows for part, rows in then.items() if rows.shape == now[part].shape}
        if len(alike) < len(then):
            self.notes["layers of different shapes are compared by the map alone"] = None
        self._compare(LAYERS, layer.number, now, alike, before.vectors(before.plain, VALUES)[:, there])

    def _heads(self, layer: Layer) -> None:
        """A head against the one before it; its map is told all other heads' keys and values."""
        parts = (layer.plain, VALUES)
        heads = layer.parts[VALUES].shape[1]
        for head in range(heads if heads > 1 else 0):
            other_heads = [other_head for other_head in range(heads) if other_head != head]
            rest = torch.cat([layer.parts[part][:, other_heads].transpose(1, 2).flatten(2) for part in parts], -1)
            now = {part: layer.parts[part][:, head : head + 1] for part in parts}
            then = {part: layer.parts[part][:, head - 1 : head] for part in parts} if head else {}
            self._compare(HEADS, layer.number, now, then, rest, head)

    def _parts(self, layer: Layer) -> None:
        """Predict keys from the same tokens' values and the reverse; there is no difference."""
        for part, known_part in ((layer.plain, VALUES), (VALUES, layer.plain)):
            self._compare(PARTS, layer.number, {part: layer.parts[part]}, {}, layer.vectors(known_part))

    def _compare(
        self,
        direction: str,
        layer: int,
        signals: Mapping[str, torch.Tensor],
        references: Mapping[str, torch.Tensor],
        inputs: torch.Tensor | None,
        first_head: int = 0,
    ) -> None:
        """Add an entry for each head of each signal.

        Args:
            signals, references: (batch, heads, tokens, size).
            inputs: (batch, tokens, regressors).
        """
        here = {part: rows.transpose(1, 2) for part, rows in signals.items()}
        if next(iter(here.values())).shape[1] < LEAST:
            return
        left = dict.fromkeys(here, None) | self._maps(direction, here, inputs)
        for part, rows in here.items():
            entries = [Entry(direction, part, layer, first_head + head) for head in range(rows.shape[2])]
            scored = halves(rows).score
            if part in references:
                there = references[part].transpose(1, 2)
                _difference(entries, rows, there)
                _fill(entries, "own", scored, own(rows, there))
            _fill(entries, "map", scored, left[part])
            self.entries += entries

    def _maps(
        self, direction: str, here: Mapping[str, torch.Tensor], inputs: torch.Tensor | None
    ) -> dict[str, torch.Tensor | None]:
        if inputs is None:
            return {}
        if not enough(inputs):
            self.unfitted[direction] = max(self.unfitted.get(direction, 0), inputs.shape[-1])
            return {}
        row_share = rows_a_regressor(inputs)
        self.fitted[direction] = min(self.fitted.get(direction, row_share), row_share)
        return dict(zip(here, mapped(inputs, list(here.values())), strict=True))

    def weak(self) -> dict[str, float]:
        """Return the directions whose maps had few rows per regressor and might gain by more."""
        return {direction: row_share for direction, row_share in self.fitted.items() if row_share < _FEW}


def common(here: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the indices of common positions in order; None if positions repeat or go back."""
    if torch.equal(here, there):
        both = torch.arange(len(here))
        return both, both
    if bool((here.diff() <= 0).any()) or bool((there.diff() <= 0).any()):
        return None, None
    return torch.isin(here, there).nonzero()[:, 0], torch.isin(there, here).nonzero()[:, 0]


def _difference(entries: list[Entry], rows: torch.Tensor, there: torch.Tensor) -> None:
    signal, left, raw = energies(rows), energies(rows - there), energies(rows, centred=False)
    plain = ratios(raw, energies(rows - there, centred=False))
    for entry, entry_ratio, entry_ratio_raw, saved in zip(
        entries, ratios(signal, left), plain, bits(signal, left, raw), strict=True
    ):
        entry.ratio, entry.ratio_raw, entry.bits = entry_ratio, entry_ratio_raw, saved


def _fill(entries: list[Entry], kind: str, scored: torch.Tensor, left: torch.Tensor | None) -> None:
    if left is None:
        return
    # the signal about the mean of the very rows that are scored, the rest about nothing: the map is
    # never flattered
    signal, rest, raw = energies(scored), energies(left, centred=False), energies(scored, centred=False)
    for entry, share, saved in zip(entries, ratios(signal, rest), bits(signal, rest, raw), strict=True):
        setattr(entry, f"{kind}_r2", None if share is None else 1 - share)
        setattr(entry, f"{kind}_bits", saved)
