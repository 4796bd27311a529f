"""Everything that is wrong with a file, and what is unusual about it; a check stops at the first,
this goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from formats.codecs.klt import profile_store
from formats.container.encryption import KeySource
from formats.container.records import ENCRYPTED, KNOWN_TYPES, SUPERBLOCK
from formats.errors import CorruptError, TscError, UnsupportedFileError
from formats.file import check
from formats.file.reader import TraceFile
from formats.trace import views
from formats.trace.spans import union, without

from .findings import Problem
from .inventory import Inventory, Need
from .scan import DamagedFile
from .snapshots import examine

_REFUSALS = (CorruptError, UnsupportedFileError)
_PIECES = 64  # ranges of rows of one layer in one snapshot; more are slow to restore
_HIGH_RATIO = 10_000


@dataclass
class Diagnosis:
    """What was found.

    Attributes:
        problems: by byte offset, those without one first; `damage` tells what is wrong from what is
            only unusual.
        snapshots: how many the file is known to have (at least); whole: those that `recovery` would
            keep.
        unread: ranges [start, stop) of bytes that belong to no intact record.
    """

    size: int
    problems: list[Problem] = field(default_factory=list)
    records: int = 0
    snapshots: int = 0
    whole: list[int] = field(default_factory=list)
    unread: list[tuple[int, int]] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        return any(problem.damage for problem in self.problems)


def diagnose(path: str | os.PathLike[str], key: KeySource | None = None) -> Diagnosis:
    """Look at every byte of a file; no torch.

    Args:
        key: the secret of an encrypted file, or what gives it.
    Raises:
        StorageError, UsageError: it cannot be read.
        LockedError: it is encrypted, and no key or another one was given.
        LimitError: to look at it takes more than the memory budget.
    """
    try:
        damaged_file = DamagedFile(path, key)
    except _REFUSALS as error:
        return Diagnosis(os.path.getsize(path), [Problem.of(error)])
    diagnosis = Diagnosis(
        damaged_file.size, list(damaged_file.problems), len(damaged_file.records), unread=damaged_file.unread
    )
    try:
        inventory = examine(damaged_file)
    except _REFUSALS as error:
        diagnosis.problems.append(Problem.of(error))
    else:
        diagnosis.problems += inventory.problems
        diagnosis.snapshots, diagnosis.whole = inventory.snapshots, inventory.whole
        for numbers, why in lost_together(inventory):
            diagnosis.problems.append(Problem(f"{named(numbers)} {'are' if len(numbers) > 1 else 'is'} lost: {why}"))
    try:
        file = check.check(path, damaged_file.secret)
    except _REFUSALS as error:
        if not diagnosis.damaged:  # what ties sound records together
            diagnosis.problems.append(Problem.of(error))
    else:
        diagnosis.problems += _unusual(file)
    unique = {(one.offset, one.record, one.message): one for one in diagnosis.problems}
    diagnosis.problems = sorted(
        unique.values(), key=lambda one: (not one.damage, -1 if one.offset is None else one.offset)
    )
    return diagnosis


def lost(inventory: Inventory) -> Iterator[tuple[int, str]]:
    """(number, what it lacks) of each snapshot that cannot be restored."""
    for number in range(inventory.snapshots):
        if number not in inventory.views:
            yield number, "the record that describes it cannot be read"
        elif inventory.lacks[number]:
            yield number, ", ".join(map(in_words, inventory.lacks[number]))
        elif number in inventory.unsure:
            yield number, "the map of the rows that its heads kept is lost, or may be"


def lost_together(inventory: Inventory) -> Iterator[tuple[range, str]]:
    """`lost` of neighbours that lack the same, together: a session may have thousands of
    snapshots.
    """
    for (_, why), group in groupby(enumerate(lost(inventory)), key=lambda one: (one[1][0] - one[0], one[1][1])):
        numbers = [number for _, (number, _) in group]
        yield range(numbers[0], numbers[-1] + 1), why


def named(snapshots: range) -> str:
    """Snapshots that follow on one another, in words."""
    if len(snapshots) == 1:
        return f"snapshot {snapshots[0]}"
    return f"snapshots {snapshots[0]} to {snapshots[-1]}"


def in_words(need: Need) -> str:
    layers = f"layer {need.first_layer}"
    if need.layer_count > 1:
        layers = f"layers {need.first_layer} to {need.first_layer + need.layer_count - 1}"
    if need.state is not None:
        return f"state {need.state!r} of {layers}"
    rows = ", ".join(str(one.first) if one.rows == 1 else f"{one.first} to {one.stop - 1}" for one in need.spans)
    what = f"row{'s' if len(need.spans) > 1 or need.spans[0].rows > 1 else ''} {rows}"
    return f"labels of {what}" if need.first_layer == views.HISTORY else f"{what} of {layers}"


def _unusual(file: TraceFile) -> Iterator[Problem]:
    """Of a valid file what a person may want to know."""
    header = file.header
    with open(file.path, "rb") as raw:
        flags = SUPERBLOCK.unpack(raw.read(SUPERBLOCK.size))[2] & ~ENCRYPTED
    if flags:
        yield _note(f"unused flags of the superblock are set: 0x{flags:04x}", 10)
    for offset, entry in file.entries:
        if entry.type not in KNOWN_TYPES:
            yield _note(
                f"an ancillary record of unknown type {entry.name}, {entry.stored} bytes", offset, entry.sequence
            )
    offset, entry = file.entries[-1]
    if not header.tier:
        yield _note("the file promises no tier", offset, entry.sequence)
    if file.lost_by:
        yield _note(f"the rows are not as captured: {file.lost_by}", offset, entry.sequence)
    if not header.quality:
        yield _note("quality was not measured, or not recorded", offset, entry.sequence)
    ratio = header.raw_bytes_trace / file.size
    if not 1 <= ratio <= _HIGH_RATIO:
        yield _note(
            f"a ratio of {ratio:.4g}: the file is {'larger than' if ratio < 1 else 'tiny beside'} what it holds"
        )
    yield from _profile(file)
    yield from _rows(file)


def _profile(file: TraceFile) -> Iterator[Problem]:
    if file.profile is not None and file.profile.data is None:
        try:
            profile_store.find(file.profile.digest)
        except TscError as error:
            yield _note(f"the profile {file.profile.digest[:12]} is not on this machine: {error.message}")


def _rows(file: TraceFile) -> Iterator[Problem]:
    """Rows that are stored and that no snapshot names, and snapshots in many pieces."""
    named = [union(span for view in file.views for span in view.layers[at]) for at in range(len(file.geometry.layers))]
    for block in file.blocks:
        layers = range(block.key.first_layer, block.key.first_layer + block.key.layer_count)
        idle = max(sum(span.rows for span in without([block.key.span], named[layer])) for layer in layers)
        if idle:
            yield _note(
                f"{idle} of {block.key.row_count} rows are stored that no snapshot names",
                block.offset,
                block.header.sequence,
            )
    for number, view in enumerate(file.views):
        pieces = max((len(spans) for spans, _ in groupby(view.layers)), default=0)
        if pieces > _PIECES:
            yield _note(f"snapshot {number} names the rows of a layer in {pieces} pieces")


def _note(message: str, offset: int | None = None, record: int | None = None) -> Problem:
    return Problem(message, offset, record, damage=False)
