"""Where profiles are kept: in a file's PROFILE record, or in a folder of this machine."""

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
SHORT = 12  # digits of a digest in messages and file names
# must be equal in the fingerprints of a profile and of a model; equal weights are preferred
_SAME = ("architecture", "config", "layers", "kv_heads", "rope")

remembered: dict[str, Profile] = {}  # by digest, for the whole process


def folder() -> Path:
    """Return the folder of profiles: `profiles` in the user's cache folder."""
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
    """Let this process find a profile by its digest; return the equal one that it knows already."""
    return remembered.setdefault(profile.digest, profile)


def install(profile: Profile) -> Path:
    """Write a profile to the folder and return its path; a damaged file there is replaced."""
    remember(profile)
    target = path_of(profile)
    if not (target.is_file() and target.read_bytes() == profile.data):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, overwrite=True) as file:
            file.write(profile.data)
    return target


def path_of(profile: Profile) -> Path:
    """Return the path at which `install` keeps a profile."""
    slug = re.sub(r"[^a-z0-9.]+", "-", profile.name.lower()).strip("-.") or "model"
    return folder() / f"{slug}-{profile.digest[:SHORT]}{SUFFIX}"


def installed() -> Iterator[tuple[Path, Profile]]:
    """Yield the profiles in the folder, newest first; other files and hidden ones are skipped.

    The caller remembers the one that it uses.
    """
    for path in _visible():
        try:
            yield path, read(path)
        except TscError:
            continue


def _visible() -> list[Path]:
    """List the files in the folder that may be profiles, newest first."""
    try:
        paths = [path for path in folder().glob(f"[!.]*{SUFFIX}") if path.is_file()]
        return sorted(paths, key=lambda path: (-path.stat().st_mtime, path.name))
    except OSError:
        return []


def resolve(digest: str) -> Profile:
    """Return the profile whose digest begins with these digits (6 at least).

    Raises:
        UnsupportedFileError: there is no such profile on this machine.
        UsageError: this is not a digest, or several profiles match.
    """
    if digest in remembered:
        return remembered[digest]
    _check_digest(digest)
    profiles = {digest_: profile for digest_, profile in remembered.items() if digest_.startswith(digest)}
    profiles |= {profile.digest: profile for _, profile in matching(digest)}
    _require_unique(profiles, digest)
    if not profiles:
        raise UnsupportedFileError(
            f"profile {digest[:SHORT]} is needed and is not on this machine",
            hint="tsc profiles --import FILE brings one that was exported where the file was made",
        )
    return remember(profiles.popitem()[1])


def find(digest: str) -> tuple[Path, Profile]:
    """Return the file and the content of the profile whose digest begins with these digits.

    Raises:
        UsageError: this is not a digest, or not exactly one profile matches.
    """
    _check_digest(digest)
    profiles = {profile.digest: (path, profile) for path, profile in matching(digest)}
    if not profiles:
        raise UsageError(f"there is no profile {digest} on this machine", hint="tsc profiles lists them")
    _require_unique(profiles, digest)
    return profiles.popitem()[1]


def _check_digest(digest: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{6,64}", digest):
        raise UsageError(f"{digest!r} is not a profile", hint="tsc profiles lists those on this machine")


def _require_unique(profiles: Mapping[str, object], digest: str) -> None:
    if len(profiles) > 1:
        raise UsageError(f"{len(profiles)} profiles begin with {digest}", hint="give more digits")


def matching(digest: str) -> Iterator[tuple[Path, Profile]]:
    """Yield installed profiles whose digest begins so, by their file names or their content."""
    named = [(path, read(path)) for path in folder().glob(f"[!.]*-{digest[:SHORT]}*{SUFFIX}")]
    named = [(path, profile) for path, profile in named if profile.digest.startswith(digest)]
    yield from named or ((path, read(path)) for path in _visible() if digest_of_file(path).startswith(digest))


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, or "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def for_model(fingerprint: Mapping[str, str]) -> Profile | None:
    """Return the newest profile of the model or of one with the same configuration, or None."""
    fitting = [
        profile
        for _, profile in installed()
        if all(profile.fingerprint.get(key) == fingerprint.get(key) for key in _SAME)
    ]
    same = [profile for profile in fitting if profile.fingerprint.get("weights") == fingerprint.get("weights")]
    return remember((same or fitting)[0]) if fitting else None


@dataclass(frozen=True)
class ProfileReference:
    """A file's reference to a profile.

    Attributes:
        digest: SHA-256 of the profile, in hexadecimal.
        data: the profile's bytes, if they are in the file.
    """

    digest: str
    data: memoryview | None = None

    def load(self) -> Profile:
        """Return the profile, which is read once.

        Raises:
            UnsupportedFileError: the file only names the profile, and it is not on this machine.
            CorruptError: the embedded profile is damaged, or is not the one that the file names.
        """
        return self._loaded

    @cached_property
    def _loaded(self) -> Profile:
        if self.data is None:
            return resolve(self.digest)
        profile = loads(bytes(self.data), "the embedded profile")
        if profile.digest != self.digest:
            raise CorruptError("the embedded profile is not the one that the file names")
        return profile  # not remembered: it is freed with the file


def to_tensors(profile: Profile, *, embed: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of a PROFILE record."""
    import torch

    tensors = {"digest": torch.frombuffer(bytearray.fromhex(profile.digest), dtype=torch.uint8)}
    if embed:
        tensors["data"] = torch.frombuffer(bytearray(profile.data), dtype=torch.uint8)
    return tensors


def from_tensors(tensors: Mapping[str, TensorView], where: str) -> ProfileReference:
    """Check and read the tensors of a PROFILE record, without torch.  Raises CorruptError."""
    shapes: dict[str, tuple[str, tuple[int | None, ...]]] = {"digest": ("U8", (_DIGEST_BYTES,))}
    if "data" in tensors:
        shapes["data"] = ("U8", (None,))
    expect(tensors, shapes, where)
    return ProfileReference(bytes(tensors["digest"].data).hex(), tensors["data"].data if "data" in tensors else None)
