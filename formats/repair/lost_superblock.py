"""What a damaged superblock said: mended where one byte was damaged, else an identity that is as good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import google_crc32c

from formats.container.records import FILE_ID_BYTES, SUPERBLOCK_BYTES


def mended(data: bytes) -> bytes:
    """A superblock of which one byte was damaged, as it was; another one as it is.

    An encrypted file has its salt nowhere else, and every bit of its superblock is authenticated with every record.
    """
    if len(data) < SUPERBLOCK_BYTES or sealed(data):
        return data
    for at, change in product(range(SUPERBLOCK_BYTES), range(1, 256)):
        tried = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
        if sealed(tried):
            return tried
    return data


def sealed(superblock: bytes) -> bool:
    return len(superblock) == SUPERBLOCK_BYTES and google_crc32c.value(superblock[:-4]) == int.from_bytes(
        superblock[-4:], "little"
    )


def identity_of(head: bytes, crc: int) -> bytes:
    """An identity with which a header of these 60 bytes has this CRC.

    There are many, and all are as good: a CRC is linear, so that an identity acts on every header by the same 32 bits.
    """
    pad = bytes(FILE_ID_BYTES - 4)
    base = google_crc32c.value(pad + bytes(4) + head)
    effects = [google_crc32c.value(pad + (1 << bit).to_bytes(4, "little") + head) ^ base for bit in range(32)]
    return pad + _solved(effects, crc ^ base).to_bytes(4, "little")


def _solved(effects: Sequence[int], wanted: int) -> int:
    """The bits whose effects add up (XOR) to `wanted`; the effects are independent, as a CRC's are."""
    basis: dict[int, tuple[int, int]] = {}  # highest bit -> value, bits that make it
    for bit, effect in enumerate(effects):
        made, value = _reduced(effect, basis.items())
        basis[value.bit_length()] = value, made ^ 1 << bit
    return _reduced(wanted, basis.items())[0]


def _reduced(value: int, basis: Iterable[tuple[int, tuple[int, int]]]) -> tuple[int, int]:
    made, known = 0, dict(basis)
    while value and value.bit_length() in known:
        part, bits = known[value.bit_length()]
        value, made = value ^ part, made ^ bits
    return made, value
