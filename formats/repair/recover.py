"""Writing what is left of a damaged file as a valid one: records as they are, snapshots renumbered,
nothing made up.

The tier is a promise about the whole file: the first loss ends it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from formats.codecs import codec_by_name, codec_name, is_exact
from formats.container.atomic_write import atomic_write
from formats.container.encryption import KeySource
from formats.container.records import FILE_ID_BYTES, KNOWN_TYPES, Part, RecordHeader, RecordType, pack_record_header
from formats.container.safetensors_buffer import pack
from formats.container.writer import RecordWriter
from formats.errors import CorruptError, StorageError, TscError, UsageError
from formats.file import check, promises
from formats.file.finish import finish_records
from formats.file.header import TierHeader
from formats.file.writer import CREATED_BY, content_id, write_views
from formats.trace import geometry as geometry_json
from formats.trace import states as state_blocks
from formats.trace import views as viewing
from formats.trace.row_store import stored_values

from .findings import FoundRecord, in_order
from .inventory import Inventory
from .scan import DamagedFile
from .snapshots import examine

_ONCE = (RecordType.REFERENCE, RecordType.ATTENTION)  # records that are about the first snapshot


@dataclass
class Plan:
    """What is kept of a file.

    Attributes:
        numbers: old number of each snapshot that is kept -> new number.
        dropped: intact records that are not kept -> why.
        untrue: the tier that the header stated and that the new file does not keep.
    """

    inventory: Inventory
    numbers: dict[int, int]
    dropped: dict[int, str] = field(default_factory=dict)
    untrue: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing is lost but, perhaps, superblock, INDEX or END."""
        return self.inventory.complete

    @property
    def damaged(self) -> bool:
        return bool(self.inventory.file.problems or self.inventory.problems)


def choose(inventory: Inventory) -> Plan:
    """Which snapshots and records are kept.  Raises CorruptError where no snapshot is whole."""
    if not inventory.whole:
        known = f" of {inventory.snapshots}" if inventory.snapshots else ""
        raise CorruptError(
            f"no snapshot{known} can be recovered: what it needs is lost",
            path=inventory.file.path,
            hint="tsc doctor lists what is left",
        )
    plan = Plan(inventory, {old: new for new, old in enumerate(inventory.whole)}, dict(inventory.dropped))
    for number, found in inventory.records.items() if not inventory.complete else ():
        if why := _out_of_place(found.header, plan):
            plan.dropped.setdefault(number, why)
    return plan


def _out_of_place(header: RecordHeader, plan: Plan) -> str | None:
    """Why an intact record does not belong into a file of the snapshots that are kept."""
    rows = len(plan.inventory.labels)
    if header.type in _ONCE and 0 not in plan.numbers:
        return "is about the first snapshot, which is lost"
    if header.type in (RecordType.ATTENTION, RecordType.KEPT) and header.first + header.count > rows:
        return "is about rows without labels"
    if header.type == RecordType.STATES:
        numbers = range(header.first, header.first + header.count)
        return None if any(number in plan.numbers for number in numbers) else "states of snapshots that are lost"
    if header.type not in KNOWN_TYPES:
        return "is not known to this program, which cannot tell whether it still holds"
    return None


class Writing:
    """A plan, carried out."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.inventory = plan, plan.inventory

    def write(self, sink: BinaryIO) -> int:
        """Write the new file; returns its length."""
        inventory, geometry, complete = self.inventory, self.inventory.geometry, self.plan.complete
        stated, lost_by = self._header(), self._lost_by()
        writer = RecordWriter(sink, self._identity(), inventory.file.secret)
        labels: list[FoundRecord] = []
        for found in sorted(inventory.records.values(), key=lambda each: each.header.sequence):
            header = found.header
            if header.type == RecordType.HEADER or header.sequence in self.plan.dropped:
                continue
            if header.type == RecordType.MODEL and lost_by != inventory.stated_loss:
                writer.record(RecordType.MODEL, geometry_json.to_json(geometry, inventory.fingerprint, lost_by))
            elif header.type == RecordType.LABELS and not complete:
                labels.append(found)
            elif header.type == RecordType.STATES and not complete:
                self._states(writer, found)
            elif header.type != RecordType.VIEWS or complete:
                self._copy(writer, found)
        for found in sorted(labels, key=lambda each: each.header.first):
            self._copy(writer, found)
        views = [inventory.views[number] for number in self.plan.numbers]
        if not complete:
            write_views(writer, views, 0, inventory.labels.width)
        made, length = finish_records(writer, stated, lost_by=lost_by, values=lambda: stored_values(geometry, views))
        self.plan.untrue = stated.tier if stated.tier != made.tier else ""
        return length

    def _lost_by(self) -> str:
        """What MODEL is to say that the rows had lost by: as before, or what only lost records
        told.
        """
        inventory = self.inventory
        if self.plan.complete or inventory.stated_loss:
            return inventory.stated_loss
        header = self._header()
        if not is_exact(header.codec):  # which says it
            return ""
        lost_by = promises.loss_of_records("", "", header.capture, [one.header for one in inventory.records.values()])
        if lost_by or inventory.header is not None:
            return lost_by
        geometry, views = inventory.geometry, [inventory.views[number] for number in self.plan.numbers]
        evicted = any(viewing.raw_bytes(geometry, view) < viewing.unevicted_bytes(geometry, view) for view in views)
        return "eviction" if evicted else ""

    def _identity(self) -> bytes:
        """Another one than the input's, since the same numbers mean other records; the same for the
        same content.

        That of an encrypted file is random.
        """
        reader = self.inventory.file
        if reader.lock is not None:
            return os.urandom(FILE_ID_BYTES)
        parts = [pack_record_header(one.header, reader.file_id) for one in in_order(self.inventory.records.values())]
        return content_id(b"recovered", reader.file_id, repr(sorted(self.plan.numbers)).encode(), *parts)

    def _copy(self, writer: RecordWriter, found: FoundRecord, first: int | None = None) -> None:
        frame = self.inventory.file.frame(found.offset, found.header)
        first = found.header.first if first is None else first
        writer.copy_record(frame, replace(found.header, sequence=len(writer.entries), first=first))

    def _states(self, writer: RecordWriter, found: FoundRecord) -> None:
        states = self.inventory.states[found.header.sequence]
        span = states.key.span
        if all(number in self.plan.numbers for number in range(span.first, span.stop)):
            self._copy(writer, found, self.plan.numbers[span.first])
            return
        # some of its snapshots are lost: what a reader would restore of the others is stored as it
        # is
        lossless = codec_by_name("lossless")
        state = self.inventory.geometry.layers[states.key.first_layer].states[states.key.number]
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

    def _header(self) -> TierHeader:
        inventory = self.inventory
        if self.plan.complete and inventory.header is not None:
            return inventory.header
        raw = [viewing.raw_bytes(inventory.geometry, inventory.views[number]) for number in self.plan.numbers]
        known = inventory.header or TierHeader("", 1, 1, CREATED_BY, codec=self._codec())
        total = f"{inventory.snapshots}" if inventory.all_known else f"at least {inventory.snapshots}"
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
        counts = Counter(block.header.codec for block in self.inventory.blocks)
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
    return choose(examine(DamagedFile(path, key)))


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
    """Write what is left of a file as a new one, atomically; returns what was saved and the new
    file's length.

    The input is only read.  What is written is checked as a whole before it takes its name.  What
    is left of an encrypted file is encrypted with the same secret.

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
            check.check(f"/dev/fd/{sink.fileno()}", found.inventory.file.secret)
        except StorageError as error:
            raise StorageError(error.message, path=os.fspath(output)) from error
        except TscError as error:
            message = f"what is left does not make a valid file: {error.message}"
            raise CorruptError(message, path=os.fspath(path)) from error
    return found, length
