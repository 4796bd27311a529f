"""Writing what is left of a damaged file as a valid one: records as they are, snapshots renumbered, nothing made up.

Where the format asks for something that is lost but that no snapshot needs (labels between others, values beside
keys), zeros stand for it: no snapshot names them.  The tier is a promise about the whole file: the first loss ends it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, BinaryIO

from formats.codecs import codec_by_name, codec_name, is_exact
from formats.container.atomic_write import atomic_write
from formats.container.encryption import KeySource
from formats.container.records import FILE_ID_BYTES, Part, RecordType, pack_record_header
from formats.container.safetensors_buffer import pack, pack_integers
from formats.container.writer import RecordWriter
from formats.errors import CorruptError, StorageError, TscError, UsageError
from formats.file import check, loss
from formats.file.finish import finish_records
from formats.file.header import TierHeader
from formats.file.writer import CREATED_BY, VIEWS_PER_RECORD, content_id, minor_for
from formats.limits import MAX_LABELS_PER_RECORD, TARGET_RECORD_RAW
from formats.trace import geometry as geometry_json
from formats.trace import states as state_blocks
from formats.trace import views as viewing
from formats.trace.row_store import stored_values

from .plan import Plan, choose
from .scan import Found, Wreck, in_order
from .snapshot_status import examine


class Writing:
    """A plan, carried out."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.remains = plan, plan.remains

    def write(self, sink: BinaryIO) -> int:
        """Write the new file; returns its length."""
        remains, pieces, complete = self.remains, self.remains.pieces, self.plan.complete
        stated, lost_by = self._header(), self._lost_by()
        minor = max(2, pieces.reader.minor, minor_for(pieces.geometry, remains.width, lost_by))
        writer = RecordWriter(sink, self._identity(), minor, remains.wreck.secret)
        kept_rows = iter(sorted(remains.records.values(), key=lambda one: one.header.sequence))
        for one in kept_rows:
            header = one.header
            if header.type == RecordType.HEADER or header.sequence in self.plan.dropped:
                continue
            if header.type == RecordType.MODEL and lost_by != remains.stated_loss:
                writer.record(RecordType.MODEL, geometry_json.to_json(pieces.geometry, remains.fingerprint, lost_by))
            elif complete:
                self._copy(writer, one)
            elif header.type == RecordType.STATES:
                self._states(writer, one)
            elif header.type not in (RecordType.LABELS, RecordType.VIEWS):
                self._copy(writer, one)
        if not complete:
            self._stand_ins(writer)
            self._labels(writer)
            self._views(writer)
        views = [remains.views[number] for number in self.plan.numbers]
        found, length = finish_records(
            writer, stated, lost_by=lost_by, values=lambda: stored_values(pieces.geometry, views)
        )
        self.plan.untrue = stated.tier if stated.tier != found.tier else ""
        return length

    def _lost_by(self) -> str:
        """What MODEL is to say that the rows had lost by: as before, or what only lost records told."""
        remains = self.remains
        if self.plan.complete or remains.stated_loss:
            return remains.stated_loss
        header = self._header()
        if not is_exact(header.codec):  # which says it
            return ""
        lost_by = loss.of_records("", "", header.capture, [one.header for one in remains.records.values()])
        if lost_by or remains.header is not None:
            return lost_by
        geometry, views = remains.pieces.geometry, [remains.views[number] for number in self.plan.numbers]
        evicted = any(viewing.raw_bytes(geometry, view) < viewing.unevicted_bytes(geometry, view) for view in views)
        return "eviction" if evicted else ""

    def _identity(self) -> bytes:
        """Another one than the input's, since the same numbers mean other records; the same for the same content.

        That of an encrypted file is random.
        """
        reader = self.remains.wreck
        if reader.lock is not None:
            return os.urandom(FILE_ID_BYTES)
        parts = [pack_record_header(one.header, reader.file_id) for one in in_order(self.remains.records.values())]
        return content_id(b"recovered", reader.file_id, repr(sorted(self.plan.numbers)).encode(), *parts)

    def _copy(self, writer: RecordWriter, found: Found, first: int | None = None) -> None:
        frame = self.remains.wreck.frame(found.offset, found.header)
        first = found.header.first if first is None else first
        writer.copy_record(frame, replace(found.header, sequence=len(writer.entries), first=first))

    def _states(self, writer: RecordWriter, found: Found) -> None:
        states = self.remains.states[found.header.sequence]
        span = states.key.span
        if all(number in self.plan.numbers for number in range(span.first, span.stop)):
            self._copy(writer, found, self.plan.numbers[span.first])
            return
        # some of its snapshots are lost: what a reader would restore of the others is stored as it is
        lossless = codec_by_name("lossless")
        state = self.remains.pieces.geometry.layers[states.key.first_layer].states[states.key.number]
        values = state_blocks.as_values(states.read(), state)
        for number in range(span.first, span.stop):
            if number in self.plan.numbers:
                at = number - span.first
                tensors = lossless.encode({Part.VALUES: values[..., at : at + 1, :]})
                writer.record(
                    RecordType.STATES,
                    pack(tensors),
                    codec=lossless.id,
                    part=states.key.number,
                    layers=(states.key.first_layer, states.key.layer_count),
                    span=(self.plan.numbers[number], 1),
                )

    def _stand_ins(self, writer: RecordWriter) -> None:
        geometry = self.remains.pieces.geometry
        for layer, part, span in self.plan.rows_for:
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
                    RecordType.ROWS,
                    payload,
                    codec=codec_by_name("lossless").id,
                    part=part,
                    layers=(layer, 1),
                    span=(first, count),
                )

    def _labels(self, writer: RecordWriter) -> None:
        at = 0
        for number in sorted(self.remains.labels, key=lambda one: self.remains.records[one].header.first):
            found = self.remains.records[number]
            if found.header.first >= self.plan.total_rows:
                break
            self._zero_labels(writer, at, found.header.first)
            self._copy(writer, found)
            at = found.header.first + found.header.count
        self._zero_labels(writer, at, self.plan.total_rows)

    def _zero_labels(self, writer: RecordWriter, first: int, stop: int) -> None:
        width = self.remains.width
        for at in range(first, stop, MAX_LABELS_PER_RECORD):
            count = min(MAX_LABELS_PER_RECORD, stop - at)
            ids = (count,) if width == 1 else (count, width)
            payload = pack_integers(
                {"token_ids": ("U16", ids, [0] * count * width), "position_offsets": ("I64", (count,), [0] * count)}
            )
            writer.record(RecordType.LABELS, payload, span=(at, count))

    def _views(self, writer: RecordWriter) -> None:
        views, width = [self.remains.views[number] for number in self.plan.numbers], self.remains.width
        for first in range(0, len(views), VIEWS_PER_RECORD):
            some = views[first : first + VIEWS_PER_RECORD]
            spans, tokens = viewing.to_table(some, width)
            payload = pack_integers(
                {
                    "spans": ("I64", (len(spans) // 5, 5), spans),
                    "next_tokens": ("I64", (len(some),) if width == 1 else (len(some), width), tokens),
                }
            )
            writer.record(RecordType.VIEWS, payload, span=(first, len(some)))

    def _header(self) -> TierHeader:
        remains = self.remains
        if self.plan.complete and remains.header is not None:
            return remains.header
        raw = [viewing.raw_bytes(remains.pieces.geometry, remains.views[number]) for number in self.plan.numbers]
        known = remains.header or TierHeader("", 1, 1, CREATED_BY, codec=self._codec())
        total = f"{remains.snapshots}" if remains.all_known else f"at least {remains.snapshots}"
        note = {"recovered": f"{len(self.plan.numbers)} of {total} snapshots"}
        return replace(
            known,
            tier="",
            raw_bytes_trace=sum(raw),
            raw_bytes_final=raw[-1],
            capture={**known.capture, **note},
            quality=self._quality(known.quality),
        )

    def _quality(self, quality: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """What was measured of snapshots that are kept, under their new numbers."""
        return [
            {**one, "snapshot": self.plan.numbers[one["snapshot"]]}
            for one in quality
            if isinstance(one.get("snapshot"), int) and one["snapshot"] in self.plan.numbers
        ]

    def _codec(self) -> str:
        """The codec of most ROWS records, where no header says it."""
        counts = Counter(block.header.codec for block in self.remains.blocks.values())
        return codec_name(counts.most_common(1)[0][0]) if counts else ""


def salvage(path: str | os.PathLike[str], key: KeySource | None = None) -> Plan:
    """What can be saved of a file; reads all of it and writes nothing.

    Args:
        key: the secret of an encrypted file, or what gives it.
    Raises:
        LockedError: it is encrypted, and no key or another one was given.
        StorageError, UsageError: it cannot be read.
        CorruptError: no snapshot can be recovered.
        UnsupportedFileError: it needs a newer reader.
    """
    return choose(examine(Wreck(path, key)))


def refuse_input(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Raise UsageError where the output is the input."""
    if os.path.exists(output) and os.path.exists(path) and os.path.samefile(path, output):
        raise UsageError("the output is the input, which is never changed", path=os.fspath(output))


def recover(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    key: KeySource | None = None,
) -> tuple[Plan, int]:
    """Write what is left of a file as a new one, atomically; returns what was saved and the new file's length.

    The input is only read.  What is written is checked as a whole before it takes its name.  What is left of an
    encrypted file is encrypted with the same secret.

    Args:
        key: the secret of an encrypted file, or what gives it.
    Raises:
        UsageError: the output exists and `overwrite` is not set, or is the input.
        and what `salvage` raises.
    """
    refuse_input(path, output)
    found = salvage(path, key)
    with atomic_write(output, overwrite=overwrite) as sink:
        length = Writing(found).write(sink)
        sink.flush()
        try:
            check.check(f"/dev/fd/{sink.fileno()}", found.remains.wreck.secret)
        except StorageError as error:
            raise StorageError(error.message, path=os.fspath(output)) from error
        except TscError as error:
            message = f"what is left does not make a valid file: {error.message}"
            raise CorruptError(message, path=os.fspath(path)) from error
    return found, length
