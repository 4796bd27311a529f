"""Encrypted files whose checksums are right and whose locks, records or end marks are not what the key's owner wrote.

What somebody without the key can do is done without it: records keep what is stored of them, and what is made anew is
in the clear.  The rest is written by somebody who has the key and does not follow the format.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from formats.errors import CorruptError, LockedError, TscError, UnsupportedFileError
from tests.format_conformance.craft import (
    END,
    HEADER,
    INDEX,
    LABELS,
    MODEL,
    REFERENCE,
    ROWS,
    SIGNATURE,
    VIEWS,
    Craft,
    Piece,
    frame,
)
from tests.format_conformance.samples_encrypted import FILE_ID, KEY, OTHER_KEY, OTHER_SALT, sample, seal

Edit = Callable[[Craft], object]


@dataclass(frozen=True)
class EncryptedLiar:
    """An edit of an encrypted file (or a function that returns the bytes), and how it is to be refused.

    Attributes:
        with_key: the edit is made by somebody who has the key; else records stay as they are stored.
        key: what it is read with.
        sealed: whether it is refused, in the same words, by somebody who has no key.
        read: whether a snapshot needs the record that lies.
    """

    name: str
    message: str
    edit: Edit
    error: type[TscError] = CorruptError
    with_key: bool = False
    key: bytes = KEY
    sealed: bool = False
    read: bool = True

    def build(self) -> bytes:
        craft = Craft.of(sample("valid"), seal() if self.with_key else None)
        result = self.edit(craft)
        return result if isinstance(result, bytes) else craft.build()


LIARS: list[EncryptedLiar] = []


def liar(name: str, message: str, edit: Edit, error: type[TscError] = CorruptError, **how: Any) -> None:
    LIARS.append(EncryptedLiar(name, message, edit, error, **how))


# The superblock and its lock


def lock_byte(offset: int, value: int | None = None) -> Edit:
    """Write a value over a byte of the superblock, or invert its lowest bit."""

    def edit(craft: Craft) -> None:
        assert craft.lock is not None
        craft.reserved[offset] = craft.lock[offset - 32] ^ 1 if value is None else value

    return edit


def changed(**attributes: Any) -> Edit:
    def edit(craft: Craft) -> None:
        for name, value in attributes.items():
            setattr(craft, name, value)

    return edit


def lock_of_nobody(craft: Craft) -> bytes:
    plain = Craft.of(sample("valid"), seal())
    plain.seal = None
    return plain.build()


RESERVED, ANOTHER, CHANGED = "reserved b", "with another key than", "was changed, or is of another file or place"
liar("lock without flag", RESERVED, changed(flags=0), sealed=True)
liar("flag and lock wiped out", "not a zstd frame", changed(flags=0, lock=bytes(28)))
liar("flag without lock", "does not say how", changed(lock=bytes(28)), sealed=True)
liar("flag without lock, records in the clear", "does not say how", lock_of_nobody, sealed=True)
liar("scheme 0", "does not say how", lock_byte(32, 0), sealed=True)
liar("scheme 2 in place of 1", "with a passphrase, and a key", lock_byte(32, 2), LockedError)
liar("scheme 3", "scheme 3 is not known", lock_byte(32, 3), UnsupportedFileError, sealed=True)
liar("scheme 255", "scheme 255 is not known", lock_byte(32, 255), UnsupportedFileError, sealed=True)
for at in (33, 34, 35):
    liar(f"reserved byte {at} of the lock", RESERVED, lock_byte(at, 0x80), sealed=True)
liar("another salt", ANOTHER, lock_byte(36), LockedError)
liar("another check", ANOTHER, lock_byte(59), LockedError)
liar("another identity", ANOTHER, changed(file_id=bytes(16)), LockedError)
liar("lock of an older version", CHANGED, changed(lock=seal(salt=OTHER_SALT).lock))
liar("lock of another key", CHANGED, changed(lock=seal(OTHER_KEY).lock), key=OTHER_KEY)
liar("lock of another key, read with the old one", ANOTHER, changed(lock=seal(OTHER_KEY).lock), LockedError)
liar("another minor version", "format version 1.3", changed(minor=3), UnsupportedFileError, sealed=True)
liar("an unused flag", CHANGED, changed(flags=0x0101))
liar("a reserved flag", RESERVED, changed(flags=0x0003), sealed=True)

# What is stored of a record.  LABELS stands for those that opening reads, ROWS for those that it does not


def piece_of(craft: Craft, kind: int) -> Piece:
    return craft.index if kind == INDEX else craft.end if kind == END else craft[kind]


def stored(kind: int, make: Callable[[bytes], bytes]) -> Edit:
    def edit(craft: Craft) -> None:
        piece = piece_of(craft, kind)
        assert isinstance(piece.sealed, bytes)
        piece.sealed = make(piece.sealed)

    return edit


NAMES = {MODEL: "MODEL", ROWS: "ROWS", LABELS: "LABELS", HEADER: "HEADER", INDEX: "INDEX"}
NO_TAG, WRONGLY = "shorter than the tag", "describes this record wrongly"
for kind, name in NAMES.items():
    liar(f"{name}: a bit of the ciphertext", CHANGED, stored(kind, lambda was: bytes([was[0] ^ 1]) + was[1:]))
    liar(f"{name}: a bit of the tag", CHANGED, stored(kind, lambda was: was[:-1] + bytes([was[-1] ^ 128])))
# of other records the authenticated INDEX states the length
liar("INDEX: shorter than a tag", NO_TAG, stored(INDEX, lambda was: was[:15]), sealed=True)
liar("INDEX: nothing stored", NO_TAG, stored(INDEX, lambda _: b""), sealed=True)
liar("INDEX: no more than a tag", CHANGED, stored(INDEX, lambda was: was[-16:]))
liar("INDEX: tag cut by a byte", CHANGED, stored(INDEX, lambda was: was[:-1]))
liar("INDEX: no tag", CHANGED, stored(INDEX, lambda was: was[:-16]))
liar("LABELS: tag cut by a byte", WRONGLY, stored(LABELS, lambda was: was[:-1]))
liar("LABELS: no tag", WRONGLY, stored(LABELS, lambda was: was[:-16]))


def by_owner(name: str, message: str, kind: int, **attributes: Any) -> None:
    """Somebody has the key, and what INDEX says is right; the record is not."""
    liar(
        name,
        message,
        lambda craft: [setattr(piece_of(craft, kind), *one) for one in attributes.items()],
        with_key=True,
        sealed=message == NO_TAG,
    )


by_owner("LABELS shorter than a tag", NO_TAG, LABELS, sealed=bytes(15))
by_owner("LABELS of a tag alone", CHANGED, LABELS, sealed=bytes(16))
by_owner("LABELS of 17 bytes", CHANGED, LABELS, sealed=bytes(17))
by_owner("LABELS with its tag cut by a byte", CHANGED, LABELS, sealed=lambda was: was[:-1])
by_owner("LABELS without its tag", CHANGED, LABELS, sealed=lambda was: was[:-16])
by_owner("LABELS with a byte behind its tag", CHANGED, LABELS, sealed=lambda was: was + b"\0")
for kind, name in NAMES.items():
    by_owner(f"{name} in the clear", CHANGED, kind, encrypted=False)
by_owner("LABELS encrypted twice", "not a zstd frame", LABELS, stored=bytes(100))
by_owner("LABELS of an empty frame", "another size", LABELS, stored=frame(b""))
liar(
    "END encrypted",
    "the end mark is missing",
    changed(end=Piece(END, b"", stored=SIGNATURE, encrypted=True)),
    with_key=True,
    sealed=True,
)

# Records that were exchanged, replayed or left out


def moved(kind: int, source: Callable[[], Craft], other: int | None = None) -> Edit:
    """A record's payload in place of another's, which has the same or another type."""
    return lambda craft: setattr(piece_of(craft, kind), "sealed", piece_of(source(), other or kind).sealed)


def stored_of(*args: Any, **kwargs: Any) -> Callable[[], Craft]:
    return lambda: Craft.of(sample(*args, **kwargs))


SOURCES = {
    "an older version": stored_of("valid", salt=OTHER_SALT),
    "another file of the same key": stored_of("valid", file_id=FILE_ID[::-1]),
    "the same file under another key": stored_of("valid", OTHER_KEY),
}
for what, source in SOURCES.items():
    for kind in (MODEL, ROWS, LABELS, INDEX):
        liar(f"{NAMES[kind]} of {what}", CHANGED, moved(kind, source))


def swapped(a: int, b: int) -> Edit:
    """Payloads exchanged between two records, whose headers stay."""

    def edit(craft: Craft) -> None:
        one, other = craft.records[a], craft.records[b]
        one.sealed, other.sealed = other.sealed, one.sealed

    return edit


def without(number: int, *, numbered: bool) -> Edit:
    """A record left out; `numbered`: the others and END go on saying what they did."""

    def edit(craft: Craft) -> None:
        for sequence, piece in enumerate((*craft.records, craft.index, craft.end) if numbered else ()):
            piece.lies["sequence"] = sequence
        if numbered:
            craft.end.lies["count"] = len(craft.records) + 2
        del craft.records[number]

    return edit


def cut_to(count: int, index: Callable[[Craft], Piece]) -> Edit:
    """The first `count` records and HEADER, behind them one as INDEX, and an END that is right."""

    def edit(craft: Craft) -> None:
        made = index(craft)
        del craft.records[count:-1]
        craft.index = made

    return edit


def renamed(number: int) -> Callable[[Craft], Piece]:
    def make(craft: Craft) -> Piece:
        piece = copy.deepcopy(craft.records[number])
        piece.type, piece.first, piece.count = INDEX, 0, 0
        return piece

    return make


def forged_index(craft: Craft) -> Piece:
    """INDEX in the clear, of the records that there are."""
    return Piece(INDEX, b"")


liar("ROWS of layers 0 and 1: keys as values", "", swapped(1, 2))
liar("two records exchanged", WRONGLY, lambda c: c.records.insert(3, c.records.pop(5)))
liar("a record left out", CHANGED, without(9, numbered=False))
liar("a record left out, the others numbered as before", "", without(9, numbered=True), sealed=True)
liar("a record twice", CHANGED, lambda c: c.records.insert(-1, copy.deepcopy(c[REFERENCE])))
NOTE = b"a note in the clear"
liar("a record in the clear put in", CHANGED, lambda c: c.insert(Piece(0x90, NOTE, sealed=frame(NOTE))))
liar("cut, with an END and the old INDEX", CHANGED, cut_to(9, lambda craft: craft.index))
liar("cut, and LABELS is INDEX now", CHANGED, cut_to(7, renamed(7)))
liar("cut, with the INDEX in the clear", CHANGED, cut_to(9, forged_index))
liar("cut to HEADER", "the end mark", cut_to(0, lambda craft: craft.index), sealed=True)
liar("cut to nothing", "the end mark", lambda craft: craft.records.clear(), sealed=True)
liar(
    "all records of an older version", CHANGED, lambda craft: craft.build()[:64] + sample("valid", salt=OTHER_SALT)[64:]
)
liar(
    "the same END of another file",
    "checksum of a record header",
    lambda c: c.build()[:-72] + sample("valid", file_id=FILE_ID[::-1])[-72:],
    sealed=True,
)
liar(
    "END without its signature", "end mark is missing", lambda c: setattr(c.end, "stored", SIGNATURE[::-1]), sealed=True
)
liar("END counts one more", "number of records", lambda c: c.end.lies.update(count=14), sealed=True)

# What is not encrypted of a record is authenticated with it


def lying(kind: int, **lies: int) -> Edit:
    return lambda craft: piece_of(craft, kind).lies.update(lies)


liar("MODEL of another raw length", WRONGLY, lying(MODEL, raw=700))
liar("LABELS of one row more", WRONGLY, lying(LABELS, count=13))
liar("VIEWS from another snapshot on", WRONGLY, lying(VIEWS, first=1))
liar("ROWS of another layer", WRONGLY, lying(ROWS, first_layer=1))
liar("INDEX of another raw length", CHANGED, lying(INDEX, raw=2_000))
liar("REFERENCE as an unknown record", WRONGLY, lying(REFERENCE, type=0x90))
UNREAD = Piece(0x90, b"", sealed=bytes(16_400), lies={"raw": 1_024 * 16_400})
liar(
    "more than 1,024 times the frame, not the record",
    "declares 16793600 bytes",
    lambda craft: craft.insert(UNREAD),
    with_key=True,
    sealed=True,
    read=False,
)
