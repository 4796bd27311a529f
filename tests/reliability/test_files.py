"""Bits inverted and records exchanged: no wrong tensor comes out of a file that was damaged or put together anew."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import google_crc32c
import pytest

from formats import LayerSpec, load, save
from formats.errors import CorruptError, UnsupportedFileError
from formats.file import check
from formats.file.reader import TraceFile
from tests.format_conformance import samples_encrypted
from tests.formats.repair.test_damage import flipped
from tests.support.traces import full_trace, growing_trace

full = pytest.mark.full


def refuses(path: Path) -> bool:
    """Whether strict reading refuses a file."""
    try:
        check.check(path)
    except (CorruptError, UnsupportedFileError):
        return True
    return False


def record_refused(file: TraceFile, offset: int) -> bool:
    """Whether strict reading refuses the record of rows or states at `offset`, of a file that is open already.

    A file is accepted if every record is, each by itself, and opening reads no bit of these.  So where one bit is
    inverted and the file was accepted before, the record in which the bit lies decides.
    """
    try:
        {one.offset: one for one in (*file.blocks, *file.states)}[offset].tensors()
    except (CorruptError, UnsupportedFileError):
        return True
    return False


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few MB of rows of random bits, and states."""
    path = tmp_path_factory.mktemp("large") / "large.tsc"
    layers = [LayerSpec("full", 2, 24 + 8 * layer, 32) for layer in range(4)]
    save(full_trace([*layers, *full_trace().geometry.layers[:2]], lengths=(2_000, 4_000), encoder=0), path)
    return path


@pytest.mark.parametrize("flips", [pytest.param(600, id="600"), pytest.param(100_000, id="100000", marks=full)])
def test_random_bits_of_a_large_file(large: Path, flips: int, tally: Any) -> None:
    data, random = large.read_bytes(), Random(flips)
    assert len(data) > 2_000_000
    file = check.check(large)
    read_later = {one.offset for one in (*file.blocks, *file.states)}
    places = [(offset, offset + 64 + entry.stored) for offset, entry in file.entries if offset in read_later]
    with tally("bit rot") as counts, large.open("r+b") as opened:
        for number in range(flips):
            bit = random.randrange(len(data) * 8)
            offset = next((first for first, stop in places if first <= bit // 8 < stop), None)
            whole = offset is None or number % 100 == 0  # now and then everything is read
            with flipped(opened.fileno(), bit, data):
                assert refuses(large) if whole else record_refused(file, offset or 0), f"bit {bit}"
            counts["flips in a large file"] += 1
            counts["of them read whole"] += whole
        counts["wrong tensors"] += 0
    assert not refuses(large)


SMALL = [LayerSpec("full", heads=1, key_size=2 + layer, value_size=4) for layer in range(8)]


def cut(path: Path) -> tuple[bytes, list[bytes], bytes]:
    """The superblock, the records from MODEL to HEADER, and the end: each record with its header."""
    entries, data = TraceFile(path).entries, path.read_bytes()
    pieces = [data[offset : offset + 64 + entry.stored] for offset, entry in entries]
    last = entries[-1][0] + len(pieces[-1])
    return data[:64], pieces, data[last:]


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 layers, no two alike, and 8 snapshots, each with rows of its own."""
    path = tmp_path_factory.mktemp("eight") / "eight.tsc"
    save(growing_trace(SMALL, lengths=range(4, 12), keyframe_interval=1), path)
    return path


def assert_refused(path: Path, head: bytes, pieces: list[bytes], end: bytes) -> None:
    path.write_bytes(head + b"".join(pieces) + end)
    assert refuses(path)


@pytest.mark.parametrize("every", [pytest.param(240, id="some"), pytest.param(1, id="all", marks=full)])
def test_swapped_records(eight: Path, every: int, tmp_path: Path, tally: Any) -> None:
    head, pieces, end = cut(eight)
    path = tmp_path / "t.tsc"
    with tally("swapped and replayed records") as counts:
        for number, (a, b) in enumerate(combinations(range(len(pieces)), 2)):
            if number % every:
                continue
            swapped = list(pieces)
            swapped[a], swapped[b] = pieces[b], pieces[a]
            assert_refused(path, head, swapped, end)
            counts["pairs swapped"] += 1
            if pieces[a][64:] != pieces[b][64:]:  # the headers stay where they are
                swapped[a], swapped[b] = pieces[a][:64] + pieces[b][64:], pieces[b][:64] + pieces[a][64:]
                assert_refused(path, head, swapped, end)
                counts["pairs of payloads swapped"] += 1
        counts["accepted"] += 0
    assert_refused_not(path, head, pieces, end)


def assert_refused_not(path: Path, head: bytes, pieces: list[bytes], end: bytes) -> None:
    """The test's own way of putting files together is not what is refused."""
    path.write_bytes(head + b"".join(pieces) + end)
    assert not refuses(path)


@pytest.mark.parametrize("every", [pytest.param(16, id="some"), pytest.param(1, id="all", marks=full)])
def test_records_of_another_file(eight: Path, every: int, tmp_path: Path, tally: Any) -> None:
    head, pieces, end = cut(eight)
    save(load(eight), tmp_path / "same.tsc")  # the same content under another identity
    save(growing_trace(SMALL, lengths=range(5, 13), keyframe_interval=1), tmp_path / "other.tsc")
    path = tmp_path / "t.tsc"
    with tally("swapped and replayed records") as counts:
        for other in ("same.tsc", "other.tsc"):
            _, foreign, _ = cut(tmp_path / other)
            assert len(foreign) == len(pieces)
            for number in range(0, len(pieces), every):
                for piece in replayed(pieces[number], foreign[number]):
                    assert_refused(path, head, [*pieces[:number], piece, *pieces[number + 1 :]], end)
                    counts["records of another file"] += 1
        counts["accepted"] += 0


def replayed(own: bytes, foreign: bytes) -> Iterator[bytes]:
    """The whole record, its header alone, and its payload alone where it differs."""
    yield foreign
    yield foreign[:64] + own[64:]
    if foreign[64:] != own[64:]:
        yield own[:64] + foreign[64:]


def encrypted(path: Path, **how: bytes) -> bytes:
    return samples_encrypted.encrypted(path.read_bytes(), **how)


def sealed_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Header and payload of each record but END."""
    found, at = [], 64
    while at < len(data) - 72:
        stop = at + 64 + int.from_bytes(data[at + 8 : at + 16], "little")
        found.append((data[at : at + 64], data[at + 64 : stop]))
        at = stop
    return found


def refuses_sealed(path: Path, head: bytes, records: list[tuple[bytes, bytes]]) -> bool:
    """Whether a file of these records is refused with the key, all numbers, lengths and checksums made right."""
    data = bytearray(head)
    last = 0
    for number, (header, payload) in enumerate((*records, (b"\7" + bytes(63), head[:8]))):
        is_end = number == len(records)
        fields = bytearray(header[:60])
        fields[4:16] = struct.pack("<IQ", number, len(payload))
        fields[56:60] = struct.pack("<I", google_crc32c.value(payload))
        if is_end:
            fields[40:56] = struct.pack("<QQ", last, number + 1)
        last = len(data)
        data += fields + struct.pack("<I", google_crc32c.value(head[16:32] + bytes(fields))) + payload
    path.write_bytes(data)
    try:
        check.check(path, samples_encrypted.secret_of(samples_encrypted.KEY))
    except (CorruptError, UnsupportedFileError):
        return True
    return False


@pytest.mark.parametrize("every", [pytest.param(360, id="some"), pytest.param(1, id="all", marks=full)])
def test_swapped_records_of_an_encrypted_file(eight: Path, every: int, tmp_path: Path, tally: Any) -> None:
    """All checksums are made right again, which takes no key; HEADER and INDEX are among the records."""
    data, path = encrypted(eight), tmp_path / "t.tsc"
    records = sealed_records(data)
    with tally("swapped and replayed records") as counts:
        for a, b in list(combinations(range(len(records)), 2))[::every]:
            one, other = records[a], records[b]
            for first, second in ((other, one), ((one[0], other[1]), (other[0], one[1]))):  # whole, and payloads alone
                swapped = list(records)
                swapped[a], swapped[b] = first, second
                assert refuses_sealed(path, data[:64], swapped)
            counts["encrypted pairs"] += 1
        counts["accepted"] += 0
    assert not refuses_sealed(path, data[:64], records)


@pytest.mark.parametrize("every", [pytest.param(16, id="some"), pytest.param(1, id="all", marks=full)])
def test_records_of_another_encrypted_file(eight: Path, every: int, tmp_path: Path, tally: Any) -> None:
    """Of the same key: an older version of the file, a copy under another identity, and a file of other content."""
    data, path = encrypted(eight), tmp_path / "t.tsc"
    save(growing_trace(SMALL, lengths=range(5, 13), keyframe_interval=1), tmp_path / "other.tsc")
    older = {"salt": samples_encrypted.OTHER_SALT}
    copies = (encrypted(eight, **older), encrypted(eight, file_id=bytes(16)))
    others = (*copies, encrypted(tmp_path / "other.tsc", **older))
    records = sealed_records(data)
    with tally("swapped and replayed records") as counts:
        for foreign in map(sealed_records, others):
            assert len(foreign) == len(records)
            for number in range(0, len(records), every):
                for piece in (foreign[number], (records[number][0], foreign[number][1])):
                    mixed = [*records[:number], piece, *records[number + 1 :]]
                    assert refuses_sealed(path, data[:64], mixed)
                    counts["records of another encrypted file"] += 1
        counts["accepted"] += 0


def test_a_flip_is_looked_for_where_it_is(large: Path) -> None:
    """One record is read, and only that one."""
    file = TraceFile(large)
    first, second = file.blocks[0], file.blocks[-1]
    with large.open("r+b") as opened:
        data = large.read_bytes()
        with flipped(opened.fileno(), 8 * (first.offset + 100), data):
            assert record_refused(file, first.offset)
            assert not record_refused(file, second.offset)
    assert os.path.getsize(large) == file.size
