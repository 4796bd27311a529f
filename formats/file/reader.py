"""Opening a .tsc file: everything but the rows is read and checked, without torch; rows are read on
demand.
"""

from __future__ import annotations

import os
from functools import cached_property

from formats.codecs.klt.profile_store import ProfileReference
from formats.codecs.klt.profile_store import from_tensors as profile_of
from formats.container.encryption import KeySource
from formats.container.records import RecordType
from formats.errors import CorruptError
from formats.limits import MAX_COLUMNS, MAX_LABELS_PER_RECORD, MAX_NEXT_TOKENS, MAX_ROWS, MAX_SNAPSHOTS, MAX_SPANS
from formats.trace import geometry as geometry_json
from formats.trace import head_maps, states, views
from formats.trace.head_maps import HeadMap
from formats.trace.trace import Trace
from formats.trace.views import Labels, View

from . import header as header_json
from . import promises, record_contents
from .block_decoding import BlockDecoder
from .blocks import FileBlock, FileReceived, FileStates
from .index import RecordFile

# a stated ratio is rounded down, and the file's length moves by a byte or two with it
RATIO_TOLERANCE = 0.002


class TraceFile(RecordFile):
    """An open .tsc file: everything but the rows, checked.  Needs no torch.

    Args and errors are those of `RecordFile`.
    """

    codec = ""  # what the header says of how rows were coded

    def __init__(self, path: str | os.PathLike[str], key: KeySource | None = None) -> None:
        super().__init__(path, key)
        model = self._only(RecordType.MODEL, 0)
        header = self._only(RecordType.HEADER, len(self.entries) - 1)
        with self.locating(*model):
            record_contents.require_short(model[1])
            self.geometry, self.fingerprint, self.stated_loss = geometry_json.from_json(self.payload(*model))
        with self.locating(*header):
            record_contents.require_short(header[1])
            self.header = header_json.from_json(self.payload(*header))
        self.codec = self.header.codec
        self.labels = self._labels()
        self.views = self._views()
        self.reference = self._reference()
        self.blocks = self._blocks()
        self.head_maps = self._head_maps()
        self.states = self._states()
        self.attention = self._attention()
        self.profile = self._profile()
        self.decoder = BlockDecoder(self)
        with self.locating():
            keys = [block.key for block in self.blocks]
            views.check_coverage(self.views, keys, self.geometry)
            head_maps.check(self.head_maps, self.views, keys, self.geometry)
            states.check_coverage([one.key for one in self.states], len(self.views), self.geometry)
            self._check_sizes()

    @cached_property
    def lost_by(self) -> str:
        """What the rows lost by since they were captured, by all that the file says; see
        `promises`.
        """
        entries = [entry for _, entry in self.entries]
        return promises.loss_of_records(self.stated_loss, self.header.codec, self.header.capture, entries)

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
            self.head_maps,
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
        for offset, entry in records:
            with self.locating(offset, entry):
                more = record_contents.labels(entry, self.buffer(offset, entry), self.geometry.batch)
                if len(labels) and labels.width != more.width:
                    raise CorruptError("labels: some records have ids for each sequence, some for all")
                labels.width = more.width
                if (len(labels) + len(more)) * more.width > MAX_ROWS:
                    raise CorruptError(f"labels: more than {MAX_ROWS} token ids")
            labels.extend(more.token_ids, more.positions)
        return labels

    def _views(self) -> list[View]:
        found: list[View] = []
        most = min(MAX_SNAPSHOTS, MAX_COLUMNS // len(self.geometry.layers))
        records, total = self._consecutive(RecordType.VIEWS, most)
        total_spans = 0
        if not total:
            raise self.reader.corrupt("there is no snapshot")
        rows, width = len(self.labels), self.labels.width
        if width > 1 and total * width > MAX_NEXT_TOKENS:
            raise self.reader.corrupt(f"more than {MAX_NEXT_TOKENS} next tokens")
        for offset, entry in records:
            with self.locating(offset, entry):
                more, spans = record_contents.snapshots(entry, self.buffer(offset, entry), self.geometry, rows, width)
                total_spans += spans
                if total_spans > MAX_SPANS:
                    raise CorruptError(f"views: more than {MAX_SPANS} spans")
            found += more
        return found

    def _reference(self) -> list[int]:
        # `first` is 0 in each of them, so that two do not follow on one another
        records, _ = self._consecutive(RecordType.REFERENCE, MAX_LABELS_PER_RECORD)
        for offset, entry in records:
            if self.labels.width > 1:
                raise self.reader.corrupt("a reference beside sequences that hold different tokens", offset)
            with self.locating(offset, entry):
                return record_contents.reference(entry, self.buffer(offset, entry))
        return []

    def _blocks(self) -> list[FileBlock]:
        blocks = []
        for offset, entry in self._of_type(RecordType.ROWS):
            with self.locating(offset, entry):
                record_contents.check_block(entry, self.geometry, len(self.labels))
            blocks.append(FileBlock(self, offset, entry))
        return blocks

    def _states(self) -> list[FileStates]:
        found = []
        for offset, entry in self._of_type(RecordType.STATES):
            with self.locating(offset, entry):
                record_contents.check_states(entry, self.geometry, len(self.views))
            found.append(FileStates(self, offset, entry))
        return found

    def _head_maps(self) -> list[HeadMap]:
        found = []
        for offset, entry in self._of_type(RecordType.KEPT):
            with self.locating(offset, entry):
                tensors = self.buffer(offset, entry)
                found.append(record_contents.head_map(entry, tensors, self.geometry, len(self.labels)))
        return found

    def _attention(self) -> list[FileReceived]:
        found = []
        for offset, entry in self._of_type(RecordType.ATTENTION):
            with self.locating(offset, entry):
                heads = record_contents.attention_heads(entry, self.geometry, len(self.labels))
            found.append(FileReceived(self, offset, entry, heads))
        return found

    def _profile(self) -> ProfileReference | None:
        records = self._of_type(RecordType.PROFILE)
        if len(records) > 1:
            raise self.reader.corrupt("there is more than one profile record")
        for offset, entry in records:
            with self.locating(offset, entry):
                return profile_of(self.buffer(offset, entry), "profile record")
        return None

    def _check_sizes(self) -> None:
        stated = self.header.raw_bytes_trace, self.header.raw_bytes_final
        raw = [views.raw_bytes(self.geometry, view) for view in self.views]
        whole = [views.unevicted_bytes(self.geometry, view) for view in self.views]
        # rows may have been evicted since the capture, but no more than there were tokens
        evicted = sum(raw) < sum(whole)
        allowed = [(sum(raw), raw[-1])] + [(sum(whole), whole[-1])] * evicted
        if stated not in allowed:
            raise CorruptError("the tier header states other raw bytes than the snapshots have")
        for ratio, value in zip(self.header.ratios, stated, strict=True):
            if not abs(ratio * self.size / value - 1) <= RATIO_TOLERANCE:
                raise CorruptError("the tier header states another ratio than the file has")
        # what only `capture` and records tell is no contradiction in terms: `lost_by` says it
        if fault := promises.fault_of(self.header, self.size, self.stated_loss):
            message = f"the tier header states tier {self.header.tier}, and {fault}"
            raise CorruptError(message, hint="tsc recover writes a file of its rows that does not state it")


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
