"""Codecs vq and pq: blocks of channels are quantized by codebooks, with a fallback.

The head of a token is normalized and cut into blocks of `block` channels; each sub-vector of a
block is replaced by the nearest centroid of its codebook.  The **relative error of a block** is

    e = |x - x'| / |x|

with Euclidean norms over the block's channels, x the cached values and x' the decoded ones.  With a
fallback, every block with e > threshold is stored in 16 bits instead (in 32 where float16
overflows), with threshold 0 all blocks.  Codebooks, scales, the fallback map and its values are in
the payload.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView, dtype_name, expect, to_torch
from formats.errors import CorruptError
from formats.settings import require
from formats.trace.blocks import BlockShape

from .base import NO_CONTEXT, BlockContext, Codec
from .codebook import MAX_BLOCK, MAX_CENTROIDS, NORMALIZE, CodebookSettings, assign, look_up, train
from .packing import (
    LAYOUT,
    from_bits,
    from_planes,
    layout_of,
    marked_bits,
    to_bits,
    to_cache_dtype,
    to_planes,
    working_dtype,
)

if TYPE_CHECKING:
    import torch

_EXACT = {0: None, 1: "float16", 2: "bfloat16", 3: "float32", 4: "float64"}
_EXACT_BYTES = {1: 2, 2: 2, 3: 4, 4: 8}


class BlockCodebook(Codec):
    """The payload of vq and pq, with N blocks a head:

    layout: block, sub-vectors a block, centroids, codebooks, normalize (0 head, 1 channel), dtype
    of
        the exact values (a key of `_EXACT`)
    codes: U8 (layers, batch, heads, rows, N, sub-vectors)
    codebooks: U8 planes of float16, (2, codebooks, sub-vectors, centroids, block / sub-vectors)
    means, scales: U8 planes of bfloat16 (float64 in a float64 cache), (bytes, layers, batch, heads,
        channels or 1)
    exact_blocks: U8, a bit a block (with a fallback)
    exact: U8 planes (bytes, exact blocks, block) (with a fallback)

    Attributes:
        splits: a block may have several sub-vectors.
    """

    splits: ClassVar[bool]
    settings: CodebookSettings

    @property
    @abstractmethod
    def sub_vectors(self) -> int:
        """The number of sub-vectors of a block, each with its own codebook."""

    @property
    def exact_beyond(self) -> float:
        return self.settings.threshold if self.settings.fallback else 0.0

    def encode(self, rows: Mapping[Part, torch.Tensor], context: BlockContext = NO_CONTEXT) -> dict[str, torch.Tensor]:
        import torch

        del context
        ((_, tensor),) = rows.items()
        settings, sub_vectors = self.settings, self.sub_vectors
        dtype = dtype_name(tensor.dtype)
        values = tensor.to(working_dtype(dtype))
        means, scales = _normalization(values, settings.normalize, dtype)
        normalized = (values - means.to(values.dtype)) / scales.to(values.dtype)
        blocks = _cut(normalized.float(), settings.block)
        books = train(blocks, sub_vectors, settings).to(torch.float16)
        codes = assign(blocks, books.float())
        decoded = _join(look_up(codes, books.float()), means, scales, values)
        fallback: dict[str, torch.Tensor] = {}
        kind = 0
        if settings.fallback:
            source, blocks_of_decoded = _cut(values, settings.block), _cut(decoded, settings.block)
            error, norm = (source - blocks_of_decoded).norm(dim=-1), source.norm(dim=-1)
            exact = error > settings.threshold * norm
            kind, exact_values = _exact_values(_cut(tensor, settings.block)[exact])
            codes[exact] = 0
            fallback = {"exact_blocks": to_bits(exact), "exact": to_planes(exact_values).cpu()}
        layout = [
            settings.block,
            sub_vectors,
            settings.centroids,
            books.shape[0],
            NORMALIZE.index(settings.normalize),
            kind,
        ]
        return {
            LAYOUT: torch.tensor(layout, dtype=torch.int32),
            "codes": codes.to(torch.uint8).cpu(),
            "codebooks": to_planes(books).cpu(),
            "means": to_planes(means).cpu(),
            "scales": to_planes(scales).cpu(),
            **fallback,
        }

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, where: str) -> None:
        block, subs, centroids, books, normalize, kind = layout_of(tensors, 6, where)
        if (
            not 1 <= block <= MAX_BLOCK
            or not 1 <= subs <= block
            or block % subs
            or not 2 <= centroids <= MAX_CENTROIDS
            or books not in (1, shape.layers)
            or normalize not in (0, 1)
            or kind not in _EXACT
            or (subs != 1 and not self.splits)
        ):
            raise CorruptError(f"{where}: a {self.name} layout that no writer makes")
        layers, batch, heads, rows, size = shape.tensor(part)
        count = -(-size // block)
        norm_bytes = 8 if shape.dtype == "float64" else 2
        norms = ("U8", (norm_bytes, layers, batch, heads, 1, size if normalize else 1))
        shapes: dict[str, tuple[str, tuple[int | None, ...]]] = {
            LAYOUT: ("I32", (6,)),
            "codes": ("U8", (layers, batch, heads, rows, count, subs)),
            "codebooks": ("U8", (2, books, subs, centroids, block // subs)),
            "means": norms,
            "scales": norms,
        }
        if kind:
            total = layers * batch * heads * rows * count
            shapes["exact_blocks"] = ("U8", (-(-total // 8),))
            shapes["exact"] = ("U8", (_EXACT_BYTES[kind], marked_bits(tensors, "exact_blocks", total, where), block))
        expect(tensors, shapes, where)
        if centroids < MAX_CENTROIDS and max(tensors["codes"].data) >= centroids:
            raise CorruptError(f"{where}: a code names a centroid that is not there")

    def decode(
        self,
        tensors: Mapping[str, TensorView],
        part: Part,
        shape: BlockShape,
        device: str | torch.device,
        context: BlockContext = NO_CONTEXT,
    ) -> dict[Part, torch.Tensor]:
        import torch

        del context
        block, _, _, _, _, kind = tensors[LAYOUT].integers()
        codes = to_torch(tensors["codes"], device).view(tensors["codes"].shape).long()
        books = from_planes(tensors["codebooks"], torch.float16, device).float()
        norm_dtype = torch.float64 if shape.dtype == "float64" else torch.bfloat16
        means, scales = (from_planes(tensors[name], norm_dtype, device) for name in ("means", "scales"))
        empty = torch.empty(0, dtype=working_dtype(shape.dtype), device=device).new_empty(shape.tensor(part))
        values = to_cache_dtype(_join(look_up(codes, books), means, scales, empty), shape.dtype)
        name = _EXACT[kind]
        if name is not None:
            exact = from_bits(to_torch(tensors["exact_blocks"], device), codes.shape[:-1])
            blocks = _cut(values, block)
            exact_values = from_planes(tensors["exact"], getattr(torch, name), device)
            blocks[exact] = to_cache_dtype(exact_values, shape.dtype)
            values = blocks.flatten(-2)[..., : values.shape[-1]].contiguous()
        return {part: values}

    def coded_blocks(self, tensors: Mapping[str, TensorView]) -> tuple[int, int]:
        exact = int.from_bytes(tensors["exact_blocks"].data, "little").bit_count() if "exact_blocks" in tensors else 0
        return math.prod(tensors["codes"].shape[:-1]), exact


class VQ(BlockCodebook):
    """Codec 3: one code a block of channels."""

    id = 3
    name = "vq"
    splits = False
    Settings = CodebookSettings

    @property
    def sub_vectors(self) -> int:
        return 1


@dataclass(frozen=True)
class PQSettings(CodebookSettings):
    """The settings of codec pq: those of `CodebookSettings`, and:

    Attributes:
        m: sub-vectors of a block, each with its own codebook; it divides `block`.
    """

    m: int = 2
    threshold: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.m >= 1 and self.block % self.m == 0, f"m={self.m} does not divide block={self.block}")


class PQ(BlockCodebook):
    """Codec 4: `m` codes a block of channels (Jegou, Douze and Schmid, PAMI 2011)."""

    id = 4
    name = "pq"
    splits = True
    Settings = PQSettings
    settings: PQSettings

    @property
    def sub_vectors(self) -> int:
        return self.settings.m


def _normalization(values: torch.Tensor, normalize: str, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and standard deviations as stored, (layers, batch, heads, 1, channels or 1)."""
    import torch

    axes = (-2,) if normalize == "channel" else (-2, -1)
    means = values.mean(axes, keepdim=True)
    stored = torch.float64 if dtype == "float64" else torch.bfloat16
    means = means.to(stored)
    scales = (values - means.to(values.dtype)).square().mean(axes, keepdim=True).sqrt().to(stored)
    return means, torch.where(scales > 0, scales, torch.ones_like(scales))


def _cut(values: torch.Tensor, block: int) -> torch.Tensor:
    """Cut (..., channels) into (..., N, block); the last block is filled with zeros."""
    import torch

    missing = -values.shape[-1] % block
    if missing:
        values = torch.nn.functional.pad(values, (0, missing))
    return values.reshape(*values.shape[:-1], -1, block)


def _join(normalized: torch.Tensor, means: torch.Tensor, scales: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Undo the normalization; the result has the shape and dtype of `like`."""
    cut = normalized[..., : like.shape[-1]].to(like.dtype)
    return cut * scales.to(like.dtype) + means.to(like.dtype)


def _exact_values(blocks: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Return the key of `_EXACT` and the values of blocks that are kept exactly.

    They keep a 16-bit dtype; others become float16 unless that overflows.
    """
    import torch

    if blocks.dtype == torch.bfloat16:
        return 2, blocks
    limit = torch.finfo(torch.float16).max
    if not blocks.numel() or bool((blocks.to(torch.float64).abs() <= limit).all()):
        return 1, blocks.to(torch.float16)
    return (4, blocks) if blocks.dtype == torch.float64 else (3, blocks.float())
