"""Reading each record of a damaged file by itself, by the rules of a strict reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from formats.codecs.klt.profile_store import from_tensors
from formats.container.records import KNOWN_TYPES, RecordHeader, RecordType
from formats.container.safetensors_buffer import TensorView
from formats.errors import CorruptError, LimitError, Locating, StorageError, TscError, UnsupportedFileError
from formats.file import header as header_json
from formats.file import record_contents
from formats.file.blocks import FileBlock, FileReceived, FileStates
from formats.file.index import require_proportionate
from formats.limits import MAX_LABELS_PER_RECORD, MAX_ROWS, MAX_SNAPSHOTS
from formats.trace import geometry as geometry_json
from formats.trace.spans import meets, union
from formats.trace.views import Labels, Span

from .findings import FoundRecord, Problem
from .inventory import Inventory
from .scan import DamagedFile


def read_records(damaged_file: DamagedFile) -> Inventory:
    """Check every record that is left of a file by itself; `snapshots.examine` goes on with what
    they need of others.

    Raises:
        CorruptError: MODEL is lost, without which nothing else can be understood.
        UnsupportedFileError: the file needs a newer reader.
    """
    if damaged_file.unsupported is not None:
        raise damaged_file.unsupported
    record = damaged_file.records.get(0)
    if record is None or record.header.type != RecordType.MODEL:
        raise damaged_file.corrupt("the model record is damaged, without which no other can be understood")
    with Locating(damaged_file.path):
        require_proportionate([each.header for each in damaged_file.records.values()], damaged_file.size)
    with Locating(damaged_file.path, record.offset, 0):
        record_contents.require_short(record.header)
        model = geometry_json.from_json(damaged_file.payload(record.offset, record.header))
    inventory = Inventory(damaged_file, *model, records={0: record})
    _Reading(inventory).read()
    return inventory


class _Reading:
    """The reading of all records but MODEL, type by type."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._labels: list[tuple[FoundRecord, Labels]] = []

    def read(self) -> None:
        readers: list[tuple[int, Callable[[FoundRecord], None]]] = [
            (RecordType.LABELS, self._read_labels),
            (RecordType.VIEWS, self._read_views),
            (RecordType.KEPT, self._read_head_map),
            (RecordType.PROFILE, self._read_profile),
            (RecordType.ROWS, self._read_rows),
            (RecordType.STATES, self._read_states),
            (RecordType.REFERENCE, self._read_reference),
            (RecordType.ATTENTION, self._read_attention),
            (RecordType.HEADER, self._read_header),
        ]
        records = self._inventory.file.records
        for kind, read in readers:
            for number in sorted(records):
                if records[number].header.type == kind:
                    self._try(records[number], read)
            if kind == RecordType.LABELS:
                self._join_labels()
        for record in records.values():
            if record.header.type not in KNOWN_TYPES:
                self._try(record, self._payload)

    def _try(self, record: FoundRecord, read: Callable[[FoundRecord], object]) -> None:
        try:
            read(record)
        except (LimitError, StorageError, UnsupportedFileError):
            raise  # what cannot be read here and now may be whole
        except TscError as error:
            self._inventory.problems.append(Problem.of(error, record.offset, record.header.sequence))
        else:
            self._inventory.records[record.header.sequence] = record

    def _payload(self, record: FoundRecord) -> bytes:
        return self._inventory.file.payload(record.offset, record.header)

    def _buffer(self, record: FoundRecord) -> Mapping[str, TensorView]:
        return self._inventory.buffer(record.offset, record.header)

    def _read_labels(self, record: FoundRecord) -> None:
        span = _range(record.header, MAX_ROWS)
        labels = record_contents.labels(record.header, self._buffer(record), self._inventory.geometry.batch)
        if self._labels and labels.width != self._labels[0][1].width:
            raise CorruptError("labels: some records have ids for each sequence, some for all")
        if meets(span, (_range(other.header, MAX_ROWS) for other, _ in self._labels)):
            raise CorruptError("labels of rows that have labels")
        self._labels.append((record, labels))

    def _join_labels(self) -> None:
        """Labels go on without a gap in every file; those behind a lost record cannot be kept."""
        labels = self._inventory.labels
        for record, more in sorted(self._labels, key=lambda each: each[0].header.first):
            labels.width = more.width
            if record.header.first == len(labels):
                labels.extend(more.token_ids, more.positions)
            else:
                self._inventory.dropped[record.header.sequence] = "labels before it are lost"

    def _read_views(self, record: FoundRecord) -> None:
        numbers = _range(record.header, MAX_SNAPSHOTS)
        width, geometry = self._inventory.labels.width, self._inventory.geometry
        views, _ = record_contents.snapshots(record.header, self._buffer(record), geometry, MAX_ROWS, width)
        if any(number in self._inventory.views for number in range(numbers.first, numbers.stop)):
            raise CorruptError("a snapshot is described twice")
        self._inventory.views.update(enumerate(views, numbers.first))

    def _read_head_map(self, record: FoundRecord) -> None:
        head_map = record_contents.head_map(record.header, self._buffer(record), self._inventory.geometry, MAX_ROWS)
        layers = head_map.layers
        for other in self._inventory.head_maps.values():
            if any(other.covers(layer) for layer in layers) and meets(head_map.span, [other.span]):
                raise CorruptError("two maps say what layers kept of the same rows")
        self._inventory.head_maps[record.header.sequence] = head_map

    def _read_profile(self, record: FoundRecord) -> None:
        profile = from_tensors(self._buffer(record), "profile record")
        if self._inventory.profile is not None:
            raise CorruptError("there is more than one profile record")
        if profile.data is not None:
            profile.load()
        self._inventory.profile = profile

    def _read_rows(self, record: FoundRecord) -> None:
        record_contents.check_block(record.header, self._inventory.geometry, MAX_ROWS)
        block = FileBlock(self._inventory, record.offset, record.header)
        codec, tensors, _ = block.tensors()
        if codec.needs_profile and self._inventory.profile is None:
            raise CorruptError("rows that need a profile that the file does not have")
        bases = union(Span(base, 1) for base in codec.bases(tensors) if base >= 0)
        if bases:
            self._inventory.bases[record.header.sequence] = bases
        self._inventory.rows[record.header.sequence] = block

    def _read_states(self, record: FoundRecord) -> None:
        record_contents.check_states(record.header, self._inventory.geometry, MAX_SNAPSHOTS)
        states = FileStates(self._inventory, record.offset, record.header)
        states.tensors()
        self._inventory.states[record.header.sequence] = states

    def _read_reference(self, record: FoundRecord) -> None:
        _range(record.header, MAX_LABELS_PER_RECORD)
        record_contents.reference(record.header, self._buffer(record))

    def _read_attention(self, record: FoundRecord) -> None:
        heads = record_contents.attention_heads(record.header, self._inventory.geometry, MAX_ROWS)
        FileReceived(self._inventory, record.offset, record.header, heads).check()

    def _read_header(self, record: FoundRecord) -> None:
        record_contents.require_short(record.header)
        self._inventory.header = header_json.from_json(self._payload(record))


def _range(header: RecordHeader, most: int) -> Span:
    if not 1 <= header.count <= most - header.first:
        raise CorruptError(f"{header.name} records out of bounds")
    return Span(header.first, header.count)
