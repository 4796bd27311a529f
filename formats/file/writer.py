"""Writing a trace as a .tsc file, record by record, as its rows come."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from formats.codecs import BlockContext, Codec, codec_by_name
from formats.codecs.base import NO_CONTEXT
from formats.codecs.klt import profile_store as reference
from formats.codecs.packing import to_planes
from formats.container.encryption import Secret
from formats.container.records import FILE_ID_BYTES, Part, RecordType
from formats.container.safetensors_buffer import pack
from formats.container.writer import RecordWriter, Sink
from formats.errors import LimitError, UsageError
from formats.limits import MAX_LABELS_PER_RECORD, MAX_RECORD_RAW, MAX_RECORDS, TARGET_RECORD_RAW
from formats.trace import geometry as geometry_json
from formats.trace import head_maps, row_store
from formats.trace import states as state_blocks
from formats.trace import views as viewing
from formats.trace.blocks import MemoryBlock
from formats.trace.geometry import Geometry
from formats.trace.head_maps import HeadMap
from formats.trace.snapshot import Received
from formats.trace.states import States
from formats.trace.views import Labels, View
from formats.version import VERSION

from . import record_contents
from .finish import copy_records, finish_records
from .header import TierHeader

if TYPE_CHECKING:
    import torch

    from formats.codecs.klt.profile import Profile

    from .reader import TraceFile

CREATED_BY = f"tsc {VERSION}"
VIEWS_PER_RECORD = 1 << 12


def content_id(*parts: bytes) -> bytes:
    """A file identity that follows from the content, for writers that must give the same bytes
    twice.
    """
    digest = hashlib.blake2b(digest_size=FILE_ID_BYTES, person=b"tsc file id")
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


class TraceWriter:
    """Writes a trace to a sink as its rows come (a `timeline.RowSink`); `finish` makes it a file.

    Args:
        label_width: token ids a row: 1, or the batch if its sequences hold different tokens.
        secret: encrypt the file with it.
        lost_by: what the rows have lost by already; see `promises`.
    Raises:
        UsageError: the identity of an encrypted file is given: it is random, and must not follow
            from the content.
    """

    def __init__(
        self,
        sink: Sink,
        geometry: Geometry,
        fingerprint: Mapping[str, str],
        *,
        codec: Codec | None = None,
        file_id: bytes | None = None,
        label_width: int = 1,
        opened: TraceFile | None = None,
        secret: Secret | None = None,
        lost_by: str = "",
    ) -> None:
        self.geometry = geometry
        self._before = opened
        self._codec = codec or codec_by_name("lossless")
        self._labels = Labels(width=label_width)
        self._views: list[View] = []
        self._written = [0, 0]  # labels and views that are written
        self._lost_by = lost_by if opened is None else opened.stated_loss
        if opened is not None:
            self._writer = RecordWriter(sink, opened.reader.file_id, opened.reader.secret)
            return
        if secret is not None and file_id is not None:
            raise UsageError(
                "an encrypted file is never the same twice", hint="leave out --deterministic, or the encryption"
            )
        self._writer = RecordWriter(sink, os.urandom(FILE_ID_BYTES) if file_id is None else file_id, secret)
        self._writer.record(RecordType.MODEL, geometry_json.to_json(geometry, fingerprint, lost_by))

    @classmethod
    def going_on(cls, sink: Sink, file: TraceFile) -> TraceWriter:
        """A writer that has written all that a file holds, and goes on where its tier header stood.

        Records are copied byte for byte, or encrypted anew with the file's secret.
        """
        writer = cls(sink, file.geometry, file.fingerprint, label_width=file.labels.width, opened=file)
        copy_records(file, writer._writer)
        return writer

    @property
    def snapshots(self) -> int:
        """Snapshots that were added."""
        return len(self._views)

    def add_block(self, block: MemoryBlock, codec: Codec | None = None, context: BlockContext = NO_CONTEXT) -> None:
        """Encode the rows and write them, a record for each part that the codec keeps apart.

        Args:
            codec: another one than the writer's own.
            context: what the codec may know beside the rows.
        Raises:
            UsageError: a value is NaN or infinite and the codec is not exact; the layer is named.
        """
        codec = codec or self._codec
        for part in codec.parts:
            wanted = (Part.KEYS, Part.VALUES) if part is Part.JOINT else (part,)
            rows = {p: tensor for p, tensor in block.rows.items() if p in wanted}
            if not rows:
                continue
            if not codec.exact:
                named = {p.name.lower().replace("_", " "): tensor for p, tensor in rows.items()}
                _require_finite(named, block.key.first_layer, codec.name)
            key = block.key
            self._writer.record(
                RecordType.ROWS,
                pack(codec.encode(rows, context)),
                codec=codec.id,
                part=part,
                layers=(key.first_layer, key.layer_count),
                span=key.span,
            )

    def add_head_map(self, head_map: HeadMap) -> None:
        """Write which rows each head of some layers kept; see `head_maps`."""
        self._writer.record(
            RecordType.KEPT,
            pack(head_maps.to_tensors(head_map)),
            layers=(head_map.first_layer, head_map.layer_count),
            span=head_map.span,
        )

    def add_states(self, states: States, codec: Codec | None = None, device: str | torch.device = "cpu") -> None:
        """Encode states, on this device, and write them.

        Raises:
            UsageError: a value is NaN or infinite and the codec is not exact; the layer is named.
        """
        codec, key = codec or self._codec, states.key
        state = self.geometry.layers[key.first_layer].states[key.number]
        values = state_blocks.as_values(states.read(device), state)
        if not codec.exact:
            _require_finite({state.name: values}, key.first_layer, codec.name)
        self._writer.record(
            RecordType.STATES,
            pack(codec.encode({Part.VALUES: values})),
            codec=codec.id,
            part=key.number,
            layers=(key.first_layer, key.layer_count),
            span=key.span,
        )

    def add_profile(self, profile: Profile, *, embed: bool) -> None:
        """Name the profile that rows need, or hold it.  Raises LimitError if it is larger than a
        record may be.
        """
        packed = pack(reference.to_tensors(profile, embed=embed))
        if len(packed) > MAX_RECORD_RAW:
            raise LimitError(
                f"the profile takes {profile.size} bytes, more than a file may hold in one record ({MAX_RECORD_RAW})",
                hint="without --embed-profile the file names it",
            )
        self._writer.record(RecordType.PROFILE, packed)

    def add_attention(self, attention: Received) -> None:
        received = attention.read().float().contiguous()
        planes = to_planes(received).cpu()
        self._writer.record(
            RecordType.ATTENTION,
            pack({"received": planes}),
            layers=(attention.first_layer, attention.layer_count),
            span=(0, received.shape[2]),
        )

    def add_labels(self, token_ids: Sequence[int], positions: Sequence[int]) -> None:
        self._labels.extend(token_ids, positions)

    def add_view(self, view: View) -> None:
        self._views.append(view)

    def complete(self) -> None:
        """All rows and states of the snapshots so far were added.

        Their labels and views are written, so that `recover` can save them of a file that is never
        finished.  Half of the records that a file may hold are left for rows: beyond, labels and
        views wait for the end.
        """
        if len(self._writer.entries) < MAX_RECORDS // 2:
            self._write_tables()

    def finish(
        self,
        *,
        tier: str = "lossless",
        reference: Sequence[int] = (),
        capture: Mapping[str, Any] | None = None,
        quality: Sequence[Mapping[str, Any]] = (),
        codec: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        captured_bytes: tuple[int, int] | None = None,
        insist: bool = False,
    ) -> tuple[TierHeader, int]:
        """Write labels, views, tier header, index and end mark; returns the header and the file's
        length in bytes.

        Args:
            tier: is not stated if the file does not keep it.
            codec, parameters: what the header says of how rows were coded; by default the writer's
                codec.
            captured_bytes: of all snapshots and of the last, if rows were evicted; by default those
                of the views.
            insist: the tier is to be kept.
        Raises:
            PromiseError: it is not.
        """
        if not self._views:
            raise UsageError("a trace without snapshots cannot be written")
        self._write_tables()
        if reference:
            payload = record_contents.reference_payload(reference)
            self._writer.record(RecordType.REFERENCE, payload, span=(0, len(reference)))
        if captured_bytes is None:
            raw = [viewing.raw_bytes(self.geometry, view) for view in self._views]
            before = 0 if self._before is None else self._before.header.raw_bytes_trace
            captured_bytes = before + sum(raw), raw[-1]
        header = TierHeader(
            tier,
            *captured_bytes,
            CREATED_BY,
            dict(capture or {}),
            [dict(q) for q in quality],
            codec or self._codec.name,
            dict(asdict(self._codec.settings) if parameters is None else parameters),
        )
        return finish_records(self._writer, header, lost_by=self._lost_by, values=self._values, insist=insist)

    def _values(self) -> int:
        before = [] if self._before is None else self._before.views
        return row_store.stored_values(self.geometry, [*before, *self._views])

    def _write_tables(self) -> None:
        """The labels and views that are not written yet."""
        rows, views_before = (0, 0) if self._before is None else (len(self._before.labels), len(self._before.views))
        width = self._labels.width
        most = MAX_LABELS_PER_RECORD if width == 1 else max(1, TARGET_RECORD_RAW // (4 * width + 8))
        labels_written, views_written = self._written
        self._written = [len(self._labels), len(self._views)]
        for first in range(labels_written, len(self._labels), most):
            token_ids = self._labels.token_ids[first * width : (first + most) * width]
            positions = self._labels.positions[first : first + most]
            payload = record_contents.labels_payload(token_ids, positions, rows + first, width)
            self._writer.record(RecordType.LABELS, payload, span=(rows + first, len(positions)))
        write_views(self._writer, self._views[views_written:], views_before + views_written, width)


def write_views(writer: RecordWriter, views: Sequence[View], first: int, width: int) -> None:
    """Write the VIEWS records of snapshots `first`, `first + 1`, ...; `width` is as their labels
    have it.
    """
    for at in range(0, len(views), VIEWS_PER_RECORD):
        some = views[at : at + VIEWS_PER_RECORD]
        writer.record(RecordType.VIEWS, record_contents.snapshots_payload(some, width), span=(first + at, len(some)))


def _require_finite(tensors: Mapping[str, torch.Tensor], first_layer: int, codec: str) -> None:
    import torch

    for name, tensor in tensors.items():
        # float8 has no isfinite of its own
        finite = torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).flatten(1).all(1)
        if not bool(finite.all()):
            layer = first_layer + finite.tolist().index(False)
            raise UsageError(
                f"the {name} of layer {layer} hold a value that is not finite, which codec {codec} cannot store",
                hint="the lossless codec keeps NaN and infinity",
            )
