"""The closed registry of codecs.  Nothing that a file says can load anything but one of these classes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from formats import settings as setting
from formats.codecs.klt.codec import Klt
from formats.errors import CorruptError, UnsupportedFileError, UsageError

from .base import Bases, Codec, Fetch, Surroundings
from .delta import Delta
from .lossless import Lossless
from .pq import PQ
from .scalar import Scalar
from .vq import VQ

__all__ = ["CODECS", "Bases", "Codec", "Fetch", "Surroundings", "codec_by_id", "codec_by_name", "is_exact"]

CODECS: dict[int, Any] = {1: Lossless, 2: Scalar, 3: VQ, 4: PQ, 5: Delta, 6: Klt}


def codec_by_id(number: int, path: str) -> Codec:
    """The codec with this id.  Raises UnsupportedFileError, or CorruptError for 0, which no codec will ever have."""
    if number == 0:
        raise CorruptError("codec 0 is never valid", path=path)
    if number not in CODECS:
        raise UnsupportedFileError(f"codec {number} is not known to this reader", path=path, hint="update tsc")
    codec: Codec = CODECS[number]()
    return codec


def is_exact(name: str) -> bool:
    """Whether a codec of this name keeps every bit; files that name none hold rows of such a codec."""
    return not name or any(kind.name == name and kind.exact for kind in CODECS.values())


def codec_by_name(name: str, settings: Mapping[str, Any] | None = None) -> Codec:
    """The codec of this name with these settings.  Raises UsageError with what exists."""
    names = {kind.name: kind for kind in CODECS.values()}
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"codecs: {', '.join(names)}"
        raise UsageError(f"there is no codec {name!r}", hint=hint)
    kind = names[name]
    codec: Codec = kind(setting.make(kind.Settings, settings or {}, f"codec {name}"))
    return codec
