"""Which snapshots of a damaged file can be restored, what the others lack, and which records of
rows can be kept.

A file stores all parts of a row or none, and what predicts a row beside it.  So records of rows
stand or fall together: where one is lost, those that hold other parts of its rows cannot be kept,
nor those that are predicted from them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby, islice, product, takewhile
from typing import Any

from formats.container.records import Part, RecordHeader, RecordType
from formats.file.blocks import FileBlock
from formats.trace.spans import common, inside, meets, without
from formats.trace.states import snapshots_of
from formats.trace.views import HISTORY, Span, View, merged

from .findings import Problem
from .inventory import Inventory, Need
from .record_reading import read_records
from .scan import DamagedFile

_APART, _UNPREDICTED = "other parts of its rows are lost", "its rows are predicted from rows that are lost"

# (layer, part) -> spans, ascending, each with its record
Runs = dict[tuple[int, Part], list[tuple[Span, int]]]


def examine(damaged_file: DamagedFile) -> Inventory:
    """Check everything that is left of a file: each record by itself, then each snapshot by what it
    needs.

    Raises:
        CorruptError: MODEL is lost, without which nothing else can be understood.
        UnsupportedFileError: the file needs a newer reader.
    """
    inventory = read_records(damaged_file)
    _drop_rows(inventory, _stored_once(inventory))
    _require_states_once(inventory)
    _judge_snapshots(inventory)
    return inventory


def _stored_once(inventory: Inventory) -> Runs:
    """What the ROWS records hold; those that store a row again are taken out."""
    runs: Runs = defaultdict(list)
    for number in sorted(inventory.rows, key=lambda each: (inventory.rows[each].key.first_row, each)):
        block = inventory.rows[number]
        span, places = block.key.span, _places(block)
        again = [layer for layer, part in places if any(span.first < run.stop for run, _ in runs[layer, part][-1:])]
        if again:
            inventory.problems.append(Problem(f"rows of layer {again[-1]} are stored twice", block.offset, number))
            del inventory.rows[number], inventory.records[number]
            continue
        for place in places:
            runs[place].append((span, number))
    return runs


def _drop_rows(inventory: Inventory, runs: Runs) -> None:
    """Note which records of rows cannot be kept and why: for a fault of their own, then for what
    they are tied to.
    """
    whole = _common(inventory)
    tied, predicted, faults = _tied(inventory, runs), defaultdict(set), dict[int, str]()
    for number, block in inventory.rows.items():
        span = block.key.span
        for base in without(inventory.bases.get(number, ()), [span]):
            for place in _places(block):
                holders = _holding(base, runs[place])
                if without([base], [run for run, _ in holders]):
                    faults[number] = _UNPREDICTED
                for _, holder in holders:
                    predicted[holder].add(number)
        if span.stop > len(inventory.labels):
            faults[number] = "labels of its rows are lost"
        elif not all(inside(span, whole[layer]) for layer, _ in _places(block)):
            faults[number] = _APART
    waiting = list(faults)
    while waiting:
        number = waiting.pop()
        for why, others in ((_APART, tied[number]), (_UNPREDICTED, predicted[number])):
            fresh = others - faults.keys()
            faults |= dict.fromkeys(fresh, why)
            waiting += fresh
    inventory.dropped |= faults


def _tied(inventory: Inventory, runs: Runs) -> dict[int, set[int]]:
    """For each ROWS record others that hold other parts of some of its rows; directly, or by way of
    one another.
    """
    tied: dict[int, set[int]] = defaultdict(set)
    for layer, spec in enumerate(inventory.geometry.layers):
        there = sorted(run for part in spec.parts for run in runs[layer, part])
        for furthest, (span, number) in zip(accumulate(there, _further), there[1:], strict=False):
            if span.first < furthest[0].stop:
                tied[number].add(furthest[1])
                tied[furthest[1]].add(number)
    return tied


def _further(one: tuple[Span, int], other: tuple[Span, int]) -> tuple[Span, int]:
    return max(one, other, key=lambda run: run[0].stop)


def _places(block: FileBlock) -> list[tuple[int, Part]]:
    """The layers and parts of which a block holds rows."""
    key = block.key
    return list(product(range(key.first_layer, key.first_layer + key.layer_count), key.parts))


def _holding(wanted: Span, runs: Sequence[tuple[Span, int]]) -> list[tuple[Span, int]]:
    """Of sorted spans, each with its record, those that hold some of these rows."""
    first = max(0, bisect_right(runs, wanted.first, key=lambda run: run[0].first) - 1)
    near = takewhile(lambda run: run[0].first < wanted.stop, islice(runs, first, None))
    return [run for run in near if run[0].stop > wanted.first]


def _common(inventory: Inventory) -> list[tuple[Span, ...]]:
    """For each layer the rows of which every part is there, in records that can be kept as far as
    is known.
    """
    spans: dict[tuple[int, Part], list[Span]] = defaultdict(list)
    for block in inventory.blocks:
        for place in _places(block):
            spans[place].append(block.key.span)
    return [
        common([merged(sorted(spans[layer, part])) for part in spec.parts])
        for layer, spec in enumerate(inventory.geometry.layers)
    ]


def _require_states_once(inventory: Inventory) -> None:
    """Take out the records that store a state again."""
    stops: dict[tuple[int, int], int] = defaultdict(int)
    for number in sorted(inventory.states, key=lambda each: inventory.states[each].key.first_snapshot):
        key = inventory.states[number].key
        which = [(layer, key.number) for layer in range(key.first_layer, key.first_layer + key.layer_count)]
        if any(stops[state] > key.first_snapshot for state in which):
            inventory.problems.append(Problem("states are stored twice", inventory.states[number].offset, number))
            del inventory.states[number], inventory.records[number]
            continue
        stops |= dict.fromkeys(which, key.span.stop)


def _judge_snapshots(inventory: Inventory) -> None:
    """Find out what each snapshot lacks, and whether a lost record may have said what its rows
    mean.
    """
    available = _common(inventory)
    held = snapshots_of(states.key for states in inventory.states.values())
    states_held = {which: merged(spans) for which, spans in held.items()}
    gone = inventory.lost_records()
    unknown = inventory.open_end or any(header is None for header in gone)
    maps = [header for header in gone if header is not None and header.type == RecordType.KEPT]
    for number, view in inventory.views.items():
        inventory.lacks[number] = list(_lacks(inventory, number, view, available, states_held))
        if any(_mapped(view, header) for header in maps) or (unknown and _perhaps_mapped(inventory, view)):
            inventory.unsure.add(number)


def _lacks(
    inventory: Inventory,
    number: int,
    view: View,
    available: Sequence[tuple[Span, ...]],
    states: dict[tuple[int, int], tuple[Span, ...]],
) -> Iterable[Need]:
    named = [*view.history, *(span for spans in set(view.layers) for span in spans), *_meant(inventory, view)]
    labels = without(named, merged([Span(0, len(inventory.labels))]))
    if labels:
        yield Need(HISTORY, 1, labels)
    lacking = [without(spans, available[layer]) for layer, spans in enumerate(view.layers)]
    for first, count in _runs(lacking):
        yield Need(first, count, lacking[first])
    for layer, spec in enumerate(inventory.geometry.layers):
        for state_number, state in enumerate(spec.states):
            if not inside(Span(number, 1), states.get((layer, state_number), ())):
                yield Need(layer, 1, (), state.name)


def _meant(inventory: Inventory, view: View) -> Iterable[Span]:
    """The rows that slots of a snapshot may stand for: their labels are needed."""
    for head_map in inventory.head_maps.values():
        slots = Span(head_map.span.first, head_map.slots)
        if any(meets(slots, view.layers[head_map.first_layer + at]) for at in range(head_map.layer_count)):
            yield head_map.span


def _mapped(view: View, header: RecordHeader) -> bool:
    layers = view.layers[header.first_layer : header.first_layer + header.layer_count]
    return any(meets(Span(header.first, header.count), spans) for spans in layers)


def _perhaps_mapped(inventory: Inventory, view: View) -> bool:
    """Whether a layer names fewer rows than there were tokens, and no map says which: one may be
    lost.
    """
    for layer, spec in enumerate(inventory.geometry.layers):
        if spec.kind not in ("full", "sliding") or spec.index_size:
            continue
        there = min(view.tokens_seen, spec.window - 1) if spec.window else view.tokens_seen
        if view.rows(layer) < there and not any(head_map.covers(layer) for head_map in inventory.head_maps.values()):
            return True
    return False


def _runs(values: Sequence[Any]) -> Iterable[tuple[int, int]]:
    """(first, count) of runs of equal values that are not empty."""
    first = 0
    for value, group in groupby(values):
        count = len(list(group))
        if value:
            yield first, count
        first += count
