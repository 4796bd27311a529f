"""The codecs that files may name: those of the format, and those of installed packages.

A package brings a codec by an entry point of the group `tsc.codecs`.  The entry point has the
codec's name, and its value is a class derived from `Codec` with an id of `PRIVATE_IDS`.  Such
packages are imported when a file or a user asks for a codec that is not of the format.  A file
cannot make a reader import anything that was not installed before.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from formats import settings as setting
from formats.errors import CorruptError, UnsupportedFileError, UsageError

from .base import Codec
from .delta import Delta
from .klt.codec import Klt
from .lossless import Lossless
from .scalar import Scalar
from .vq import PQ, VQ

GROUP = "tsc.codecs"
PRIVATE_IDS = range(0x8000, 0x10000)  # a codec of the format never gets one
CODECS: Mapping[int, type[Codec]] = {kind.id: kind for kind in (Lossless, Scalar, VQ, PQ, Delta, Klt)}
_NAMES: Mapping[str, type[Codec]] = {kind.name: kind for kind in CODECS.values()}
_OWNER = "tsc"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Registered:
    """A codec that can be used here.

    Attributes:
        kind: the codec's class.
        owner: "tsc", or the name and the version of the package that brings it.
    """

    kind: type[Codec]
    owner: str


@dataclass(frozen=True)
class Fault:
    """An entry point that cannot be used.

    Attributes:
        name: its name.
        text: a sentence that says why.
    """

    name: str
    text: str


@dataclass(frozen=True)
class InstalledCodecs:
    """The codecs of installed packages.

    Attributes:
        codecs: those that can be used, by id.
        faults: the entry points that cannot be used.
    """

    codecs: Mapping[int, Registered]
    faults: tuple[Fault, ...]

    def hint(self, name: str, otherwise: str) -> str:
        """Say why the codec of this name cannot be used, or return `otherwise`."""
        return "; ".join(fault.text for fault in self.faults if fault.name == name) or otherwise


@cache
def installed_codecs() -> InstalledCodecs:
    """Load the codecs of installed packages, once until `installed_codecs.cache_clear()`."""
    usable: list[Registered] = []
    faults: list[Fault] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        owner = "an unknown package"
        if entry.dist is not None:
            owner = f"{entry.dist.name} {entry.dist.version}"
        try:
            usable.append(Registered(_load(entry), owner))
        except (Exception, SystemExit) as error:  # a package's import may raise anything
            reason = str(error) if isinstance(error, _Unusable) else f"it fails to import: {error!r}"
            faults.append(_fault(entry.name, owner, reason))
    ids = Counter(codec.kind.id for codec in usable)
    names = Counter(codec.kind.name for codec in usable)
    unique = {}
    for codec in usable:
        kind = codec.kind
        if ids[kind.id] == names[kind.name] == 1:
            unique[kind.id] = codec
        else:
            shared = f"id {kind.id}" if ids[kind.id] > 1 else "this name"
            faults.append(_fault(kind.name, codec.owner, f"another package has {shared}, too"))
    return InstalledCodecs(unique, tuple(faults))


def _fault(name: str, owner: str, reason: str) -> Fault:
    return Fault(name, f"codec {name!r} of {owner} cannot be used: {reason}")


class _Unusable(Exception):
    """An entry point does not give a usable codec."""


def _load(entry: EntryPoint) -> type[Codec]:
    kind: object = entry.load()
    if not (isinstance(kind, type) and issubclass(kind, Codec)):
        raise _Unusable(f"{entry.value} is not a class derived from formats.codecs.Codec")
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise _Unusable(f"{entry.value} does not define {', '.join(missing)}")
    number, name = getattr(kind, "id", None), getattr(kind, "name", None)
    if type(number) is not int or number not in PRIVATE_IDS:
        raise _Unusable(f"its id is {number}, and {PRIVATE_IDS.start} to {PRIVATE_IDS.stop - 1} are for private codecs")
    if name != entry.name or not _NAME.fullmatch(entry.name):
        raise _Unusable(f"its name is {name!r}; it must be the entry point's, in small letters, digits, - and _")
    if name in _NAMES:
        raise _Unusable("a codec of the format has this name")
    if not (is_dataclass(kind.Settings) and issubclass(kind.Settings, setting.Settings)):
        raise _Unusable("its Settings are not a dataclass derived from formats.settings.Settings")
    if any(item.default is MISSING and item.default_factory is MISSING for item in fields(kind.Settings)):
        raise _Unusable("its Settings need a default each")
    return kind


def registered() -> list[Registered]:
    """List all codecs that can be used here: those of the format, then those of packages, by id."""
    own = [Registered(kind, _OWNER) for kind in CODECS.values()]
    return own + [codec for _, codec in sorted(installed_codecs().codecs.items())]


def _find_id(number: int) -> type[Codec] | None:
    if number not in PRIVATE_IDS:
        return CODECS.get(number)
    codec = installed_codecs().codecs.get(number)
    return None if codec is None else codec.kind


def _find_name(name: str) -> type[Codec] | None:
    if name in _NAMES or not _NAME.fullmatch(name):
        return _NAMES.get(name)
    usable = (codec.kind for codec in installed_codecs().codecs.values())
    return next((kind for kind in usable if kind.name == name), None)


def codec_by_id(number: int, path: str, stated: str = "") -> Codec:
    """Return the codec with this id, with its default settings.

    Args:
        path: the file that names it, for messages.
        stated: the codec's name in the file's header, for messages.
    Raises:
        CorruptError: the id is 0, which no codec will ever have.
        UnsupportedFileError: there is no codec with this id here.
    """
    if number == 0:
        raise CorruptError("codec 0 is never valid", path=path)
    kind = _find_id(number)
    if kind is not None:
        return kind()
    if number not in PRIVATE_IDS:
        raise UnsupportedFileError(f"codec {number} is not known to this reader", path=path, hint="update tsc")
    named = f" (the file's codec is {stated!r})" if stated else ""
    hint = installed_codecs().hint(stated.rpartition("+")[2], "another package brings this codec: install it")
    raise UnsupportedFileError(f"codec {number} is not known to this reader{named}", path=path, hint=hint)


def codec_name(number: int) -> str:
    """Return the name of the codec with this id; "codec N" if there is none here."""
    kind = _find_id(number)
    return f"codec {number}" if kind is None else kind.name


def is_exact(codec: int | str, *, own: bool = False) -> bool:
    """Tell whether a codec is known to keep every bit.

    Args:
        codec: its id or its name; "" is exact: a file that names no codec holds bit-exact rows.
        own: only codecs of the format count.
    """
    if codec == "":
        return True
    if own and codec not in (*_NAMES, *CODECS):
        return False
    kind = _find_id(codec) if isinstance(codec, int) else _find_name(codec)
    return kind is not None and kind.exact


def codec_class(name: str) -> type[Codec]:
    """Return the class of the codec of this name.  Raises UsageError if there is none."""
    kind = _find_name(name)
    if kind is not None:
        return kind
    names = [codec.kind.name for codec in registered()]
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]}?" if close else f"codecs: {', '.join(names)}"
    raise UsageError(f"there is no codec {name!r}", hint=installed_codecs().hint(name, hint))


def codec_by_name(name: str, settings: Mapping[str, Any] | None = None) -> Codec:
    """Make the codec of this name with these settings.  Raises UsageError."""
    kind = codec_class(name)
    return kind(setting.make(kind.Settings, settings or {}, f"codec {name}"))
