"""Writing a trace again with another codec: a recipe in, a file out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from formats import settings as setting
from formats.codecs import Codec, Surroundings, codec_by_name
from formats.codecs.delta import Delta
from formats.codecs.delta_bases import Predecessors
from formats.codecs.klt import profile_store
from formats.codecs.klt.codec import Klt
from formats.container.encryption import Secret
from formats.container.records import Part
from formats.container.writer import Sink
from formats.errors import UsageError
from formats.file import promises
from formats.file.header import TierHeader
from formats.file.writer import TraceWriter
from formats.limits import MAX_BLOCK_BYTES, TARGET_RECORD_RAW
from formats.settings import require
from formats.trace import eviction, row_store
from formats.trace.blocks import MemoryBlock
from formats.trace.eviction import FILTERS, Filtered
from formats.trace.row_store import MAX_ROWS
from formats.trace.states import STATE_CODECS
from formats.trace.trace import Trace
from formats.trace.views import BlockKey, Span

if TYPE_CHECKING:
    import torch

    from formats.codecs.klt.profile import Profile

_SINK_BITS = 12
_BESIDE_BITS = 8  # of indexer keys and states where the codec of the rows is for keys and values only
_JOINT_ROWS = 512  # of a block whose layers are coded together: a range of tokens can be decoded by itself


@dataclass(frozen=True)
class Recipe:
    """How a trace is to be coded.

    Attributes:
        codec: the codec of its rows, by name.
        settings: of the codec; what is not given has the codec's default.
        evict: "h2o", "streaming" or "": what is done before the codec.
        evict_settings: of the filter.
        exact_sinks: rows of the first positions that are kept at 12 bits: attention sinks, whose damage costs most.
        exact_last: rows of the last positions that are kept bit-exact.
        embed_profile: hold the codec's profile in the file, instead of naming it.
        state_bits: of states, 2 to 16, or 0 for bit-exact; None is bit-exact with the lossless codec, as rows are with
            the scalar one, and 8 bits with others.
    """

    codec: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    evict: str = ""
    evict_settings: Mapping[str, Any] = field(default_factory=dict)
    exact_sinks: int = 0
    exact_last: int = 0
    embed_profile: bool = False
    state_bits: int | None = None

    @property
    def name(self) -> str:
        return f"{self.evict}+{self.codec}" if self.evict else self.codec

    @property
    def profile(self) -> Profile | None:
        """The profile that the codec needs.  Raises UnsupportedFileError if it is not on this machine."""
        return profile_store.resolve(str(self.settings.get("profile", ""))) if self.codec == Klt.name else None

    def given(self) -> dict[str, Any]:
        """What differs from the defaults, for a person."""
        return {**self.settings, **self.evict_settings, **self._rows()}

    def _rows(self) -> dict[str, int]:
        """What the codec does not code."""
        found = {name: getattr(self, name) for name in ("exact_sinks", "exact_last") if getattr(self, name)}
        return found if self.state_bits is None else found | {"state_bits": self.state_bits}

    @property
    def state_codec(self) -> Codec:
        """What codes the states."""
        if self.state_bits is None and self.codec in STATE_CODECS:
            return codec_by_name(self.codec, self.settings)
        bits = _BESIDE_BITS if self.state_bits is None else self.state_bits
        return codec_by_name("scalar", {"bits": bits}) if bits else codec_by_name("lossless")

    def parameters(self) -> dict[str, Any]:
        """Everything that was set or left at its default, as the tier header holds it."""
        settings = codec_by_name(self.codec, self.settings).settings
        found: dict[str, Any] = settings.described() if hasattr(settings, "described") else asdict(settings)
        if self.evict:
            found |= asdict(setting.make(FILTERS[self.evict], self.evict_settings, f"filter {self.evict}"))
        return found | self._rows()


def recipe_of(codec: str, evict: str, values: Mapping[str, str]) -> Recipe:
    """A recipe by hand: every setting goes to whatever has one of that name.

    Raises:
        UsageError: nothing has; the settings that exist are named.
    """
    kind = type(codec_by_name(codec))
    if evict and evict not in FILTERS:
        raise UsageError(f"there is no filter {evict!r}", hint=f"filters: {', '.join(FILTERS)}")
    of_filter = {f.name for f in fields(FILTERS[evict])} if evict else set()
    rest = {key: value for key, value in values.items() if key not in of_filter}
    exact = {}
    state_bits = rest.pop("state_bits", None)
    if state_bits is not None:
        require(state_bits in {"0", *map(str, range(2, 17))}, f"state_bits={state_bits} is neither 0 nor from 2 to 16")
    for name in ("exact_sinks", "exact_last"):
        count = rest.pop(name, "0")
        require(count.isascii() and count.isdigit() and len(count) < 8, f"{name}={count} is not a number of rows")
        exact[name] = int(count)
    of_evict = {key: value for key, value in values.items() if key in of_filter}
    bits = None if state_bits is None else int(state_bits)
    recipe = Recipe(kind.name, rest, evict, of_evict, exact["exact_sinks"], exact["exact_last"], state_bits=bits)
    recipe.parameters()  # refuses what nothing knows
    return recipe


class Source:
    """A trace whose rows are in memory, once for each filter, so that many recipes can be tried on it."""

    def __init__(self, trace: Trace) -> None:
        if lost_by := promises.loss_of_trace(trace):
            raise UsageError(
                f"was compressed already ({lost_by}): what was lost then cannot be told from what was captured",
                path=trace.path,
                hint="compress the captured file",
            )
        self.trace = trace
        self._filtered: dict[tuple[Any, ...], Filtered] = {}

    def filtered(self, recipe: Recipe) -> Filtered:
        key = (recipe.evict, *sorted(recipe.evict_settings.items()))
        if key not in self._filtered:
            kept = self._filtered.get(("",))
            self._filtered = {} if kept is None else {("",): kept}  # at most two sets of rows at once
            self._filtered[key] = eviction.apply(recipe.evict, recipe.evict_settings, self.trace)
        return self._filtered[key]

    @cached_property
    def stored_values(self) -> int:
        """Scalars that the snapshots need, each counted once."""
        return row_store.stored_values(self.trace.geometry, self.trace.views)

    @property
    def passing_secret(self) -> Secret | None:
        """For files that are made to be measured and thrown away: encrypted if the trace is, with a key nobody keeps.

        They are as long as the trace's own would be, and a passphrase need not be stretched for each of them.
        """
        return None if self.trace.secret is None else Secret.random()

    @cached_property
    def captured_bytes(self) -> tuple[int, int]:
        return self.trace.raw_bytes, self.trace.raw_bytes_final


@dataclass(frozen=True)
class Header:
    """What the tier header is to say beside the codec."""

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
    progress: Any = None,
    secret: Secret | None = None,
) -> tuple[TierHeader, int]:
    """Write the trace by this recipe; returns the tier header and the file's length in bytes.

    Args:
        device: where rows are encoded.
        progress: called with the bytes of rows encoded since the last call.
        secret: encrypt the file with it, by default with the trace's, if that has one.
    Raises:
        UsageError: a value is not finite and the codec is not exact; the filter cannot be applied.
        PromiseError: the file does not keep the tier that its header is to state.
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
    for kept in filtered.kept:
        writer.add_kept(kept)
    if (profile := recipe.profile) is not None:
        writer.add_profile(profile, embed=recipe.embed_profile)
    encoder = _Encoder(trace, filtered, recipe)
    for group in filtered.rows:
        row_bytes = trace.geometry.row_bytes[group.first_layer]
        for block in group.blocks(encoder.cuts, row_bytes, *encoder.extents(group.layer_count * row_bytes)):
            encoder.encode(writer, _on(block, device))
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


def _on(block: MemoryBlock, device: str | torch.device) -> MemoryBlock:
    return MemoryBlock(block.key, block.read(device))


class _Encoder:
    """Chooses the codec of each block."""

    def __init__(self, trace: Trace, filtered: Filtered, recipe: Recipe) -> None:
        self._codec = codec_by_name(recipe.codec, recipe.settings)
        # an encoder's rows come before the first token
        begin = next((span.first for span in filtered.views[0].history), 0)
        self._sinks = Span(begin, recipe.exact_sinks)
        self._labels = trace.labels
        self._sink_codec = codec_by_name("scalar", {"bits": _SINK_BITS})
        rows = max((span.stop for view in filtered.views for spans in view.layers for span in spans), default=0)
        self._beside = codec_by_name("scalar", {"bits": _BESIDE_BITS})
        self._exact_from = rows - recipe.exact_last
        self._exact_codec = codec_by_name("lossless")
        self.cuts: list[int] = [begin, self._sinks.stop] if recipe.exact_sinks else []
        if recipe.exact_last:
            self.cuts.append(self._exact_from)
        self._predecessors: Predecessors | None = None
        if isinstance(self._codec, Delta):
            settings = self._codec.settings
            bits = settings.keyframe_bits
            self._keyframe = codec_by_name("scalar", {"bits": bits}) if bits else codec_by_name("lossless")
            first = filtered.views[0].layers
            self._keyframe_stop = max((span.stop for spans in first for span in spans), default=0)
            self.cuts.append(self._keyframe_stop)
            self._predecessors = Predecessors(filtered.views, trace.labels, trace.geometry, settings)

    def extents(self, run_bytes: int) -> tuple[int, int]:
        """Rows and bytes of a block; `run_bytes` is what a row takes in neighbouring layers that are alike."""
        if isinstance(self._codec, Klt):  # layers are coded together, and no rows share anything
            return max(1, min(_JOINT_ROWS, MAX_BLOCK_BYTES // run_bytes)), MAX_BLOCK_BYTES
        return MAX_ROWS, TARGET_RECORD_RAW

    def _around(self, key: BlockKey) -> Surroundings:
        positions = self._labels.positions
        return Surroundings(
            first_layer=key.first_layer, positions=positions[key.first_row : key.span.stop], end=max(positions) + 1
        )

    def encode(self, writer: TraceWriter, block: MemoryBlock) -> None:
        sink = self._sinks.first <= block.key.first_row and block.key.span.stop <= self._sinks.stop
        sink = sink and not self._codec.exact
        if self._predecessors is None:
            codec = self._exact_codec if block.key.first_row >= self._exact_from else self._codec
            codec = self._sink_codec if sink else codec
            writer.add_block(block, codec, self._around(block.key))
            if Part.JOINT in codec.parts and Part.INDEXER in block.rows:
                writer.add_block(MemoryBlock(block.key, {Part.INDEXER: block.rows[Part.INDEXER]}), self._beside)
            return
        codec = self._codec
        if block.key.span.stop <= self._keyframe_stop:
            codec = self._sink_codec if sink and not self._keyframe.exact else self._keyframe
        for piece in self._predecessors.split(block) if codec is self._codec else [block]:
            for part in piece.rows:
                bases = self._predecessors.bases(piece, part)
                writer.add_block(MemoryBlock(piece.key, {part: piece.rows[part]}), codec, Surroundings(bases=bases))
            self._predecessors.remember(piece, codec)
