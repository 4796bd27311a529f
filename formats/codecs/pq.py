"""Product quantization with a fallback (tier 219x as published; Jegou, Douze and Schmid, PAMI 2011)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from formats.settings import require

from .codebook import BlockCodebook, CodebookSettings


@dataclass(frozen=True)
class PQSettings(CodebookSettings):
    """As `CodebookSettings`, and:

    Attributes:
        m: sub-vectors a block, each with a codebook of its own; divides `block`.
    """

    m: int = 2
    threshold: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.m >= 1 and self.block % self.m == 0, f"m={self.m} does not divide block={self.block}")


class PQ(BlockCodebook):
    """Codec 4: `m` codes a block of channels."""

    id: ClassVar[int] = 4
    name: ClassVar[str] = "pq"
    splits: ClassVar[bool] = True
    Settings: ClassVar[type] = PQSettings

    def __init__(self, settings: PQSettings | None = None) -> None:
        self.settings = settings or PQSettings()

    def _sub_vectors(self) -> int:
        return int(self.settings.m)
