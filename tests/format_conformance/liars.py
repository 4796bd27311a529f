"""Files whose checksums are right and whose container lies: frames, record headers, order, index, end mark."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import zstandard

from formats.codecs import CODECS
from formats.errors import CorruptError, TscError, UnsupportedFileError
from tests.format_conformance import samples
from tests.format_conformance.craft import (
    END,
    HEADER,
    INDEX,
    INDEX_COLUMNS,
    LABELS,
    MODEL,
    REFERENCE,
    SIGNATURE,
    VIEWS,
    Craft,
    Piece,
    frame,
    join_table,
    raw_frame,
)

MIB = 1 << 20
Edit = Callable[[Craft], object]
Lines = list[list[int]]


@dataclass(frozen=True)
class Liar:
    """A crafted file: an edit of a valid one (or a function that returns the bytes), and how it is to be refused.

    Attributes:
        sample: the valid one.
        opens: whether checking and opening let it pass, because it takes the values of rows to see the lie.
        accepted: why the product takes it although the specification does not; "" where it refuses it.
    """

    name: str
    message: str
    edit: Edit
    error: type[TscError] = CorruptError
    sample: str = "valid"
    opens: bool = False
    accepted: str = ""

    @cache  # noqa: B019  (liars are as many as they are, and each is read by several tests)
    def build(self) -> bytes:
        craft = Craft.of(samples.sample(self.sample))
        result = self.edit(craft)
        return result if isinstance(result, bytes) else craft.build()


LIARS: list[Liar] = []


def liar(
    name: str,
    message: str,
    edit: Edit,
    error: type[TscError] = CorruptError,
    *,
    sample: str = "valid",
    opens: bool = False,
    accepted: str = "",
) -> None:
    LIARS.append(Liar(name, message, edit, error, sample, opens, accepted))


# Frames.  LABELS stands for any record: it is read when a file is opened.


def framed(name: str, message: str, make: Callable[[bytes], bytes]) -> None:
    def edit(craft: Craft) -> None:
        craft[LABELS].stored = make(craft[LABELS].raw)

    liar(f"frame: {name}", message, edit)


def with_checksum(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(raw)


SKIPPABLE = bytes.fromhex("50 2a 4d 18 00 00 00 00")
RLE_BLOCK = (131_072 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"  # four bytes that stand for 128 KiB
OTHER_SIZE, UNREADABLE = "declares another size", "cannot be decoded"
framed("bomb that declares 1 TiB", OTHER_SIZE, lambda _: raw_frame(b"", size=1 << 40))
framed(
    "bomb of 64 MiB that declares little",
    UNREADABLE,
    lambda raw: raw_frame(b"", size=len(raw), window=0x68, blocks=RLE_BLOCK * 512),
)
framed("no content size", OTHER_SIZE, lambda raw: raw_frame(raw, size=None, window=0x50))
framed("second frame", UNREADABLE, lambda raw: frame(raw) + frame(b"more"))
framed("second frame, empty", UNREADABLE, lambda raw: frame(raw) + frame(b""))
framed("payload in two frames", OTHER_SIZE, lambda raw: frame(raw[:9]) + frame(raw[9:]))
framed("skippable frame ahead", "not a zstd frame", lambda raw: SKIPPABLE + frame(raw))
framed("skippable frame behind", UNREADABLE, lambda raw: frame(raw) + SKIPPABLE)
framed("bytes behind", UNREADABLE, lambda raw: frame(raw) + b"\0")
framed("cut short", UNREADABLE, lambda raw: frame(raw)[:-1])
framed("header cut short", "cannot be read", lambda raw: frame(raw)[:5])
framed("dictionary", "a window or a dictionary", lambda raw: raw_frame(raw, size=len(raw), dictionary=b"\1"))
framed("window of 16 MiB", "a window or a dictionary", lambda raw: raw_frame(raw, size=len(raw), window=0x70))
framed(
    "5,000 bytes of empty blocks",
    "bytes for 264 that it declares",
    lambda raw: raw_frame(raw, size=len(raw), blocks=bytes(3) * 1_700),
)
framed("shorter than declared", UNREADABLE, lambda raw: raw_frame(raw[:-1], size=len(raw)))
framed("longer than declared", UNREADABLE, lambda raw: raw_frame(raw + b"x", size=len(raw)))
framed("wrong checksum", UNREADABLE, lambda raw: with_checksum(raw)[:-1] + bytes([with_checksum(raw)[-1] ^ 1]))
framed("no frame at all", "not a zstd frame", lambda raw: raw)
framed("nothing stored", "not a zstd frame", lambda _: b"")


def extra(name: str, message: str, piece: Piece, error: type[TscError] = CorruptError) -> None:
    liar(name, message, lambda craft: craft.insert(copy.deepcopy(piece)), error)


extra(
    "frame: one segment of 9 MiB",
    "a window or a dictionary",
    Piece(0x90, b"", stored=raw_frame(b"", size=9 * MIB), lies={"raw": 9 * MIB}),
)
EMPTY_FRAMES = {
    "bytes behind": frame(b"") + b"\0",
    "second frame": frame(b"") * 2,
    "cut short": frame(b"")[:-1],
    "content": raw_frame(b"abc", size=0),
    "64 MiB of content": raw_frame(b"", size=0, window=0x68, blocks=RLE_BLOCK * 512),
}
for what, stored in EMPTY_FRAMES.items():
    extra(f"empty frame: {what}", "an empty payload", Piece(0x90, b"", stored=stored))

# Record headers


def lying(name: str, message: str, type_: int, error: type[TscError] = CorruptError, **lies: int) -> None:
    liar(name, message, lambda craft: craft[type_].lies.update(lies), error)


lying("raw length over 256 MiB", "declares 268435457 bytes", LABELS, raw=256 * MIB + 1)
lying("raw length over 1,024 times the stored", "declares 16777217 bytes", LABELS, raw=16 * MIB + 1)
lying("raw length 2^63 - 1", "declares 9223372036854775807 bytes", LABELS, raw=2**63 - 1)
lying("raw length 2^64 - 1", "cannot be", LABELS, raw=2**64 - 1)
lying("raw length one more", OTHER_SIZE, LABELS, raw=265)
lying("stored length one less", "does not tile", LABELS, stored=126)
lying("stored length 2^64 - 1", "cannot be", LABELS, stored=2**64 - 1)
lying("reserved byte 1", "reserved bits", LABELS, reserved_a=0x80)
lying("reserved bytes 26", "reserved bits", LABELS, reserved_b=1)
lying("reserved bytes 36", "reserved bits", LABELS, reserved_c=1 << 31)
lying("MODEL with first", "fields that its type does not have", MODEL, first=1)
lying("MODEL with codec", "fields that its type does not have", MODEL, codec=1)
lying("LABELS with part", "fields that its type does not have", LABELS, part=1)
lying("VIEWS with layers", "fields that its type does not have", VIEWS, layer_count=1)
lying("REFERENCE with first", "do not follow", REFERENCE, first=0, count=0)
lying("HEADER with count", "fields that its type does not have", HEADER, count=1)
liar("INDEX with first layer", "fields that its type does not have", lambda c: c.index.lies.update(first_layer=1))
liar("END with codec", "fields that its type does not have", lambda c: c.end.lies.update(codec=1))
extra("unknown type that is needed", "0x10 is not known", Piece(0x10, b"?"), UnsupportedFileError)
extra("type 0x7f", "0x7f is not known", Piece(0x7F, b"?"), UnsupportedFileError)
extra("type 0", "type 0 is not valid", Piece(0x00, b"?"))
extra("type 0x80", "type 128 is not valid", Piece(0x80, b"?"))
extra("unknown type with a field of 2^63", "cannot be", Piece(0x90, b"?", first=1 << 63))
extra("unknown type with a reserved bit", "reserved bits", Piece(0x90, b"?", lies={"reserved_c": 1}))

# Order


def swap_records(craft: Craft) -> bytes:
    """Two records of equal length, moved with their sequence numbers."""
    for name in ("first", "second"):
        craft.records.insert(-1, Piece(0x90, name.encode().ljust(8)))
    data = craft.build()
    at = [line for line in range(64, len(data)) if data[line] == 0x90 and data[line + 64 :].startswith(frame(b"")[:4])]
    length = at[1] - at[0]
    return data[: at[0]] + data[at[1] : at[1] + length] + data[at[0] : at[1]] + data[at[1] + length :]


def record_of_another_file(craft: Craft) -> bytes:
    here = craft.build()
    there = Craft(bytes(16), craft.records).build()
    return here[:64] + there[64 : 64 + 64] + here[128:]


def move(craft: Craft, type_: int, to: int) -> None:
    piece = craft[type_]
    craft.records.remove(piece)
    craft.records.insert(to, piece)


def twice(type_: int) -> Edit:
    return lambda craft: craft.insert(copy.deepcopy(craft[type_]))


def without(type_: int) -> Edit:
    return lambda craft: craft.records.remove(craft[type_])


liar("two records swapped", "stands where record", swap_records)
liar("record of another file", "checksum of a record header", record_of_another_file)
liar("another sequence number", "stands where record", lambda c: c[LABELS].lies.update(sequence=8))
liar("two MODEL", "one model record", twice(MODEL))
liar("two HEADER", "one header record", twice(HEADER))
liar("two REFERENCE", "do not follow", twice(REFERENCE))
extra("INDEX among the records", "cannot be", Piece(INDEX, b"{}"))
extra("END among the records", "cannot be", Piece(END, b"", stored=SIGNATURE))
liar("no MODEL", "one model record", without(MODEL))
liar("no HEADER", "one header record", without(HEADER))
liar("no LABELS", "outside the 0 rows", without(LABELS))
liar("no VIEWS", "there is no snapshot", without(VIEWS))
liar("no records", "points outside the file", lambda c: c.records.clear())
liar("MODEL second", "one model record, as record 0", lambda c: move(c, MODEL, 1))
liar("HEADER not before INDEX", "one header record, as record 10", lambda c: move(c, HEADER, 9))
liar(
    "newer minor version", "format version 1.1 is not supported", lambda c: setattr(c, "minor", 1), UnsupportedFileError
)
liar("reserved flag", "reserved bits of the superblock", lambda c: setattr(c, "flags", 0x0080))
liar("reserved byte 12", "reserved bits of the superblock", lambda c: c.reserved.update({12: 1}))
liar("reserved byte 59", "reserved bits of the superblock", lambda c: c.reserved.update({59: 1}))

# INDEX and END


NO_TABLE = join_table(b"{}", b"")


def listed(name: str, message: str, edit: Callable[[Lines], object], error: type[TscError] = CorruptError) -> None:
    liar(f"index: {name}", message, lambda craft: setattr(craft, "edit_index", edit), error)


def one_more(line: int, column: int) -> Callable[[Lines], object]:
    def edit(lines: Lines) -> None:
        lines[line][column] += 1

    return edit


WRONGLY = "describes this record wrongly"
for column, title in enumerate(INDEX_COLUMNS):
    listed(f"{title} of LABELS", "does not tile" if title == "offset" else WRONGLY, one_more(7, column))
ROWS_MESSAGES = (
    "does not tile",
    WRONGLY,
    WRONGLY,
    "does not tile",
    WRONGLY,
    "stored twice",
    "cannot be stored together",
    "cannot be stored together",
    "without labels",
    "without labels",
)
for column, text in enumerate(ROWS_MESSAGES):
    listed(f"{INDEX_COLUMNS[column]} of ROWS", text, one_more(5, column))
UNKNOWN = max(CODECS) + 1
listed(
    "unknown codec of ROWS",
    f"codec {UNKNOWN} is not known",
    lambda lines: lines[5].__setitem__(2, UNKNOWN),
    UnsupportedFileError,
)


def negative_layer(lines: Lines) -> None:
    """Layer 2 of 4, named from the end: the coverage of the rows looks right, and none would be read."""
    lines[3][6] = lines[4][6] = -2


listed("negative layer", "cannot be", negative_layer)
listed("hidden REFERENCE", WRONGLY, lambda lines: lines[9].__setitem__(1, 0x90))
listed("line missing", "'records' is I64 [10, 10]", lambda lines: lines.pop(5))
listed("line repeated", "'records' is I64 [12, 10]", lambda lines: lines.insert(5, lines[5]))
listed("lines swapped", "does not tile", lambda lines: lines.insert(5, lines.pop(6)))
listed("nine columns", "'records' is I64 [11, 9]", lambda lines: [line.pop() for line in lines])
liar("index: not a table", "too short", lambda c: setattr(c, "index_raw", b"{}"))
liar("index: 2 MiB for seven lines", "an index of 2097152 bytes", lambda c: setattr(c, "index_raw", bytes(2 * MIB)))
liar("index: no table", "tensors ['records'] were expected", lambda c: setattr(c, "index_raw", NO_TABLE))


def ended(name: str, message: str, **lies: int) -> None:
    liar(f"end: {name}", message, lambda craft: craft.end.lies.update(lies))


ended("points to the first record", "record 0 stands where", first=64)
ended("points into the superblock", "outside the file", first=0)
ended("points behind the file", "outside the file", first=1 << 40)
ended("wrong count", "wrong number of records", count=14)
ended("2^64 - 1 records", "wrong number of records", count=2**64 - 1)
ended("another sequence number", "wrong number of records", sequence=11)
ended("another type", "an empty payload", type=0x90)
ended("raw length", "not an end mark", raw=8)
liar("end: longer payload", "checksum of a record header", lambda c: setattr(c.end, "stored", SIGNATURE * 2))
liar("end: another signature", "end mark is missing", lambda c: setattr(c.end, "stored", SIGNATURE[:-1] + b"\0"))
liar("end: bytes behind", "end mark is missing", lambda c: setattr(c, "tail", b"\n"))
liar("end: a second one", "does not point to the index", lambda c: c.build() + c.build()[-72:])


def ends_too_early(craft: Craft) -> None:
    """ROWS come last, of which opening reads no header, and INDEX lets them end a byte before it begins."""
    craft.records.append(craft.records.pop(1))
    craft.edit_index = lambda lines: lines[-1].__setitem__(3, lines[-1][3] - 1)


liar("index: the last record ends too early", "does not tile", ends_too_early)
