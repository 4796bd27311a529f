"""How a .tsc file names the profile that it was made with, or holds it (PROFILE record)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from formats.container.safetensors_buffer import TensorView, expect
from formats.errors import CorruptError

from . import profile_store
from .profile import Profile, loads

if TYPE_CHECKING:
    import torch

_DIGEST_BYTES = 32


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
            return profile_store.resolve(self.digest)
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


def from_tensors(tensors: Mapping[str, TensorView], what: str) -> ProfileReference:
    """Check the tensors of a PROFILE record.  Raises CorruptError; needs no torch."""
    held: dict[str, tuple[str, tuple[int | None, ...]]] = {"data": ("U8", (None,))} if "data" in tensors else {}
    expect(tensors, {"digest": ("U8", (_DIGEST_BYTES,)), **held}, what)
    return ProfileReference(bytes(tensors["digest"].data).hex(), tensors["data"].data if held else None)
