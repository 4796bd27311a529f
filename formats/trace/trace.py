"""Trace: the snapshots of a capture, in memory or lazily out of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from formats.container.encryption import Secret
from formats.container.records import Part
from formats.errors import UsageError
from formats.limits import require_memory

from . import views as viewing
from .blocks import Block
from .geometry import Geometry
from .head_maps import HeadMap
from .sequences import SequenceBlock, SequenceStates, sequence_labels, sequence_views
from .snapshot import Received, Snapshot
from .states import States
from .views import Labels, Span, View

if TYPE_CHECKING:
    import torch


@dataclass
class Trace:
    """The snapshots of one capture, oldest first; every row is held once.

    Attributes:
        geometry: the shape of the cache.
        fingerprint: what identifies the model (field name -> value); empty if unknown.
        views: one a snapshot.
        labels: token id and position of every row.
        blocks: the stored rows; `states` what each snapshot has of its own.
        reference: token ids of the text that followed the first snapshot, if it is known.
        info: how the trace was captured (the tier header's `capture` object).
        quality: measured quality records, if any.
        tier, codec, parameters: the promise that a file keeps, and how its rows are coded.
        head_maps: which rows each head of some layers kept, where heads kept different ones.
        attention: attention that the rows of the first snapshot received, if it was observed.
        captured_bytes: bytes of the snapshots as they were captured, all and the last, if rows were
            evicted since.
        stored_bytes: length of the file that it came from, None for a trace in memory.
        secret: what the file that it came from is encrypted with; files that are made of the trace
            are, too.
        lost_by: what the rows lost by since they were captured, such as "scalar"; "" if they are
            exact.  Files that are made of the trace say so, too.
        path: the file that it came from.
    """

    geometry: Geometry
    fingerprint: dict[str, str]
    views: list[View] = field(default_factory=list)
    labels: Labels = field(default_factory=Labels)
    blocks: Sequence[Block] = ()
    reference: list[int] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    quality: list[dict[str, Any]] = field(default_factory=list)
    tier: str = "lossless"
    codec: str = "lossless"
    parameters: dict[str, Any] = field(default_factory=dict)
    head_maps: Sequence[HeadMap] = ()
    attention: Sequence[Received] = ()
    captured_bytes: tuple[int, int] | None = None
    stored_bytes: int | None = None
    states: Sequence[States] = ()
    secret: Secret | None = None
    lost_by: str = ""
    path: str | None = None

    def __len__(self) -> int:
        return len(self.views)

    def __repr__(self) -> str:
        """A line: the tensors and thousands of labels would fill a notebook."""
        tokens = self.views[-1].tokens_seen if self.views else 0
        return (
            f"<Trace: {len(self)} snapshots of {len(self.geometry.layers)} layers, the last of {tokens} tokens, "
            f"{self.geometry.dtype}, codec {self.codec}"
            f"{f', lost by {self.lost_by}' if self.lost_by not in ('', self.codec) else ''}>"
        )

    def index(self, snapshot: int) -> int:
        """`snapshot` counted from the start; negative numbers count from the end, as in a list."""
        if not -len(self) <= snapshot < len(self):
            raise UsageError(f"there is no snapshot {snapshot}", hint=f"the trace holds snapshots 0 to {len(self) - 1}")
        return snapshot % len(self)

    def token_ids(self, snapshot: int = -1) -> list[int]:
        """The tokens that the model had been fed at that moment.

        Raises:
            UsageError: the sequences of the batch hold different tokens.
        """
        if self.labels.width > 1 or self.geometry.padding:
            raise UsageError(
                f"a batch of {self.geometry.batch} sequences has no one text", hint="take one: trace.sequence(0)"
            )
        return self.labels.tokens(self.views[self.index(snapshot)].history)

    @property
    def pending(self) -> tuple[int, ...]:
        """`pending_at` the last snapshot."""
        return self.pending_at(-1) if self.views else ()

    def pending_at(self, snapshot: int) -> tuple[int, ...]:
        """For each sequence the token that the run generated last and has not fed: it comes before
        any further text.

        Empty if the run generated none: it chose no next token, or the snapshot ends with text that
        it was given. There `View.next_tokens` only predicts what follows, for a run that goes on
        without further text.
        """
        view = self.views[self.index(snapshot)]
        return () if view.tokens_seen in self.text_ends else view.next_tokens

    @property
    def text_ends(self) -> tuple[int, ...]:
        """How many tokens had been fed when each text that the run was given ended, in order, as
        far as is known.
        """
        stated = self.info.get("text_ends")
        if isinstance(stated, str):
            return tuple(int(end) for end in stated.split(",") if end.isascii() and end.isdigit() and len(end) < 10)
        prompt = self.info.get("prompt_tokens")
        # `from_cache` knows of no steps
        return (prompt,) if isinstance(prompt, int) and "steps" in self.info else ()

    def sequence(self, number: int) -> Trace:
        """One sequence of a batch as a trace of its own: without padding, with its own positions.

        Its rows are read when they are asked for.

        Raises:
            UsageError: there is no such sequence.
        """
        batch = self.geometry.batch
        if not 0 <= number < batch:
            raise UsageError(f"there is no sequence {number}", hint=f"the batch has sequences 0 to {batch - 1}")
        padding = self.geometry.padding[number] if self.geometry.padding else 0
        info = {key: value for key, value in self.info.items() if key != "sequences"}
        if isinstance(info.get("prompt_tokens"), int):
            info["prompt_tokens"] -= padding
        return replace(
            self,
            geometry=replace(self.geometry, batch=1, padding=()),
            info=info,
            labels=sequence_labels(self.labels, number, padding),
            views=sequence_views(self.views, number, padding, self.geometry, self.labels),
            blocks=[SequenceBlock(block, number) for block in self.blocks],
            states=[SequenceStates(states, number) for states in self.states],
            tier=self.tier if self.tier == "lossless" else "",
            quality=[],
            attention=(),
            captured_bytes=None,
            stored_bytes=None,
        )

    @property
    def raw_bytes(self) -> int:
        """Sum over the snapshots of their tensors' bytes as captured: the numerator of a ratio."""
        if self.captured_bytes is not None:
            return self.captured_bytes[0]
        return sum(viewing.raw_bytes(self.geometry, view) for view in self.views)

    @property
    def raw_bytes_final(self) -> int:
        """Bytes of the last snapshot's tensors as captured."""
        if self.captured_bytes is not None:
            return self.captured_bytes[1]
        return viewing.raw_bytes(self.geometry, self.views[-1])

    def snapshot(
        self, snapshot: int = -1, *, layers: Sequence[int] | None = None, device: str | torch.device = "cpu"
    ) -> Snapshot:
        """Materialize one snapshot.

        Args:
            layers: the layers wanted, all by default; the lists of the result follow this order.
        Raises:
            UsageError: no such snapshot or layer.
            LimitError: the snapshot is larger than the memory budget.
            CorruptError: a row block of the file is damaged.
        """
        view = self.views[self.index(snapshot)]
        wanted = list(range(len(self.geometry.layers))) if layers is None else list(layers)
        for layer in wanted:
            if not 0 <= layer < len(self.geometry.layers):
                raise UsageError(
                    f"there is no layer {layer}", hint=f"the model has layers 0 to {len(self.geometry.layers) - 1}"
                )
        rows = _gather(self, view, wanted, device)
        return Snapshot(
            [found[Part.KEYS] for found in rows],
            [found[Part.VALUES] for found in rows],
            [self.row_positions(view, layer) for layer in wanted],
            self.labels.tokens(view.history),
            [self.labels.positions[row] for span in view.history for row in range(span.first, span.stop)],
            view.next_token,
            [found.get(Part.INDEXER) for found in rows],
            _gather_states(self, self.index(snapshot), wanted, device),
            self.lost_by,
        )

    def row_positions(self, view: View, layer: int) -> torch.Tensor:
        """The positions of a layer's rows, int64: (rows,), or (heads, rows) if heads hold different
        tokens.
        """
        import torch

        rows = [row for span in view.layers[layer] for row in range(span.first, span.stop)]
        maps = [one for one in self.head_maps if one.covers(layer)]
        if not maps:
            return torch.tensor([self.labels.positions[row] for row in rows], dtype=torch.int64)
        by_head = []
        for head in range(self.geometry.layers[layer].heads):
            meant = {one.span.first + at: row for one in maps for at, row in enumerate(one.rows(layer, head))}
            by_head.append([self.labels.positions[meant.get(row, row)] for row in rows])
        return torch.tensor(by_head, dtype=torch.int64)


def _gather(
    trace: Trace, view: View, wanted: Sequence[int], device: str | torch.device
) -> list[dict[Part, torch.Tensor]]:
    """For each wanted layer its rows by part; of a layer without rows, keys and values without
    elements.
    """
    import torch

    geometry = trace.geometry
    needed = sum(view.rows(layer) * geometry.row_bytes[layer] + geometry.state_bytes[layer] for layer in wanted)
    require_memory(needed, "the snapshot takes")
    dtype = getattr(torch, geometry.dtype)
    slots = {layer: slot for slot, layer in enumerate(wanted)}
    result: list[dict[Part, torch.Tensor]] = []
    for layer in wanted:
        spec = geometry.layers[layer]
        shapes = {
            part: (geometry.batch, spec.part_heads(part), view.rows(layer), spec.head_size(part))
            for part in spec.parts or (Part.KEYS, Part.VALUES)
        }
        result.append({part: torch.empty(shape, dtype=dtype, device=device) for part, shape in shapes.items()})
    for block in trace.blocks:
        copies = [
            (layer, source, target, count)
            for layer in block.key.layers
            if layer in slots
            for source, target, count in _overlaps(view.layers[layer], block.key.span)
        ]
        if not copies:
            continue
        for part, rows in block.read(device).items():
            for layer, source, target, count in copies:
                whole = result[slots[layer]][part]
                whole[:, :, target : target + count] = rows[layer - block.key.first_layer][
                    :, :, source : source + count
                ]
    return result


def _gather_states(
    trace: Trace, snapshot: int, wanted: Sequence[int], device: str | torch.device
) -> list[dict[str, torch.Tensor]]:
    found: dict[tuple[int, int], torch.Tensor] = {}
    for block in trace.states:
        key = block.key
        needed = [layer for layer in wanted if key.covers(layer, snapshot)]
        read = block.read(device) if needed else None
        for layer in needed:
            assert read is not None
            # a copy: the model that it is restored into overwrites it
            found[layer, key.number] = read[layer - key.first_layer, snapshot - key.first_snapshot].clone()
    return [
        {state.name: found[layer, number] for number, state in enumerate(trace.geometry.layers[layer].states)}
        for layer in wanted
    ]


def _overlaps(spans: Sequence[Span], rows: Span) -> list[tuple[int, int, int]]:
    """(offset in `rows`, offset in the concatenated `spans`, count) of every run that they
    share.
    """
    found, at = [], 0
    for span in spans:
        first, stop = max(span.first, rows.first), min(span.stop, rows.stop)
        if first < stop:
            found.append((first - rows.first, at + first - span.first, stop - first))
        at += span.rows
    return found
