"""The container byte by byte: literal superblock and record headers, writing without seeking, the order of checks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import google_crc32c
import pytest

from formats.container.reader import RecordReader
from formats.container.records import RecordHeader, RecordType, pack_record_header, pack_superblock
from formats.container.writer import RecordWriter
from formats.errors import CorruptError, UnsupportedFileError
from tests.format_conformance.craft import LABELS, Craft, Piece, frame

# Computed by hand from docs/format.md; the checksums by a bitwise CRC-32C
FILE_ID = bytes(range(16))
SUPERBLOCK = bytes.fromhex("""
    89545343 01 0d0a1a  0000 0000 00000000
    000102030405060708090a0b0c0d0e0f
    00000000 00000000 00000000 00000000 00000000 00000000 00000000  1f839a50
""")
SUPERBLOCK_1_1 = bytes.fromhex("""
    89545343 01 0d0a1a  0100 0000 00000000
    000102030405060708090a0b0c0d0e0f
    00000000 00000000 00000000 00000000 00000000 00000000 00000000  b577f4f4
""")
ROWS_HEADER = bytes.fromhex("""
    02 00 0100 00000000  0300000000000000  2c01000000000000
    0200 0000 03000000 02000000 00000000  2211000000000000  3300000000000000
    b73f4b36 d346a09f
""")
KEPT_HEADER = bytes.fromhex("""
    08 00 0000 03000000  0300000000000000  2c01000000000000
    0000 0000 03000000 02000000 00000000  2211000000000000  3300000000000000
    b73f4b36 db0ee1a2
""")
PROFILE_HEADER = bytes.fromhex("""
    09 00 0000 05000000  0300000000000000  2c01000000000000
    0000 0000 00000000 00000000 00000000  0000000000000000  0000000000000000
    b73f4b36 d2785c72
""")
ATTENTION_HEADER = bytes.fromhex("""
    82 00 0000 04000000  0300000000000000  2c01000000000000
    0000 0000 03000000 02000000 00000000  0000000000000000  3300000000000000
    b73f4b36 7733d7b4
""")
END_RECORD = bytes.fromhex("""
    07 00 0000 33120000  0800000000000000  0000000000000000
    0000 0000 00000000 00000000 00000000  0c0b0a0000000000  3412000000000000
    53a1926a 9c42c743
    89545343 01 0d0a1a
""")
STORED = b"abc"
ROWS_FIELDS = RecordHeader(
    0x02,
    sequence=0,
    stored=3,
    raw=300,
    codec=1,
    part=2,
    first_layer=3,
    layer_count=2,
    first=0x1122,
    count=0x33,
    payload_crc=0x364B3FB7,
)
KEPT_FIELDS = RecordHeader(
    0x08, sequence=3, stored=3, raw=300, first_layer=3, layer_count=2, first=0x1122, count=0x33, payload_crc=0x364B3FB7
)
PROFILE_FIELDS = RecordHeader(0x09, sequence=5, stored=3, raw=300, payload_crc=0x364B3FB7)
ATTENTION_FIELDS = RecordHeader(
    0x82, sequence=4, stored=3, raw=300, first_layer=3, layer_count=2, count=0x33, payload_crc=0x364B3FB7
)
END_FIELDS = RecordHeader(0x07, sequence=0x1233, stored=8, raw=0, first=0x0A0B0C, count=0x1234, payload_crc=0x6A92A153)


class Pipe:
    """A sink that can do nothing but take bytes."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


@contextmanager
def reading(path: Path, data: bytes) -> Iterator[RecordReader]:
    path.write_bytes(data)
    with path.open("rb") as file:
        yield RecordReader(file.fileno(), str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "container.tsc"


def test_checksum() -> None:
    assert google_crc32c.value(b"123456789") == 0xE3069283


def test_superblock() -> None:
    assert pack_superblock(FILE_ID) == SUPERBLOCK
    assert pack_superblock(FILE_ID, minor=1) == SUPERBLOCK_1_1
    assert len(SUPERBLOCK) == 64


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        pytest.param(ROWS_FIELDS, ROWS_HEADER, id="rows"),
        pytest.param(KEPT_FIELDS, KEPT_HEADER, id="kept"),
        pytest.param(PROFILE_FIELDS, PROFILE_HEADER, id="profile"),
        pytest.param(ATTENTION_FIELDS, ATTENTION_HEADER, id="attention"),
        pytest.param(END_FIELDS, END_RECORD[:64], id="end"),
    ],
)
def test_record_header(fields: RecordHeader, want: bytes) -> None:
    assert pack_record_header(fields, FILE_ID) == want


def test_type_numbers() -> None:
    assert {kind.name: kind.value for kind in RecordType} == {
        "MODEL": 0x01,
        "ROWS": 0x02,
        "LABELS": 0x03,
        "VIEWS": 0x04,
        "HEADER": 0x05,
        "INDEX": 0x06,
        "END": 0x07,
        "KEPT": 0x08,
        "PROFILE": 0x09,
        "STATES": 0x0A,
        "REFERENCE": 0x81,
        "ATTENTION": 0x82,
    }


def test_literal_bytes_are_read(path: Path) -> None:
    with reading(path, SUPERBLOCK + ROWS_HEADER + STORED) as reader:
        assert (reader.minor, reader.file_id) == (0, FILE_ID)
        assert reader.header_at(64, 0) == ROWS_FIELDS
        assert reader.stored(64, ROWS_FIELDS) == STORED


def test_a_file_that_needs_a_newer_version_is_refused(path: Path) -> None:
    """The reader of the next minor version takes it, and files that need only this one."""
    newer = SUPERBLOCK_1_1 + ROWS_HEADER + STORED
    message = r"format version 1\.1 is not supported, this reader knows version 1\.0"
    with pytest.raises(UnsupportedFileError, match=message) as refused, reading(path, newer):
        pass
    assert (refused.value.exit_code, refused.value.hint) == (3, "update tsc")
    with pytest.raises(CorruptError, match="checksum of the superblock"), reading(path, newer[:8] + b"\2" + newer[9:]):
        pass  # what the damaged bytes say of a version is worth nothing


def test_the_next_version_reads_this_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("formats.container.reader.MINOR", 1)
    for superblock, minor in ((SUPERBLOCK, 0), (SUPERBLOCK_1_1, 1)):
        with reading(path, superblock + ROWS_HEADER + STORED) as reader:
            assert reader.minor == minor
            assert reader.header_at(64, 0) == ROWS_FIELDS


def test_literal_bytes_are_written() -> None:
    sink = Pipe()
    writer = RecordWriter(sink, FILE_ID)
    writer.copy_record(STORED, ROWS_FIELDS)
    assert sink.data == SUPERBLOCK + ROWS_HEADER + STORED
    assert (writer.offset, writer.entries) == (len(sink.data), [(64, ROWS_FIELDS)])


def test_end_record_closes_the_file(path: Path) -> None:
    sink = Pipe()
    writer = RecordWriter(sink, FILE_ID)
    writer.record(RecordType.LABELS, b"one")
    writer.end(64)
    assert sink.data.endswith(END_RECORD[64:])
    with reading(path, sink.data) as reader:
        assert reader.end() == (64, 2)


def write_some(sink: Pipe) -> None:
    writer = RecordWriter(sink, FILE_ID)
    writer.record(RecordType.ROWS, bytes(5_000), codec=1, part=1, layers=(2, 3), span=(4, 5))
    writer.record(RecordType.LABELS, b"", span=(0, 1))
    writer.end(writer.entries[-1][0])


def test_a_pipe_will_do() -> None:
    """Nothing is sought, and nothing is read back."""
    memory = BytesIO()
    write_some(memory)  # type: ignore[arg-type]
    out, into = os.pipe()
    with os.fdopen(out, "rb") as source:
        with os.fdopen(into, "wb") as sink:
            assert not sink.seekable()
            write_some(sink)  # type: ignore[arg-type]
        assert source.read() == memory.getvalue()


def test_copies_are_made_in_order() -> None:
    with pytest.raises(ValueError, match="in order"):
        RecordWriter(Pipe(), FILE_ID).copy_record(STORED, END_FIELDS)


def test_a_trial_writes_nothing_and_measures_the_same() -> None:
    sink = Pipe()
    writer = RecordWriter(sink, FILE_ID)
    writer.record(RecordType.MODEL, b"one")
    before, trial = sink.data, writer.trial()
    for tried in (trial, writer):
        tried.record(RecordType.LABELS, b"two", span=(0, 1))
        tried.end(tried.entries[-1][0])
        if tried is trial:
            assert (sink.data, writer.offset, len(writer.entries)) == (before, len(before), 1)
    assert (trial.offset, trial.entries) == (writer.offset, writer.entries)
    assert writer.offset == len(sink.data)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"x", id="one byte"),
        pytest.param(bytes(9 << 20), id="9 MiB of zeros"),
        pytest.param(os.urandom(1 << 16) * 144, id="9 MiB"),  # more than one window
    ],
)
def test_payloads_come_back(path: Path, payload: bytes) -> None:
    sink = Pipe()
    RecordWriter(sink, FILE_ID).record(RecordType.LABELS, payload, span=(7, 9))
    with reading(path, sink.data) as reader:
        header = reader.header_at(64, 0)
        assert (header.name, header.raw, header.first, header.count) == ("labels", len(payload), 7, 9)
        assert reader.payload(64, header) == payload


# One fault for each check, in the order of the specification, and the edit that mends it
FAULTS: list[tuple[str, str]] = [
    ("record 7 stands where record 0 belongs", "sequence"),
    ("reserved bits of a record header are set", "reserved_b"),
    ("record type 128 is not valid", "type"),
    ("truncated in a record", "stored"),
    ("a record declares 1099511627776 bytes for 5 stored", "raw"),
    ("checksum of a record does not match", "payload_crc"),
]


def faulty(mended: int) -> bytes:
    """A record with all faults but the first few, whose payload is not a frame either."""
    lies = {"sequence": 7, "reserved_b": 1, "type": 0x80, "stored": 1 << 30, "raw": 1 << 40, "payload_crc": 1}
    for _, name in FAULTS[:mended]:
        del lies[name]
    return Craft(FILE_ID, [Piece(LABELS, b"raw bytes", stored=b"stuff", lies=lies)]).build()[: 128 + len(b"stuff")]


def test_a_header_must_be_whole_before_it_is_checked(path: Path) -> None:
    with reading(path, faulty(0)[:127]) as reader, pytest.raises(CorruptError, match="truncated in a record header"):
        reader.header_at(64, 0)


@pytest.mark.parametrize("offset", range(64, 128, 9))
def test_the_checksum_of_a_header_comes_first(path: Path, offset: int) -> None:
    data = bytearray(faulty(0))
    data[offset] ^= 1
    with (
        reading(path, bytes(data)) as reader,
        pytest.raises(CorruptError, match="checksum of a record header does not match") as caught,
    ):
        reader.header_at(64, 0)
    assert (caught.value.offset, caught.value.record) == (64, 0)


@pytest.mark.parametrize("mended", range(len(FAULTS)), ids=[name for _, name in FAULTS])
def test_order_of_checks(path: Path, mended: int) -> None:
    with reading(path, faulty(mended)) as reader, pytest.raises(CorruptError, match=FAULTS[mended][0]):
        reader.payload(64, reader.header_at(64, 0))


def test_a_frame_is_looked_at_last(path: Path) -> None:
    with reading(path, faulty(len(FAULTS))) as reader, pytest.raises(CorruptError, match="not a zstd frame"):
        reader.payload(64, reader.header_at(64, 0))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="last byte missing"),
        pytest.param(lambda data: data + b"\0", id="byte behind"),
        pytest.param(lambda data: data[: -72 - 1], id="record missing"),
    ],
)
def test_without_end_mark(path: Path, damage: Callable[[bytes], bytes]) -> None:
    sink = Pipe()
    write_some(sink)
    with reading(path, damage(sink.data)) as reader, pytest.raises(CorruptError, match="end mark is missing"):
        reader.end()


def test_frame_of_the_writer_is_a_plain_one() -> None:
    sink = Pipe()
    RecordWriter(sink, FILE_ID).record(RecordType.LABELS, b"payload")
    assert sink.data[128:] == frame(b"payload")
