"""Decoding a block of a file, and on the way the blocks that its rows are predicted from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from .codecs import Surroundings
from .errors import CorruptError, LimitError
from .limits import MAX_CHAIN, memory_budget
from .records import Part
from .views import BlockKey

if TYPE_CHECKING:
    import torch

    from .file_blocks import FileBlock
    from .trace_file import TraceFile


class BlockDecoder:
    """Decodes blocks of a file; keeps what others of the same chain are predicted from until the chain is done."""

    def __init__(self, file: TraceFile) -> None:
        self._file = file
        self._decoded: dict[tuple[int, str], Mapping[Part, torch.Tensor]] = {}
        self._depth = 0

    def decoded(self, block: FileBlock, device: str | torch.device) -> Mapping[Part, torch.Tensor]:
        """The rows of a block, and on the way those of the blocks that predict it, each decoded once.

        Raises:
            CorruptError: a block is damaged, or the chain of predictions is too long.
            LimitError: the blocks of the chain take more than the memory budget.
        """
        known = self._decoded.get((block.offset, str(device)))
        if known is not None:
            return known
        if self._depth > MAX_CHAIN:
            raise self._file.reader.corrupt(f"a chain of more than {MAX_CHAIN} predictions", block.offset)
        self._depth += 1
        try:
            codec, tensors, shape = block.tensors()
            with self._file.locating(block.offset, block.header):
                rows = codec.decode(tensors, block.key.part, shape, device, self._surroundings(block.key, device))
            if self._depth > 1:
                self._decoded[block.offset, str(device)] = rows
                held = sum(t.nbytes for found in self._decoded.values() for t in found.values())
                if held > memory_budget():
                    raise LimitError(f"predictions take more than the budget of {memory_budget()} bytes")
            return rows
        finally:
            self._depth -= 1
            if not self._depth:
                self._decoded.clear()

    def _surroundings(self, key: BlockKey, device: str | torch.device) -> Surroundings:
        profile = self._file.profile
        return Surroundings(
            first_layer=key.first_layer, positions=self._file.labels.positions[key.first_row : key.span.stop],
            fetch=partial(self._fetch, key, device), profile=None if profile is None else profile.load,
        )  # fmt: skip

    def _fetch(self, wanted: BlockKey, device: str | torch.device, numbers: Sequence[int]) -> torch.Tensor:
        """Decoded rows of the layers and the part of `wanted`: (layers, batch, heads, len(numbers), head size)."""
        import torch

        spec = self._file.geometry.layers[wanted.first_layer]
        heads, size = spec.part_heads(wanted.part), spec.head_size(wanted.part)
        shape = (wanted.layer_count, self._file.geometry.batch, heads, len(numbers), size)
        result = torch.empty(shape, dtype=getattr(torch, self._file.geometry.dtype), device=device)
        missing = wanted.layer_count * len(numbers)
        for block in self._file.blocks:
            first = max(block.key.first_layer, wanted.first_layer)
            stop = min(block.key.first_layer + block.key.layer_count, wanted.first_layer + wanted.layer_count)
            span = block.key.span
            found = [(at, number - span.first) for at, number in enumerate(numbers) if span.first <= number < span.stop]
            whole = block.key.part is Part.JOINT and wanted.part is not Part.INDEXER
            if first >= stop or not found or not (whole or block.key.part is wanted.part):
                continue
            rows = self.decoded(block, device)[wanted.part][
                first - block.key.first_layer : stop - block.key.first_layer
            ]
            target = result[first - wanted.first_layer : stop - wanted.first_layer]
            target[..., [at for at, _ in found], :] = rows[..., [row for _, row in found], :]
            missing -= (stop - first) * len(found)
        if missing:
            raise CorruptError("rows are predicted from rows that the file does not hold")
        return result
