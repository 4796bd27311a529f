"""Which snapshots and records of a damaged file are kept, and what a new file needs beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from formats.container.records import KNOWN_TYPES, Part, RecordType
from formats.errors import CorruptError
from formats.file.blocks import FileBlock
from formats.trace.spans import union, without
from formats.trace.views import Span

from .inventory import Remains

_ONCE = (RecordType.REFERENCE, RecordType.ATTENTION)  # records that are about the first snapshot


@dataclass
class Plan:
    """What is kept of a file.

    Attributes:
        numbers: old number of each snapshot that is kept -> new number.
        rows: the numbers of the ROWS records that are kept.
        complete: nothing is lost but, perhaps, superblock, INDEX or END.
        dropped: intact records that are not kept -> why.
        labels_for, rows_for: rows whose labels, and (layer, part, rows) whose values, zeros stand for.
        total_rows: how many rows the new file has labels for.
        untrue: the tier that the header stated and that the new file does not keep.
    """

    remains: Remains
    numbers: dict[int, int]
    rows: set[int] = field(default_factory=set)
    dropped: dict[int, str] = field(default_factory=dict)
    labels_for: list[Span] = field(default_factory=list)
    rows_for: list[tuple[int, Part, Span]] = field(default_factory=list)
    total_rows: int = 0
    untrue: str = ""

    @property
    def complete(self) -> bool:
        return self.remains.complete

    @property
    def damaged(self) -> bool:
        return bool(self.remains.wreck.problems or self.remains.problems)


def choose(remains: Remains) -> Plan:
    """Which snapshots and records are kept.  Raises CorruptError where no snapshot is whole."""
    if not remains.whole:
        known = f" of {remains.snapshots}" if remains.snapshots else ""
        raise CorruptError(
            f"no snapshot{known} can be recovered: what it needs is lost",
            path=remains.wreck.path,
            hint="tsc doctor lists what is left",
        )
    plan = Plan(remains, {old: new for new, old in enumerate(remains.whole)})
    if remains.complete:
        plan.rows = set(remains.blocks)
        return plan
    _choose(plan)
    return plan


def _choose(plan: Plan) -> None:
    remains = plan.remains
    views = [remains.views[number] for number in plan.numbers]
    named = [union(span for view in views for span in view.layers[at]) for at in range(len(views[0].layers))]
    needed = {
        number
        for number, block in remains.blocks.items()
        if any(without([block.key.span], named[layer]) != (block.key.span,) for layer in _layers(block))
    }
    fresh = set(needed)
    while fresh:  # and what these are predicted from
        fresh = {base for number in fresh for base in remains.bases.get(number, ())} - needed
        needed |= fresh
    maps = {
        number
        for number, one in remains.kept.items()
        if any(
            without([one.span], named[layer]) != (one.span,)
            for layer in range(one.first_layer, one.first_layer + one.layer_count)
        )
    }
    labelled = remains.labelled
    sure = labelled[0].stop if labelled and not labelled[0].first else 0
    stops = [span.stop for spans in named for span in spans] + [span.stop for v in views for span in v.history]
    stops += [remains.blocks[number].key.span.stop for number in needed]
    stops += [remains.kept[number].span.stop for number in maps]
    plan.total_rows = max([sure, *stops])
    plan.labels_for = list(without([Span(0, plan.total_rows)], labelled)) if plan.total_rows else []
    rows = {number for number, block in remains.blocks.items() if number in needed or block.key.span.stop <= sure}
    while True:
        common = remains.common(rows)
        out = {
            number
            for number in rows - needed
            if remains.bases.get(number, set()) - rows
            or any(without([block.key.span], common[at]) for block in [remains.blocks[number]] for at in _layers(block))
        }
        rows -= out
        if not out:
            break
    plan.rows = rows
    for layer, parts in enumerate(remains.stored(rows)):
        whole = union(span for spans in parts.values() for span in spans)
        for part, spans in parts.items():
            plan.rows_for += [(layer, part, span) for span in without(whole, spans)]
    for number in remains.blocks.keys() - rows:
        plan.dropped[number] = "rows that no snapshot names, and that lack labels or their keys or values"
    for number, found in remains.records.items():
        header = found.header
        if header.type in _ONCE and 0 not in plan.numbers:
            plan.dropped[number] = "is about the first snapshot, which is lost"
        elif (header.type == RecordType.ATTENTION and header.count > plan.total_rows) or (
            header.type == RecordType.KEPT and number not in maps and remains.kept[number].span.stop > sure
        ):
            plan.dropped[number] = "is about rows without labels"
        elif header.type == RecordType.STATES and not any(
            number in plan.numbers for number in range(header.first, header.first + header.count)
        ):
            plan.dropped[number] = "states of snapshots that are lost"
        elif header.type not in KNOWN_TYPES:
            plan.dropped[number] = "is not known to this program, which cannot tell whether it still holds"


def _layers(block: FileBlock) -> range:
    return range(block.key.first_layer, block.key.first_layer + block.key.layer_count)
