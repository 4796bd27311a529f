"""Profiles by their digests: in a file's PROFILE record, or in a folder of this machine, also found by their model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from formats.container.atomic_write import atomic_write
from formats.container.safetensors_buffer import TensorView, expect
from formats.errors import CorruptError, LimitError, StorageError, TscError, UnsupportedFileError, UsageError
from formats.limits import MAX_PROFILE_BYTES
from formats.paths import cache_folder

from .profile import Profile, loads

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
_DIGEST_BYTES = 32
SHORT = 12  # digits of a digest that people are shown
# what a profile's model and a file's model must agree in; one that agrees in the weights, too, comes first
_SAME = ("architecture", "config", "layers", "kv_heads", "rope")

remembered: dict[str, Profile] = {}  # by digest: the content decides, so that one profile serves a whole process


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
        return loads(data)
    except CorruptError as error:
        error.path = str(path)
        raise


def remember(profile: Profile) -> Profile:
    """Let this process find the profile by its digest; returns the one that it knows already, if it does."""
    return remembered.setdefault(profile.digest, profile)


def install(profile: Profile) -> Path:
    """Keep a profile in the folder; returns its path.  A damaged file of its name is replaced."""
    remember(profile)
    target = path_of(profile)
    if not (target.is_file() and target.read_bytes() == profile.data):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, overwrite=True) as file:
            file.write(profile.data)
    return target


def path_of(profile: Profile) -> Path:
    """Where `install` keeps a profile."""
    slug = re.sub(r"[^a-z0-9.]+", "-", profile.name.lower()).strip("-.") or "model"
    return folder() / f"{slug}-{profile.digest[:SHORT]}{SUFFIX}"


def installed() -> Iterator[tuple[Path, Profile]]:
    """The profiles in the folder, newest first; files that are none are passed over, and hidden ones.

    They are not remembered: whoever takes one does that.
    """
    for path in _visible():
        try:
            yield path, read(path)
        except TscError:
            continue


def _visible() -> list[Path]:
    """The files in the folder that may be profiles, newest first."""
    try:
        paths = [path for path in folder().glob(f"[!.]*{SUFFIX}") if path.is_file()]
        return sorted(paths, key=lambda path: (-path.stat().st_mtime, path.name))
    except OSError:
        return []


def resolve(digest: str) -> Profile:
    """The profile with this digest, or with a digest that begins so (6 digits at least).

    Raises:
        UnsupportedFileError: it is not on this machine.
        UsageError: this is no digest, or several profiles begin so.
    """
    if digest in remembered:
        return remembered[digest]
    _checked(digest)  # also where no profile is known, with which it would be compared
    found = {known.digest: known for known in remembered.values() if known.digest.startswith(digest)}
    found |= {profile.digest: profile for _, profile in matching(digest)}
    if len(found) > 1:
        raise UsageError(f"{len(found)} profiles begin with {digest}", hint="give more digits")
    if not found:
        raise UnsupportedFileError(
            f"profile {digest[:SHORT]} is needed and is not on this machine",
            hint="tsc profiles --import FILE brings one that was exported where the file was made",
        )
    return remember(found.popitem()[1])


def find(digest: str) -> tuple[Path, Profile]:
    """The file of an installed profile whose digest begins so, and the profile.

    Raises:
        UsageError: this is no digest, there is none, or there are several.
    """
    found = {profile.digest: (path, profile) for path, profile in matching(_checked(digest))}
    if not found:
        raise UsageError(f"there is no profile {digest} on this machine", hint="tsc profiles lists them")
    if len(found) > 1:
        raise UsageError(f"{len(found)} profiles begin with {digest}", hint="give more digits")
    return found.popitem()[1]


def _checked(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{6,64}", digest):
        raise UsageError(f"{digest!r} is not a profile", hint="tsc profiles lists those on this machine")
    return digest


def matching(digest: str) -> Iterator[tuple[Path, Profile]]:
    """Installed profiles whose digest begins so: by the names that `install` gives, or else by their content."""
    named = [(path, read(path)) for path in folder().glob(f"[!.]*-{digest[:SHORT]}*{SUFFIX}")]
    named = [(path, profile) for path, profile in named if profile.digest.startswith(digest)]
    yield from named or ((path, read(path)) for path in _visible() if digest_of_file(path).startswith(digest))


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file, or "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def for_model(fingerprint: Mapping[str, str]) -> Profile | None:
    """The newest profile of the model, or of one of the same configuration (a finetuned one, say), or None."""
    fitting = [
        profile
        for _, profile in installed()
        if all(profile.fingerprint.get(key) == fingerprint.get(key) for key in _SAME)
    ]
    same = [profile for profile in fitting if profile.fingerprint.get("weights") == fingerprint.get("weights")]
    return remember((same or fitting)[0]) if fitting else None


@dataclass(frozen=True)
class ProfileReference:
    """A profile by its digest, and its bytes if the file holds them."""

    digest: str
    data: memoryview | None = None

    def load(self) -> Profile:
        """The profile, read once.

        Raises:
            UnsupportedFileError: the file only names it and it is not on this machine.
            CorruptError: the file holds another one than it names, or a damaged one.
        """
        return self._loaded

    @cached_property
    def _loaded(self) -> Profile:
        if self.data is None:
            return resolve(self.digest)
        profile = loads(bytes(self.data), "the embedded profile")
        if profile.digest != self.digest:
            raise CorruptError("the embedded profile is not the one that the file names")
        return profile  # not remembered: it lives as long as the file that holds it


def to_tensors(profile: Profile, *, embed: bool) -> dict[str, torch.Tensor]:
    """The tensors of a PROFILE record."""
    import torch

    tensors = {"digest": torch.frombuffer(bytearray.fromhex(profile.digest), dtype=torch.uint8)}
    if embed:
        tensors["data"] = torch.frombuffer(bytearray(profile.data), dtype=torch.uint8)
    return tensors


def from_tensors(tensors: Mapping[str, TensorView], where: str) -> ProfileReference:
    """Check the tensors of a PROFILE record.  Raises CorruptError; needs no torch."""
    held: dict[str, tuple[str, tuple[int | None, ...]]] = {"data": ("U8", (None,))} if "data" in tensors else {}
    expect(tensors, {"digest": ("U8", (_DIGEST_BYTES,)), **held}, where)
    return ProfileReference(bytes(tensors["digest"].data).hex(), tensors["data"].data if held else None)
