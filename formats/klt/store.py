"""Profiles on this machine: a folder of them, found by what files call them or by the model they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..atomic import atomic_write
from ..errors import CorruptError, LimitError, StorageError, TscError, UnsupportedFileError, UsageError
from ..limits import MAX_PROFILE_BYTES
from ..paths import cache_folder
from .profile import Profile, loads

SUFFIX = ".safetensors"
SHORT = 12  # digits of a digest that people are shown
# what a profile's model and a file's model must agree in; one that agrees in the weights, too, comes first
_SAME = ("architecture", "config", "layers", "kv_heads", "rope")

_known: dict[str, Profile] = {}  # by digest: the content decides, so that one profile serves a whole process


def folder() -> Path:
    """Where profiles are kept: `profiles` in the user's cache folder."""
    return cache_folder() / "profiles"


def read(path: str | Path) -> Profile:
    """Read a profile from a file.  Raises StorageError, LimitError or CorruptError."""
    try:
        if Path(path).stat().st_size > MAX_PROFILE_BYTES:
            raise LimitError(f"is larger than a profile may be ({MAX_PROFILE_BYTES} bytes)", path=str(path))
        data = Path(path).read_bytes()
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", path=str(path)) from error
    try:
        return remember(loads(data))
    except CorruptError as error:
        error.path = str(path)
        raise


def remember(profile: Profile) -> Profile:
    """Let this process find the profile by its digest; returns the one that it knows already, if it does."""
    return _known.setdefault(profile.digest, profile)


def install(profile: Profile) -> Path:
    """Keep a profile in the folder; returns its path."""
    remember(profile)
    target = path_of(profile)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, force=True) as file:
            file.write(profile.data)
    return target


def path_of(profile: Profile) -> Path:
    """Where `install` keeps a profile."""
    slug = re.sub(r"[^a-z0-9.]+", "-", profile.name.lower()).strip("-.") or "model"
    return folder() / f"{slug}-{profile.digest[:SHORT]}{SUFFIX}"


def installed() -> Iterator[tuple[Path, Profile]]:
    """The profiles in the folder, newest first; files that are none are passed over."""
    try:
        paths = [path for path in folder().glob(f"*{SUFFIX}") if path.is_file()]
        paths.sort(key=lambda path: (-path.stat().st_mtime, path.name))
    except OSError:
        return
    for path in paths:
        try:
            yield path, read(path)
        except TscError:
            continue


def resolve(digest: str) -> Profile:
    """The profile with this digest, or with a digest that begins so (6 digits at least).

    Raises:
        UnsupportedFileError: it is not on this machine.
        UsageError: this is no digest, or several profiles begin so.
    """
    if not re.fullmatch(r"[0-9a-f]{6,64}", digest):
        raise UsageError(f"{digest!r} is not a profile", hint="tsc profiles lists those on this machine")
    if digest in _known:
        return _known[digest]
    found = {known.digest: known for known in _known.values() if known.digest.startswith(digest)}
    for path in folder().glob(f"*-{digest[:SHORT]}*{SUFFIX}"):
        profile = read(path)
        if profile.digest.startswith(digest):
            found[profile.digest] = profile
    if len(found) > 1:
        raise UsageError(f"{len(found)} profiles begin with {digest}", hint="give more digits")
    if not found:
        raise UnsupportedFileError(
            f"profile {digest[:SHORT]} is needed and is not on this machine",
            hint="tsc profiles --import FILE brings one that was exported where the file was made",
        )
    return found.popitem()[1]


def for_model(fingerprint: Mapping[str, str]) -> Profile | None:
    """The newest profile of the model, or of one of the same configuration (a finetuned one, say), or None."""
    fitting = [
        profile
        for _, profile in installed()
        if all(profile.fingerprint.get(key) == fingerprint.get(key) for key in _SAME)
    ]
    same = [profile for profile in fitting if profile.fingerprint.get("weights") == fingerprint.get("weights")]
    return next(iter(same or fitting), None)
