"""Encryption of records: AES-256-GCM, under a key that one writing of one file has to itself.

Every writing draws a new salt, from which, with the secret and the file's identity, its key is
derived.  So a record's number can be its nonce, and a record of an older version of the same file
fits nowhere in a newer one.  What is authenticated with a record is the whole superblock and the
record's header: its file, place, type and lengths.  INDEX, which lists all others, is the last one
that is encrypted: without the key, nobody can end a file earlier.

docs/format.md, section "Encryption", is the specification.  The ciphers are those of
`cryptography`, which is imported when the first encrypted file is met.
"""

from __future__ import annotations

import hmac
import os
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from formats.errors import CorruptError, LimitError, LockedError, UnsupportedFileError, UsageError, optional_packages

KEY_BYTES, SALT_BYTES, CHECK_BYTES, TAG_BYTES, NONCE_BYTES = 32, 16, 8, 16, 12
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 17, 8, 1  # of scheme 2, for ever: 128 MiB, about half a second
MAX_PASSPHRASE = 1024  # characters
_LOCK = struct.Struct("<B3s16s8s")
_INFO = b"tsc file key 1"


class Scheme(IntEnum):
    """How a file's key is derived.  Literal ids, for ever; other parameters would be another
    scheme.
    """

    KEY = 1  # from 32 random bytes
    PASSPHRASE = 2  # from a passphrase, by scrypt


@dataclass(frozen=True)
class Lock:
    """What the superblock of an encrypted file says: how its key is derived, and 8 bytes by which a
    key is known.
    """

    scheme: Scheme
    salt: bytes
    check: bytes

    def pack(self) -> bytes:
        return _LOCK.pack(self.scheme, bytes(3), self.salt, self.check)

    @classmethod
    def unpack(cls, data: bytes) -> Lock:
        """Raises CorruptError, UnsupportedFileError."""
        scheme, reserved, salt, check = _LOCK.unpack(data)
        if any(reserved):
            raise CorruptError("reserved bytes of the superblock are set")
        if scheme == 0:
            raise CorruptError("an encrypted file does not say how")
        if scheme not in tuple(Scheme):
            raise UnsupportedFileError(f"encryption scheme {scheme} is not known to this reader", hint="update tsc")
        return cls(Scheme(scheme), salt, check)


class Secret:
    """What keys of files are derived from: 32 random bytes or a passphrase.  It is never shown."""

    def __init__(self, scheme: Scheme, value: bytes) -> None:
        self.scheme = scheme
        self._value = value
        self._stretched: tuple[bytes, bytes] = b"", b""  # of the salt that was asked for last

    @classmethod
    def of_key(cls, key: bytes) -> Secret:
        """Raises UsageError if the key is not 32 bytes long."""
        if len(key) != KEY_BYTES:
            raise UsageError(f"a key of {len(key)} bytes: it must have {KEY_BYTES}")
        return cls(Scheme.KEY, bytes(key))

    @classmethod
    def of_passphrase(cls, text: str) -> Secret:
        """A passphrase, in Unicode's normal form C, so that it is the same on every keyboard.
        Raises UsageError.
        """
        if not text:
            raise UsageError("the passphrase is empty")
        if len(text) > MAX_PASSPHRASE:
            raise UsageError(f"the passphrase has more than {MAX_PASSPHRASE} characters")
        try:
            return cls(Scheme.PASSPHRASE, unicodedata.normalize("NFC", text).encode())
        except UnicodeEncodeError:
            raise UsageError("the passphrase is not valid Unicode") from None

    @classmethod
    def random(cls) -> Secret:
        """A key that nobody else has."""
        return cls(Scheme.KEY, os.urandom(KEY_BYTES))

    def __repr__(self) -> str:
        return f"Secret({self.scheme.name})"

    def master(self, salt: bytes) -> bytes:
        """32 bytes.  A passphrase is stretched by scrypt, which takes 128 MiB.  Raises LimitError
        without them.
        """
        if self.scheme is Scheme.KEY:
            return self._value
        # taken once: another thread may stretch for another file
        known, stretched = self._stretched
        if known != salt:
            with optional_packages("crypto", "encryption"):
                from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

            try:
                kdf = Scrypt(salt=salt, length=KEY_BYTES, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P)
                stretched = kdf.derive(self._value)
            except MemoryError:
                need = 128 * SCRYPT_N * SCRYPT_R >> 20
                raise LimitError(f"deriving a key from a passphrase takes {need} MiB of memory") from None
            self._stretched = salt, stretched
        return stretched


# what gives the secret of a file, asked only if it is encrypted: (path, scheme) -> secret
KeySource = Secret | Callable[[str, Scheme], Secret]


class Cipher:
    """The key of one writing of one file."""

    def __init__(self, secret: Secret, file_id: bytes, salt: bytes) -> None:
        with optional_packages("crypto", "encryption"):
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        kdf = HKDF(algorithm=SHA256(), length=KEY_BYTES + CHECK_BYTES, salt=salt, info=_INFO + file_id)
        derived = kdf.derive(secret.master(salt))
        self.lock = Lock(secret.scheme, salt, derived[KEY_BYTES:])
        self._aead = AESGCM(derived[:KEY_BYTES])

    @classmethod
    def fresh(cls, secret: Secret, file_id: bytes) -> Cipher:
        """For writing a file: no other writing has its key."""
        return cls(secret, file_id, os.urandom(SALT_BYTES))

    @classmethod
    def of_file(cls, key: KeySource | None, file_id: bytes, lock: Lock, path: str) -> tuple[Secret, Cipher]:
        """For reading a file.  Raises LockedError: there is no key, or it is another one."""
        if key is None:
            what = "a passphrase" if lock.scheme is Scheme.PASSPHRASE else "a key"
            raise LockedError(
                f"is encrypted with {what}, and none was given",
                path=path,
                hint="load(path, Secret.of_key(...)) gives one",
            )
        secret = key if isinstance(key, Secret) else key(path, lock.scheme)
        if secret.scheme is not lock.scheme:
            has, needs = ("a key", "a passphrase") if lock.scheme is Scheme.PASSPHRASE else ("a passphrase", "a key")
            raise LockedError(f"is encrypted with {needs}, and {has} was given", path=path)
        cipher = cls(secret, file_id, lock.salt)
        if not hmac.compare_digest(cipher.lock.check, lock.check):
            what = "passphrase" if lock.scheme is Scheme.PASSPHRASE else "key"
            raise LockedError(f"is encrypted with another {what} than the one given", path=path)
        return secret, cipher

    def seal(self, frame: bytes, sequence: int, context: bytes) -> bytes:
        """`frame` encrypted, and 16 bytes that authenticate it and `context` (superblock and record
        header).
        """
        return self._aead.encrypt(sequence.to_bytes(NONCE_BYTES, "little"), frame, context)

    def open(self, stored: bytes, sequence: int, context: bytes) -> bytes:
        """What `seal` was given.  Raises CorruptError if it or its context is not what was sealed
        with this key.
        """
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(sequence.to_bytes(NONCE_BYTES, "little"), stored, context)
        except InvalidTag:
            raise CorruptError("a record was changed, or is of another file or place") from None
