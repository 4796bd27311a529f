"""Writing a trace as a .tsc file, record by record, as its rows come."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import geometry as geometry_json
from . import header as header_json
from . import views as viewing
from .atomic import atomic_write
from .codecs import codec_by_name
from .container import RecordWriter, Sink
from .errors import UsageError
from .geometry import Geometry
from .header import TierHeader
from .limits import MAX_LABELS_PER_RECORD
from .records import FILE_ID_BYTES, Part, RecordType
from .tensor_buffer import pack
from .trace import MemoryBlock, Trace
from .version import VERSION
from .views import Labels, View

if TYPE_CHECKING:
    import torch

CREATED_BY = f"tsc {VERSION}"
_VIEWS_PER_RECORD = 1 << 12


def content_id(*parts: bytes) -> bytes:
    """A file identity that follows from the content, for writers that must give the same bytes twice."""
    digest = hashlib.blake2b(digest_size=FILE_ID_BYTES, person=b"tsc file id")
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


class TraceWriter:
    """Writes a trace to a sink as its rows come (a `timeline.RowSink`); `finish` makes it a file."""

    def __init__(
        self, sink: Sink, geometry: Geometry, fingerprint: Mapping[str, str],
        *, codec: str = "lossless", file_id: bytes | None = None,
    ) -> None:  # fmt: skip
        self.geometry = geometry
        self._codec = codec_by_name(codec)
        self._labels = Labels()
        self._views: list[View] = []
        self._writer = RecordWriter(sink, os.urandom(FILE_ID_BYTES) if file_id is None else file_id)
        self._writer.record(RecordType.MODEL, geometry_json.to_json(geometry, fingerprint))

    @property
    def snapshots(self) -> int:
        return len(self._views)

    def add_block(self, block: MemoryBlock) -> None:
        """Encode the rows and write them, a record for each part that the codec keeps apart."""
        for part in self._codec.parts:
            rows: Mapping[Part, torch.Tensor] = block.rows
            if part is not Part.JOINT:
                rows = {p: tensor for p, tensor in block.rows.items() if p is part}
            if rows:
                key = block.key
                self._writer.record(
                    RecordType.ROWS, pack(self._codec.encode(rows)), codec=self._codec.id, part=part,
                    layers=(key.first_layer, key.layer_count), span=key.span,
                )  # fmt: skip

    def add_labels(self, token_ids: Sequence[int], positions: Sequence[int]) -> None:
        self._labels.extend(token_ids, positions)

    def add_view(self, view: View) -> None:
        self._views.append(view)

    def finish(
        self, *, tier: str = "lossless", reference: Sequence[int] = (), capture: Mapping[str, Any] | None = None,
        quality: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[TierHeader, int]:  # fmt: skip
        """Write labels, views, tier header, index and end mark; returns the header and the file's length in bytes."""
        if not self._views:
            raise UsageError("a trace without snapshots cannot be written")
        self._write_tables(reference)
        raw = [viewing.raw_bytes(self.geometry, view) for view in self._views]
        header = TierHeader(tier, sum(raw), raw[-1], CREATED_BY, dict(capture or {}), [dict(q) for q in quality])
        return header, finish_records(self._writer, header)

    def _write_tables(self, reference: Sequence[int]) -> None:
        import torch

        for first in range(0, len(self._labels), MAX_LABELS_PER_RECORD):
            tokens = self._labels.token_ids[first : first + MAX_LABELS_PER_RECORD]
            positions = self._labels.positions[first : first + MAX_LABELS_PER_RECORD]
            offsets = [position - row for row, position in enumerate(positions, first)]
            payload = pack({"token_ids": _ids(tokens), "position_offsets": torch.tensor(offsets, dtype=torch.int64)})
            self._writer.record(RecordType.LABELS, payload, span=(first, len(tokens)))
        for first in range(0, len(self._views), _VIEWS_PER_RECORD):
            views = self._views[first : first + _VIEWS_PER_RECORD]
            spans, next_tokens = viewing.to_table(views)
            payload = pack({
                "spans": torch.tensor(spans, dtype=torch.int64).view(-1, 5),
                "next_tokens": torch.tensor(next_tokens, dtype=torch.int64),
            })  # fmt: skip
            self._writer.record(RecordType.VIEWS, payload, span=(first, len(views)))
        if reference:
            self._writer.record(RecordType.REFERENCE, pack({"token_ids": _ids(reference)}), span=(0, len(reference)))


def _ids(tokens: Sequence[int]) -> torch.Tensor:
    """Token ids in the smaller of two widths; the entropy coder does not make up for needless zero bytes."""
    import torch

    return torch.tensor(list(tokens), dtype=torch.uint16 if max(tokens, default=0) < 1 << 16 else torch.int32)


def finish_records(writer: RecordWriter, header: TierHeader) -> int:
    import torch

    writer.record(RecordType.HEADER, header_json.to_json(header))
    table = [
        (offset, h.type, h.codec, h.stored, h.raw, h.part, h.first_layer, h.layer_count, h.first, h.count)
        for offset, h in writer.entries
    ]
    index_offset = writer.offset
    writer.record(RecordType.INDEX, pack({"records": torch.tensor(table, dtype=torch.int64)}))
    writer.end(index_offset)
    return writer.offset


def save(trace: Trace, path: str | os.PathLike[str], *, force: bool = False, deterministic: bool = False) -> int:
    """Write a trace as a lossless .tsc file, atomically; returns its length in bytes.

    Args:
        force: replace an existing file (the file from which the trace was loaded may be replaced, too).
        deterministic: derive the file's identity from the content, so that the same trace gives the same bytes.
    """
    spans, next_tokens = viewing.to_table(trace.views)
    identity = content_id(
        geometry_json.to_json(trace.geometry, trace.fingerprint),
        repr((list(trace.labels.token_ids), list(trace.labels.positions), spans, next_tokens)).encode(),
    )
    with atomic_write(path, force=force) as file:
        writer = TraceWriter(file, trace.geometry, trace.fingerprint, file_id=identity if deterministic else None)
        for block in trace.blocks:
            writer.add_block(MemoryBlock(block.key, block.read()))
        writer.add_labels(trace.labels.token_ids, trace.labels.positions)
        for view in trace.views:
            writer.add_view(view)
        _, length = writer.finish(tier=trace.tier, reference=trace.reference, capture=trace.info, quality=trace.quality)
    return length
