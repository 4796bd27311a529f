"""The codecs that files may name: TSC's own, and those of installed packages.

A package brings a codec by an entry point of the group `tsc.codecs`, whose name is the codec's and whose value is a
class derived from `Codec` with an id of `PRIVATE_IDS`.  Such packages are imported when a file or a person asks for a
codec that is not TSC's own.  A file alone can load nothing: what may be imported was installed before.
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
PRIVATE_IDS = range(0x8000, 0x10000)  # never given to a codec of the format
CODECS: Mapping[int, type[Codec]] = {kind.id: kind for kind in (Lossless, Scalar, VQ, PQ, Delta, Klt)}
_NAMES: Mapping[str, type[Codec]] = {kind.name: kind for kind in CODECS.values()}
_OWNER = "tsc"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Registered:
    """A codec that can be used here.

    Attributes:
        kind: its class.
        owner: "tsc", or the package that brings it, with its version.
    """

    kind: type[Codec]
    owner: str


@dataclass(frozen=True)
class Fault:
    """An entry point of this name cannot be used; `text` says why."""

    name: str
    text: str


@dataclass(frozen=True)
class Others:
    """What installed packages bring.

    Attributes:
        codecs: those that can be used, by id.
        faults: the entry points that cannot be used.
    """

    codecs: Mapping[int, Registered]
    faults: tuple[Fault, ...]

    def hint(self, name: str, otherwise: str) -> str:
        """Why the codec of this name cannot be used, or what to do otherwise."""
        return "; ".join(fault.text for fault in self.faults if fault.name == name) or otherwise


@cache
def others() -> Others:
    """The codecs of installed packages; each package is imported once.  `others.cache_clear()` forgets them."""
    usable: list[Registered] = []
    faults: list[Fault] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        owner = _owner(entry)
        try:
            usable.append(Registered(_loaded(entry), owner))
        except (Exception, SystemExit) as error:  # a package's import may raise anything
            reason = str(error) if isinstance(error, _Unusable) else f"it fails to import: {error!r}"
            faults.append(_fault(entry.name, owner, reason))
    ids = Counter(one.kind.id for one in usable)
    names = Counter(one.kind.name for one in usable)
    for one in usable:
        for count, what in ((ids[one.kind.id], f"id {one.kind.id}"), (names[one.kind.name], "this name")):
            if count > 1:
                faults.append(_fault(one.kind.name, one.owner, f"another package has {what}, too"))
                break
    alone = {one.kind.id: one for one in usable if ids[one.kind.id] == names[one.kind.name] == 1}
    return Others(alone, tuple(faults))


def _fault(name: str, owner: str, reason: str) -> Fault:
    return Fault(name, f"codec {name!r} of {owner} cannot be used: {reason}")


class _Unusable(Exception):
    """Why what an entry point gives is not a codec that can be used."""


def _loaded(entry: EntryPoint) -> type[Codec]:
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
    if any(one.default is MISSING and one.default_factory is MISSING for one in fields(kind.Settings)):
        raise _Unusable("its Settings need a default each")
    return kind


def _owner(entry: EntryPoint) -> str:
    return "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def registered() -> list[Registered]:
    """All codecs that can be used here: TSC's own, then those of other packages, by id."""
    own = [Registered(kind, _OWNER) for kind in CODECS.values()]
    return own + [one for _, one in sorted(others().codecs.items())]


def _find_id(number: int) -> type[Codec] | None:
    if number not in PRIVATE_IDS:
        return CODECS.get(number)
    one = others().codecs.get(number)
    return None if one is None else one.kind


def _find_name(name: str) -> type[Codec] | None:
    if name in _NAMES or not _NAME.fullmatch(name):
        return _NAMES.get(name)
    return next((one.kind for one in others().codecs.values() if one.kind.name == name), None)


def codec_by_id(number: int, path: str, stated: str = "") -> Codec:
    """The codec with this id.

    Args:
        path: of the file that names it, for messages.
        stated: what the file's header says of its codec, for messages.
    Raises:
        CorruptError: it is 0, which no codec will ever have.
        UnsupportedFileError: it is not known here.
    """
    if number == 0:
        raise CorruptError("codec 0 is never valid", path=path)
    kind = _find_id(number)
    if kind is not None:
        return kind()
    if number not in PRIVATE_IDS:
        raise UnsupportedFileError(f"codec {number} is not known to this reader", path=path, hint="update tsc")
    named = f" (the file's codec is {stated!r})" if stated else ""
    hint = others().hint(stated.rpartition("+")[2], "another package brings this codec: install it")
    raise UnsupportedFileError(f"codec {number} is not known to this reader{named}", path=path, hint=hint)


def codec_name(number: int) -> str:
    """The name of the codec with this id; "codec N" of one that is not known here."""
    kind = _find_id(number)
    return f"codec {number}" if kind is None else kind.name


def is_exact(codec: int | str, *, own: bool = False) -> bool:
    """Whether a codec is known to keep every bit.

    Args:
        codec: its id or its name; a file that names none holds rows of a codec that does.
        own: only codecs of the format count.
    """
    if codec == "":
        return True
    if own and codec not in (*_NAMES, *CODECS):
        return False
    kind = _find_id(codec) if isinstance(codec, int) else _find_name(codec)
    return kind is not None and kind.exact


def codec_class(name: str) -> type[Codec]:
    """The class of the codec of this name.  Raises UsageError with what exists."""
    kind = _find_name(name)
    if kind is not None:
        return kind
    names = [one.kind.name for one in registered()]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"codecs: {', '.join(names)}"
    raise UsageError(f"there is no codec {name!r}", hint=others().hint(name, hint))


def codec_by_name(name: str, settings: Mapping[str, Any] | None = None) -> Codec:
    """The codec of this name with these settings.  Raises UsageError with what exists."""
    kind = codec_class(name)
    return kind(setting.make(kind.Settings, settings or {}, f"codec {name}"))
