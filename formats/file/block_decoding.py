"""Decoding a block of a file, and on the way the blocks that its rows are predicted from."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from formats.codecs import BlockContext
from formats.container.records import Part
from formats.errors import CorruptError, LimitError
from formats.limits import MAX_CHAIN, MIB, memory_budget
from formats.trace.blocks import BlockShape
from formats.trace.views import BlockKey

if TYPE_CHECKING:
    import torch

    from formats.container.reader import RecordReader
    from formats.trace.views import Labels

    from .blocks import FileBlock, RecordSource

    class BlockSource(RecordSource, Protocol):
        """An open file as the decoder of its blocks needs it."""

        @property
        def reader(self) -> RecordReader: ...
        @property
        def labels(self) -> Labels: ...
        @property
        def blocks(self) -> Sequence[FileBlock]: ...


_KEPT_BYTES = 64 * MIB  # of blocks that others were predicted from; at most an eighth of the budget


@dataclass(frozen=True)
class _Base:
    """A block that others were predicted from."""

    rows: Mapping[Part, torch.Tensor]
    chain: int  # how many blocks one after the other its rows rest on, with its own

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self.rows.values())


@dataclass
class _Open:
    """A block that is being decoded.

    Attributes:
        nbytes: about what that takes, with its result.
        chain: the longest chain below it, as far as is known.
    """

    nbytes: int
    chain: int = 0


def _working_bytes(block: FileBlock, shape: BlockShape) -> int:
    """The payload, and for each value a code, its number, the prediction and the sum, and the
    result.
    """
    values = sum(math.prod(shape.tensor(part)) for part in block.key.parts)
    return block.header.raw + values * (12 + 2 * shape.item_bytes)


class BlockDecoder:
    """Decodes blocks of a file; keeps the last ones that others are predicted from.

    Without them to read a chain block by block would decode its beginning once for every block that
    follows.
    """

    def __init__(self, file: BlockSource) -> None:
        self._file = file
        self._bases: dict[tuple[int, str], _Base] = {}  # the last used at the end
        # of these what the block that is being decoded rests on
        self._needed: set[tuple[int, str]] = set()
        self._held = 0  # bytes of `_bases`
        # the blocks that are being decoded, each for the one before it
        self._open: list[_Open] = []
        self._found: dict[tuple[int, Part], tuple[list[int], list[FileBlock]]] = {}

    def decoded(self, block: FileBlock, device: str | torch.device) -> Mapping[Part, torch.Tensor]:
        """The rows of a block, and on the way those of the blocks that predict it, each decoded
        once.

        Raises:
            CorruptError: a block is damaged, or the chain of predictions is too long.
            LimitError: the blocks of the chain take more than the memory budget.
        """
        place = (block.offset, str(device))
        base = known = self._drop(place)
        if len(self._open) + (1 if base is None else base.chain) > MAX_CHAIN + 1:
            raise self._file.reader.corrupt(f"a chain of more than {MAX_CHAIN} predictions", block.offset)
        if base is None:
            base = self._decode(block, device)
        if known or self._open:
            self._bases[place] = base
            self._held += base.nbytes
        if not self._open:  # what a caller gets is the caller's own
            return {part: rows.clone() if known else rows for part, rows in base.rows.items()}
        self._needed.add(place)
        self._open[-1].chain = max(self._open[-1].chain, base.chain)
        self._require_room()
        return base.rows

    def _decode(self, block: FileBlock, device: str | torch.device) -> _Base:
        codec, tensors, shape = block.tensors()
        self._open.append(_Open(_working_bytes(block, shape)))
        try:
            if len(self._open) > 1:
                self._require_room()
            with self._file.locating(block.offset, block.header):
                rows = codec.decode(tensors, block.key.part, shape, device, self._surroundings(block.key, device))
        finally:
            done = self._open.pop()
            if not self._open:
                self._forget()
        return _Base(rows, 1 + done.chain)

    def _drop(self, place: tuple[int, str]) -> _Base | None:
        base = self._bases.pop(place, None)
        self._held -= 0 if base is None else base.nbytes
        return base

    def _require_room(self) -> None:
        """For the blocks of this chain; those of others go first."""
        budget = memory_budget() - sum(one.nbytes for one in self._open)
        if self._held > budget:
            for place in [place for place in self._bases if place not in self._needed]:
                self._drop(place)
        if self._held > budget:
            raise LimitError(f"predictions take more than the budget of {memory_budget()} bytes")

    def _forget(self) -> None:
        """Between blocks no more is kept than pays."""
        self._needed.clear()
        most = min(_KEPT_BYTES, memory_budget() // 8)
        while self._held > most:
            self._drop(next(iter(self._bases)))

    def _surroundings(self, key: BlockKey, device: str | torch.device) -> BlockContext:
        profile = self._file.profile
        return BlockContext(
            first_layer=key.first_layer,
            positions=self._file.labels.positions[key.first_row : key.span.stop],
            fetch=partial(self._fetch, key, device),
            profile=None if profile is None else profile.load,
        )

    def _fetch(self, wanted: BlockKey, device: str | torch.device, numbers: Sequence[int]) -> torch.Tensor:
        """Decoded rows of the layers and the part of `wanted`: (layers, batch, heads, len(numbers),
        head size).
        """
        import torch

        spec = self._file.geometry.layers[wanted.first_layer]
        heads, size = spec.part_heads(wanted.part), spec.head_size(wanted.part)
        shape = (wanted.layer_count, self._file.geometry.batch, heads, len(numbers), size)
        result = torch.empty(shape, dtype=getattr(torch, self._file.geometry.dtype), device=device)
        missing = wanted.layer_count * len(numbers)
        for block in self._holding(wanted, numbers):
            first = max(block.key.first_layer, wanted.first_layer)
            stop = min(block.key.first_layer + block.key.layer_count, wanted.first_layer + wanted.layer_count)
            span = block.key.span
            found = [(at, number - span.first) for at, number in enumerate(numbers) if span.first <= number < span.stop]
            rows = self.decoded(block, device)[wanted.part][
                first - block.key.first_layer : stop - block.key.first_layer
            ]
            target = result[first - wanted.first_layer : stop - wanted.first_layer]
            target[..., [at for at, _ in found], :] = rows[..., [row for _, row in found], :]
            missing -= (stop - first) * len(found)
        if missing:
            raise CorruptError("rows are predicted from rows that the file does not hold")
        return result

    def _holding(self, wanted: BlockKey, numbers: Sequence[int]) -> Iterable[FileBlock]:
        """The blocks that hold some of these rows of the part and of some of the layers of
        `wanted`, each once.
        """
        holding: dict[int, FileBlock] = {}
        for layer in wanted.layers:
            firsts, blocks = self._blocks_of(layer, wanted.part)
            for number in numbers:
                at = bisect_right(firsts, number) - 1
                if at >= 0 and number < blocks[at].key.span.stop:
                    holding[blocks[at].offset] = blocks[at]
        return holding.values()

    def _blocks_of(self, layer: int, part: Part) -> tuple[list[int], list[FileBlock]]:
        """The blocks that hold a part of a layer, which share no row, and the first row of each;
        sorted.
        """
        if not self._found:
            for block in sorted(self._file.blocks, key=lambda block: block.key.first_row):
                key = block.key
                for each in key.layers:
                    for one in key.parts:
                        firsts, blocks = self._found.setdefault((each, one), ([], []))
                        firsts.append(key.first_row)
                        blocks.append(block)
        return self._found.get((layer, part), ([], []))
