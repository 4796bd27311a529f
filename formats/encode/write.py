"""Writing a trace by a recipe: each block is encoded by its codec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from formats.codecs import BlockContext, codec_by_name
from formats.container.encryption import Secret
from formats.container.records import Part
from formats.container.writer import Sink
from formats.file.header import TierHeader
from formats.file.writer import TraceWriter
from formats.limits import MAX_BLOCK_BYTES, TARGET_RECORD_RAW
from formats.trace.blocks import MemoryBlock
from formats.trace.eviction import Filtered
from formats.trace.trace import Trace
from formats.trace.views import BlockKey, Span

from .prediction import Predecessors
from .recipe import BESIDE_BITS, Recipe
from .source import Source

if TYPE_CHECKING:
    import torch

_SINK_BITS = 12


@dataclass(frozen=True)
class Header:
    """Fields of the tier header.

    Attributes:
        tier: the name of the tier that the file promises, or "".
        quality: measurements of the file's fidelity.
    """

    tier: str = ""
    quality: Sequence[Mapping[str, Any]] = ()


def write(
    source: Source,
    recipe: Recipe,
    sink: Sink,
    *,
    header: Header | None = None,
    file_id: bytes | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int], None] | None = None,
    secret: Secret | None = None,
) -> tuple[TierHeader, int]:
    """Write the trace by this recipe; return the tier header and the file's length in bytes.

    Args:
        header: fields of the tier header.
        file_id: by default random.
        device: where rows are encoded.
        progress: called with the bytes of rows encoded since the last call.
        secret: encrypts the file; by default the trace's own, if it has one.
    Raises:
        UsageError: a value is not finite and the codec is not exact; the filter cannot be applied.
        PromiseError: the file does not keep the tier that its header states.
    """
    header = header or Header()
    trace, filtered = source.trace, source.filtered(recipe)
    writer = TraceWriter(
        sink,
        trace.geometry,
        trace.fingerprint,
        file_id=file_id,
        label_width=trace.labels.width,
        secret=trace.secret if secret is None else secret,
    )
    for head_map in filtered.head_maps:
        writer.add_head_map(head_map)
    if (profile := recipe.profile) is not None:
        writer.add_profile(profile, embed=recipe.embed_profile)
    encoder = _Encoder(trace, filtered, recipe)
    for group in filtered.rows:
        row_bytes = trace.geometry.row_bytes[group.first_layer]
        for block in group.blocks(encoder.cuts, row_bytes, *encoder.extents(group.layer_count * row_bytes)):
            encoder.encode(writer, MemoryBlock(block.key, block.read(device)))
            if progress is not None:
                progress(sum(tensor.nbytes for tensor in block.rows.values()))
    for states in trace.states:
        writer.add_states(states, recipe.state_codec, device)
    writer.add_labels(trace.labels.token_ids, trace.labels.positions)
    for view in filtered.views:
        writer.add_view(view)
    return writer.finish(
        tier=header.tier,
        reference=trace.reference,
        capture=trace.info,
        quality=header.quality,
        codec=recipe.name,
        parameters=recipe.parameters(),
        captured_bytes=source.captured_bytes,
        insist=True,
    )


class _Encoder:
    """The codec of each block of a trace.

    Attributes:
        cuts: row numbers at which blocks must be cut, since another codec begins.
    """

    def __init__(self, trace: Trace, filtered: Filtered, recipe: Recipe) -> None:
        self._codec = codec_by_name(recipe.codec, recipe.settings)
        # an encoder's rows come before the first token
        begin = next((span.first for span in filtered.views[0].history), 0)
        self._sinks = Span(begin, recipe.exact_sinks)
        self._labels = trace.labels
        self._sink_codec = codec_by_name("scalar", {"bits": _SINK_BITS})
        rows = max((span.stop for view in filtered.views for spans in view.layers for span in spans), default=0)
        self._beside = codec_by_name("scalar", {"bits": BESIDE_BITS})
        self._exact_from = rows - recipe.exact_last
        self._exact_codec = codec_by_name("lossless")
        self.cuts: list[int] = [begin, self._sinks.stop] if recipe.exact_sinks else []
        if recipe.exact_last:
            self.cuts.append(self._exact_from)
        self._predecessors: Predecessors | None = None
        prediction = self._codec.prediction
        if prediction is not None:
            bits = prediction.keyframe_bits
            self._keyframe = codec_by_name("scalar", {"bits": bits}) if bits else codec_by_name("lossless")
            first = filtered.views[0].layers
            self._keyframe_stop = max((span.stop for spans in first for span in spans), default=0)
            self.cuts.append(self._keyframe_stop)
            self._predecessors = Predecessors(filtered.views, trace.labels, trace.geometry, prediction)

    def extents(self, run_bytes: int) -> tuple[int, int]:
        """Return the most rows and bytes of a block.

        Args:
            run_bytes: bytes of one row in a whole run of equal layers.
        """
        if self._codec.groups_layers:
            return max(1, min(self._codec.block_rows, MAX_BLOCK_BYTES // run_bytes)), MAX_BLOCK_BYTES
        return self._codec.block_rows, TARGET_RECORD_RAW

    def _context(self, key: BlockKey) -> BlockContext:
        positions = self._labels.positions
        return BlockContext(
            first_layer=key.first_layer, positions=positions[key.first_row : key.span.stop], end=max(positions) + 1
        )

    def encode(self, writer: TraceWriter, block: MemoryBlock) -> None:
        """Add the block to the file, cut and predicted as its codec demands."""
        sink = self._sinks.first <= block.key.first_row and block.key.span.stop <= self._sinks.stop
        sink = sink and not self._codec.exact
        if self._predecessors is None:
            codec = self._exact_codec if block.key.first_row >= self._exact_from else self._codec
            codec = self._sink_codec if sink else codec
            writer.add_block(block, codec, self._context(block.key))
            if Part.JOINT in codec.parts and Part.INDEXER in block.rows:
                writer.add_block(MemoryBlock(block.key, {Part.INDEXER: block.rows[Part.INDEXER]}), self._beside)
            return
        codec = self._codec
        if block.key.span.stop <= self._keyframe_stop:
            codec = self._sink_codec if sink and not self._keyframe.exact else self._keyframe
        for piece in self._predecessors.split(block) if codec is self._codec else [block]:
            for part in piece.rows:
                bases = self._predecessors.bases(piece, part)
                writer.add_block(MemoryBlock(piece.key, {part: piece.rows[part]}), codec, BlockContext(bases=bases))
            self._predecessors.remember(piece, codec)
