"""A snapshot's rows, layer by layer, in double precision, without the first tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from formats.codecs.klt.rotary import Rotary
from formats.errors import UsageError
from formats.trace.trace import Trace

# keys as cached, keys with RoPE undone, values
KEYS, UNDONE, VALUES = "keys", "keys_undone", "values"
GROUP_BYTES = 128 << 20  # of rows as stored, read at a time: a block may cover many layers


@dataclass(frozen=True)
class Layer:
    """The rows of one layer that are probed.

    Attributes:
        parts: KEYS, UNDONE (if it is known how keys turn) and VALUES, float64 (batch, heads, rows,
            head size).
        positions: position ids, (rows,), or (heads, rows) if heads hold different tokens.
    """

    number: int
    parts: dict[str, torch.Tensor]
    positions: torch.Tensor

    @property
    def rows(self) -> int:
        return self.positions.shape[-1]

    @property
    def aligned(self) -> bool:
        """All heads hold the same tokens."""
        return self.positions.ndim == 1

    @property
    def plain(self) -> str:
        """The keys that depend on their token alone, as far as that is known."""
        return UNDONE if UNDONE in self.parts else KEYS

    def vectors(self, *parts: str) -> torch.Tensor:
        """All channels of all heads of some parts side by side: (batch, rows, channels)."""
        return torch.cat([self.parts[part].transpose(1, 2).flatten(2) for part in parts], -1)


def layers_of(trace: Trace, snapshot_number: int, skip: int, turning: Sequence[Rotary] | None) -> Iterator[Layer]:
    """The layers of a snapshot, in order, without the rows of its first `skip` tokens.

    About GROUP_BYTES of rows as stored are held, or one layer, beside the layer that is handed out.

    Raises:
        UsageError: a value is not finite.
        CorruptError, LimitError: the rows cannot be read.
    """
    for group in groups(trace, snapshot_number):
        moment = trace.snapshot(snapshot_number, layers=group)
        first = torch.tensor(moment.positions[:skip], dtype=torch.int64)
        for layer in group:
            positions = moment.row_positions.pop(0)
            keys, values = moment.keys.pop(0), moment.values.pop(0)
            keep = ~torch.isin(positions, first)
            parts = {
                KEYS: _kept(_doubled(keys, "keys", layer), keep),
                VALUES: _kept(_doubled(values, "values", layer), keep),
            }
            left = _kept(positions[None, ..., None], keep)[0, ..., 0]
            if turning is not None:
                parts = {KEYS: parts[KEYS], UNDONE: turned_back(parts[KEYS], left, turning[layer]), **parts}
            yield Layer(layer, parts, left)


def groups(trace: Trace, snapshot_number: int) -> Iterator[list[int]]:
    """Neighbouring layers, as many as GROUP_BYTES hold, one at least."""
    view, group, group_bytes = trace.views[snapshot_number], list[int](), 0
    for layer, row_bytes in enumerate(trace.geometry.row_bytes):
        size = view.rows(layer) * row_bytes
        if group and group_bytes + size > GROUP_BYTES:
            yield group
            group, group_bytes = [], 0
        group.append(layer)
        group_bytes += size
    yield group


def turned_back(keys: torch.Tensor, positions: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Undo RoPE on keys (batch, heads, rows, size) at positions (rows,) or (heads, rows)."""
    if positions.ndim == 1:
        return rotary.turn(keys, positions, back=True)
    by_head = [rotary.turn(keys[:, head], places, back=True) for head, places in enumerate(positions)]
    return torch.stack(by_head, 1)


def _doubled(rows: torch.Tensor, part: str, layer: int) -> torch.Tensor:
    doubled = rows.double()
    if not bool(torch.isfinite(doubled).all()):
        raise UsageError(
            f"the {part} of layer {layer} hold a value that is not finite: it has no energy to compare",
            hint="probe another snapshot, or a capture in float32",
        )
    return doubled


def _kept(rows: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Rows (batch, heads, rows, size) for which `keep`, (rows,) or (heads, rows), is set.

    Heads that hold different tokens may lose different numbers of first tokens: all lose the most
    that one does, at the front.
    """
    if keep.ndim == 1:
        return rows[..., keep.nonzero()[:, 0], :]
    least = int(keep.sum(1).min())
    return rows[..., keep.shape[1] - least :, :]
