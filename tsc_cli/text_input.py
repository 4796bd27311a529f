"""Decode what a person or a file hands over into text that can be tokenized.

A command line, a file and stdin are bytes. A text is UTF-8; what is something else is refused by
name, and a byte order mark is taken off, since it would go into the prompt as tokens. Names of
files stay as the operating system has them.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
from typing import Any

from formats.errors import StorageError, UsageError

from .progress import Say, silent

MARK = "\ufeff"
_OTHERS = (  # the longer marks first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
MAX_TEXT = 1 << 28  # bytes of a prompt; a longer one is a mistake
_SAMPLE = 1 << 16  # bytes that are looked at to tell UTF-16 without a mark
_ESCAPED = "tsc.escaped"


def decode(data: bytes, name: str, say: Say = silent) -> str:
    """The text of a file, without a byte order mark.

    Args:
        name: of the file, for messages.
        say: told that a mark was taken off.
    Raises:
        UsageError: it is UTF-16, UTF-32 or no Unicode text at all.
    """
    encoding = next((encoding_name for mark, encoding_name in _OTHERS if data.startswith(mark)), None) or _unmarked(
        data
    )
    if encoding is not None:
        raise UsageError(
            f"is {encoding} text, not UTF-8", path=name, hint=f"iconv -f {encoding} -t UTF-8 makes it UTF-8"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        hint = "iconv -t UTF-8 -f with the text's encoding makes it UTF-8"
        raise UsageError("is not UTF-8 text", path=name, offset=error.start, hint=hint) from error
    return unmarked(text, name, say)


def read_text(path: str, say: Say = silent) -> str:
    """Read a UTF-8 text file, or stdin for `-`; `say` is told if a byte order mark is dropped."""
    if not path:
        raise UsageError("the name of the file to read is empty", hint="a file, or - for stdin")
    name = "stdin" if path == "-" else path
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_TEXT + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", path=name) from error
    if len(data) > MAX_TEXT:
        raise UsageError(f"is longer than {MAX_TEXT} bytes", path=name)
    return decode(data, name, say)


def read_prompt(prompt: str | None, prompt_file: str | None, say: Say, *, hint: str | None = None) -> str | None:
    """The prompt of a command: its argument, a file, or stdin for `-`; None if there is none.

    Raises:
        UsageError: there are two, or it is empty (`hint` says what to do without one), or no text.
    """
    if prompt is not None and prompt_file is not None:
        raise UsageError("give one prompt", hint="as an argument, with --prompt-file, or - for stdin")
    if prompt_file is None and prompt is None:
        return None
    if prompt_file is None and prompt is not None and prompt != "-":
        return require_content(argument(prompt, say=say), hint)
    return require_content(read_text(prompt_file or "-", say), hint)


def argument(text: str, name: str = "the prompt", say: Say = silent) -> str:
    """Decode a text of the command line.

    Raises:
        UsageError: it is not UTF-8.
    """
    return unmarked(of_system(text, name), name, say)


def of_system(text: str, name: str) -> str:
    """The text of an argument or of a variable of the environment.

    What Python could not decode by the locale (any byte beyond ASCII in the C locale) is decoded as
    UTF-8.

    Raises:
        UsageError: it is not UTF-8.
    """
    if is_text(text):
        return text
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} holds half of a surrogate pair at character {error.start}, which is not valid text"
        ) from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start})", hint="write it in UTF-8, or read it from a file"
        ) from None


def unmarked(text: str, name: str, say: Say = silent) -> str:
    """The text without the byte order mark that it begins with."""
    if not text.startswith(MARK):
        return text
    say(f"{name} begins with a byte order mark, which is taken off")
    return text.lstrip(MARK)


def require_content(text: str, hint: str | None = None) -> str:
    """The text.  Raises UsageError for one without a character."""
    if not text:
        raise UsageError("the prompt is empty", hint=hint)
    return text


def is_text(value: Any) -> bool:
    """Return False if text or JSON holds half of a surrogate pair, which cannot be encoded."""
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError:
        return False
    return True


def require_text(value: Any, what: str) -> None:
    """Raise UsageError for text or JSON that holds half of a surrogate pair."""
    if not is_text(value):
        raise UsageError(f"{what} holds half of a surrogate pair (\\ud800 to \\udfff), which is not valid text")


def shown(name: str) -> str:
    """Return a file's name as text, with bytes that are not UTF-8 as escapes."""
    if is_text(name):
        return name
    data = name.encode("utf-8", "surrogatepass" if _has_other_halves(name) else "surrogateescape")
    return data.decode("utf-8", "backslashreplace")


def _has_other_halves(name: str) -> bool:
    """True for halves of surrogate pairs that stand for no byte."""
    return any("\ud800" <= char <= "\udfff" and not "\udc80" <= char <= "\udcff" for char in name)


def _unmarked(data: bytes) -> str | None:
    """UTF-16 without a mark: in most texts every second byte is zero."""
    sample = data[:_SAMPLE]
    if len(data) % 2 or len(data) < 4:
        return None
    even, odd = sample[::2], sample[1::2]
    for zeros, others, name in ((odd, even, "UTF-16LE"), (even, odd, "UTF-16BE")):
        if 2 * zeros.count(0) > len(zeros) and not others.count(0):
            return name
    return None


def tolerant(stream: Any) -> None:
    """Let a standard stream take every text.

    Bytes of a name that are no text go out as they are, and characters that the stream's encoding
    lacks as escapes.
    """
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and getattr(stream, "errors", _ESCAPED) != _ESCAPED:
        reconfigure(errors=_ESCAPED)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char = error.object[error.start]
    if "\udc80" <= char <= "\udcff":
        return bytes([ord(char) - 0xDC00]), error.start + 1
    return char.encode("ascii", "backslashreplace").decode("ascii"), error.start + 1


codecs.register_error(_ESCAPED, _escape)
