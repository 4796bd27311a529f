"""What of a damaged file can be relied on: each record that was found, read by the rules of a
strict reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from formats.codecs.klt.profile_store import ProfileReference
from formats.container.records import RecordHeader, RecordType
from formats.container.safetensors_buffer import TensorView, parse
from formats.errors import Locating
from formats.file.block_decoding import BlockDecoder
from formats.file.blocks import FileBlock, FileStates
from formats.file.header import TierHeader
from formats.limits import MAX_SNAPSHOTS
from formats.trace.geometry import Geometry
from formats.trace.head_maps import HeadMap
from formats.trace.views import Labels, Span, View

from .findings import FoundRecord, Problem
from .scan import DamagedFile

_SNAPSHOTS_A_BYTE = 8  # of a file: no writer's tables come near it


@dataclass(frozen=True)
class Need:
    """What a snapshot needs and the file has not: rows of some layers, labels (layer -1), or states
    (`state`).
    """

    first_layer: int
    layer_count: int
    spans: tuple[Span, ...]
    state: str | None = None


@dataclass(eq=False)
class Inventory:
    """What is left of a file, which is read through this (a `RecordSource`).

    Attributes:
        stated_loss: what MODEL says that the rows had lost by.
        records: those that are intact, by number.
        problems: everything that is wrong, beside what `damaged_file` knows.
        labels: of rows 0, 1, ... up to the first one whose label is lost.
        views: snapshots whose VIEWS record is intact, by number.
        bases: for a ROWS record, by number, the rows outside of it that its own are predicted from.
        dropped: why intact records cannot be kept, by number.
        lacks: what each of `views` lacks; empty for a snapshot that can be restored.
        unsure: snapshots for which a lost record may have said what their rows mean.
    """

    file: DamagedFile
    geometry: Geometry
    fingerprint: dict[str, str]
    stated_loss: str = ""
    problems: list[Problem] = field(default_factory=list)
    records: dict[int, FoundRecord] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    views: dict[int, View] = field(default_factory=dict)
    rows: dict[int, FileBlock] = field(default_factory=dict)
    bases: dict[int, tuple[Span, ...]] = field(default_factory=dict)
    head_maps: dict[int, HeadMap] = field(default_factory=dict)
    states: dict[int, FileStates] = field(default_factory=dict)
    profile: ProfileReference | None = None
    header: TierHeader | None = None
    dropped: dict[int, str] = field(default_factory=dict)
    lacks: dict[int, list[Need]] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def codec(self) -> str:
        """What the header says of how rows were coded; "" if it is lost."""
        return "" if self.header is None else self.header.codec

    @property
    def reader(self) -> DamagedFile:
        return self.file

    @property
    def blocks(self) -> list[FileBlock]:
        """The blocks whose rows can be used."""
        return [block for number, block in self.rows.items() if number not in self.dropped]

    @cached_property
    def decoder(self) -> BlockDecoder:
        return BlockDecoder(self)

    def buffer(self, offset: int, header: RecordHeader) -> Mapping[str, TensorView]:
        # `scan` checked the header, or rebuilt it
        return parse(self.file.payload(offset, header), header.name)

    def locating(self, offset: int, header: RecordHeader) -> Locating:
        return Locating(self.path, offset, header.sequence)

    @property
    def whole(self) -> list[int]:
        """The snapshots that can be restored."""
        return [number for number in sorted(self.views) if not self.lacks[number] and number not in self.unsure]

    @property
    def snapshots(self) -> int:
        """How many snapshots the file is known to have had; what names more than so many bytes can
        tell of lies.
        """
        lines = [line for _, line in self.file.index if line.type == RecordType.VIEWS]
        ends = [line.first + line.count for line in lines] + [number + 1 for number in self.views]
        ends += [states.key.span.stop for states in self.states.values()]
        most = min(MAX_SNAPSHOTS, _SNAPSHOTS_A_BYTE * self.file.size)
        return max((end for end in ends if end <= most), default=0)

    @property
    def all_known(self) -> bool:
        """Whether no VIEWS record can have been lost that nothing tells of."""
        return not self.open_end and not any(header is None for header in self.lost_records())

    @property
    def open_end(self) -> bool:
        return self.file.total is None and not self.file.index

    def lost_records(self) -> list[RecordHeader | None]:
        """What INDEX, or its own header, says of each record that is lost; None where nothing
        does.
        """
        listed = {line.sequence: line for _, line in self.file.index}
        gone = set(self.file.lost) | {number for number in listed if number not in self.file.records}
        stop = self.file.total or len(self.file.records)
        for number, found in self.file.records.items():
            if number < stop and number not in self.records:  # it is there, but not in order
                listed[number] = found.header
                gone.add(number)
        return [listed.get(number) for number in sorted(gone)]

    @property
    def complete(self) -> bool:
        """Whether everything that the file said before INDEX is there."""
        return (
            self.file.total is not None
            and not self.lost_records()
            and not self.dropped
            and self.header is not None
            and self.whole == list(range(self.snapshots))
        )
