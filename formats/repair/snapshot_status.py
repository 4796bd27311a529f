"""Which snapshots of a damaged file can be restored, and what the others lack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from formats.container.records import RecordHeader, RecordType
from formats.trace.spans import inside, meets, without
from formats.trace.states import snapshots_of
from formats.trace.views import HISTORY, Span, View, merged

from .inventory import Need, Remains, read_records
from .scan import Wreck


def examine(wreck: Wreck) -> Remains:
    """Check everything that is left of a file: each record by itself, then each snapshot by what it needs.

    Raises:
        CorruptError: MODEL is lost, without which nothing else can be understood.
        UnsupportedFileError: the file needs a newer reader.
    """
    remains = read_records(wreck)
    _judge_snapshots(remains)
    return remains


def _judge_snapshots(remains: Remains) -> None:
    """Find out what each snapshot lacks, and whether a lost record may have said what its rows mean."""
    available = remains.common()
    held = snapshots_of(states.key for states in remains.states.values())
    states_held = {which: merged(spans) for which, spans in held.items()}
    gone = remains.lost_records()
    unknown = remains.open_end or any(one is None for one in gone)
    maps = [one for one in gone if one is not None and one.type == RecordType.KEPT]
    for number, view in remains.views.items():
        remains.lacks[number] = list(_lacks(remains, number, view, available, states_held))
        if any(_mapped(view, one) for one in maps) or (unknown and _perhaps_mapped(remains, view)):
            remains.unsure.add(number)


def _lacks(
    remains: Remains,
    number: int,
    view: View,
    available: Sequence[tuple[Span, ...]],
    states: dict[tuple[int, int], tuple[Span, ...]],
) -> Iterable[Need]:
    labels = without(
        [*view.history, *(span for spans in set(view.layers) for span in spans), *_meant(remains, view)],
        remains.labelled,
    )
    if labels:
        yield Need(HISTORY, 1, labels)
    lacking = [without(spans, available[layer]) for layer, spans in enumerate(view.layers)]
    for first, count in _runs(lacking):
        yield Need(first, count, lacking[first])
    for layer, spec in enumerate(remains.pieces.geometry.layers):
        for at, state in enumerate(spec.states):
            if not inside(Span(number, 1), states.get((layer, at), ())):
                yield Need(layer, 1, (), state.name)


def _meant(remains: Remains, view: View) -> Iterable[Span]:
    """Rows that slots of a snapshot stand for: their labels are needed."""
    for number, one in remains.kept.items():
        slots = Span(one.span.first, one.slots)
        if any(meets(slots, view.layers[one.first_layer + at]) for at in range(one.layer_count)):
            yield from remains.stands_for[number]


def _mapped(view: View, one: RecordHeader) -> bool:
    layers = view.layers[one.first_layer : one.first_layer + one.layer_count]
    return any(meets(Span(one.first, one.count), spans) for spans in layers)


def _perhaps_mapped(remains: Remains, view: View) -> bool:
    """Whether a layer names fewer rows than there were tokens, and no map says which: one may be lost."""
    for layer, spec in enumerate(remains.pieces.geometry.layers):
        if spec.kind not in ("full", "sliding") or spec.index_size:
            continue
        there = min(view.tokens_seen, spec.window - 1) if spec.window else view.tokens_seen
        covered = any(one.covers(layer) for one in remains.kept.values())
        if view.rows(layer) < there and not covered:
            return True
    return False


def _runs(values: Sequence[Any]) -> Iterable[tuple[int, int]]:
    """(first, count) of runs of equal values that are not empty."""
    first = 0
    for at in range(1, len(values) + 1):
        if at == len(values) or values[at] != values[first]:
            if values[first]:
                yield first, at - first
            first = at
