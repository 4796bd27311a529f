"""One record of a damaged file at a time, by the rules of a strict reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from formats.container.records import RecordHeader, RecordType
from formats.file.block_decoding import BlockDecoder
from formats.file.reader import TraceFile
from formats.limits import MAX_ROWS, MAX_SNAPSHOTS
from formats.trace.views import Labels, View

from .scan import Found, Wreck

T = TypeVar("T")


class _Unbounded(Labels):
    """Stands for labels some of which may be lost: rows are held against them later."""

    def __len__(self) -> int:
        return MAX_ROWS


class _UnboundedViews(list[View]):
    def __len__(self) -> int:
        return MAX_SNAPSHOTS


class Pieces(TraceFile):
    """The rules of a strict reader for one record at a time, without those that tie records together."""

    def __init__(self, wreck: Wreck) -> None:
        self.path, self.reader, self.entries = wreck.path, wreck, []
        self.labels, self.views = _Unbounded(), _UnboundedViews()
        self.blocks, self.decoder = [], BlockDecoder(self)
        self.profile = None

    def one(self, found: Found, read: Callable[[], T]) -> T:
        """What `read`, which takes all records of some type, makes of this one.  Raises TscError."""
        self.entries = [(found.offset, found.header)]
        return read()

    def header_of(self, offset: int, entry: RecordHeader) -> RecordHeader:
        del offset
        return entry  # checked by `scanning`, which may have rebuilt it

    def _consecutive(self, kind: RecordType, most: int) -> tuple[list[tuple[int, RecordHeader]], int]:
        for offset, entry in self._of_type(kind):
            if not 1 <= entry.count <= most - entry.first:
                raise self.reader.corrupt(f"{entry.name} records out of bounds", offset, entry.sequence)
        return self._of_type(kind), len(self.entries)
