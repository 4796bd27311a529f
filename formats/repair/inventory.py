"""What of a damaged file can be relied on: each record by itself, then each snapshot by the records that it needs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from formats.codecs.klt.profile_store import ProfileReference
from formats.container.records import KNOWN_TYPES, Part, RecordHeader, RecordType
from formats.errors import CorruptError, LimitError, StorageError, TscError, UnsupportedFileError
from formats.file import header as header_json
from formats.file.blocks import FileBlock, FileStates
from formats.file.header import TierHeader
from formats.file.table_limits import require_modest
from formats.limits import MAX_JSON_BYTES, MAX_SNAPSHOTS
from formats.trace import geometry as geometry_json
from formats.trace.head_maps import Kept
from formats.trace.spans import common, inside, meets, union, without
from formats.trace.views import Labels, Span, View, merged

from .intact_rows import Pieces
from .scan import Found, Problem, Wreck

_SNAPSHOTS_A_BYTE = 8  # of a file: no writer's tables come near it


@dataclass(frozen=True)
class Need:
    """What a snapshot needs and the file has not: rows of some layers, labels (layer -1), or states (`state`)."""

    first_layer: int
    layer_count: int
    spans: tuple[Span, ...]
    state: str | None = None


@dataclass
class Remains:
    """What is left of a file.

    Attributes:
        stated_loss: what MODEL says that the rows had lost by; see `loss`.
        records: those that are kept if nothing speaks against it, by number.
        problems: everything that is wrong, beside what `wreck` knows.
        views: snapshots whose VIEWS record is intact, by number.
        snapshots: how many there were at least; `all_known` says whether that is all.
        lacks: what each of `views` lacks; empty for a snapshot that can be restored.
    """

    wreck: Wreck
    pieces: Pieces
    fingerprint: dict[str, str]
    stated_loss: str = ""
    problems: list[Problem] = field(default_factory=list)
    records: dict[int, Found] = field(default_factory=dict)
    labels: dict[int, Labels] = field(default_factory=dict)  # by the number of the record
    labelled: tuple[Span, ...] = ()
    width: int = 1
    view_records: dict[int, Found] = field(default_factory=dict)
    views: dict[int, View] = field(default_factory=dict)
    blocks: dict[int, FileBlock] = field(default_factory=dict)
    bases: dict[int, set[int]] = field(default_factory=dict)  # records that a record's rows are predicted from
    kept: dict[int, Kept] = field(default_factory=dict)
    states: dict[int, FileStates] = field(default_factory=dict)
    profile: ProfileReference | None = None
    header: TierHeader | None = None
    lacks: dict[int, list[Need]] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)  # snapshots for which a lost record may have said what rows mean
    _outside: dict[int, tuple[Span, ...]] = field(default_factory=dict)  # bases that are not in the record itself
    stands_for: dict[int, tuple[Span, ...]] = field(default_factory=dict)  # rows that the slots of a KEPT record are

    @property
    def whole(self) -> list[int]:
        """The snapshots that can be restored."""
        return [number for number in sorted(self.views) if not self.lacks[number] and number not in self.unsure]

    @property
    def snapshots(self) -> int:
        """How many snapshots the file is known to have had; what names more than so many bytes can tell of lies."""
        lines = [line for _, line in self.wreck.index if line.type == RecordType.VIEWS]
        ends = [one.first + one.count for one in lines] + [number + 1 for number in self.views]
        ends += [one.key.span.stop for one in self.states.values()]
        most = min(MAX_SNAPSHOTS, _SNAPSHOTS_A_BYTE * self.wreck.size)
        return max((end for end in ends if end <= most), default=0)

    @property
    def all_known(self) -> bool:
        """Whether no VIEWS record can have been lost that nothing tells of."""
        return not self.open_end and not any(one is None for one in self.lost_records())

    @property
    def open_end(self) -> bool:
        return self.wreck.total is None and not self.wreck.index

    def lost_records(self) -> list[RecordHeader | None]:
        """What INDEX says of the records that are lost; None where nothing does."""
        listed = {line.sequence: line for _, line in self.wreck.index}
        gone = set(self.wreck.lost) | {number for number in listed if number not in self.wreck.records}
        for number in self.faulty:
            listed[number] = self.wreck.records[number].header
        return [listed.get(number) for number in sorted(gone | self.faulty)]

    @property
    def faulty(self) -> set[int]:
        """Records that are there but not in order: INDEX or their headers say what they were."""
        stop = self.wreck.total or len(self.wreck.records)
        return {number for number in self.wreck.records if number < stop and number not in self.records}

    @property
    def complete(self) -> bool:
        """Whether everything that the file said before INDEX is there."""
        return (
            self.wreck.total is not None
            and not self.lost_records()
            and self.header is not None
            and (self.whole == list(range(self.snapshots)))
        )

    def read(self) -> None:
        """Check every record by itself, then what each needs of others."""
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
        for kind, read in readers:
            for number in sorted(self.wreck.records):
                found = self.wreck.records[number]
                if found.header.type == kind:
                    self._try(found, read)
        for found in self.wreck.records.values():
            if found.header.type not in KNOWN_TYPES:
                self._try(found, self._read_unknown)
        self._require_bases()
        self._require_states_once()

    def _try(self, found: Found, read: Callable[[Found], None]) -> None:
        try:
            read(found)
        except (LimitError, StorageError, UnsupportedFileError):
            raise  # what cannot be read here and now may be whole
        except TscError as error:
            self.problems.append(Problem.of(error, found.offset, found.header.sequence))
        else:
            self.records[found.header.sequence] = found

    def _payload(self, found: Found) -> bytes:
        return self.pieces.payload(found.offset, found.header)

    def _read_labels(self, found: Found) -> None:
        labels, span = self.pieces.one(found, self.pieces._labels), Span(found.header.first, found.header.count)
        if self.labels and labels.width != self.width:
            raise CorruptError("labels: some records have ids for each sequence, some for all")
        if inside(span, self.labelled) or meets(span, self.labelled):
            raise CorruptError("labels of rows that have labels")
        self.width = self.pieces.labels.width = labels.width
        self.labels[found.header.sequence] = labels
        self.labelled = merged(sorted([*self.labelled, span]))

    def _read_views(self, found: Found) -> None:
        views = self.pieces.one(found, self.pieces._views)
        numbers = range(found.header.first, found.header.first + len(views))
        if any(number in self.views for number in numbers):
            raise CorruptError("a snapshot is described twice")
        self.views.update(zip(numbers, views, strict=True))
        self.view_records[found.header.sequence] = found

    def _read_kept(self, found: Found) -> None:
        (one,) = self.pieces.one(found, self.pieces._kept)
        for other in self.kept.values():
            layers = (
                other.first_layer < one.first_layer + one.layer_count,
                one.first_layer < (other.first_layer + other.layer_count),
            )
            if all(layers) and meets(one.span, [other.span]):
                raise CorruptError("two maps say what layers kept of the same rows")
        self.kept[found.header.sequence] = one
        layers_of = range(one.first_layer, one.first_layer + one.layer_count)
        rows = {row for layer in layers_of for head in range(one.heads) for row in one.rows(layer, head)}
        self.stands_for[found.header.sequence] = union(Span(row, 1) for row in rows)

    def _read_profile(self, found: Found) -> None:
        profile = self.pieces.one(found, self.pieces._profile)
        if self.profile is not None:
            raise CorruptError("there is more than one profile record")
        if profile is not None and profile.data is not None:
            profile.load()
        self.profile = self.pieces.profile = profile

    def _read_rows(self, found: Found) -> None:
        (block,) = self.pieces.one(found, self.pieces._blocks)
        codec, tensors, _ = block.tensors()
        span, number = block.key.span, found.header.sequence
        if codec.needs_profile and self.profile is None:
            raise CorruptError("rows that need a profile that the file does not have")
        if codec.needs_positions and not inside(span, self.labelled):
            raise CorruptError("rows whose positions are lost, without which they cannot be decoded")
        bases = union(Span(base, 1) for base in codec.bases(tensors) if base >= 0)
        if bases:
            self._outside[number] = without(bases, [span])
        self.blocks[number] = block

    def _read_states(self, found: Found) -> None:
        (states,) = self.pieces.one(found, self.pieces._states)
        states.tensors()
        self.states[found.header.sequence] = states

    def _read_reference(self, found: Found) -> None:
        self.pieces.one(found, self.pieces._reference)

    def _read_attention(self, found: Found) -> None:
        (attention,) = self.pieces.one(found, self.pieces._attention)
        attention.check()

    def _read_unknown(self, found: Found) -> None:
        self._payload(found)

    def _read_header(self, found: Found) -> None:
        if found.header.raw > MAX_JSON_BYTES:
            raise CorruptError(f"a header record of {found.header.raw} bytes")
        self.header = header_json.from_json(self._payload(found))

    def _require_bases(self) -> None:
        """Rows that are stored twice, or predicted from rows that are lost, are dropped; bases come before them."""
        stored: list[dict[Part, list[tuple[Span, int]]]] = [{} for _ in self.pieces.geometry.layers]
        for number in sorted(self.blocks, key=lambda one: (self.blocks[one].header.first, one)):
            block = self.blocks[number]
            key, parts, span = block.key, block.key.parts, block.key.span
            layers = range(key.first_layer, key.first_layer + key.layer_count)
            needs: set[int] = set()
            fault = None
            for layer in layers:
                for part in parts:
                    runs = stored[layer].setdefault(part, [])
                    if runs and key.first_row < runs[-1][0].stop:
                        fault = f"rows of layer {layer} are stored twice"
                    for bases in self._outside.get(number, ()):
                        holders = _holding(bases, runs)
                        if without([bases], [span for span, _ in holders]):
                            fault = fault or f"rows of layer {layer} are predicted from rows that are lost"
                        needs |= {holder for _, holder in holders}
            if fault:
                del self.blocks[number], self.records[number]
                self.problems.append(Problem(fault, block.offset, number))
                continue
            self.bases[number] = needs
            for layer in layers:
                for part in parts:
                    stored[layer][part].append((span, number))
        self.pieces.blocks = list(self.blocks.values())

    def _require_states_once(self) -> None:
        held: dict[tuple[int, int], list[Span]] = {}
        for number in sorted(self.states, key=lambda one: self.states[one].key.first_snapshot):
            one = self.states[number].key
            which = [(layer, one.number) for layer in range(one.first_layer, one.first_layer + one.layer_count)]
            if any(held.get(each, [Span(0, 0)])[-1].stop > one.first_snapshot for each in which):
                self.problems.append(Problem("states are stored twice", self.states[number].offset, number))
                del self.states[number], self.records[number]
                continue
            for each in which:
                held.setdefault(each, []).append(one.span)

    def stored(self, numbers: Iterable[int] | None = None) -> list[dict[Part, tuple[Span, ...]]]:
        """For each layer and part the rows that records (all, or these) hold."""
        found: list[dict[Part, list[Span]]] = [{part: [] for part in s.parts} for s in self.pieces.geometry.layers]
        for number in self.blocks if numbers is None else numbers:
            block = self.blocks[number]
            for layer in range(block.key.first_layer, block.key.first_layer + block.key.layer_count):
                for part in block.key.parts:
                    found[layer][part].append(block.key.span)
        return [{part: merged(sorted(spans)) for part, spans in one.items()} for one in found]

    def common(self, numbers: Iterable[int] | None = None) -> list[tuple[Span, ...]]:
        """For each layer the rows of which records (all, or these) hold every part."""
        return [common(list(one.values())) for one in self.stored(numbers)]


def read_records(wreck: Wreck) -> Remains:
    """Check every record that is left of a file; `snapshot_status.examine` goes on with the snapshots.

    Raises:
        CorruptError: MODEL is lost, without which nothing else can be understood.
        UnsupportedFileError: the file needs a newer reader.
    """
    if wreck.unsupported is not None:
        raise wreck.unsupported
    found = wreck.records.get(0)
    if found is None or found.header.type != RecordType.MODEL or found.header.raw > MAX_JSON_BYTES:
        raise wreck.corrupt("the model record is damaged, without which no other can be understood")
    pieces = Pieces(wreck)
    with pieces.locating():
        require_modest([one.header for one in wreck.records.values()], wreck.size)
    with pieces.locating(found.offset, found.header):
        record = geometry_json.from_json(pieces.payload(found.offset, found.header))
        pieces.geometry, fingerprint, stated_loss = record
    remains = Remains(wreck, pieces, fingerprint, stated_loss, records={0: found})
    remains.read()
    return remains


def _holding(wanted: Span, runs: Sequence[tuple[Span, int]]) -> list[tuple[Span, int]]:
    """Of sorted spans, each with its record, those that hold some of these rows."""
    at = max(0, bisect_right(runs, wanted.first, key=lambda run: run[0].first) - 1)
    found = []
    while at < len(runs) and runs[at][0].first < wanted.stop:
        if runs[at][0].stop > wanted.first:
            found.append(runs[at])
        at += 1
    return found
