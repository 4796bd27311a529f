"""Diagnosis of a file: it lists all damage and all that is unusual.

`formats.file.check` stops at the first fault instead.
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
_MAX_SPANS = 64  # a snapshot with more ranges of rows in a layer is slow to restore
_HIGH_RATIO = 10_000  # a compression ratio above this is reported as unusual


@dataclass
class Diagnosis:
    """A diagnosis lists the problems of a file and what of it is intact.

    Attributes:
        size: The size of the file in bytes.
        problems: Damage first, then what is only unusual (`damage` is False); each by byte offset,
            after the problems that have no offset.
        records: How many intact records the file has.
        snapshots: How many snapshots the file has, as far as known; it may have more.
        whole: The numbers of the snapshots that `recovery` would keep.
        unread: The ranges [start, stop) of bytes outside all intact records.
    """

    size: int
    problems: list[Problem] = field(default_factory=list)
    records: int = 0
    snapshots: int = 0
    whole: list[int] = field(default_factory=list)
    unread: list[tuple[int, int]] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether some problem is damage rather than only unusual."""
        return any(problem.damage for problem in self.problems)


def diagnose(path: str | os.PathLike[str], key: KeySource | None = None) -> Diagnosis:
    """Examine every byte of a file, without importing torch.

    Args:
        path: The path of the file.
        key: The secret of an encrypted file, or a source of it.

    Returns:
        All problems of the file; a file that cannot be opened as a trace has one problem.

    Raises:
        StorageError, UsageError: The file cannot be read.
        LockedError: It is encrypted, and the key is wrong or was not given.
        LimitError: To examine it takes more than the memory budget.
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
        for lost_range, why in lost_together(inventory):
            verb = "are" if len(lost_range) > 1 else "is"
            diagnosis.problems.append(Problem(f"{named(lost_range)} {verb} lost: {why}"))
    try:
        file = check.check(path, damaged_file.secret)
    except _REFUSALS as error:
        if not diagnosis.damaged:  # every record is intact, so the records do not fit one another
            diagnosis.problems.append(Problem.of(error))
    else:
        diagnosis.problems += _unusual(file)
    unique = {(problem.offset, problem.record, problem.message): problem for problem in diagnosis.problems}
    diagnosis.problems = sorted(
        unique.values(), key=lambda problem: (not problem.damage, -1 if problem.offset is None else problem.offset)
    )
    return diagnosis


def lost(inventory: Inventory) -> Iterator[tuple[int, str]]:
    """Yield (number, reason) of each snapshot that cannot be restored."""
    for number in range(inventory.snapshots):
        if number not in inventory.views:
            yield number, "the record that describes it cannot be read"
        elif inventory.lacks[number]:
            yield number, ", ".join(map(in_words, inventory.lacks[number]))
        elif number in inventory.unsure:
            yield number, "the map of the rows that its heads kept is lost, or may be"


def lost_together(inventory: Inventory) -> Iterator[tuple[range, str]]:
    """Yield (numbers, reason) of each run of consecutive snapshots that are lost for one reason.

    They are grouped because a trace may have thousands of snapshots.
    """

    def run_of(indexed: tuple[int, tuple[int, str]]) -> tuple[int, str]:
        index, (number, why) = indexed
        return number - index, why  # number - index is constant within a run of numbers

    for (_, why), group in groupby(enumerate(lost(inventory)), key=run_of):
        numbers = [number for _, (number, _) in group]
        yield range(numbers[0], numbers[-1] + 1), why


def named(snapshots: range) -> str:
    """Describe consecutive snapshots, as in "snapshots 3 to 5"."""
    if len(snapshots) == 1:
        return f"snapshot {snapshots[0]}"
    return f"snapshots {snapshots[0]} to {snapshots[-1]}"


def in_words(need: Need) -> str:
    """Describe rows, labels or a state that a snapshot needs, as in "rows 0 to 63 of layer 2"."""
    layers = f"layer {need.first_layer}"
    if need.layer_count > 1:
        layers = f"layers {need.first_layer} to {need.first_layer + need.layer_count - 1}"
    if need.state is not None:
        return f"state {need.state!r} of {layers}"
    rows = ", ".join(str(span.first) if span.rows == 1 else f"{span.first} to {span.stop - 1}" for span in need.spans)
    rows_in_words = f"row{'s' if len(need.spans) > 1 or need.spans[0].rows > 1 else ''} {rows}"
    return f"labels of {rows_in_words}" if need.first_layer == views.HISTORY else f"{rows_in_words} of {layers}"


def _unusual(file: TraceFile) -> Iterator[Problem]:
    """Yield notes on what is valid in a file but unusual."""
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
    yield from _unusual_profile(file)
    yield from _unusual_rows(file)


def _unusual_profile(file: TraceFile) -> Iterator[Problem]:
    """Yield a note if the file needs a profile that this machine lacks."""
    if file.profile is not None and file.profile.data is None:
        try:
            profile_store.find(file.profile.digest)
        except TscError as error:
            yield _note(f"the profile {file.profile.digest[:12]} is not on this machine: {error.message}")


def _unusual_rows(file: TraceFile) -> Iterator[Problem]:
    """Yield notes on stored rows that no snapshot uses, and on snapshots of many row ranges."""
    used_spans = [
        union(span for view in file.views for span in view.layers[layer]) for layer in range(len(file.geometry.layers))
    ]
    for block in file.blocks:
        layers = range(block.key.first_layer, block.key.first_layer + block.key.layer_count)
        unused_rows = max(sum(span.rows for span in without([block.key.span], used_spans[layer])) for layer in layers)
        if unused_rows:
            yield _note(
                f"{unused_rows} of {block.key.row_count} rows are stored that no snapshot names",
                block.offset,
                block.header.sequence,
            )
    for number, view in enumerate(file.views):
        span_count = max((len(spans) for spans, _ in groupby(view.layers)), default=0)
        if span_count > _MAX_SPANS:
            yield _note(f"snapshot {number} names the rows of a layer in {span_count} pieces")


def _note(message: str, offset: int | None = None, record: int | None = None) -> Problem:
    """Make a problem that is unusual but not damage."""
    return Problem(message, offset, record, damage=False)
