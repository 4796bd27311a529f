"""The whole of `tsc probe-cache`: one snapshot, compared in every direction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from formats.codecs.klt.rotary import Rotary
from formats.errors import UsageError
from formats.trace.trace import Trace
from tsc_cli.progress import Progress

from .directions import HEADS, LAYERS, LEAST, MEAN, PARTS, TOKENS, Directions, Entry
from .rows import KEYS, UNDONE, VALUES, Layer, layers_of
from .snapshots import Held, held_before

ORDER = [(direction, part) for direction in (MEAN, TOKENS, LAYERS, HEADS, PARTS) for part in (KEYS, UNDONE, VALUES)]


@dataclass
class Probe:
    """What was measured of one snapshot.

    Attributes:
        entries: for every direction, part, layer and head.
        held: what the snapshot before holds of it; None for the first snapshot.
        unfitted: directions whose maps have more regressors than rows to fit them: how many
            regressors.
        weak: directions whose maps had few rows a regressor: how many.
        notes: what could not be compared, and what else a reader must know.
    """

    snapshot: int
    tokens: int
    skip: int
    layers: int
    entries: list[Entry]
    held: Held | None
    unfitted: dict[str, int] = field(default_factory=dict)
    weak: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def chosen(self, direction: str, part: str) -> list[Entry]:
        return [entry for entry in self.entries if (entry.direction, entry.part) == (direction, part)]

    def lines(self) -> list[tuple[str, str]]:
        """The directions and parts that were measured, in order."""
        measured = {(entry.direction, entry.part) for entry in self.entries}
        return [line for line in ORDER if line in measured]


def probe(trace: Trace, snapshot_number: int, skip: int, turning: Sequence[Rotary] | None, advance: Progress) -> Probe:
    """Compare a snapshot's rows, without those of its first `skip` tokens, in every direction.

    Two layers are held in double precision at a time.

    Args:
        turning: how each layer turns its keys, None if it is not known.
        advance: told after each layer.
    Raises:
        UsageError: too few rows are left, or a value is not finite.
        CorruptError, LimitError: the rows cannot be read.
    """
    snapshot_number, directions = trace.index(snapshot_number), Directions()
    before: Layer | None = None
    most = 0
    for layer in layers_of(trace, snapshot_number, skip, turning):
        directions.add(layer, before)
        before, most = layer, max(most, layer.rows)
        advance(1)
    if most < LEAST:
        raise UsageError(
            f"snapshot {snapshot_number} has {most} rows after the first {skip} tokens: at least {LEAST} are compared",
            hint="capture a longer prompt",
        )
    return Probe(
        snapshot_number,
        trace.views[snapshot_number].tokens_seen,
        skip,
        len(trace.geometry.layers),
        directions.entries,
        held_before(trace, snapshot_number),
        directions.unfitted,
        directions.weak(),
        list(directions.notes),
    )


def mean(entries: Iterable[Entry], name: str) -> float | None:
    """The mean of a figure over the entries that have it."""
    values = [value for value in (getattr(entry, name) for entry in entries) if value is not None]
    return sum(values) / len(values) if values else None
