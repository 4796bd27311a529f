"""Files whose records come snapshot by snapshot, as a job that runs for days would write them, cut anew by hand.

And what a damaged file can still give, said with the second reader's rules alone: nothing of `formats` is used.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from tests.format_conformance import samples
from tests.format_conformance.craft import HEADER, KEPT, LABELS, MODEL, PROFILE, ROWS, STATES, VIEWS, Craft, Piece
from tests.format_conformance.second_reader import reader as second_reader
from tests.format_conformance.second_reader.payload import read_tables
from tests.format_conformance.second_reader.records import Record, payload, read_record, read_records, read_superblock

SMALL = ("valid", "by hand, pure", "by hand, hybrid", "by hand, indexed", "by hand, padded")


def _part(piece: Piece, axes: dict[str, int], first: int, stop: int) -> Piece:
    """The same record with rows (or snapshots) `first` to `stop - 1` of it; axes: where they lie in each tensor."""
    tensors = {}
    for name, (dtype, shape, data) in piece.tensors().items():
        axis = axes[name]
        size = {"U8": 1, "U16": 2, "I32": 4, "I64": 8}[dtype]
        found = np.frombuffer(data, f"V{size}").reshape(shape).take(range(first, stop), axis)
        tensors[name] = (dtype, list(found.shape), found.tobytes())
    made = Piece(
        piece.type,
        b"",
        piece.codec,
        piece.part,
        piece.first_layer,
        piece.layer_count,
        piece.first + first,
        stop - first,
    )
    made.set_tensors(tensors)
    return made


def _cut(piece: Piece, axes: dict[str, int], cuts: Collection[int]) -> list[Piece]:
    inside = sorted({0, piece.count, *(cut - piece.first for cut in cuts if 0 < cut - piece.first < piece.count)})
    return [_part(piece, axes, first, stop) for first, stop in pairwise(inside)]


def single_views(piece: Piece) -> list[Piece]:
    """A record for each snapshot."""
    tensors, found = piece.tensors(), []
    lines = list(struct.iter_unpack("<5q", tensors["spans"][2]))
    dtype, shape, tokens = tensors["next_tokens"]
    width = len(tokens) // piece.count
    for number in range(piece.count):
        mine = [(0, *line[1:]) for line in lines if line[0] == number]
        one = Piece(VIEWS, b"", first=piece.first + number, count=1)
        spans = b"".join(struct.pack("<5q", *line) for line in mine)
        chosen = tokens[number * width : (number + 1) * width]
        one.set_tensors({"spans": ("I64", [len(mine), 5], spans), "next_tokens": (dtype, [1, *shape[1:]], chosen)})
        found.append(one)
    return found


@cache
def sliced(name: str, *, keys: bool = True) -> bytes:
    """A lossless sample, cut so that each snapshot's rows, labels and VIEWS stand together; `keys` False: those not."""
    data = samples.sample(name)
    document, craft = second_reader.read(data), Craft.of(data)
    ends = [max((stop for _, _, spans in one.groups() for _, stop in spans), default=0) for one in document.snapshots]
    pieces: list[tuple[int, int, Piece]] = []  # snapshot, order within it
    for piece in craft.records:
        if piece.type == LABELS:
            parts = _cut(piece, {"token_ids": 0, "position_offsets": 0}, ends)
        elif piece.type == ROWS and piece.codec == 1 and (keys or piece.part == 2):
            parts = _cut(piece, {"planes": 3 if piece.part == 2 else 5}, ends)
        elif piece.type == VIEWS:
            parts = single_views(piece)
        else:
            parts = [piece]
        for part in parts:
            at = sum(end < part.first + part.count for end in ends[:-1])
            moment = {MODEL: -1, KEPT: -1, PROFILE: -1, VIEWS: part.first, STATES: part.first, HEADER: len(ends)}
            order = {LABELS: 0, ROWS: 1, STATES: 2, VIEWS: 3}.get(part.type, 4)
            pieces.append((moment.get(part.type, at if order < 4 else len(ends) - 1), order, part))
    craft.records = [piece for _, _, piece in sorted(pieces, key=lambda one: one[:2])]
    built = craft.build()
    again = second_reader.read(built)
    assert [again.snapshot(n) for n in range(len(ends))] == [document.snapshot(n) for n in range(len(ends))]
    return built


def complete_records(data: bytes) -> list[Record]:
    """The records from the beginning on that are there to their last byte."""
    view, found, at = memoryview(data), list[Record](), 64
    try:
        identity = read_superblock(view)
        while True:
            found.append(read_record(view, at, len(found), identity))
            at += 64 + found[-1].stored
    except second_reader.Refused:
        return found


class Model:
    """What a snapshot of a valid file needs, by record numbers."""

    def __init__(self, data: bytes) -> None:
        self.data, self.view = data, memoryview(data)
        self.document = second_reader.read(data)
        self.records = read_records(self.view, read_superblock(self.view))

    def at(self, byte: int) -> int | None:
        """The record that a byte belongs to; None: superblock."""
        found = [number for number, record in enumerate(self.records) if record.offset <= byte]
        return found[-1] if found else None

    def recoverable(self, have: Collection[int]) -> list[int]:
        """The snapshots of the file that records with these numbers can make; none without MODEL."""
        if 0 not in have:
            return []
        held = {number: self.records[number] for number in have}
        labelled = self._labelled(held)
        usable = self._usable(held, labelled)
        views = {
            number
            for record in held.values()
            if record.type == VIEWS
            for number in range(record.first, record.first + record.number)
        }
        return [number for number in sorted(views) if self._whole(number, held, labelled, usable)]

    def _labelled(self, held: dict[int, Record]) -> set[int]:
        """Rows that have labels, up to the first that has none: a file's labels go on without a gap."""
        rows = 0
        for record in sorted(held.values(), key=lambda one: one.first):
            if record.type == LABELS and record.first == rows:
                rows += record.number
        return set(range(rows))

    def _usable(self, held: dict[int, Record], labelled: set[int]) -> set[tuple[int, str, int]]:
        """(layer, part, row) of the records that a file can have: all parts of a row, and what predicts it."""
        profile = any(one.type == PROFILE for one in held.values())
        rows: dict[int, set[tuple[int, str, int]]] = {}
        needed: dict[int, set[tuple[int, str, int]]] = {}
        for number, record in held.items():
            if record.type != ROWS or (record.codec == 6 and not profile):
                continue
            numbers = range(record.first, record.first + record.number)
            if not labelled.issuperset(numbers):
                continue
            parts = second_reader.parts_of(record)
            rows[number] = {(layer, part, row) for layer in record.layers for part in parts for row in numbers}
            needed[number] = {
                (layer, part, row) for layer in record.layers for part in self._parts(layer) for row in numbers
            }
            if record.codec == 5:
                bases = read_tables(payload(self.view, record))["bases"].integers()
                needed[number] |= {
                    (layer, part, base) for layer in record.layers for part in parts for base in bases if base >= 0
                }
        while True:
            found = set().union(*rows.values())
            out = [number for number in rows if needed[number] - found]
            if not out:
                return found
            for number in out:
                del rows[number]

    def _parts(self, layer: int) -> list[str]:
        return [part for part in second_reader.PARTS if self.document.geometry.layers[layer].shape(part)[1]]

    def _whole(
        self, number: int, held: dict[int, Record], labelled: set[int], usable: set[tuple[int, str, int]]
    ) -> bool:
        geometry = self.document.geometry
        for layer, layers, spans in self.document.snapshots[number].groups():
            rows = {row for span in spans for row in range(*span)}
            if rows - labelled:
                return False
            for one in range(layer, layer + layers) if layer >= 0 else ():
                if any((one, part, row) not in usable for part in self._parts(one) for row in rows):
                    return False
                for at, record in enumerate(self.records):
                    span = set(range(record.first, record.first + record.number))
                    mapped = record.type == KEPT and one in record.layers and rows & span
                    if mapped and (at not in held or span - labelled):
                        return False
        states = {
            (layer, record.part)
            for record in held.values()
            if record.type == STATES and record.first <= number < record.first + record.number
            for layer in record.layers
        }
        return all(
            (layer, at) in states for layer, spec in enumerate(geometry.layers) for at in range(len(spec.states))
        )

    def content(self, number: int) -> Any:
        return content(self.document, number)


def content(document: second_reader.Document, number: int) -> Any:
    """Everything that a snapshot is."""
    sequences = range(document.labels.shape[1])
    return (
        document.snapshot(number),
        document.indexer_keys(number),
        document.states(number),
        [document.history(number, one) for one in sequences],
        document.history_positions(number),
        document.row_positions(number),
        document.snapshots[number].next_tokens,
    )
