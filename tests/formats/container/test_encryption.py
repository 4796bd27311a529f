"""Encryption of files: what goes in comes out, with the key only, and nothing that was changed does."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from formats import Trace, load, save
from formats.container import encryption
from formats.container.encryption import Cipher, Scheme, Secret
from formats.container.records import RecordType
from formats.container.writer import RecordWriter
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.errors import CorruptError, LimitError, LockedError, UnsupportedFileError, UsageError
from formats.file import check, rewrite
from formats.file.reader import TraceFile
from formats.file.writer import TraceWriter
from formats.repair import diagnose, recover
from tests.format_conformance import samples, samples_encrypted
from tests.format_conformance.craft import END, LABELS, ROWS, Craft, Piece, raw_frame
from tests.format_conformance.samples_encrypted import KEY, OTHER_KEY, seal
from tests.format_conformance.second_reader import reader as second_reader
from tests.format_conformance.test_second_reader import assert_same_content
from tests.formats.repair.test_damage import flipped
from tests.support.traces import same_snapshots
from tsc_cli.scoring.scorer import scratch_file

SECRET, OTHER = Secret.of_key(KEY), Secret.of_key(OTHER_KEY)
DATA = samples_encrypted.sample("valid")
QUICK = {"valid", "vq", "delta", "klt", "h2o", "by hand, hybrid"}
full = pytest.mark.full


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "t.tsc").write_bytes(DATA)
    return tmp_path / "t.tsc"


@pytest.fixture
def weak_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the format: it takes no time."""
    monkeypatch.setattr(encryption, "SCRYPT_N", 16)


def encrypted(file: TraceFile, secret: Secret) -> bytes:
    sink = io.BytesIO()
    rewrite.encrypt(file, sink, secret)
    return sink.getvalue()


def frame_of(file: TraceFile, offset: int, sequence: int) -> bytes:
    return file.reader.frame(offset, file.reader.header_at(offset, sequence))


def refused(path: Path, key: Secret = SECRET) -> bool:
    """Whether strict reading refuses a file; another key counts, as it does where the lock was changed."""
    try:
        check.check(path, key)
    except (CorruptError, UnsupportedFileError, LockedError):
        return True
    return False


# Round trip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else (full,))
        for name in ("valid", *sorted({*samples.COMPRESSED, "by hand, hybrid"}))
    ],
)
def test_round_trip(name: str, tmp_path: Path) -> None:
    plain, locked, back = (tmp_path / f"{part}.tsc" for part in ("plain", "locked", "back"))
    plain.write_bytes(samples.sample(name))
    was = TraceFile(plain)
    locked.write_bytes(encrypted(was, SECRET))
    now = check.check(locked, SECRET)
    sink = io.BytesIO()
    assert rewrite.decrypt(now, sink)[1] == len(sink.getvalue())
    back.write_bytes(sink.getvalue())
    again = check.check(back)

    count = len(was.entries)
    assert locked.stat().st_size - plain.stat().st_size - 16 * (count + 1) in range(-60, 60)  # HEADER, INDEX
    for file in (now, again):
        assert len(file.entries) == count
        for (offset, entry), (there, other) in zip(was.entries[:-1], file.entries, strict=False):
            assert frame_of(was, offset, entry.sequence) == frame_of(file, there, entry.sequence)
            fields = ("type", "sequence", "raw", "codec", "part", "first_layer", "layer_count", "first", "count")
            assert [getattr(entry, field) for field in fields] == [getattr(other, field) for field in fields]
        for field in ("tier", "created_by", "raw_bytes_trace", "raw_bytes_final", "capture", "quality", "codec"):
            assert getattr(file.header, field) == getattr(was.header, field)
        assert file.header.parameters == was.header.parameters
    assert now.reader.file_id not in (was.reader.file_id, bytes(16))
    assert now.reader.minor == 0
    document = second_reader.read(locked.read_bytes(), secret=KEY)
    assert_same_content(now.trace(), document, only=-1)
    assert_same_content(again.trace(), document, only=-1)


def test_what_is_made_of_an_encrypted_trace_is_encrypted(path: Path, tmp_path: Path) -> None:
    trace = load(path, SECRET)
    save(trace, tmp_path / "copy.tsc")
    assert not refused(tmp_path / "copy.tsc")
    rewrite.record_quality(tmp_path / "copy.tsc", [{"snapshot": 0}], SECRET)
    assert load(tmp_path / "copy.tsc", SECRET).quality == [{"snapshot": 0}]
    with pytest.raises(LockedError):
        load(tmp_path / "copy.tsc")
    trace.secret = None
    save(trace, tmp_path / "open.tsc")
    assert same_snapshots(load(tmp_path / "open.tsc").snapshot(), trace.snapshot())


def test_an_encrypted_file_has_a_random_identity(path: Path, tmp_path: Path) -> None:
    trace = load(path, SECRET)
    with pytest.raises(UsageError, match="never the same twice"):
        save(trace, tmp_path / "x.tsc", deterministic=True)
    with pytest.raises(UsageError, match="never the same twice"):
        TraceWriter(io.BytesIO(), trace.geometry, {}, file_id=bytes(16), secret=SECRET)
    assert not (tmp_path / "x.tsc").exists()


def test_encrypting_twice_and_decrypting_what_is_not(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is encrypted already"):
        rewrite.encrypt(TraceFile(path, SECRET), io.BytesIO(), OTHER)
    (tmp_path / "plain.tsc").write_bytes(samples.valid())
    with pytest.raises(UsageError, match="is not encrypted"):
        rewrite.decrypt(TraceFile(tmp_path / "plain.tsc"), io.BytesIO())


def test_a_record_may_be_decrypted_to_the_last_byte_of_its_limit(tmp_path: Path) -> None:
    """What one may declare goes by its frame, so that a decrypted copy of a valid file is a valid file."""
    blocks = (131_072 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    wanted = 130 * 131_072  # more than 16 MiB
    frame = raw_frame(b"", size=wanted, window=0x68, blocks=blocks * 130)
    filler = -(-wanted // 1024) - len(frame)
    empty = (0).to_bytes(3, "little")  # raw blocks without content
    frame = raw_frame(b"", size=wanted, window=0x68, blocks=blocks * 130 + empty * -(-filler // 3))
    assert wanted <= 1024 * len(frame) < wanted + 1024 * 4
    craft = Craft.of(DATA, seal())
    craft.insert(Piece(0x90, b"", stored=frame, lies={"raw": wanted}))
    (tmp_path / "t.tsc").write_bytes(craft.build())
    sink = io.BytesIO()
    rewrite.decrypt(check.check(tmp_path / "t.tsc", SECRET), sink)
    (tmp_path / "plain.tsc").write_bytes(sink.getvalue())
    check.check(tmp_path / "plain.tsc")


# Keys


@pytest.mark.parametrize("read", [load, check.check, TraceFile])
def test_no_key_another_key_a_passphrase(path: Path, read: Callable[..., object], weak_scrypt: None) -> None:
    for key, message in (
        (None, "is encrypted with a key, and none was given"),
        (OTHER, "is encrypted with another key than the one given"),
        (Secret.of_passphrase("x"), "is encrypted with a key, and a passphrase was given"),
    ):
        with pytest.raises(LockedError) as caught:
            read(path, key)
        assert (caught.value.message, caught.value.path, caught.value.exit_code) == (message, str(path), 2)


def test_no_passphrase_another_passphrase_a_key(path: Path, weak_scrypt: None, tmp_path: Path) -> None:
    secret = Secret.of_passphrase("open sesame")
    (tmp_path / "plain.tsc").write_bytes(samples.valid())
    path.write_bytes(encrypted(TraceFile(tmp_path / "plain.tsc"), secret))
    for key, message in (
        (None, "is encrypted with a passphrase, and none was given"),
        (Secret.of_passphrase("open Sesame"), "is encrypted with another passphrase than the one given"),
        (SECRET, "is encrypted with a passphrase, and a key was given"),
    ):
        with pytest.raises(LockedError) as caught:
            load(path, key)
        assert (caught.value.message, caught.value.exit_code) == (message, 2)
    asked: list[tuple[str, Scheme]] = []
    load(path, lambda *question: asked.append(question) or secret)  # type: ignore[func-returns-value]
    assert asked == [(str(path), Scheme.PASSPHRASE)]


def test_a_key_for_a_file_that_is_not_encrypted(tmp_path: Path) -> None:
    (tmp_path / "plain.tsc").write_bytes(samples.valid())
    for read in (load, check.check, TraceFile):
        with pytest.raises(LockedError, match="is not encrypted, and a key was given") as caught:
            read(tmp_path / "plain.tsc", SECRET)
        assert caught.value.exit_code == 2
    load(tmp_path / "plain.tsc", lambda *_: pytest.fail("nobody is asked for it"))


def test_a_passphrase_is_what_was_meant_not_how_it_was_typed(weak_scrypt: None) -> None:
    salt = bytes(16)
    composed, apart, other = (Secret.of_passphrase(text) for text in ("Schl\u00fcssel", "Schlu\u0308ssel", "Schlussel"))
    assert composed.master(salt) == apart.master(salt) != other.master(salt)
    assert composed.master(salt) != composed.master(bytes([1] * 16))


def test_what_is_no_key() -> None:
    for length in (0, 16, 31, 33, 64):
        with pytest.raises(UsageError, match=f"a key of {length} bytes: it must have 32"):
            Secret.of_key(bytes(length))
    for text, message in (("", "is empty"), ("x" * 1025, "more than 1024 characters"), ("\ud800", "not valid Unicode")):
        with pytest.raises(UsageError, match=message):
            Secret.of_passphrase(text)


def test_a_secret_is_not_shown(weak_scrypt: None) -> None:
    for secret, shown in ((SECRET, "KEY"), (Secret.of_passphrase("swordfish"), "PASSPHRASE")):
        assert repr(secret) == str(secret) == f"Secret({shown})"


# Writings


def sealed_pieces(data: bytes) -> list[bytes]:
    """What is stored of each record but END."""
    craft = Craft.of(data)
    pieces = [piece.sealed for piece in (*craft.records, craft.index)]
    return [piece for piece in pieces if isinstance(piece, bytes)]


def test_two_writings_share_nothing(tmp_path: Path) -> None:
    trace = samples.trace()
    for name in ("a.tsc", "b.tsc"):
        save(trace, tmp_path / name, key=SECRET)
    assert trace.secret is None
    first, second = ((tmp_path / name).read_bytes() for name in ("a.tsc", "b.tsc"))
    rewrite.record_quality(tmp_path / "b.tsc", [], SECRET)
    third = (tmp_path / "b.tsc").read_bytes()
    assert second[16:32] == third[16:32] != first[16:32]
    writings = (first, second, third)
    assert len({data[36:52] for data in writings}) == len({data[52:60] for data in writings}) == 3
    stored = [piece for data in writings for piece in sealed_pieces(data)]
    assert len(set(stored)) == len(stored) >= 3 * 10
    assert len({piece[:16] for piece in stored}) == len(stored)  # no keystream twice


def test_no_nonce_twice(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what reaches the disk; a header is sealed once more for every length that it is tried with."""
    sealed: list[tuple[bytes, int, bytes]] = []
    seal_one = Cipher.seal

    def spy(self: Cipher, frame: bytes, sequence: int, context: bytes) -> bytes:
        sealed.append((self.lock.salt, sequence, seal_one(self, frame, sequence, context)))
        return sealed[-1][2]

    monkeypatch.setattr(Cipher, "seal", spy)
    trace = load(path, SECRET)
    save(trace, tmp_path / "a.tsc")
    rewrite.record_quality(tmp_path / "a.tsc", [{"snapshot": 1}], SECRET)
    data = (tmp_path / "a.tsc").read_bytes()
    written = {one for one in sealed if one[2] in data and one[0] == data[36:52]}
    assert sorted(sequence for _, sequence, _ in written) == list(range(len(sealed_pieces(data))))
    assert len({salt for salt, _, _ in sealed}) == 2


def test_scratch_files_of_an_encrypted_trace_are_encrypted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, Secret | None]] = []

    def spy(name: Any, key: Any = None) -> Trace:
        data = Path(name).read_bytes()
        assert data[10] & 1 == (key is not None)
        assert (b"\x28\xb5\x2f\xfd" in data) is (key is None)
        opened.append((str(name), key))
        return load(name, key)

    monkeypatch.setattr("tsc_cli.scoring.scorer.load", spy)
    for key in (SECRET, None):
        if key is None:
            path.write_bytes(samples.valid())
        trace = load(path, key)
        with scratch_file(Source(trace), Recipe("lossless", {})) as found:
            assert same_snapshots(found.snapshot(), trace.snapshot())
    (_, first), (_, second) = opened
    assert second is None
    assert first is not None
    assert first.master(b"") != SECRET.master(b"")  # nobody keeps its key
    assert not any(os.path.exists(name) for name, _ in opened)


# Damage


BITS = [*range(0, 64 * 8, 3), *(8 * byte + byte * 5 % 8 for byte in range(64, len(DATA), 9))]


EVERY_BIT = pytest.param(range(8 * len(DATA)), id="all", marks=full)


@pytest.mark.parametrize("bits", [pytest.param(BITS, id="some"), EVERY_BIT])
def test_flipped_bits(path: Path, bits: Any, tally: Any) -> None:
    with path.open("r+b") as file, tally("bit rot") as counts:
        for bit in bits:
            with flipped(file.fileno(), bit, DATA):
                assert refused(path), f"bit {bit % 8} of byte {bit // 8}"
            counts["flips in a small encrypted file"] += 1
    assert not refused(path)


def payload_bytes() -> Iterator[tuple[int, int]]:
    """Number of a record and a byte of what is stored of it."""
    for number, piece in enumerate(sealed_pieces(DATA)):
        yield from ((number, at) for at in range(len(piece)))


@pytest.mark.parametrize("every", [pytest.param(41, id="some"), pytest.param(1, id="all", marks=full)])
def test_flipped_bits_with_right_checksums(path: Path, every: int, tally: Any) -> None:
    craft = Craft.of(DATA)
    pieces = [*craft.records, craft.index]
    with tally("bit rot") as counts:
        for number, at in list(payload_bytes())[::every]:
            piece, was = pieces[number], pieces[number].sealed
            assert isinstance(was, bytes)
            piece.sealed = was[:at] + bytes([was[at] ^ 1 << at % 8]) + was[at + 1 :]
            path.write_bytes(craft.build())
            with pytest.raises(CorruptError, match="was changed, or is of another file or place"):
                check.check(path, SECRET)
            piece.sealed = was
            counts["flips in encrypted records, checksums made right"] += 1
    assert craft.build() == DATA


def test_every_truncation(path: Path, tally: Any) -> None:
    with tally("truncation") as counts:
        counts["files"] += 1
        for length in range(len(DATA) - 1, -1, -1):
            os.truncate(path, length)
            assert refused(path)
            counts["lengths refused"] += 1


@pytest.mark.parametrize("every", [pytest.param(7, id="some"), pytest.param(1, id="all", marks=full)])
def test_every_truncation_with_a_forged_end(path: Path, every: int, tally: Any) -> None:
    """END is not encrypted: anybody can put one behind what is left, which points to the last record there."""
    _, *offsets = [0, *(offset for offset, _ in TraceFile(path, SECRET).entries)]
    offsets.append(len(DATA) - 72 - len(sealed_pieces(DATA)[-1]) - 64)
    with tally("truncation") as counts:
        for length in {*range(64, len(DATA) - 72, every), *offsets, *(offset + 64 for offset in offsets)}:
            forged = Craft(DATA[16:32], [], end=Piece(END, b"", stored=b"\x89TSC\x01\r\n\x1a"))
            begun = [offset for offset in offsets if offset < length] or [64]
            forged.end.lies = {"first": begun[-1], "count": len(begun) + 1, "sequence": len(begun)}
            path.write_bytes(DATA[:length] + forged.build()[-72:])
            assert refused(path), length
            counts["lengths of an encrypted file with a forged end mark"] += 1


def test_without_the_key_every_flipped_byte_of_a_record_is_found(path: Path) -> None:
    with path.open("r+b") as file:
        for byte in range(64, len(DATA)):
            with flipped(file.fileno(), 8 * byte + byte * 3 % 8, DATA), pytest.raises(CorruptError):
                check.check_sealed(path)
        for length in range(len(DATA) - 1, 0, -5):
            os.truncate(path, length)
            with pytest.raises(CorruptError):
                check.check_sealed(path)
    path.write_bytes(DATA)
    assert check.check_sealed(path) == len(sealed_pieces(DATA)) + 1
    path.write_bytes(samples.valid())
    assert check.check_sealed(path) is None


def test_what_stays_readable_is_what_the_page_lists() -> None:
    """Nothing of MODEL, LABELS, HEADER or the rows is in the file as it is: neither frames nor words."""
    assert b"\x28\xb5\x2f\xfd" not in DATA
    for word in (b"tsc.model", b"bfloat16", b"created_by", b"token_ids", b"planes"):
        assert word not in DATA
    plain = samples.valid()
    own = Craft.of(plain)
    for kind in (ROWS, LABELS):
        assert own[kind].raw[-40:] not in DATA
    for a, b in pairwise(sealed_pieces(DATA)):
        assert a[:8] != b[:8]


def test_no_two_damaged_bytes_of_a_superblock_look_alike() -> None:
    """Else a wrong one could be mended, and the file be lost that another way would have found."""

    def syndrome(data: bytes) -> int:
        return google_crc32c.value(data[:60]) ^ int.from_bytes(data[60:], "little")

    found = {syndrome(bytes(at) + bytes([byte]) + bytes(63 - at)) for at in range(64) for byte in range(1, 256)}
    assert len(found) == 64 * 255


@pytest.mark.parametrize("every", [pytest.param(4, id="some"), pytest.param(1, id="all", marks=full)])
def test_a_damaged_byte_of_the_superblock_loses_nothing(every: int, path: Path, tmp_path: Path) -> None:
    """Without the salt nothing could be read; but its checksum tells what one byte was."""
    want = [load(path, SECRET).snapshot(number) for number in range(4)]
    for byte in range(0, 64, every):
        data = bytearray(DATA)
        data[byte] ^= 1 + 37 * byte % 255
        path.write_bytes(data)
        assert diagnose.diagnose(path, SECRET).whole == [0, 1, 2, 3]
        found, _ = recover.recover(path, tmp_path / "new.tsc", overwrite=True, key=SECRET)
        assert found.damaged
        assert found.complete
        again = load(tmp_path / "new.tsc", SECRET)
        assert all(same_snapshots(again.snapshot(number), one) for number, one in enumerate(want))
        with pytest.raises((CorruptError, UnsupportedFileError)):
            load(path, SECRET)


class Sealed(RecordWriter):
    """A writer of encrypted records into memory."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        super().__init__(self.buffer, bytes(16), Secret.of_key(bytes(32)))


def sealed_records(*kinds: RecordType) -> Sealed:
    """A writer that has written records of these types."""
    writer = Sealed()
    for kind in kinds:
        writer.record(kind, b"{}")
    return writer


def ended(writer: Sealed, index: int = -1, *, behind: bool = False) -> bytes:
    """The file, whose end mark points to this record, with a second end mark `behind` the first."""
    begin, at = writer.offset, writer.entries[index][0]
    writer.end(at)
    data = writer.buffer.getvalue()
    return data + data[begin:] if behind else data


CLOSED = (RecordType.MODEL, RecordType.HEADER, RecordType.INDEX)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ended(sealed_records(RecordType.MODEL, *CLOSED)), "a model record where it cannot be"),
        (lambda: ended(sealed_records(RecordType.ROWS, *CLOSED[1:])), "a rows record where it cannot be"),
        (lambda: ended(sealed_records(*CLOSED), 0), "the end mark does not point to the index"),
        (lambda: ended(sealed_records(*CLOSED), behind=True), "bytes behind the end mark"),
    ],
)
def test_the_order_of_sealed_records(make: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "sealed.tsc"
    path.write_bytes(ended(sealed_records(*CLOSED)))
    assert check.check_sealed(path) == 4
    path.write_bytes(make())
    with pytest.raises(CorruptError, match=message):
        check.check_sealed(path)


def test_a_passphrase_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.hazmat.primitives.kdf import scrypt

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(scrypt, "Scrypt", fails)
    with pytest.raises(LimitError, match="takes 128 MiB of memory"):
        Secret.of_passphrase("one").master(bytes(16))
