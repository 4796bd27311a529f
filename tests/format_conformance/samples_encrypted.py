"""Encrypted samples, made by the product from files that are not, the same at every call."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from formats.container.encryption import Secret
from formats.container.writer import RecordWriter
from formats.file.finish import copy_records, finish_records
from formats.file.reader import TraceFile
from tests.format_conformance import samples
from tests.format_conformance.seal import Seal

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
PASSPHRASE = "correct horse, Schlüssel"
SALT, OTHER_SALT = bytes(range(100, 116)), bytes(range(50, 66))
FILE_ID = bytes(range(200, 216))


@cache
def secret_of(given: bytes | str) -> Secret:
    return Secret.of_passphrase(given) if isinstance(given, str) else Secret.of_key(given)


def encrypted(data: bytes, given: bytes | str = KEY, *, salt: bytes = SALT, file_id: bytes = FILE_ID) -> bytes:
    """A file under a key or passphrase, as `tsc encrypt` writes it, but for the salt and the identity."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plain.tsc"
        path.write_bytes(data)
        file, sink = TraceFile(path), io.BytesIO()
        writer = RecordWriter(sink, file_id, secret_of(given), salt)
        copy_records(file, writer)
        finish_records(writer, file.header)
    return sink.getvalue()


@cache
def sample(name: str, given: bytes | str = KEY, salt: bytes = SALT, file_id: bytes = FILE_ID) -> bytes:
    return encrypted(samples.sample(name), given, salt=salt, file_id=file_id)


def seal(given: bytes | str = KEY, salt: bytes = SALT, file_id: bytes = FILE_ID) -> Seal:
    return Seal(given, file_id, salt)
