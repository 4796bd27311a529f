"""The container of a .tsc file, for the second reader: checksums, superblock, record headers and their order.

As `second_reader`, written from docs/format.md alone.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tests.format_conformance.second_reader.codecs import Refused, need
from tests.format_conformance.second_reader.payload import MIB, unframe

MODEL, ROWS, LABELS, VIEWS, HEADER, INDEX, END, KEPT, PROFILE, STATES, REFERENCE, ATTENTION = *range(1, 11), 0x81, 0x82
KNOWN = {MODEL, ROWS, LABELS, VIEWS, HEADER, INDEX, END, KEPT, PROFILE, STATES, REFERENCE, ATTENTION}
CODED = {ROWS, STATES}  # types whose records have a codec and a part
LAYERED = {ROWS, KEPT, STATES, ATTENTION}  # types whose records are of some layers
PLACED = {ROWS, LABELS, KEPT, VIEWS, STATES, END}  # types that say where they begin
TAG = 16  # bytes behind the ciphertext of a payload


# Checksum


def crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # 0x1EDC6F41 with its bits reversed
        table.append(value)
    return table


CRC_TABLE = crc_table()


def crc32c(data: bytes | memoryview) -> int:
    table, crc = CRC_TABLE, 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


# Records


class Record(NamedTuple):
    """What INDEX says of a record, in its order."""

    offset: int
    type: int
    codec: int
    stored: int
    raw: int
    part: int
    first_layer: int
    layer_count: int
    first: int
    number: int  # how many rows, snapshots, tokens or records ("count" in the text)

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.layer_count)


def is_encrypted(data: memoryview) -> bool:
    return bool(data[10] & 1)


def read_superblock(data: memoryview) -> bytes:
    """The file identity."""
    need(len(data) >= 64, "shorter than a superblock")
    signature = bytes(data[:8])
    need(signature[:4] == b"\x89TSC" and signature[5:] == b"\r\n\x1a", "signature")
    if data[4] != 1:
        raise Refused(f"unsupported: major version {data[4]}")
    need(crc32c(data[:60]) == int.from_bytes(data[60:64], "little"), "superblock CRC")
    if data[8:10] != bytes(2):
        raise Refused(f"unsupported: minor version {int.from_bytes(data[8:10], 'little')}")
    need(data[10] & 0xFE == 0, "reserved flag")
    need(not any(data[12:16]), "reserved bytes of the superblock")
    need(is_encrypted(data) or not any(data[32:60]), "a lock, or reserved bytes, in a file that is not encrypted")
    return bytes(data[16:32])


def read_record(data: memoryview, offset: int, sequence: int, identity: bytes) -> Record:
    where, encrypted = f"record {sequence}", is_encrypted(data)
    need(len(data) - offset >= 64, f"{where}: header is cut off")
    header = bytes(data[offset : offset + 64])
    (
        kind,
        reserved_a,
        codec,
        number,
        stored,
        raw,
        part,
        reserved_b,
        first_layer,
        layer_count,
        reserved_c,
        first,
        count,
        payload_crc,
        header_crc,
    ) = struct.unpack("<BBHIQQHHIIIQQII", header)
    need(crc32c(identity + header[:60]) == header_crc, f"{where}: header CRC")
    need(number == sequence, f"{where}: sequence number {number}")
    need(reserved_a == reserved_b == reserved_c == 0, f"{where}: reserved bytes")
    need(kind not in (0x00, 0x80), f"{where}: type {kind}")
    if kind not in KNOWN and kind < 0x80:
        raise Refused(f"unsupported: {where}: type {kind}")
    if kind in KNOWN:
        need(kind in CODED or codec == part == 0, f"{where}: codec and part must be 0")
        need(kind in LAYERED or first_layer == layer_count == 0, f"{where}: layers must be 0")
        need(kind in PLACED or first == 0, f"{where}: first must be 0")
        need(kind not in (MODEL, HEADER, INDEX, PROFILE) or count == 0, f"{where}: count must be 0")
    need(stored <= len(data) - offset - 64, f"{where}: payload is cut off")
    frame = stored - (TAG if encrypted and kind != END else 0)
    need(frame >= 0, f"{where}: shorter than a tag")
    need(raw <= 256 * MIB and (raw <= 16 * MIB or raw <= 1024 * frame), f"{where}: raw length {raw}")
    need(raw >= 1 or kind == END, f"{where}: empty payload")
    need(frame <= raw + raw // 128 + 4096, f"{where}: stored length {stored}")
    need(crc32c(data[offset + 64 : offset + 64 + stored]) == payload_crc, f"{where}: payload CRC")
    return Record(offset, kind, codec, stored, raw, part, first_layer, layer_count, first, count)


def read_records(data: memoryview, identity: bytes) -> list[Record]:
    """All records, in a valid order, up to an END that closes the file."""
    records: list[Record] = []
    offset = 64
    while not records or records[-1].type != END:
        need(len(records) < 2**20, "more than 2^20 records")
        record = read_record(data, offset, len(records), identity)
        records.append(record)
        offset += 64 + record.stored
    need(offset == len(data), "bytes behind END")
    need(len(records) >= 4, "too few records")
    for number, record in enumerate(records):
        fixed = {0: MODEL, len(records) - 3: HEADER, len(records) - 2: INDEX, len(records) - 1: END}
        expected = fixed.get(number)
        if expected is None:
            need(record.type not in (MODEL, HEADER, INDEX), f"record {number}: type {record.type} is out of place")
        else:
            need(record.type == expected, f"record {number}: type {record.type} in place of {expected}")
    for kind, name in ((REFERENCE, "REFERENCE"), (PROFILE, "PROFILE")):
        need(sum(record.type == kind for record in records) <= 1, f"more than one {name}")
    end = records[-1]
    need(end.stored == 8 and end.raw == 0, "length of END")
    need(data[end.offset + 64 :] == data[:8], "payload of END")
    need(end.first == records[-2].offset, "END does not point at INDEX")
    need(end.number == len(records), "END counts another number of records")
    return records


def payload(data: memoryview, record: Record) -> bytes:
    """The decompressed payload of one record; its checksum was right, and `data` is decrypted."""
    length = record.stored - (TAG if is_encrypted(data) else 0)
    frame = bytes(data[record.offset + 64 : record.offset + 64 + length])
    return unframe(frame, record.raw, f"payload at {record.offset}")
