"""Get the secret of an encrypted file from an option, the environment or the terminal."""

from __future__ import annotations

import contextlib
import os
import stat
import sys

from formats.container.encryption import KEY_BYTES, KeySource, Scheme, Secret
from formats.container.reader import RecordReader
from formats.errors import LockedError, StorageError, TscError, UsageError
from formats.file.index import open_file
from tsc_cli import text_input
from tsc_cli.text_format import printable

from .output import message

KEY_VARIABLE = "TSC_KEY"  # 64 hexadecimal digits
PASSPHRASE_VARIABLE = "TSC_PASSPHRASE"
_MOST = 4096  # bytes of a key file that are looked at
_MAKE = "(umask 077; head -c 32 /dev/urandom > KEYFILE) makes one"


class Keys:
    """A `KeySource`: `--key-file`, else TSC_KEY or TSC_PASSPHRASE, else what is typed.

    Args:
        key_file: of the command line.
        ask: somebody may be asked for a passphrase, if there is a terminal.
    """

    def __init__(self, key_file: str | None, *, ask: bool = True) -> None:
        self._key = None if key_file is None else read_key(key_file)
        self._typed: Secret | None = None
        self._ask = ask

    @property
    def source(self) -> KeySource:
        """The source to read with; a key named on the command line is required, not only tried."""
        return self if self._key is None else self._key

    def ready(self, path: str) -> KeySource:
        """Return `source` after asking for a passphrase, before a progress bar hides the question.

        Raises:
            UsageError: the typed text is not a valid passphrase.
        """
        if self._key is None and self._may_ask:
            scheme = _scheme_of(path)
            if scheme is Scheme.PASSPHRASE:
                self(path, scheme)
        return self.source

    def known(self, path: str) -> bool:
        """Return whether the file can be read without asking anybody for a secret."""
        scheme = _scheme_of(path)
        variable = KEY_VARIABLE if scheme is Scheme.KEY else PASSPHRASE_VARIABLE
        return self._key is not None or scheme is None or variable in os.environ

    def __call__(self, path: str, scheme: Scheme) -> Secret:
        """The secret of a file that is encrypted in this way.

        Raises:
            LockedError: there is none.
            UsageError: it is not a valid key or passphrase.
        """
        if scheme is Scheme.KEY:
            secret = self._key or _key_of_environment()
            if secret is None:
                hint = f"--key-file KEYFILE, or {KEY_VARIABLE} ({2 * KEY_BYTES} hexadecimal digits)"
                raise LockedError("is encrypted with a key", path=path, hint=hint)
            return secret
        secret = _passphrase_of_environment() or self._typed
        if secret is None and self._may_ask:
            secret = self._typed = Secret.of_passphrase(_type(f"passphrase of {printable(path)}: "))
        if secret is None:
            hint = f"{PASSPHRASE_VARIABLE}, or a terminal to type it at"
            raise LockedError("is encrypted with a passphrase", path=path, hint=hint)
        return secret

    def new(self) -> Secret:
        """The secret to encrypt a new file with; a passphrase is typed twice.

        Raises:
            UsageError: there is none; two passphrases differ.
        """
        secret = self._key or _key_of_environment() or _passphrase_of_environment()
        if secret is not None:
            return secret
        if not self._may_ask:
            where = f"--key-file KEYFILE, {KEY_VARIABLE} or {PASSPHRASE_VARIABLE}"
            raise UsageError("no key or passphrase to encrypt with", hint=f"{where} gives it; {_MAKE}")
        first = _type("new passphrase: ")
        if _type("the same again: ") != first:
            raise UsageError("the two passphrases differ")
        return Secret.of_passphrase(first)

    @property
    def _may_ask(self) -> bool:
        return self._ask and sys.stdin.isatty() and sys.stderr.isatty()


def _scheme_of(path: str) -> Scheme | None:
    """How a file is encrypted; None also where it cannot be read, which shows later."""
    with contextlib.suppress(TscError):
        descriptor = open_file(path)
        with contextlib.closing(os.fdopen(descriptor, "rb")):
            lock = RecordReader(descriptor, path).lock
        return None if lock is None else lock.scheme
    return None


def read_key(path: str) -> Secret:
    """A key file: 32 bytes, or 64 hexadecimal digits and white space around them.

    Raises:
        StorageError: it cannot be read.  UsageError: it holds something else.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", path=path, hint=_MAKE) from error
    digits = data if len(data) == KEY_BYTES else _from_hex(data.decode("ascii", "replace"))
    if digits is None:
        raise UsageError(
            f"is not a valid key: {KEY_BYTES} bytes or {2 * KEY_BYTES} hexadecimal digits were expected",
            path=path,
            hint=_MAKE,
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and stat.S_ISREG(mode):
        message(f"{printable(path)} can be read by others: run chmod 600 on it")
    return Secret.of_key(digits)


def _key_of_environment() -> Secret | None:
    text = os.environ.get(KEY_VARIABLE)
    if text is None:
        return None
    digits = _from_hex(text)
    if digits is None:
        raise UsageError(f"{KEY_VARIABLE} is not a valid key: {2 * KEY_BYTES} hexadecimal digits were expected")
    return Secret.of_key(digits)


def _passphrase_of_environment() -> Secret | None:
    text = os.environ.get(PASSPHRASE_VARIABLE)
    try:
        return None if text is None else Secret.of_passphrase(text_input.of_system(text, PASSPHRASE_VARIABLE))
    except UsageError as error:
        raise UsageError(f"{PASSPHRASE_VARIABLE}: {error.message}") from None


def _from_hex(text: str) -> bytes | None:
    text = text.strip()
    try:
        return bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else None
    except ValueError:
        return None


def _type(prompt: str) -> str:
    import getpass

    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise UsageError("no passphrase was typed") from None
    except UnicodeDecodeError:
        raise UsageError("the passphrase is not valid Unicode") from None
