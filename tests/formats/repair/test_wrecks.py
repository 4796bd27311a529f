"""Records with right checksums that contradict one another, and bytes that only look like records."""

from __future__ import annotations

import random
import string
import struct
from pathlib import Path

import google_crc32c
import pytest

from formats import load
from formats.errors import CorruptError, UnsupportedFileError
from formats.limits import MAX_JSON_BYTES, MAX_RECORDS, MAX_ROWS, MAX_SNAPSHOTS
from formats.repair.diagnose import Diagnosis, diagnose
from formats.repair.recover import recover, salvage
from formats.trace.geometry import Geometry, LayerSpec, StateSpec
from formats.trace.states import StateKey, check_coverage
from tests.format_conformance import profiles, samples
from tests.format_conformance.craft import HEADER, KEPT, LABELS, PROFILE, ROWS, STATES, VIEWS, Craft, Piece
from tests.format_conformance.slices import Model, content, sliced
from tests.support.traces import FULL, growing_trace, same_snapshots

WHOLE = [0, 1, 2, 3]


def saved(data: bytes, folder: Path) -> tuple[list[int], Diagnosis]:
    """The old numbers of the snapshots that are recovered, and what the doctor says."""
    (folder / "wreck.tsc").write_bytes(data)
    plan, _ = recover(folder / "wreck.tsc", folder / "new.tsc", overwrite=True)
    assert not diagnose(folder / "new.tsc").damaged
    return list(plan.numbers), diagnose(folder / "wreck.tsc")


def says(found: Diagnosis, message: str) -> bool:
    return any(one.damage and message in one.message for one in found.problems)


def flipped(data: bytes, number: int) -> bytes:
    """With the payload of one record damaged."""
    at = Model(data).records[number].offset + 70
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


def numbers_of(data: bytes, kind: int) -> list[int]:
    return [number for number, one in enumerate(Model(data).records) if one.type == kind]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("valid", LABELS, "labels of rows that have labels"),
        ("valid", VIEWS, "a snapshot is described twice"),
        ("valid", ROWS, "rows of layer 1 are stored twice"),
        ("klt", PROFILE, "there is more than one profile record"),
        ("by hand, pure", STATES, "states are stored twice"),
    ],
)
def test_of_records_that_say_the_same_the_first_counts(name: str, kind: int, message: str, tmp_path: Path) -> None:
    craft = Craft.of(samples.sample(name))
    craft.insert(craft[kind])
    numbers, found = saved(craft.build(), tmp_path)
    assert numbers == list(range(len(Model(samples.sample(name)).document.snapshots)))
    assert says(found, message), found.problems
    (tmp_path / "whole.tsc").write_bytes(samples.sample(name))
    ours, theirs = load(tmp_path / "new.tsc"), load(tmp_path / "whole.tsc")
    assert all(same_snapshots(ours.snapshot(one), theirs.snapshot(one)) for one in numbers)


def test_two_maps_of_the_same_rows(tmp_path: Path) -> None:
    """Which one is right cannot be told."""
    craft = Craft.of(samples.sample("h2o"))
    craft.insert(craft[KEPT])
    (tmp_path / "wreck.tsc").write_bytes(craft.build())
    with pytest.raises(CorruptError, match="no snapshot of 4 can be recovered"):
        salvage(tmp_path / "wreck.tsc")
    assert says(diagnose(tmp_path / "wreck.tsc"), "two maps say what layers kept of the same rows")


def test_labels_of_another_width_than_the_first(tmp_path: Path) -> None:
    craft = Craft.of(sliced("by hand, padded"))
    last = [piece for piece in craft.records if piece.type == LABELS][-1]
    ids = last.tensors()["token_ids"]
    last.set_tensors(last.tensors() | {"token_ids": (ids[0], ids[1][:1], ids[2][: 2 * ids[1][0]])})
    numbers, found = saved(craft.build(), tmp_path)
    everything = range(len(Model(sliced("by hand, padded")).document.snapshots))
    assert 0 < len(numbers) < len(everything)
    assert says(found, "some records have ids for each sequence, some for all")


def test_a_header_longer_than_any(tmp_path: Path) -> None:
    craft = Craft.of(samples.valid())
    noise = "".join(random.Random(1).choices(string.ascii_letters, k=MAX_JSON_BYTES))
    craft[HEADER].edit_json(lambda value: value.update(capture={"prompt": noise}))
    numbers, found = saved(craft.build(), tmp_path)
    assert numbers == WHOLE
    assert says(found, "a header record of ")
    assert load(tmp_path / "new.tsc").tier == ""


def test_rows_that_need_a_profile_or_a_codec_that_is_not_there(tmp_path: Path) -> None:
    craft = Craft.of(samples.sample("klt"))
    craft.records.remove(craft[PROFILE])
    (tmp_path / "wreck.tsc").write_bytes(craft.build())
    assert says(diagnose(tmp_path / "wreck.tsc"), "rows that need a profile that the file does not have")
    with pytest.raises(CorruptError, match="no snapshot of 4 can be recovered"):
        salvage(tmp_path / "wreck.tsc")
    craft = Craft.of(samples.valid())
    craft.rows(0).codec = 99
    (tmp_path / "wreck.tsc").write_bytes(craft.build())
    with pytest.raises(UnsupportedFileError, match="codec 99 is not known"):
        salvage(tmp_path / "wreck.tsc")
    assert says(diagnose(tmp_path / "wreck.tsc"), "codec 99 is not known")


def test_a_profile_of_another_place_is_not_needed_to_recover(tmp_path: Path) -> None:
    data = samples.klt(profiles.one_group, samples.finite((FULL, FULL)), embed=False)
    numbers, found = saved(data[:-1], tmp_path)
    assert numbers == WHOLE
    assert not any(one.damage and "profile" in one.message for one in found.problems)
    assert PROFILE in {piece.type for piece in Craft.of((tmp_path / "new.tsc").read_bytes()).records}


def cut(octets: bytes, first: int, stop: int, count: int) -> bytes:
    """Elements `first` to `stop - 1` of `count`."""
    width = len(octets) // count
    return octets[first * width : stop * width]


def test_labels_behind_lost_ones_are_of_no_use(tmp_path: Path) -> None:
    """Though keyframes store all rows again: the labels of a file go on without a gap."""
    data = samples.file_bytes(growing_trace(keyframe_interval=2, lengths=(5, 6, 7, 8)))
    craft = Craft.of(data)
    labels = craft[LABELS]
    at, middle = craft.records.index(labels), Model(data).document.snapshots[2].groups()[0][2][0][0]
    parts = []
    for first, stop in ((0, middle), (middle, labels.count)):
        part = Piece(LABELS, b"", first=first, count=stop - first)
        tensors = labels.tensors().items()
        part.set_tensors(
            {
                name: (dtype, [stop - first], cut(octets, first, stop, labels.count))
                for name, (dtype, _, octets) in tensors
            }
        )
        parts.append(part)
    craft.records[at : at + 1] = parts
    data = craft.build()
    first, second = numbers_of(data, LABELS)
    numbers, _ = saved(flipped(data, second), tmp_path)
    assert numbers == [0, 1]
    new = Model((tmp_path / "new.tsc").read_bytes())
    assert [content(new.document, one) for one in numbers] == [Model(data).content(old) for old in numbers]
    (tmp_path / "wreck.tsc").write_bytes(flipped(data, first))
    with pytest.raises(CorruptError, match="no snapshot of 4 can be recovered"):
        salvage(tmp_path / "wreck.tsc")
    assert says(diagnose(tmp_path / "wreck.tsc"), "is lost: labels of rows 0 to")


def test_a_superblock_of_another_version(tmp_path: Path) -> None:
    """With a right checksum the file needs a newer reader; with a wrong one it is damaged, and all is recovered."""
    data = samples.valid()
    other = data[:4] + b"\x02" + data[5:60]
    (tmp_path / "newer.tsc").write_bytes(other + struct.pack("<I", google_crc32c.value(other)) + data[64:])
    with pytest.raises(UnsupportedFileError, match="format version 2 is not supported"):
        salvage(tmp_path / "newer.tsc")
    found = diagnose(tmp_path / "newer.tsc")
    assert says(found, "format version 2 is not supported")
    assert (found.records, found.whole) == (0, [])
    assert saved(other + data[60:], tmp_path)[0] == WHOLE


def header(
    kind: int, number: int, stored: int, raw: int, crc: int, identity: bytes = bytes(16), first: int = 0
) -> bytes:
    head = struct.pack("<BBHIQQHHIIIQQI", kind, 0, 0, number, stored, raw, 0, 0, 0, 0, 0, first, 0, crc)
    return head + struct.pack("<I", google_crc32c.value(identity + head))


@pytest.mark.parametrize(
    ("lies", "message"),
    [
        ({"sequence": MAX_RECORDS}, f"a record is number {MAX_RECORDS}"),
        ({"reserved_b": 1}, "reserved bits of a record header are set"),
        ({"stored": 1 << 40}, "truncated in a record"),
        ({"raw": 0}, "a record declares an empty payload"),
        ({"payload_crc": 1}, "checksum of a record does not match"),
    ],
)
def test_a_header_that_lies(lies: dict[str, int], message: str, tmp_path: Path) -> None:
    """It is not taken, and what stands behind it is found."""
    craft = Craft.of(samples.valid())
    piece = craft.insert(Piece(0x90, b"something"))
    piece.lies = lies
    craft.index_raw = b"nothing"  # which would say what the header was
    numbers, found = saved(craft.build(), tmp_path)
    assert numbers == WHOLE
    assert says(found, message), found.problems


def test_headers_that_claim_the_same_bytes_are_not_read_for_ever(tmp_path: Path) -> None:
    """Each claims the rest of the file; checksums of more than 64 times the file are not made."""
    count, identity = 300, samples.valid()[16:32]
    length = 64 * (count + 1)
    heads = [header(ROWS, one, length - 64 * (one + 2) - 1, length, 7, identity) for one in range(count - 2)]
    (tmp_path / "wreck.tsc").write_bytes(samples.valid()[:64] + b"".join(heads) + bytes(128))
    with pytest.raises(CorruptError, match="headers of more records than can have been written"):
        salvage(tmp_path / "wreck.tsc")
    assert says(diagnose(tmp_path / "wreck.tsc"), "headers of more records than can have been written")


def test_an_end_mark_that_says_something_else(tmp_path: Path) -> None:
    craft = Craft.of(samples.valid())
    craft.end.stored = b"\x89TSC\x01\r\n?"
    numbers, found = saved(craft.build(), tmp_path)
    assert numbers == WHOLE
    assert says(found, "the end mark is not the signature")


def test_an_index_of_another_shape(tmp_path: Path) -> None:
    for raw in (b"nothing", Craft.of(samples.valid())[LABELS].raw):
        craft = Craft.of(samples.valid())
        craft.index_raw = raw
        numbers, found = saved(craft.build(), tmp_path)
        assert numbers == WHOLE
        assert says(found, "index"), found.problems
    craft = Craft.of(samples.valid())
    craft.edit_index = lambda lines: lines.pop()
    assert says(saved(craft.build(), tmp_path)[1], "index: tensor 'records' is I64 [10, 10]")
    craft = Craft.of(samples.valid())
    craft.index_raw = bytes(2 << 20)
    assert says(saved(craft.build(), tmp_path)[1], "an index of 2097152 bytes")


def test_many_pieces_are_noted(tmp_path: Path) -> None:
    """Rows named backwards, one by one, are slow to restore."""
    craft = Craft.of(samples.file_bytes(growing_trace((FULL,), lengths=(70,))))
    views = craft[VIEWS]
    lines = list(struct.iter_unpack("<5q", views.tensors()["spans"][2]))
    (rows,) = [line for line in lines if line[1] >= 0]
    lines.remove(rows)
    lines += [(0, 0, 1, row, 1) for row in (*range(1, 70, 2), *range(0, 70, 2))]
    views.set_integers("spans", [number for line in lines for number in line])
    (tmp_path / "pieces.tsc").write_bytes(craft.build())
    found = diagnose(tmp_path / "pieces.tsc")
    assert not found.damaged, found.problems
    assert any("snapshot 0 names the rows of a layer in 70 pieces" in one.message for one in found.problems)


@pytest.mark.parametrize(
    ("name", "kind", "lies", "message"),
    [
        ("valid", VIEWS, {"first": MAX_SNAPSHOTS}, "views records out of bounds"),
        ("valid", LABELS, {"first": MAX_ROWS}, "labels records out of bounds"),
        ("valid", LABELS, {"count": 0}, "labels records out of bounds"),
    ],
)
def test_ranges_out_of_bounds(name: str, kind: int, lies: dict[str, int], message: str, tmp_path: Path) -> None:
    craft = Craft.of(samples.sample(name))
    craft[kind].lies = lies
    (tmp_path / "wreck.tsc").write_bytes(craft.build())
    assert says(diagnose(tmp_path / "wreck.tsc"), message)


def test_rows_whose_positions_are_lost(tmp_path: Path) -> None:
    """Codec klt turns keys by their positions."""
    data = samples.sample("klt")
    (tmp_path / "wreck.tsc").write_bytes(flipped(data, numbers_of(data, LABELS)[0]))
    assert says(diagnose(tmp_path / "wreck.tsc"), "labels of rows 0 to 11")


def test_what_is_written_is_checked_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise CorruptError("something is wrong")

    (tmp_path / "wreck.tsc").write_bytes(samples.valid()[:-1])
    monkeypatch.setattr("formats.file.check.check", refuses)
    with pytest.raises(CorruptError, match="what is left does not make a valid file: something is wrong"):
        recover(tmp_path / "wreck.tsc", tmp_path / "new.tsc")
    assert [path.name for path in tmp_path.iterdir()] == ["wreck.tsc"]


def test_states_are_counted_before_they_are_looked_at() -> None:
    spec = LayerSpec("none", 0, 0, 0, states=(StateSpec("state", (2,), "float32"),))
    keys = [StateKey(0, 0, 1, number, 1) for number in range(2)]
    geometry = Geometry("float32", (spec,), 1)
    check_coverage(keys, 2, geometry)
    with pytest.raises(CorruptError, match=r"^states are stored twice$"):
        check_coverage(keys * 3, 2, geometry)
    with pytest.raises(CorruptError, match="is stored twice at snapshot 0"):
        check_coverage(keys * 2, 2, geometry)
