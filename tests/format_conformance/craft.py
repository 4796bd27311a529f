"""Take a valid .tsc file apart and put it back together with edits.

Every checksum, length, index line and stated ratio is right again, unless an edit says otherwise.

Nothing of `formats` is used: a broken writer could not make the file that shows its own mistake.
"""

from __future__ import annotations

import decimal
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import google_crc32c
import zstandard

from tests.format_conformance.seal import TAG, Seal

MODEL, ROWS, LABELS, VIEWS, HEADER, INDEX, END, KEPT, PROFILE, STATES, REFERENCE, ATTENTION = *range(1, 11), 0x81, 0x82
ENCRYPTED = 1  # a flag
SIGNATURE = bytes.fromhex("89 54 53 43 01 0d 0a 1a")
INDEX_COLUMNS = ("offset", "type", "codec", "stored", "raw", "part", "first_layer", "layer_count", "first", "count")
_HEADER_FORMAT = "<BBHIQQHHIIIQQI"  # without the header CRC, which follows
_HEADER_FIELDS = (
    "type",
    "reserved_a",
    "codec",
    "sequence",
    "stored",
    "raw",
    "part",
    "reserved_b",
    "first_layer",
    "layer_count",
    "reserved_c",
    "first",
    "count",
    "payload_crc",
)
_DESCRIBED = ("codec", "part", "first_layer", "layer_count", "first", "count")
_CODES = {"U8": "B", "U16": "H", "I16": "h", "I32": "i", "U32": "I", "I64": "q"}
_RATIOS = ("ratio_trace", "ratio_final")
_RATIO = re.compile(rb'"(ratio_trace|ratio_final)":[-+.0-9eE]+')

Tensor = tuple[str, list[int], bytes]  # dtype, shape, octets


@dataclass
class Piece:
    """One record.  `stored` replaces the zstd frame of `raw`; `lies` are written over header fields at the very end.

    In an encrypted file `sealed` replaces what its payload is encrypted to, and `encrypted` says whether it is.
    """

    type: int
    raw: bytes
    codec: int = 0
    part: int = 0
    first_layer: int = 0
    layer_count: int = 0
    first: int = 0
    count: int = 0
    stored: bytes | None = None
    lies: dict[str, int] = field(default_factory=dict)
    sealed: bytes | Callable[[bytes], bytes] | None = None  # or what is to be made of it
    encrypted: bool | None = None  # None: all but END are

    def header(self, sequence: int, stored: bytes) -> dict[str, int]:
        true = {name: getattr(self, name) for name in ("type", *_DESCRIBED)}
        lengths = {"stored": len(stored), "raw": len(self.raw), "payload_crc": google_crc32c.value(stored)}
        reserved = {"reserved_a": 0, "reserved_b": 0, "reserved_c": 0}
        return true | lengths | reserved | {"sequence": sequence} | self.lies

    def edit_json(self, edit: Callable[[Any], object]) -> None:
        """Apply `edit` to the parsed payload, in place."""
        value = json.loads(self.raw)
        edit(value)
        self.raw = spell(value)

    def edit_table(self, edit: Callable[[dict[str, Any]], object]) -> None:
        """Apply `edit` to the safetensors header, in place; the data stays as it is."""
        header, data = split_table(self.raw)
        edit(header)
        self.raw = join_table(spell(header), data)

    def integers(self, name: str) -> list[int]:
        header, data = split_table(self.raw)
        begin, stop = header[name]["data_offsets"]
        code = _CODES[header[name]["dtype"]]
        return [value for (value,) in struct.iter_unpack(f"<{code}", data[begin:stop])]

    def set_integers(self, name: str, values: list[int], *, dtype: str | None = None) -> None:
        """Replace an integer tensor; its first dimension follows from the number of values."""
        tensors = self.tensors()
        old, shape, _ = tensors[name]
        dtype = dtype or old
        width = shape[1] if len(shape) == 2 else 1
        octets = struct.pack(f"<{len(values)}{_CODES[dtype]}", *values)
        self.set_tensors(tensors | {name: (dtype, [len(values) // width, *shape[1:]], octets)})

    def tensors(self) -> dict[str, Tensor]:
        header, data = split_table(self.raw)
        return {
            name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for name, entry in header.items()
        }

    def set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Replace the whole table; whether octets fit their dtype and shape is up to the caller."""
        header, at = {}, 0
        for name, (dtype, shape, octets) in tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(octets)]}
            at += len(octets)
        self.raw = join_table(spell(header), b"".join(octets for _, _, octets in tensors.values()))


@dataclass
class Craft:
    """A whole file.  INDEX, END and the ratios are made anew unless `index_raw` and `ratios` say otherwise.

    With a `seal` it is encrypted; the flag that says so is one of `flags`.
    """

    file_id: bytes
    records: list[Piece]
    minor: int = 0
    flags: int = 0
    reserved: dict[int, int] = field(default_factory=dict)  # bytes of the superblock by offset
    index_raw: bytes | None = None  # this payload instead of one that is made anew
    edit_index: Callable[[list[list[int]]], object] = lambda _: None
    index: Piece = field(default_factory=lambda: Piece(INDEX, b""))
    end: Piece = field(default_factory=lambda: Piece(END, b"", stored=SIGNATURE))
    tail: bytes = b""
    ratios: bool = True  # whether HEADER is to state the ratios of the file that comes out
    seal: Seal | None = None
    lock: bytes | None = None  # instead of that of `seal`

    @classmethod
    def of(cls, data: bytes, seal: Seal | None = None) -> Craft:
        """The parts of a valid file; of an encrypted one whose seal is not given, what is stored of them."""
        pieces, at = [], 64
        encrypted = bool(data[10] & ENCRYPTED)
        while at < len(data):
            found = dict(zip(_HEADER_FIELDS, struct.unpack_from(_HEADER_FORMAT, data, at), strict=True))
            stored = data[at + 64 : at + 64 + found["stored"]]
            kept = {name: found[name] for name in _DESCRIBED}
            if encrypted and seal is None and found["type"] != END:
                pieces.append(Piece(found["type"], b"", **kept, lies={"raw": found["raw"]}, sealed=stored))
                at += 64 + len(stored)
                continue
            about, frame = data[:64] + data[at : at + 56], stored
            if encrypted and seal is not None and found["type"] != END:
                frame = seal.opened(stored, len(pieces), about)
            raw = b"" if found["type"] == END else zstandard.ZstdDecompressor().decompress(frame)
            pieces.append(Piece(found["type"], raw, **kept))
            at += 64 + len(stored)
        craft = cls(data[16:32], pieces[:-2], minor=int.from_bytes(data[8:10], "little"))
        if encrypted:
            craft.flags, craft.seal = ENCRYPTED, seal
        if encrypted and seal is None:  # what is stored of INDEX stays, too, and states what it did
            craft.lock, craft.index, craft.ratios = data[32:60], pieces[-2], False
        return craft

    def __getitem__(self, type_: int) -> Piece:
        """The first record of a type."""
        return next(piece for piece in self.records if piece.type == type_)

    def rows(self, number: int) -> Piece:
        return [piece for piece in self.records if piece.type == ROWS][number]

    def insert(self, piece: Piece) -> Piece:
        """Put a record before HEADER, where records of any order may stand."""
        self.records.insert(-1, piece)
        return piece

    def build(self) -> bytes:
        data = self._once()
        # a ratio moves with the length of its own spelling, so that the ratio of a length may give another length
        for nearby in _NEARBY if self.ratios else ():
            headers = [piece for piece in self.records if piece.type == HEADER]
            if all(_right(piece, len(data)) for piece in headers):
                break
            for piece in headers:
                _state_ratios(piece, len(data) + nearby)
            data = self._once()
        return data

    def _once(self) -> bytes:
        lock = self.lock or (b"" if self.seal is None else self.seal.lock)
        out = bytearray(superblock(self.file_id, self.minor, self.flags, self.reserved, lock))
        lines: list[list[int]] = []
        for sequence, piece in enumerate(self.records):
            offset = len(out)
            header = self._append(out, piece, sequence)
            lines.append([offset, *(header[name] for name in INDEX_COLUMNS[1:])])
        self.edit_index(lines)
        # a field of 2^63 or more cannot be listed; its low 64 bits are as near as the index comes to it
        numbers = b"".join(struct.pack("<Q", value & 2**64 - 1) for line in lines for value in line)
        columns = len(lines[0]) if lines else len(INDEX_COLUMNS)
        entry = {"dtype": "I64", "shape": [len(lines), columns], "data_offsets": [0, len(numbers)]}
        made = join_table(spell({"records": entry}), numbers)
        self.index.raw = made if self.index_raw is None else self.index_raw
        self.end.first, self.end.count = len(out), len(self.records) + 2
        self._append(out, self.index, len(self.records))
        self._append(out, self.end, len(self.records) + 1)
        return bytes(out) + self.tail

    def _append(self, out: bytearray, piece: Piece, sequence: int) -> dict[str, int]:
        stored = self._sealed(piece, frame(piece.raw) if piece.stored is None else piece.stored, sequence, out)
        header = piece.header(sequence, stored)
        packed = struct.pack(_HEADER_FORMAT, *(header[name] for name in _HEADER_FIELDS))
        out += packed + struct.pack("<I", google_crc32c.value(self.file_id + packed)) + stored
        return header

    def _sealed(self, piece: Piece, stored: bytes, sequence: int, out: bytearray) -> bytes:
        """What is stored of a record whose frame is given."""
        if isinstance(piece.sealed, bytes):
            return piece.sealed
        encrypted = piece.type != END if piece.encrypted is None else piece.encrypted
        if self.seal is not None and encrypted:
            header = piece.header(sequence, stored + bytes(TAG))
            packed = struct.pack(_HEADER_FORMAT, *(header[name] for name in _HEADER_FIELDS))
            stored = self.seal.sealed(stored, sequence, bytes(out[:64]) + packed[:56])
        return stored if piece.sealed is None else piece.sealed(stored)


_FOUR_DIGITS = decimal.Context(prec=4, rounding=decimal.ROUND_DOWN)
_NEARBY = (0, 0, 0, *(sign * by for by in range(1, 9) for sign in (1, -1)))


def _stated(header: Piece) -> dict[str, tuple[float, int]]:
    """The ratios that HEADER states, by name, with the raw bytes of each; none where an edit left no sense in them."""
    try:
        value = json.loads(header.raw)
        found = {name: (float(value[name]), value["raw_bytes_" + name.removeprefix("ratio_")]) for name in _RATIOS}
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return {}
    return found if all(type(raw) is int and raw > 0 for _, raw in found.values()) else {}


def _right(header: Piece, length: int) -> bool:
    return all(abs(ratio * length / raw - 1) < 0.0015 for ratio, raw in _stated(header).values())


def _state_ratios(header: Piece, length: int) -> None:
    """Let HEADER state the ratios of a file of this length; all else in it stays as it is spelled."""
    raw = {name: raw for name, (_, raw) in _stated(header).items()}

    def spelled(found: re.Match[bytes]) -> bytes:
        right = float(_FOUR_DIGITS.divide(raw[found[1].decode()], length))
        return b'"%s":%s' % (found[1], repr(right).encode())

    header.raw = _RATIO.sub(spelled, header.raw) if raw else header.raw


def superblock(
    file_id: bytes, minor: int = 0, flags: int = 0, reserved: dict[int, int] | None = None, lock: bytes = b""
) -> bytes:
    head = bytearray(SIGNATURE + struct.pack("<HHI", minor, flags, 0) + file_id + (lock or bytes(28)))
    for offset, value in (reserved or {}).items():
        head[offset] = value
    return bytes(head) + struct.pack("<I", google_crc32c.value(bytes(head)))


def split_table(raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join_table(header: bytes, data: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def spell(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@lru_cache(256)
def frame(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(raw)


def raw_frame(
    content: bytes, *, size: int | None, window: int | None = None, dictionary: bytes = b"", blocks: bytes = b""
) -> bytes:
    """A zstd frame of uncompressed blocks, field by field as in RFC 8878.

    Args:
        size: the content size that it declares, None for none.
        window: the window descriptor byte; None makes a single-segment frame.
        dictionary: a dictionary identifier of 0, 1, 2 or 4 bytes.
        blocks: blocks to begin with, as they are.
    """
    descriptor = (3 << 6 if size is not None else 0) | (window is None) << 5 | {0: 0, 1: 1, 2: 2, 4: 3}[len(dictionary)]
    head = b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + (b"" if window is None else bytes([window])) + dictionary
    if size is not None:
        head += size.to_bytes(8, "little")
    pieces = [content[at : at + 65_536] for at in range(0, len(content), 65_536)] or [b""]
    for number, piece in enumerate(pieces):
        blocks += (len(piece) << 3 | (number == len(pieces) - 1)).to_bytes(3, "little") + piece
    return head + blocks
