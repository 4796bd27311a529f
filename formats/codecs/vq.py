"""Vector quantization with a fallback (tiers 125x, 429x and 1034x as published)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .codebook import BlockCodebook, CodebookSettings


@dataclass(frozen=True)
class VQSettings(CodebookSettings):
    """As `CodebookSettings`."""


class VQ(BlockCodebook):
    """Codec 3: one code a block of channels."""

    id: ClassVar[int] = 3
    name: ClassVar[str] = "vq"
    splits: ClassVar[bool] = False
    Settings: ClassVar[type] = VQSettings

    def __init__(self, settings: VQSettings | None = None) -> None:
        self.settings = settings or VQSettings()

    def _sub_vectors(self) -> int:
        return 1
