"""Opening a .tsc file: everything but the rows is read and checked, without torch; rows are read on demand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property

from formats.codecs.klt.profile_store import ProfileReference, from_tensors
from formats.container.encryption import KeySource
from formats.container.records import Part, RecordHeader, RecordType
from formats.container.safetensors_buffer import TensorView, expect
from formats.errors import CorruptError
from formats.limits import (
    MAX_BLOCK_BYTES,
    MAX_COLUMNS,
    MAX_INTEGER,
    MAX_JSON_BYTES,
    MAX_LABELS_PER_RECORD,
    MAX_NEXT_TOKENS,
    MAX_ROWS,
    MAX_SNAPSHOTS,
    MAX_SPANS,
)
from formats.trace import geometry as geometry_json
from formats.trace import head_maps as kept_rows
from formats.trace import states as state_blocks
from formats.trace import views as viewing
from formats.trace.geometry import LayerSpec
from formats.trace.head_maps import Kept
from formats.trace.trace import Trace
from formats.trace.views import Labels, Span, View

from . import header as header_json
from . import loss, promises
from .block_decoding import BlockDecoder
from .blocks import FileBlock, FileReceived, FileStates
from .index import RecordFile

RATIO_TOLERANCE = 0.002  # a stated ratio is rounded down, and the file's length moves by a byte or two with it
_PARTS = frozenset(part.value for part in Part)


class TraceFile(RecordFile):
    """An open .tsc file: everything but the rows, checked.  Needs no torch.

    Args and errors are those of `RecordFile`.
    """

    codec = ""  # what the header says of how rows were coded

    def __init__(self, path: str | os.PathLike[str], key: KeySource | None = None) -> None:
        super().__init__(path, key)
        model = self._only(RecordType.MODEL, 0)
        header = self._only(RecordType.HEADER, len(self.entries) - 1)
        for offset, entry in (model, header):
            if entry.raw > MAX_JSON_BYTES:
                raise self.reader.corrupt(f"a {entry.name} record of {entry.raw} bytes", offset, entry.sequence)
        with self.locating(*model):
            self.geometry, self.fingerprint, self.stated_loss = geometry_json.from_json(self.payload(*model))
        with self.locating(*header):
            self.header = header_json.from_json(self.payload(*header))
        self.codec = self.header.codec
        self.labels = self._labels()
        self.views = self._views()
        self.reference = self._reference()
        self.blocks = self._blocks()
        self.kept = self._kept()
        self.states = self._states()
        self.attention = self._attention()
        self.profile = self._profile()
        self.decoder = BlockDecoder(self)
        with self.locating():
            keys = [block.key for block in self.blocks]
            viewing.check_coverage(self.views, keys, self.geometry)
            kept_rows.check(self.kept, self.views, keys, self.geometry)
            state_blocks.check_coverage([one.key for one in self.states], len(self.views), self.geometry)
            self._check_sizes()

    @cached_property
    def lost_by(self) -> str:
        """What the rows lost by since they were captured, by all that the file says; see `loss`."""
        entries = [entry for _, entry in self.entries]
        return loss.of_records(self.stated_loss, self.header.codec, self.header.capture, entries)

    @property
    def size(self) -> int:
        return self.reader.size

    def trace(self) -> Trace:
        """The trace, whose rows are read from the file when a snapshot is asked for."""
        return Trace(
            self.geometry,
            self.fingerprint,
            self.views,
            self.labels,
            self.blocks,
            self.reference,
            self.header.capture,
            self.header.quality,
            self.header.tier,
            self.header.codec,
            self.header.parameters,
            self.kept,
            self.attention,
            (self.header.raw_bytes_trace, self.header.raw_bytes_final),
            self.size,
            self.states,
            self.reader.secret,
            self.lost_by,
            self.path,
        )

    def _labels(self) -> Labels:
        labels = Labels()
        records, _ = self._consecutive(RecordType.LABELS, MAX_ROWS)
        widths: set[int] = set()
        for offset, entry in records:
            if entry.count > MAX_LABELS_PER_RECORD:
                raise self.reader.corrupt("a labels record holds too many rows", offset, entry.sequence)
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                tokens, width = _labelled_ids(tensors, entry.count, self.geometry.batch)
                widths.add(width)
                if len(widths) != 1:
                    raise CorruptError("labels: some records have ids for each sequence, some for all")
                if (len(labels) + entry.count) * width > MAX_ROWS:
                    raise CorruptError(f"labels: more than {MAX_ROWS} token ids")
                offsets = tensors["position_offsets"].integers()
                positions = [row + shift for row, shift in enumerate(offsets, entry.first)]
                if min(positions) < 0 or max(positions) > MAX_INTEGER:
                    raise CorruptError("labels: a position is out of range")
            labels.extend(tokens, positions)
        labels.width = widths.pop() if widths else 1
        return labels

    def _views(self) -> list[View]:
        views: list[View] = []
        most = min(MAX_SNAPSHOTS, MAX_COLUMNS // len(self.geometry.layers))
        records, total = self._consecutive(RecordType.VIEWS, most)
        total_spans = 0
        if not total:
            raise self.reader.corrupt("there is no snapshot")
        if self.labels.width > 1 and total * self.labels.width > MAX_NEXT_TOKENS:
            raise self.reader.corrupt(f"more than {MAX_NEXT_TOKENS} next tokens")
        for offset, entry in records:
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                found, spans = viewing.from_tables(tensors, entry.count, self.geometry, self.labels, "views")
                views += found
                total_spans += spans
                if total_spans > MAX_SPANS:
                    raise CorruptError(f"views: more than {MAX_SPANS} spans")
        return views

    def _reference(self) -> list[int]:
        # `first` is 0 in each of them, so that two do not follow on one another
        records, _ = self._consecutive(RecordType.REFERENCE, MAX_LABELS_PER_RECORD)
        for offset, entry in records:
            if self.labels.width > 1:
                raise self.reader.corrupt("a reference beside sequences that hold different tokens", offset)
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                return list(_token_ids(tensors, (entry.count,), {}))
        return []

    def _blocks(self) -> list[FileBlock]:
        blocks = []
        for offset, entry in self._of_type(RecordType.ROWS):
            if entry.part not in _PARTS:
                raise self.reader.corrupt(f"a block of part {entry.part}", offset, entry.sequence)
            if Part(entry.part) not in (Part.JOINT, *self._layers(offset, entry, "a block").parts):
                raise self.reader.corrupt("a block of indexer keys that its layers do not have", offset, entry.sequence)
            if not 1 <= entry.count <= len(self.labels) - entry.first:
                raise self.reader.corrupt("a block holds rows without labels", offset, entry.sequence)
            if entry.layer_count * entry.count * self.geometry.row_bytes[entry.first_layer] > MAX_BLOCK_BYTES:
                raise self.reader.corrupt(f"a block of more than {MAX_BLOCK_BYTES} bytes", offset, entry.sequence)
            blocks.append(FileBlock(self, offset, entry))
        return blocks

    def _layers(self, offset: int, entry: RecordHeader, what: str, *, rows: bool = True) -> LayerSpec:
        """What the layers that a record covers are like, all of them; they have rows unless it is not about rows."""
        first, stop = entry.first_layer, entry.first_layer + entry.layer_count
        if not first < stop <= len(self.geometry.layers) or self.geometry.run_ends[first] < stop:
            raise self.reader.corrupt(f"{what} covers layers that cannot be stored together", offset, entry.sequence)
        spec = self.geometry.layers[first]
        if rows and not spec.parts:
            raise self.reader.corrupt(f"{what} covers layers that keep no rows", offset, entry.sequence)
        return spec

    def _states(self) -> list[FileStates]:
        found = []
        for offset, entry in self._of_type(RecordType.STATES):
            spec = self._layers(offset, entry, "a states record", rows=False)
            if entry.part >= len(spec.states):
                raise self.reader.corrupt(f"a states record of state {entry.part}", offset, entry.sequence)
            if not 1 <= entry.count <= len(self.views) - entry.first:
                raise self.reader.corrupt("a states record of snapshots that there are not", offset, entry.sequence)
            values = entry.layer_count * entry.count * self.geometry.batch * spec.states[entry.part].bytes
            if values > MAX_BLOCK_BYTES:
                raise self.reader.corrupt(f"states of more than {MAX_BLOCK_BYTES} bytes", offset, entry.sequence)
            found.append(FileStates(self, offset, entry))
        return found

    def _kept(self) -> list[Kept]:
        found = []
        for offset, entry in self._of_type(RecordType.KEPT):
            spec = self._layers(offset, entry, "a map of kept rows")
            if spec.index_size:
                raise self.reader.corrupt("a map of kept rows with indexer keys", offset, entry.sequence)
            if not 1 <= entry.count <= len(self.labels) - entry.first:
                raise self.reader.corrupt("a map of kept rows without labels", offset, entry.sequence)
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                span = Span(entry.first, entry.count)
                found.append(
                    kept_rows.from_tensors(tensors, entry.first_layer, entry.layer_count, span, spec.heads, "kept")
                )
        return found

    def _attention(self) -> list[FileReceived]:
        found = []
        for offset, entry in self._of_type(RecordType.ATTENTION):
            spec = self._layers(offset, entry, "attention")
            if not 1 <= entry.count <= len(self.labels):
                raise self.reader.corrupt("attention to rows without labels", offset, entry.sequence)
            found.append(FileReceived(self, offset, entry, spec.heads))
        return found

    def _profile(self) -> ProfileReference | None:
        records = self._of_type(RecordType.PROFILE)
        if len(records) > 1:
            raise self.reader.corrupt("there is more than one profile record")
        for offset, entry in records:
            tensors = self.buffer(offset, entry)
            with self.locating(offset, entry):
                return from_tensors(tensors, "profile record")
        return None

    def _check_sizes(self) -> None:
        stated = self.header.raw_bytes_trace, self.header.raw_bytes_final
        raw = [viewing.raw_bytes(self.geometry, view) for view in self.views]
        whole = [viewing.unevicted_bytes(self.geometry, view) for view in self.views]
        # rows may have been evicted since the capture, but no more than there were tokens
        evicted = sum(raw) < sum(whole)
        allowed = [(sum(raw), raw[-1])] + [(sum(whole), whole[-1])] * evicted
        if stated not in allowed:
            raise CorruptError("the tier header states other raw bytes than the snapshots have")
        if self.header.ratios is not None:
            for ratio, value in zip(self.header.ratios, stated, strict=True):
                if not abs(ratio * self.size / value - 1) <= RATIO_TOLERANCE:
                    raise CorruptError("the tier header states another ratio than the file has")
        # what only `capture` and records tell is no contradiction in terms: `lost_by` says it
        if fault := promises.fault_of(self.header, self.size, self.stated_loss):
            message = f"the tier header states tier {self.header.tier}, and {fault}"
            raise CorruptError(message, hint="tsc recover writes a file of its rows that does not state it")


def _labelled_ids(tensors: Mapping[str, TensorView], count: int, batch: int) -> tuple[Sequence[int], int]:
    """(token ids, how many a row) of a LABELS payload: one, or one for each sequence."""
    by_sequence = batch > 1 and "token_ids" in tensors and len(tensors["token_ids"].shape) == 2
    shape = (count, batch) if by_sequence else (count,)
    return _token_ids(tensors, shape, {"position_offsets": ("I64", (count,))}), batch if by_sequence else 1


def _token_ids(
    tensors: Mapping[str, TensorView], shape: tuple[int, ...], others: Mapping[str, tuple[str, tuple[int | None, ...]]]
) -> Sequence[int]:
    wide = "token_ids" in tensors and tensors["token_ids"].dtype == "I32"
    expect(tensors, {"token_ids": ("I32" if wide else "U16", shape), **others}, "token ids")
    tokens = tensors["token_ids"].integers()
    if min(tokens) < 0:
        raise CorruptError("token ids: a negative token id")
    return tokens


def load(path: str | os.PathLike[str], key: KeySource | None = None) -> Trace:
    """Open a .tsc file.  Rows are read and checked when a snapshot is asked for.

    Args:
        key: the secret of an encrypted file, or what gives it.
    Raises:
        StorageError, UsageError: it cannot be read.
        LockedError: it is encrypted, and no key or another one was given.
        CorruptError, UnsupportedFileError: it is damaged, or needs a newer reader.
    """
    return TraceFile(path, key).trace()
