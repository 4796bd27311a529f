"""What is left of a damaged file: exactly the snapshots whose records are intact, bit for bit, and never more."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from formats import load
from formats.errors import CorruptError, TscError
from formats.file import check as integrity
from formats.repair.diagnose import diagnose
from formats.repair.recover import recover
from tests.format_conformance import samples
from tests.format_conformance.craft import ATTENTION, HEADER, KEPT, LABELS, ROWS, STATES, VIEWS, Craft, Piece
from tests.format_conformance.liars import LIARS
from tests.format_conformance.second_reader import reader as second_reader
from tests.format_conformance.slices import SMALL, Model, complete_records, content, single_views, sliced
from tests.format_conformance.test_second_reader import first_reader, other_reader
from tests.support.traces import same_snapshots

quick_and_full = pytest.mark.parametrize(
    "step", [pytest.param(211, id="quick"), pytest.param(1, id="every", marks=pytest.mark.full)]
)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a place: a third of the time of small files goes into their names."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as found:
        yield Path(found)


@cache
def model(data: bytes) -> Model:
    return Model(data)


class Bench:
    """Recovers damaged versions of one file and compares with what the second reader says of it."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self.data, self.model = data, model(data)
        self.path, self.output = folder / "damaged.tsc", folder / "recovered.tsc"
        self.whole = folder / "whole.tsc"
        self.whole.write_bytes(data)
        self.everything = list(range(len(self.model.document.snapshots)))
        self.seen: dict[bytes, list[int]] = {}
        self.outcomes: Counter[str] = Counter()

    def recovered(self, damaged: bytes, what: str) -> list[int]:
        """The old numbers of the snapshots that are recovered, each compared; [] where the file is refused."""
        self.path.write_bytes(damaged)
        try:
            plan, _ = recover(self.path, self.output, overwrite=True)
        except CorruptError:
            self.outcomes["refused"] += 1
            assert not list(self.output.parent.glob(".*.tmp"))
            return []
        finally:
            assert self.path.read_bytes() == damaged, what
        numbers = list(plan.numbers)
        assert list(plan.numbers.values()) == list(range(len(numbers)))
        self.outcomes[f"{len(numbers)} of {len(self.everything)}"] += 1
        made = self.output.read_bytes()
        if made not in self.seen:
            self._compare(made, numbers, what)
            self.seen[made] = numbers
        assert self.seen[made] == numbers
        return numbers

    def _compare(self, made: bytes, numbers: list[int], what: str) -> None:
        document = second_reader.read(made)
        assert len(document.snapshots) == len(numbers), what
        ours, theirs = load(self.output), load(self.whole)
        for new, old in enumerate(numbers):
            assert content(document, new) == self.model.content(old), what
            assert same_snapshots(ours.snapshot(new), theirs.snapshot(old)), what
        assert not diagnose(self.output).damaged


def borders(data: bytes) -> set[int]:
    """Lengths around every border of headers and payloads."""
    ends = {64} | {
        end for record in model(data).records for end in (record.offset + 64, record.offset + 64 + record.stored)
    }
    return {end + near for end in ends for near in (-1, 0) if end + near < len(data)}


@quick_and_full
@pytest.mark.parametrize("name", SMALL)
def test_every_truncation(name: str, step: int, folder: Path, tally: Any) -> None:
    data = sliced(name)
    bench = Bench(folder, data)
    lengths = sorted({*range(0, len(data), step), *(borders(data) if step > 1 else ())})
    with tally("truncation") as counts:
        counts["files for recover"] += 1
        for length in lengths:
            cut = data[:length]
            bench.path.write_bytes(cut)
            with pytest.raises(CorruptError):
                integrity.check(bench.path)
            have = range(len(complete_records(cut)))
            assert bench.recovered(cut, f"{length} bytes") == bench.model.recoverable(have), length
            counts["lengths recovered to exactly what is complete"] += 1
        counts["snapshots missing, wrong or too many"] += 0
    print(f"{name}: {len(lengths)} truncations, {dict(bench.outcomes)}")
    assert len(bench.outcomes) >= 1 + len(bench.everything)  # each number of snapshots, and none


@pytest.mark.parametrize("name", ["delta, chains", "h2o", "klt", "by hand, encoder and decoder", "attention"])
def test_truncations_of_files_as_they_are_written(name: str, tmp_path: Path) -> None:
    data = samples.sample(name)
    bench = Bench(tmp_path, data)
    for length in sorted(borders(data)):
        have = range(len(complete_records(data[:length])))
        assert bench.recovered(data[:length], f"{length} bytes") == bench.model.recoverable(have), length


@quick_and_full
@pytest.mark.parametrize("name", ["by hand, padded", "h2o", "klt"])
def test_every_damaged_byte(name: str, step: int, folder: Path, tally: Any) -> None:
    """All is recovered, or exactly what does not depend on the damaged record; the latter where a payload is hit."""
    if step == 1 and name != "by hand, padded":
        step = 5
    data = sliced(name) if name in SMALL else samples.sample(name)
    bench = Bench(folder, data)
    count = len(bench.model.records)
    with tally("bit rot") as counts:
        for byte in range(step // 2, len(data), step):
            number = bench.model.at(byte)
            record = None if number is None else bench.model.records[number]
            damaged = data[:byte] + bytes([data[byte] ^ 1 << byte % 8]) + data[byte + 1 :]
            found = bench.recovered(damaged, f"byte {byte}")
            least = bench.model.recoverable([one for one in range(count) if one != number])
            in_header = record is None or byte < record.offset + 64
            assert found == least or (in_header and found == bench.everything), byte
            assert not in_header or found == bench.everything, "INDEX is intact"
            counts["flips recovered from"] += 1
            problems = [one for one in diagnose(bench.path).problems if one.damage]
            assert (0 if record is None else record.offset) in {one.offset for one in problems}, (byte, problems)
            counts["damaged records that doctor finds by their offset"] += 1
        counts["wrong tensors"] += 0
    print(f"{name}: {len(range(step // 2, len(data), step))} bytes, {dict(bench.outcomes)}")


def ranges(count: int, step: int) -> list[tuple[int, int]]:
    """Every single record, and all ranges or some."""
    longer = [(first, stop) for first in range(count) for stop in range(first + 2, count + 1)]
    return [(at, at + 1) for at in range(count)] + (Random(step).sample(longer, 4) if step > 1 else longer)


def pieces_of(data: bytes) -> list[bytes]:
    records = model(data).records
    return [data[:64], *(data[one.offset : one.offset + 64 + one.stored] for one in records)]


@quick_and_full
@pytest.mark.parametrize("name", ["valid", "by hand, pure", "by hand, hybrid", "delta, chains"])
def test_ranges_of_records_deleted_zeroed_and_doubled(name: str, step: int, folder: Path) -> None:
    data = sliced(name) if name in SMALL else samples.sample(name)
    bench, (head, *records) = Bench(folder, data), pieces_of(data)
    count = len(records)
    closing = {count - 2, count - 1}
    for number_of, (first, stop) in enumerate(ranges(count, step)):
        have = [number for number in range(count) if not first <= number < stop]
        want = bench.model.recoverable(have)
        deleted = head + b"".join(records[number] for number in have)
        assert bench.recovered(deleted, f"without {first} to {stop}") == want
        if step > 1 and number_of % 3:
            continue
        zeroed = head + b"".join(one if at in have else bytes(len(one)) for at, one in enumerate(records))
        assert bench.recovered(zeroed, f"zeros for {first} to {stop}") == want
        doubled = head + b"".join(records[:stop] + records[first:])
        assert bench.recovered(doubled, f"{first} to {stop} twice") == bench.everything
        if not closing.intersection(range(first, stop)):
            swapped = records.copy()
            swapped[first], swapped[stop - 1] = swapped[stop - 1], swapped[first]
            assert bench.recovered(head + b"".join(swapped), f"{first} and {stop - 1}") == bench.everything
        noise = Random(first * count + stop).randbytes(sum(map(len, records[first:stop])) + 5)
        noisy = head + b"".join(records[:first]) + noise + b"".join(records[stop:])
        assert bench.recovered(noisy, f"noise for {first} to {stop}") == want
    print(f"{name}: {len(ranges(count, step))} ranges, {dict(bench.outcomes)}")


def test_a_damaged_superblock(tmp_path: Path) -> None:
    """Checksums of headers need its identity; a single damaged byte is mended, whatever else is there is not needed."""
    data = sliced("valid")
    bench = Bench(tmp_path, data)
    for damaged in (bytes(16) + data[16:], data[:32] + bytes(32) + data[64:], data[:16] + b"?" + data[17:]):
        assert bench.recovered(damaged, "no superblock but its identity") == bench.everything
    end = model(data).records[-3].offset  # nor HEADER, INDEX and END
    assert bench.recovered(bytes(16) + data[16:end], "neither the first bytes nor the last") == bench.everything
    for damaged in (bytes(64) + data[64:], data[64:], b"\xff" * 70 + data[64:], data[:16] + bytes(16) + data[32:]):
        assert bench.recovered(damaged, "no identity") == []


def test_keys_without_values(tmp_path: Path) -> None:
    """Keys in one record, values in many: no reader takes one without all of the other."""
    data = sliced("valid", keys=False)
    bench = Bench(tmp_path, data)
    for number, record in enumerate(bench.model.records):
        if record.type == ROWS and record.part == 2:
            have = [one for one in range(len(bench.model.records)) if one != number]
            damaged = data[: record.offset + 70] + b"?" + data[record.offset + 71 :]
            assert bench.recovered(damaged, f"record {number}") == bench.model.recoverable(have) == []


def without(data: bytes, *types: int) -> bytes:
    head, *records = pieces_of(data)
    return head + b"".join(one for one in records if one[0] not in types)


def recovered(data: bytes, folder: Path) -> second_reader.Document:
    (folder / "damaged.tsc").write_bytes(data)
    recover(folder / "damaged.tsc", folder / "new.tsc", overwrite=True)
    return second_reader.read((folder / "new.tsc").read_bytes())


def test_nothing_lost(tmp_path: Path) -> None:
    data = samples.valid()
    header = second_reader.read(data).header
    for damaged in (data, data[:-1], data[: model(data).records[-2].offset]):
        found = recovered(damaged, tmp_path)
        assert {**found.header, "ratio_trace": 0, "ratio_final": 0} == {**header, "ratio_trace": 0, "ratio_final": 0}
        assert found.reference == [40, 43, 46]
    assert load(tmp_path / "new.tsc").tier == "lossless"


def test_a_lost_header(tmp_path: Path) -> None:
    found = recovered(without(samples.sample("scalar, q8_0"), HEADER), tmp_path).header
    assert (found["tier"], found["codec"], found["quality"]) == ("", "scalar", [])
    assert found["capture"] == {"recovered": "4 of 4 snapshots"}


def test_what_the_header_says_of_lost_snapshots(tmp_path: Path) -> None:
    craft = Craft.of(sliced("valid"))
    quality = [{"snapshot": 0, "kl_mean": 0.5}, {"snapshot": 1, "kl_mean": 0.1}, {"snapshot": 3, "kl_mean": 0.2}, {}]
    craft[HEADER].edit_json(lambda value: value.update(quality=quality, tier="lossless"))
    data = craft.build()
    first = next(one for one in model(data).records if one.type == VIEWS)
    found = recovered(data[: first.offset + 70] + b"?" + data[first.offset + 71 :], tmp_path)
    assert found.header["quality"] == [{"snapshot": 0, "kl_mean": 0.1}, {"snapshot": 2, "kl_mean": 0.2}]
    assert found.header["tier"] == ""
    assert found.header["capture"] == {"prompt": "test", "seconds": 0.5, "recovered": "3 of 4 snapshots"}
    assert found.reference == []  # it followed the first one


def test_attention_of_a_lost_snapshot_is_dropped(tmp_path: Path) -> None:
    data = samples.sample("attention")
    craft = Craft.of(data)
    assert ATTENTION in {piece.type for piece in craft.records}
    views = craft[VIEWS]
    at = craft.records.index(views)
    craft.records[at : at + 1] = single_views(views)
    data = craft.build()
    first = next(one for one in model(data).records if one.type == VIEWS)
    found = recovered(data[: first.offset + 70] + b"?" + data[first.offset + 71 :], tmp_path)
    assert len(found.snapshots) == 3
    assert found.attention == []


def test_a_lost_map_of_kept_rows(tmp_path: Path) -> None:
    """Its rows cannot be told from others, so that no snapshot that names them is kept, whether INDEX tells or not."""
    data = samples.sample("h2o")
    (tmp_path / "damaged.tsc").write_bytes(without(data, KEPT))
    with pytest.raises(CorruptError, match="no snapshot of 4 can be recovered"):
        recover(tmp_path / "damaged.tsc", tmp_path / "new.tsc")
    craft = Craft.of(data)
    maps = [piece for piece in craft.records if piece.type == KEPT]
    craft.records = [piece for piece in craft.records if piece.type != KEPT]
    craft.records[-1:-1] = maps  # behind VIEWS
    late = craft.build()
    first = next(one for one in model(late).records if one.type == KEPT)
    (tmp_path / "damaged.tsc").write_bytes(late[: first.offset])
    with pytest.raises(CorruptError, match="no snapshot"):
        recover(tmp_path / "damaged.tsc", tmp_path / "new.tsc")


def test_unknown_ancillary_records_are_kept_only_where_nothing_is_lost(tmp_path: Path) -> None:
    craft = Craft.of(sliced("valid"))
    craft.insert(Piece(0x90, b"something"))
    data = craft.build()
    assert 0x90 in types_of(data, tmp_path)
    assert 0x90 not in types_of(less_one_view(data), tmp_path)


def less_one_view(data: bytes) -> bytes:
    last = [one for one in model(data).records if one.type == VIEWS][-1]
    return data[: last.offset + 70] + b"?" + data[last.offset + 71 :]


def types_of(data: bytes, folder: Path) -> set[int]:
    recovered(data, folder)
    return {piece.type for piece in Craft.of((folder / "new.tsc").read_bytes()).records}


def test_a_file_with_many_wounds(tmp_path: Path) -> None:
    data = bytearray(sliced("by hand, hybrid"))
    wounds = [one for one in model(bytes(data)).records if one.type in (ROWS, STATES, LABELS)][::4]
    for record in wounds:
        data[record.offset + 80] ^= 1
    (tmp_path / "damaged.tsc").write_bytes(data)
    found = diagnose(tmp_path / "damaged.tsc")
    named = {one.record for one in found.problems if "checksum of a record" in one.message}
    assert named == {model(sliced("by hand, hybrid")).at(record.offset) for record in wounds}
    assert {one.offset for one in found.problems} >= {record.offset for record in wounds}


def test_two_records_of_the_same_rows(tmp_path: Path) -> None:
    """A liar with right checksums: the first record counts."""
    craft = Craft.of(samples.valid())
    craft.insert(craft.rows(0))
    found = recovered(craft.build(), tmp_path)
    assert content(found, 3) == model(samples.valid()).content(3)


@pytest.mark.parametrize("name", ["valid", "h2o", "klt", "by hand, hybrid", "delta, edited", "streaming", "vq"])
def test_healthy_files_are_healthy(name: str, tmp_path: Path) -> None:
    (tmp_path / "healthy.tsc").write_bytes(samples.sample(name))
    found = diagnose(tmp_path / "healthy.tsc")
    assert not found.damaged, found.problems
    assert found.unread == []
    assert len(found.whole) == found.snapshots == len(load(tmp_path / "healthy.tsc"))


def test_doctor_agrees_with_the_strict_reader(tmp_path: Path) -> None:
    """What a check refuses is damaged for the doctor, too: lies with right checksums."""
    path, counts = tmp_path / "liar.tsc", Counter[bool]()
    for liar in LIARS[::9]:
        path.write_bytes(liar.build())
        refused = isinstance(check(path), TscError)
        assert diagnose(path).damaged or not refused, liar.name
        counts[refused] += 1
        (tmp_path / "new.tsc").unlink(missing_ok=True)
        try:
            recover(path, tmp_path / "new.tsc")
        except TscError:
            assert not (tmp_path / "new.tsc").exists()
        else:
            # what shows only when rows are decoded stays as it was, and is refused there by both readers
            ours, theirs = first_reader(tmp_path / "new.tsc"), other_reader((tmp_path / "new.tsc").read_bytes())
            assert isinstance(ours, TscError) == isinstance(theirs, second_reader.Refused), liar.name
    assert counts[True] > 20


def check(path: Path) -> object:
    try:
        return integrity.check(path)
    except TscError as error:
        return error
