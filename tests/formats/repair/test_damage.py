"""Damage on the way: no truncation and no flipped bit of a file is taken for data, or for anything but damage."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from formats import Snapshot, TscError, load
from formats.errors import CorruptError, StorageError, UnsupportedFileError, UsageError
from formats.file import check
from tests.format_conformance import samples, samples_states
from tests.format_conformance.craft import Craft
from tests.support.traces import same_snapshots

Reader = Callable[[Path], object]
SIZE = len(samples.valid())
# one bit of every byte, another one in each byte of a record header, so that every field loses every bit somewhere
SOME_BITS = [8 * byte + byte * 5 % 8 for byte in range(SIZE)]
SUPERBLOCK_BITS = range(64 * 8)
EVERY_BIT = range(SIZE * 8)
READERS = pytest.mark.parametrize("read", [check.check, load], ids=["check", "load"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "damaged.tsc"
    path.write_bytes(samples.valid())
    return path


@pytest.fixture(scope="module")
def snapshots() -> list[Snapshot]:
    trace = samples.trace()
    return [trace.snapshot(number) for number in range(len(trace))]


@contextmanager
def flipped(descriptor: int, bit: int, data: bytes | None = None) -> Iterator[None]:
    """One bit of the open file, which holds `data`, inverted inside the block."""
    byte = (samples.valid() if data is None else data)[bit // 8]
    os.pwrite(descriptor, bytes([byte ^ 1 << bit % 8]), bit // 8)
    try:
        yield
    finally:
        os.pwrite(descriptor, bytes([byte]), bit // 8)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"blocked for {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_refused(path: Path, what: str) -> None:
    """`check` refuses the file as damaged or too new; any other exception, and acceptance, fails the test."""
    try:
        check.check(path)
    except (CorruptError, UnsupportedFileError):
        return
    pytest.fail(f"accepted with {what}")


def assert_lazily_right(path: Path, snapshots: list[Snapshot], what: str) -> None:
    """Opening and restoring either refuses or gives the bits that were saved."""
    try:
        trace = load(path)
    except (CorruptError, UnsupportedFileError):
        return
    for number, want in enumerate(snapshots):
        try:
            found = trace.snapshot(number)
        except (CorruptError, UnsupportedFileError):
            continue
        assert same_snapshots(found, want), what


def test_the_sample_is_valid_and_small(path: Path) -> None:
    check.check(path)
    assert 3_000 < SIZE < 5_000


@pytest.mark.parametrize(
    "name", ["valid", *(pytest.param(name, marks=pytest.mark.full) for name in ("by hand, hybrid", "klt", "vq", "h2o"))]
)
def test_every_truncation(name: str, path: Path, tally: Any) -> None:
    data = samples.sample(name)
    path.write_bytes(data)
    with tally("truncation") as counts:
        counts["files"] += 1
        for length in range(len(data) - 1, -1, -1):
            os.truncate(path, length)
            assert_refused(path, f"{length} of {len(data)} bytes")
            counts["lengths refused"] += 1


def test_every_truncation_read_lazily(path: Path) -> None:
    """The end mark is gone, so that not even opening succeeds."""
    for length in range(SIZE - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(CorruptError):
            load(path)


@pytest.mark.parametrize(
    "bits",
    [
        pytest.param(SUPERBLOCK_BITS, id="superblock"),
        pytest.param(SOME_BITS[::3], id="one-of-every-third-byte"),  # all bits of all bytes below
    ],
)
def test_flipped_bits(path: Path, bits: range | list[int], tally: Any) -> None:
    with path.open("r+b") as file, tally("bit rot") as counts:
        for bit in bits:
            with flipped(file.fileno(), bit):
                assert_refused(path, f"bit {bit % 8} of byte {bit // 8} flipped")
            counts["flips in a small file"] += 1
    check.check(path)


@pytest.mark.full
@pytest.mark.parametrize("name", ["valid", "by hand, hybrid", "klt, h2o"])
def test_every_bit(name: str, path: Path, tally: Any) -> None:
    data = samples.sample(name)
    path.write_bytes(data)
    with path.open("r+b") as file, tally("bit rot") as counts:
        counts["small files with every bit inverted"] += 1
        for bit in range(8 * len(data)):
            with flipped(file.fileno(), bit, data):
                assert_refused(path, f"bit {bit % 8} of byte {bit // 8} flipped")
            counts["flips in a small file"] += 1
    check.check(path)


@pytest.mark.parametrize("name", ["h2o", "attention", "vq", "delta, edited", *samples_states.SAMPLES])
@pytest.mark.parametrize("every", [pytest.param(13, id="some"), pytest.param(3, id="more", marks=pytest.mark.full)])
def test_flipped_bits_of_other_codecs(name: str, every: int, path: Path) -> None:
    data = samples.sample(name)
    path.write_bytes(data)
    with path.open("r+b") as file:
        for bit in [8 * byte + byte * 5 % 8 for byte in range(0, len(data), every)]:
            with flipped(file.fileno(), bit, data):
                assert_refused(path, f"bit {bit % 8} of byte {bit // 8} flipped")
    check.check(path)


@pytest.mark.parametrize(
    "bits", [pytest.param(SOME_BITS[::7], id="some"), pytest.param(EVERY_BIT, id="all", marks=pytest.mark.full)]
)
def test_flipped_bits_read_lazily(path: Path, snapshots: list[Snapshot], bits: range | list[int]) -> None:
    with path.open("r+b") as file:
        for bit in bits:
            with flipped(file.fileno(), bit):
                assert_lazily_right(path, snapshots, f"bit {bit % 8} of byte {bit // 8} flipped")


@pytest.mark.parametrize("length", [1, 2, 8, 64, 512])
def test_zeroed_ranges(path: Path, snapshots: list[Snapshot], length: int) -> None:
    """Lost sectors read as zeros."""
    data = samples.valid()
    for start in range(0, SIZE - length, max(17, length)):
        damaged = data[:start] + bytes(length) + data[start + length :]
        if damaged != data:
            path.write_bytes(damaged)
            assert_refused(path, f"{length} zeros at {start}")
            assert_lazily_right(path, snapshots, f"{length} zeros at {start}")


VALID = samples.valid()
TAIL = SIZE - 72  # END, header and payload


@READERS
@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "not a .tsc file", id="empty"),
        pytest.param(VALID[:3], "not a .tsc file", id="three bytes"),
        pytest.param(VALID[:40], "truncated in the superblock", id="part of the superblock"),
        pytest.param(VALID[:64], "end mark is missing", id="superblock alone"),
        pytest.param(VALID[:-1], "end mark is missing", id="last byte missing"),
        pytest.param(VALID[:TAIL], "end mark is missing", id="end mark missing"),
        pytest.param(VALID[1:], "not a .tsc file", id="first byte missing"),
        pytest.param(b"\xef\xbb\xbf" + VALID, "not a .tsc file", id="byte order mark ahead"),
        pytest.param(VALID + b"\0", "end mark is missing", id="a byte behind"),
        pytest.param(VALID + b"\n", "end mark is missing", id="a newline behind"),
        pytest.param(VALID + bytes(4_096), "end mark is missing", id="a zero page behind"),
        pytest.param(VALID + VALID[TAIL:], "end mark does not point to the index", id="end mark twice"),
        pytest.param(VALID * 2, "end mark does not point to the index", id="file twice"),
        pytest.param(VALID[:64] + VALID[TAIL:], "outside the file", id="nothing between the ends"),
        pytest.param(VALID[::-1], "not a .tsc file", id="backwards"),
        pytest.param(b"PK\3\4" + VALID[4:], "not a .tsc file", id="a zip archive"),
        pytest.param(bytes(SIZE), "not a .tsc file", id="all zeros"),
        pytest.param(VALID.replace(b"\r\n", b"\n"), "converted as text", id="CRLF to LF"),
        pytest.param(VALID.replace(b"\n", b"\r\n"), "converted as text", id="LF to CRLF"),
        pytest.param(VALID.replace(b"\r", b"\n"), "converted as text", id="CR to LF"),
        pytest.param(VALID.replace(b"\r\n", b"\r"), "converted as text", id="CRLF to CR"),
        pytest.param(VALID.replace(b"\x1a", b""), "converted as text", id="SUB dropped"),
    ],
)
def test_whole_files(read: Reader, path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=message):
        read(path)


@READERS
@pytest.mark.parametrize("major", [0, 2, 255])
def test_another_major_version(read: Reader, path: Path, major: int) -> None:
    path.write_bytes(VALID[:4] + bytes([major]) + VALID[5:])
    with pytest.raises(UnsupportedFileError, match=f"format version {major} is not supported") as caught:
        read(path)
    assert caught.value.hint == "update tsc"


def test_unused_flags_are_ignored_but_checksummed(path: Path) -> None:
    craft = Craft.of(VALID)
    craft.flags = 0x8000
    data = craft.build()
    path.write_bytes(data)
    check.check(path)
    path.write_bytes(data[:11] + b"\x40" + data[12:])
    assert_refused(path, "another unused flag and the old checksum")


@READERS
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_not_a_regular_file(read: Reader, make: Reader, tmp_path: Path) -> None:
    """A FIFO without a writer would block whoever opens it as a file."""
    path = tmp_path / "strange.tsc"
    make(path)
    with at_most(5), pytest.raises(UsageError, match="not a regular file") as caught:
        read(path)
    assert caught.value.exit_code == 2


@READERS
def test_missing_file(read: Reader, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened: No such file") as caught:
        read(tmp_path / "missing.tsc")
    assert (caught.value.exit_code, caught.value.path) == (2, str(tmp_path / "missing.tsc"))


def test_file_cut_while_it_is_open(path: Path) -> None:
    trace = load(path)
    os.truncate(path, 500)
    with pytest.raises(TscError, match="truncated while it was being read"):
        trace.snapshot()
