"""The lock and the encryption of crafted files.  As `craft`, nothing of `formats` is used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.format_conformance.second_reader.encryption import KEY, PASSPHRASE, Secret, hkdf, of_passphrase

TAG = 16


@dataclass(frozen=True)
class Seal:
    """How one writing of one file is encrypted; the length of `salt` is up to the caller only where nobody looks."""

    secret: Secret
    file_id: bytes
    salt: bytes

    @cached_property
    def _derived(self) -> bytes:
        master = of_passphrase(self.secret, self.salt) if isinstance(self.secret, str) else self.secret
        return hkdf(master, self.salt, b"tsc file key 1" + self.file_id, 40)

    @cached_property
    def _cipher(self) -> AESGCM:
        return AESGCM(self._derived[:32])

    @property
    def lock(self) -> bytes:
        """Bytes 32 to 59 of the superblock."""
        scheme = PASSPHRASE if isinstance(self.secret, str) else KEY
        return bytes([scheme, 0, 0, 0]) + self.salt + self._derived[32:]

    def sealed(self, frame: bytes, sequence: int, about: bytes) -> bytes:
        return self._cipher.encrypt(sequence.to_bytes(12, "little"), frame, about)

    def opened(self, stored: bytes, sequence: int, about: bytes) -> bytes:
        return self._cipher.decrypt(sequence.to_bytes(12, "little"), stored, about)
