"""What of a damaged file can be relied on: each record that was found, read by the rules of a strict reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from formats.codecs.klt.profile_store import ProfileReference, from_tensors
from formats.container.records import KNOWN_TYPES, RecordHeader, RecordType
from formats.container.safetensors_buffer import TensorView, parse
from formats.errors import CorruptError, LimitError, Locating, StorageError, TscError, UnsupportedFileError
from formats.file import header as header_json
from formats.file import record_contents
from formats.file.block_decoding import BlockDecoder
from formats.file.blocks import FileBlock, FileReceived, FileStates
from formats.file.header import TierHeader
from formats.file.index import require_modest
from formats.limits import MAX_LABELS_PER_RECORD, MAX_ROWS, MAX_SNAPSHOTS
from formats.trace import geometry as geometry_json
from formats.trace.geometry import Geometry
from formats.trace.head_maps import Kept
from formats.trace.spans import meets, union
from formats.trace.views import Labels, Span, View

from .scan import Found, Problem, Wreck

_SNAPSHOTS_A_BYTE = 8  # of a file: no writer's tables come near it


@dataclass(frozen=True)
class Need:
    """What a snapshot needs and the file has not: rows of some layers, labels (layer -1), or states (`state`)."""

    first_layer: int
    layer_count: int
    spans: tuple[Span, ...]
    state: str | None = None


@dataclass(eq=False)
class Remains:
    """What is left of a file, which is read through this (a `RecordSource`).

    Attributes:
        stated_loss: what MODEL says that the rows had lost by.
        records: those that are intact, by number.
        problems: everything that is wrong, beside what `wreck` knows.
        labels: of rows 0, 1, ... up to the first one whose label is lost.
        views: snapshots whose VIEWS record is intact, by number.
        bases: for a ROWS record, by number, the rows outside of it that its own are predicted from.
        dropped: why intact records cannot be kept, by number.
        lacks: what each of `views` lacks; empty for a snapshot that can be restored.
        unsure: snapshots for which a lost record may have said what their rows mean.
    """

    wreck: Wreck
    geometry: Geometry
    fingerprint: dict[str, str]
    stated_loss: str = ""
    problems: list[Problem] = field(default_factory=list)
    records: dict[int, Found] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    views: dict[int, View] = field(default_factory=dict)
    rows: dict[int, FileBlock] = field(default_factory=dict)
    bases: dict[int, tuple[Span, ...]] = field(default_factory=dict)
    kept: dict[int, Kept] = field(default_factory=dict)
    states: dict[int, FileStates] = field(default_factory=dict)
    profile: ProfileReference | None = None
    header: TierHeader | None = None
    dropped: dict[int, str] = field(default_factory=dict)
    lacks: dict[int, list[Need]] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)

    @property
    def path(self) -> str:
        return self.wreck.path

    @property
    def codec(self) -> str:
        """What the header says of how rows were coded; "" if it is lost."""
        return "" if self.header is None else self.header.codec

    @property
    def reader(self) -> Wreck:
        return self.wreck

    @property
    def blocks(self) -> list[FileBlock]:
        """The blocks whose rows can be used."""
        return [block for number, block in self.rows.items() if number not in self.dropped]

    @cached_property
    def decoder(self) -> BlockDecoder:
        return BlockDecoder(self)

    def buffer(self, offset: int, header: RecordHeader) -> Mapping[str, TensorView]:
        return parse(self.wreck.payload(offset, header), header.name)  # `scan` checked the header, or rebuilt it

    def locating(self, offset: int, header: RecordHeader) -> Locating:
        return Locating(self.path, offset, header.sequence)

    @property
    def whole(self) -> list[int]:
        """The snapshots that can be restored."""
        return [number for number in sorted(self.views) if not self.lacks[number] and number not in self.unsure]

    @property
    def snapshots(self) -> int:
        """How many snapshots the file is known to have had; what names more than so many bytes can tell of lies."""
        lines = [line for _, line in self.wreck.index if line.type == RecordType.VIEWS]
        ends = [line.first + line.count for line in lines] + [number + 1 for number in self.views]
        ends += [states.key.span.stop for states in self.states.values()]
        most = min(MAX_SNAPSHOTS, _SNAPSHOTS_A_BYTE * self.wreck.size)
        return max((end for end in ends if end <= most), default=0)

    @property
    def all_known(self) -> bool:
        """Whether no VIEWS record can have been lost that nothing tells of."""
        return not self.open_end and not any(header is None for header in self.lost_records())

    @property
    def open_end(self) -> bool:
        return self.wreck.total is None and not self.wreck.index

    def lost_records(self) -> list[RecordHeader | None]:
        """What INDEX, or its own header, says of each record that is lost; None where nothing does."""
        listed = {line.sequence: line for _, line in self.wreck.index}
        gone = set(self.wreck.lost) | {number for number in listed if number not in self.wreck.records}
        stop = self.wreck.total or len(self.wreck.records)
        for number, found in self.wreck.records.items():
            if number < stop and number not in self.records:  # it is there, but not in order
                listed[number] = found.header
                gone.add(number)
        return [listed.get(number) for number in sorted(gone)]

    @property
    def complete(self) -> bool:
        """Whether everything that the file said before INDEX is there."""
        return (
            self.wreck.total is not None
            and not self.lost_records()
            and not self.dropped
            and self.header is not None
            and self.whole == list(range(self.snapshots))
        )


def read_records(wreck: Wreck) -> Remains:
    """Check every record that is left of a file by itself; `snapshots.examine` goes on with what they need of others.

    Raises:
        CorruptError: MODEL is lost, without which nothing else can be understood.
        UnsupportedFileError: the file needs a newer reader.
    """
    if wreck.unsupported is not None:
        raise wreck.unsupported
    found = wreck.records.get(0)
    if found is None or found.header.type != RecordType.MODEL:
        raise wreck.corrupt("the model record is damaged, without which no other can be understood")
    with Locating(wreck.path):
        require_modest([each.header for each in wreck.records.values()], wreck.size)
    with Locating(wreck.path, found.offset, 0):
        record_contents.require_short(found.header)
        model = geometry_json.from_json(wreck.payload(found.offset, found.header))
    remains = Remains(wreck, *model, records={0: found})
    _Reading(remains).read()
    return remains


class _Reading:
    """The reading of all records but MODEL, type by type."""

    def __init__(self, remains: Remains) -> None:
        self._remains = remains
        self._labels: list[tuple[Found, Labels]] = []

    def read(self) -> None:
        readers: list[tuple[int, Callable[[Found], None]]] = [
            (RecordType.LABELS, self._read_labels),
            (RecordType.VIEWS, self._read_views),
            (RecordType.KEPT, self._read_kept),
            (RecordType.PROFILE, self._read_profile),
            (RecordType.ROWS, self._read_rows),
            (RecordType.STATES, self._read_states),
            (RecordType.REFERENCE, self._read_reference),
            (RecordType.ATTENTION, self._read_attention),
            (RecordType.HEADER, self._read_header),
        ]
        records = self._remains.wreck.records
        for kind, read in readers:
            for number in sorted(records):
                if records[number].header.type == kind:
                    self._try(records[number], read)
            if kind == RecordType.LABELS:
                self._join_labels()
        for found in records.values():
            if found.header.type not in KNOWN_TYPES:
                self._try(found, self._payload)

    def _try(self, found: Found, read: Callable[[Found], object]) -> None:
        try:
            read(found)
        except (LimitError, StorageError, UnsupportedFileError):
            raise  # what cannot be read here and now may be whole
        except TscError as error:
            self._remains.problems.append(Problem.of(error, found.offset, found.header.sequence))
        else:
            self._remains.records[found.header.sequence] = found

    def _payload(self, found: Found) -> bytes:
        return self._remains.wreck.payload(found.offset, found.header)

    def _buffer(self, found: Found) -> Mapping[str, TensorView]:
        return self._remains.buffer(found.offset, found.header)

    def _read_labels(self, found: Found) -> None:
        span = _range(found.header, MAX_ROWS)
        labels = record_contents.labels(found.header, self._buffer(found), self._remains.geometry.batch)
        if self._labels and labels.width != self._labels[0][1].width:
            raise CorruptError("labels: some records have ids for each sequence, some for all")
        if meets(span, (_range(other.header, MAX_ROWS) for other, _ in self._labels)):
            raise CorruptError("labels of rows that have labels")
        self._labels.append((found, labels))

    def _join_labels(self) -> None:
        """Labels go on without a gap in every file; those behind a lost record cannot be kept."""
        labels = self._remains.labels
        for found, more in sorted(self._labels, key=lambda each: each[0].header.first):
            labels.width = more.width
            if found.header.first == len(labels):
                labels.extend(more.token_ids, more.positions)
            else:
                self._remains.dropped[found.header.sequence] = "labels before it are lost"

    def _read_views(self, found: Found) -> None:
        numbers = _range(found.header, MAX_SNAPSHOTS)
        width, geometry = self._remains.labels.width, self._remains.geometry
        views, _ = record_contents.snapshots(found.header, self._buffer(found), geometry, MAX_ROWS, width)
        if any(number in self._remains.views for number in range(numbers.first, numbers.stop)):
            raise CorruptError("a snapshot is described twice")
        self._remains.views.update(enumerate(views, numbers.first))

    def _read_kept(self, found: Found) -> None:
        kept = record_contents.kept(found.header, self._buffer(found), self._remains.geometry, MAX_ROWS)
        layers = range(kept.first_layer, kept.first_layer + kept.layer_count)
        for other in self._remains.kept.values():
            if any(other.covers(layer) for layer in layers) and meets(kept.span, [other.span]):
                raise CorruptError("two maps say what layers kept of the same rows")
        self._remains.kept[found.header.sequence] = kept

    def _read_profile(self, found: Found) -> None:
        profile = from_tensors(self._buffer(found), "profile record")
        if self._remains.profile is not None:
            raise CorruptError("there is more than one profile record")
        if profile.data is not None:
            profile.load()
        self._remains.profile = profile

    def _read_rows(self, found: Found) -> None:
        record_contents.check_block(found.header, self._remains.geometry, MAX_ROWS)
        block = FileBlock(self._remains, found.offset, found.header)
        codec, tensors, _ = block.tensors()
        if codec.needs_profile and self._remains.profile is None:
            raise CorruptError("rows that need a profile that the file does not have")
        bases = union(Span(base, 1) for base in codec.bases(tensors) if base >= 0)
        if bases:
            self._remains.bases[found.header.sequence] = bases
        self._remains.rows[found.header.sequence] = block

    def _read_states(self, found: Found) -> None:
        record_contents.check_states(found.header, self._remains.geometry, MAX_SNAPSHOTS)
        states = FileStates(self._remains, found.offset, found.header)
        states.tensors()
        self._remains.states[found.header.sequence] = states

    def _read_reference(self, found: Found) -> None:
        _range(found.header, MAX_LABELS_PER_RECORD)
        record_contents.reference(found.header, self._buffer(found))

    def _read_attention(self, found: Found) -> None:
        heads = record_contents.attention_heads(found.header, self._remains.geometry, MAX_ROWS)
        FileReceived(self._remains, found.offset, found.header, heads).check()

    def _read_header(self, found: Found) -> None:
        record_contents.require_short(found.header)
        self._remains.header = header_json.from_json(self._payload(found))


def _range(header: RecordHeader, most: int) -> Span:
    if not 1 <= header.count <= most - header.first:
        raise CorruptError(f"{header.name} records out of bounds")
    return Span(header.first, header.count)
