"""Encryption, for the second reader: the lock, the keys and the payloads of records.

As `second_reader`, written from docs/format.md alone.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.format_conformance.second_reader.codecs import Refused, need
from tests.format_conformance.second_reader.records import END, Record, is_encrypted

KEY, PASSPHRASE = 1, 2

Secret = bytes | str  # a key of 32 bytes, or a passphrase


def hkdf(master: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256: extract, then expand."""
    extracted = hmac.new(salt, master, hashlib.sha256).digest()
    block, found = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.new(extracted, block + info + bytes([number]), hashlib.sha256).digest()
        found += block
    return found[:length]


@lru_cache(64)
def of_passphrase(passphrase: str, salt: bytes) -> bytes:
    octets = unicodedata.normalize("NFC", passphrase).encode()
    return hashlib.scrypt(octets, salt=salt, n=131_072, r=8, p=1, maxmem=256 << 20, dklen=32)


def file_key(superblock: bytes, secret: Secret | None) -> bytes:
    """The key that the records of this file are encrypted with."""
    scheme, salt, check = superblock[32], superblock[36:52], superblock[52:60]
    need(scheme != 0, "lock: scheme 0")
    if scheme not in (KEY, PASSPHRASE):
        raise Refused(f"unsupported: lock: scheme {scheme}")
    need(not any(superblock[33:36]), "lock: reserved bytes")
    if secret is None or isinstance(secret, str) != (scheme == PASSPHRASE):
        raise Refused(f"locked: the file needs a {'key' if scheme == KEY else 'passphrase'}")
    master = of_passphrase(secret, salt) if isinstance(secret, str) else secret
    derived = hkdf(master, salt, b"tsc file key 1" + superblock[16:32], 40)
    if derived[32:] != check:
        raise Refused("locked: another key or passphrase")
    return derived[:32]


def decrypted(data: memoryview, records: list[Record], secret: Secret | None) -> memoryview:
    """The file with every encrypted payload replaced by its zstd frame, whose length is what `stored` says less the
    tag; the bytes of the tag stay behind it.  A file that is not encrypted is as it was."""
    if not is_encrypted(data):
        return data
    superblock = bytes(data[:64])
    cipher = AESGCM(file_key(superblock, secret))
    clear = bytearray(data)
    for sequence, record in enumerate(records):
        if record.type == END:
            continue
        at, stop = record.offset + 64, record.offset + 64 + record.stored
        about = superblock + bytes(data[record.offset : record.offset + 56])
        try:
            frame = cipher.decrypt(sequence.to_bytes(12, "little"), bytes(data[at:stop]), about)
        except InvalidTag:
            raise Refused(f"corrupt: record {sequence}: tag") from None
        clear[at : at + len(frame)] = frame
    return memoryview(bytes(clear))
