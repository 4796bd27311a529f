"""The closed registry of codecs.  Nothing that a file says can load anything but one of these classes."""

from __future__ import annotations

from ..errors import CorruptError, UnsupportedFileError, UsageError
from .base import BlockShape, Codec
from .lossless import Lossless

__all__ = ["CODECS", "BlockShape", "Codec", "Lossless", "codec_by_id", "codec_by_name"]

CODECS: dict[int, type[Codec]] = {1: Lossless}


def codec_by_id(number: int, path: str) -> Codec:
    """The codec with this id.  Raises UnsupportedFileError, or CorruptError for 0, which no codec will ever have."""
    if number == 0:
        raise CorruptError("codec 0 is never valid", path=path)
    if number not in CODECS:
        raise UnsupportedFileError(f"codec {number} is not known to this reader", path=path, hint="update tsc")
    return CODECS[number]()


def codec_by_name(name: str) -> Codec:
    """The codec of this name.  Raises UsageError with the names that exist."""
    for codec in CODECS.values():
        if codec.name == name:
            return codec()
    raise UsageError(f"there is no codec {name!r}", hint=f"codecs: {', '.join(c.name for c in CODECS.values())}")
