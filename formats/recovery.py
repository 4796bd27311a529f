"""Writing what is left of a damaged file as a valid one: records as they are, snapshots renumbered, nothing made up.

Where the format asks for something that is lost but that no snapshot needs (labels between others, values beside keys),
zeros stand for it: no snapshot names them.  The tier is a promise about a whole file and is dropped with the first loss.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from . import integrity
from . import states as state_blocks
from . import views as viewing
from .atomic import atomic_write
from .codecs import CODECS, codec_by_name
from .container import RecordWriter
from .errors import CorruptError, TscError, UsageError
from .header import TierHeader
from .limits import MAX_LABELS_PER_RECORD, TARGET_RECORD_RAW
from .records import KNOWN_TYPES, MINOR, Part, RecordType, pack_record_header
from .remains import Remains, examine, union, without
from .scanning import Found, Wreck
from .tensor_buffer import pack, pack_integers
from .trace_writer import CREATED_BY, VIEWS_PER_RECORD, content_id, finish_records
from .views import Span

_ONCE = (RecordType.REFERENCE, RecordType.ATTENTION)  # records that are about the first snapshot


@dataclass
class Salvage:
    """What can be saved of a file, and how.

    Attributes:
        numbers: old number of each snapshot that is kept -> new number.
        rows: the numbers of the ROWS records that are kept.
        complete: nothing is lost but, perhaps, superblock, INDEX or END.
        dropped: intact records that are not kept -> why.
        stand_ins: ranges of rows whose labels are zeros, and (layer, part, rows) that are, since the format asks for them.
    """

    remains: Remains
    numbers: dict[int, int]
    rows: set[int] = field(default_factory=set)
    dropped: dict[int, str] = field(default_factory=dict)
    labels_for: list[Span] = field(default_factory=list)
    rows_for: list[tuple[int, Part, Span]] = field(default_factory=list)
    total_rows: int = 0

    @property
    def complete(self) -> bool:
        return self.remains.complete

    @property
    def damaged(self) -> bool:
        return bool(self.remains.wreck.problems or self.remains.problems)

    def write(self, sink: BinaryIO) -> int:
        """Write the new file; returns its length."""
        remains, pieces = self.remains, self.remains.pieces
        minor = max(2, pieces.reader.minor, pieces.geometry.minor, MINOR if remains.width > 1 else 0)
        writer = RecordWriter(sink, self._identity(), minor)
        kept_rows = iter(sorted(remains.records.values(), key=lambda one: one.header.sequence))
        for found in kept_rows:
            header = found.header
            if header.type == RecordType.HEADER or header.sequence in self.dropped:
                continue
            if self.complete:
                self._copy(writer, found)
            elif header.type == RecordType.STATES:
                self._states(writer, found)
            elif header.type not in (RecordType.LABELS, RecordType.VIEWS):
                self._copy(writer, found)
        if not self.complete:
            self._stand_ins(writer)
            self._labels(writer)
            self._views(writer)
        _, length = finish_records(writer, self._header())
        return length

    def _identity(self) -> bytes:
        """Another one than the input's, since the same numbers mean other records; the same for the same content."""
        reader = self.remains.wreck
        parts = [pack_record_header(one.header, reader.file_id) for one in sorted(self.remains.records.values())]
        return content_id(b"recovered", reader.file_id, repr(sorted(self.numbers)).encode(), *parts)

    def _copy(self, writer: RecordWriter, found: Found, first: int | None = None) -> None:
        stored = self.remains.wreck.stored(found.offset, found.header)
        first = found.header.first if first is None else first
        writer.copy_record(stored, replace(found.header, sequence=len(writer.entries), first=first))

    def _states(self, writer: RecordWriter, found: Found) -> None:
        states = self.remains.states[found.header.sequence]
        span = states.key.span
        if all(number in self.numbers for number in range(span.first, span.stop)):
            self._copy(writer, found, self.numbers[span.first])
            return
        # some of its snapshots are lost: what a reader would restore of the others is stored as it is
        lossless = codec_by_name("lossless")
        state = self.remains.pieces.geometry.layers[states.key.first_layer].states[states.key.number]
        values = state_blocks.as_values(states.read(), state)
        for number in range(span.first, span.stop):
            if number in self.numbers:
                at = number - span.first
                tensors = lossless.encode({Part.VALUES: values[..., at : at + 1, :]})
                writer.record(
                    RecordType.STATES, pack(tensors), codec=lossless.id, part=states.key.number,
                    layers=(states.key.first_layer, states.key.layer_count), span=(self.numbers[number], 1),
                )  # fmt: skip

    def _stand_ins(self, writer: RecordWriter) -> None:
        geometry = self.remains.pieces.geometry
        for layer, part, span in self.rows_for:
            spec = geometry.layers[layer]
            most = max(1, TARGET_RECORD_RAW // geometry.row_bytes[layer])
            heads, size = spec.part_heads(part), spec.head_size(part)
            for first in range(span.first, span.stop, most):
                count = min(most, span.stop - first)
                inner = (count, heads, size) if part is Part.VALUES else (heads, size, count)
                shape = (geometry.item_bytes, 1, geometry.batch, *inner)
                zeros = bytes(geometry.item_bytes * geometry.batch * heads * size * count)
                payload = pack_integers({"planes": ("U8", shape, zeros)})
                writer.record(
                    RecordType.ROWS, payload, codec=codec_by_name("lossless").id, part=part, layers=(layer, 1),
                    span=(first, count),
                )  # fmt: skip

    def _labels(self, writer: RecordWriter) -> None:
        at = 0
        for number in sorted(self.remains.labels, key=lambda one: self.remains.records[one].header.first):
            found = self.remains.records[number]
            if found.header.first >= self.total_rows:
                break
            self._zero_labels(writer, at, found.header.first)
            self._copy(writer, found)
            at = found.header.first + found.header.count
        self._zero_labels(writer, at, self.total_rows)

    def _zero_labels(self, writer: RecordWriter, first: int, stop: int) -> None:
        width = self.remains.width
        for at in range(first, stop, MAX_LABELS_PER_RECORD):
            count = min(MAX_LABELS_PER_RECORD, stop - at)
            ids = (count,) if width == 1 else (count, width)
            payload = pack_integers({
                "token_ids": ("U16", ids, bytes(count * width)), "position_offsets": ("I64", (count,), bytes(count)),
            })  # fmt: skip
            writer.record(RecordType.LABELS, payload, span=(at, count))

    def _views(self, writer: RecordWriter) -> None:
        views, width = [self.remains.views[number] for number in self.numbers], self.remains.width
        for first in range(0, len(views), VIEWS_PER_RECORD):
            some = views[first : first + VIEWS_PER_RECORD]
            spans, tokens = viewing.to_table(some, width)
            payload = pack_integers({
                "spans": ("I64", (len(spans) // 5, 5), spans),
                "next_tokens": ("I64", (len(some),) if width == 1 else (len(some), width), tokens),
            })  # fmt: skip
            writer.record(RecordType.VIEWS, payload, span=(first, len(some)))

    def _header(self) -> TierHeader:
        remains = self.remains
        if self.complete and remains.header is not None:
            return remains.header
        raw = [viewing.raw_bytes(remains.pieces.geometry, remains.views[number]) for number in self.numbers]
        known = remains.header or TierHeader("", 1, 1, CREATED_BY, codec=self._codec())
        total = f"{remains.snapshots}" if remains.all_known else f"at least {remains.snapshots}"
        note = {"recovered": f"{len(self.numbers)} of {total} snapshots"}
        return replace(
            known, tier="", raw_bytes_trace=sum(raw), raw_bytes_final=raw[-1], capture={**known.capture, **note},
            quality=self._quality(known.quality),
        )  # fmt: skip

    def _quality(self, quality: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """What was measured of snapshots that are kept, under their new numbers."""
        return [
            {**one, "snapshot": self.numbers[one["snapshot"]]}
            for one in quality
            if isinstance(one.get("snapshot"), int) and one["snapshot"] in self.numbers
        ]

    def _codec(self) -> str:
        """The codec of most ROWS records, where no header says it."""
        counts = Counter(block.header.codec for block in self.remains.blocks.values())
        return str(CODECS[counts.most_common(1)[0][0]].name) if counts else ""


def plan(remains: Remains) -> Salvage:
    """Which snapshots and records are kept.  Raises CorruptError where no snapshot is whole."""
    if not remains.whole:
        known = f" of {remains.snapshots}" if remains.snapshots else ""
        raise CorruptError(
            f"no snapshot{known} can be recovered: what it needs is lost", path=remains.wreck.path,
            hint="tsc doctor lists what is left",
        )  # fmt: skip
    salvage = Salvage(remains, {old: new for new, old in enumerate(remains.whole)})
    if remains.complete:
        salvage.rows = set(remains.blocks)
        return salvage
    _choose(salvage)
    return salvage


def _choose(salvage: Salvage) -> None:
    remains = salvage.remains
    views = [remains.views[number] for number in salvage.numbers]
    named = [union(span for view in views for span in view.layers[at]) for at in range(len(views[0].layers))]
    needed = {number for number, block in remains.blocks.items() if any(
        without([block.key.span], named[layer]) != (block.key.span,) for layer in _layers(block.header)
    )}  # fmt: skip
    fresh = set(needed)
    while fresh:  # and what these are predicted from
        fresh = {base for number in fresh for base in remains.bases.get(number, ())} - needed
        needed |= fresh
    maps = {number for number, one in remains.kept.items() if any(
        without([one.span], named[layer]) != (one.span,)
        for layer in range(one.first_layer, one.first_layer + one.layer_count)
    )}  # fmt: skip
    labelled = remains.labelled
    sure = labelled[0].stop if labelled and not labelled[0].first else 0
    stops = [span.stop for spans in named for span in spans] + [span.stop for v in views for span in v.history]
    stops += [remains.blocks[number].key.span.stop for number in needed]
    stops += [remains.kept[number].span.stop for number in maps]
    salvage.total_rows = max([sure, *stops])
    salvage.labels_for = list(without([Span(0, salvage.total_rows)], labelled)) if salvage.total_rows else []
    rows = {number for number, block in remains.blocks.items() if number in needed or block.key.span.stop <= sure}
    while True:
        common = remains.common(rows)
        out = {
            number for number in rows - needed
            if remains.bases.get(number, set()) - rows
            or any(without([remains.blocks[number].key.span], common[at]) for at in _layers(remains.blocks[number].header))
        }  # fmt: skip
        rows -= out
        if not out:
            break
    salvage.rows = rows
    for layer, parts in enumerate(remains.stored(rows)):
        whole = union(span for spans in parts.values() for span in spans)
        for part, spans in parts.items():
            salvage.rows_for += [(layer, part, span) for span in without(whole, spans)]
    for number in remains.blocks.keys() - rows:
        salvage.dropped[number] = "rows that no snapshot names, and that lack labels or their keys or values"
    for number, found in remains.records.items():
        header = found.header
        if header.type in _ONCE and 0 not in salvage.numbers:
            salvage.dropped[number] = "is about the first snapshot, which is lost"
        elif header.type == RecordType.ATTENTION and header.count > salvage.total_rows:
            salvage.dropped[number] = "is about rows without labels"
        elif header.type == RecordType.KEPT and number not in maps and remains.kept[number].span.stop > sure:
            salvage.dropped[number] = "is about rows without labels"
        elif header.type == RecordType.STATES and not any(
            number in salvage.numbers for number in range(header.first, header.first + header.count)
        ):
            salvage.dropped[number] = "states of snapshots that are lost"
        elif header.type not in KNOWN_TYPES:
            salvage.dropped[number] = "is not known to this program, which cannot tell whether it still holds"


def _layers(header: Any) -> range:
    return range(header.first_layer, header.first_layer + header.layer_count)


def salvage(path: str | os.PathLike[str]) -> Salvage:
    """What can be saved of a file; reads all of it and writes nothing.

    Raises:
        StorageError, UsageError: it cannot be read.
        CorruptError: no snapshot can be recovered.
        UnsupportedFileError: it needs a newer reader.
    """
    return plan(examine(Wreck(path)))


def recover(
    path: str | os.PathLike[str], output: str | os.PathLike[str], *, force: bool = False
) -> tuple[Salvage, int]:
    """Write what is left of a file as a new one, atomically; returns what was saved and the new file's length.

    The input is only read.  What is written is checked as a whole before it takes its name.

    Raises:
        UsageError: the output exists and `force` is not set, or is the input.
        and what `salvage` raises.
    """
    if os.path.exists(output) and os.path.exists(path) and os.path.samefile(path, output):
        raise UsageError("the output is the input, which is never changed", path=os.fspath(output))
    found = salvage(path)
    with atomic_write(output, force=force) as sink:
        length = found.write(sink)
        sink.flush()
        try:
            integrity.check(f"/dev/fd/{sink.fileno()}")
        except TscError as error:
            message = f"what is left does not make a valid file: {error.message}"
            raise CorruptError(message, path=os.fspath(path)) from error
    return found, length
