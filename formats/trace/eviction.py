"""Eviction filters: which rows of a trace a file keeps.  Kept rows keep their positions.

`streaming` is the rule of StreamingLLM (arXiv 2309.17453): the first tokens (attention sinks) and a
recent window. `h2o` is the heavy-hitter oracle (arXiv 2306.14048): sinks, a recent window, and the
rows that received most attention, chosen for each layer and KV head by the attention that was
accumulated up to the first snapshot.  A trace stores a row once, and a row that an earlier snapshot
needs cannot be dropped for a later one; so h2o evicts once, at the first snapshot, with what a
running model would know then, and keeps the rows that steps append.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from formats import settings as setting
from formats.errors import UsageError
from formats.settings import require

from . import head_maps, row_store
from .head_maps import HeadMap
from .row_store import LayerRows
from .trace import Trace
from .views import Span, View, merged

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class H2OSettings:
    """Attributes:
    keep: share of the first snapshot's rows that every KV head keeps.
    sinks: first rows that are always kept.
    recent: share of the kept rows that are the most recent ones.
    """

    keep: float = 0.75
    sinks: int = 4
    recent: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.keep <= 1, f"keep={self.keep} is not over 0 and up to 1")
        require(0 <= self.recent <= 1, f"recent={self.recent} is not from 0 to 1")
        require(0 <= self.sinks <= 1 << 20, f"sinks={self.sinks} is not from 0 to 1048576")


@dataclass(frozen=True)
class StreamingSettings:
    """Attributes:
    sinks: first rows that are always kept.
    window: most recent rows that a snapshot keeps.
    """

    sinks: int = 4
    window: int = 1020

    def __post_init__(self) -> None:
        require(0 <= self.sinks <= 1 << 20, f"sinks={self.sinks} is not from 0 to 1048576")
        require(1 <= self.window <= 1 << 26, f"window={self.window} is not from 1 to 67108864")


FILTERS: dict[str, type] = {"h2o": H2OSettings, "streaming": StreamingSettings}


@dataclass(frozen=True)
class Filtered:
    """What is left of a trace: views, rows in memory, and what heads kept."""

    views: list[View]
    rows: list[LayerRows]
    head_maps: list[HeadMap]


def apply(name: str, values: Mapping[str, Any], trace: Trace) -> Filtered:
    """Evict rows of the full-attention layers of a trace; "" evicts nothing.

    Raises:
        UsageError: no such filter or setting; h2o without observed attention, or on a trace whose
            rows moved.
    """
    if not name:
        return Filtered(list(trace.views), row_store.read(trace), [])
    if not trace.geometry.rows_only or trace.labels.width > 1:
        raise UsageError(f"{name} cannot evict rows beside states, indexer keys, an encoder's rows or padding")
    if name not in FILTERS:
        raise UsageError(f"there is no filter {name!r}", hint=f"filters: {', '.join(FILTERS)}")
    settings: Any = setting.make(FILTERS[name], values, f"filter {name}")
    if isinstance(settings, StreamingSettings):
        return _streaming(settings, trace)
    return _h2o(settings, trace)


def _full_layers(trace: Trace) -> list[bool]:
    return [spec.kind == "full" for spec in trace.geometry.layers]


def _streaming(settings: StreamingSettings, trace: Trace) -> Filtered:
    full = _full_layers(trace)
    views = []
    for view in trace.views:
        short: dict[tuple[Span, ...], tuple[Span, ...]] = {}
        layers = tuple(
            short.setdefault(spans, _ends(spans, settings.sinks, settings.window)) if full[layer] else spans
            for layer, spans in enumerate(view.layers)
        )
        views.append(replace(view, layers=layers))
    return Filtered(views, row_store.read(trace, views), [])


def _ends(spans: tuple[Span, ...], head: int, tail: int) -> tuple[Span, ...]:
    """The first `head` and the last `tail` rows of the concatenated spans."""
    total = sum(span.rows for span in spans)
    if total <= head + tail:
        return spans
    result, at = [], 0
    for span in spans:
        for low, high in ((0, head), (total - tail, total)):
            first, stop = max(low, at), min(high, at + span.rows)
            if first < stop:
                result.append(Span(span.first + first - at, stop - first))
        at += span.rows
    return merged(result)


def _h2o(settings: H2OSettings, trace: Trace) -> Filtered:
    first = trace.views[0]
    full = _full_layers(trace)
    prompt = next((first.layers[layer] for layer, is_full in enumerate(full) if is_full), ())
    if len(prompt) != 1 or any(first.layers[layer] != prompt for layer, is_full in enumerate(full) if is_full):
        raise UsageError("h2o needs a first snapshot whose full-attention layers hold the same run of rows")
    (span,) = prompt
    for view in trace.views:
        if any(is_full and view.layers[layer][0].first != span.first for layer, is_full in enumerate(full)):
            raise UsageError("h2o needs snapshots that grow from the first one")
    received = _received(trace, full, span)
    count = max(1, min(span.rows, round(settings.keep * span.rows)))
    groups, maps = [], []
    for group in row_store.read(trace):
        if not full[group.first_layer]:
            groups.append(group)
            continue
        scores = received[group.first_layer : group.first_layer + group.layer_count]
        mask = _choose(_stacked(scores), count, settings)
        maps.append(head_maps.of_mask(group.first_layer, span, mask))
        groups.append(_compact(group, span, mask, count))
    views = [replace(view, layers=_slots(view.layers, full, span, count)) for view in trace.views]
    return Filtered(views, groups, maps)


def _stacked(scores: Sequence[torch.Tensor | None]) -> torch.Tensor:
    import torch

    return torch.stack([score for score in scores if score is not None])


def _received(trace: Trace, full: Sequence[bool], span: Span) -> list[torch.Tensor | None]:
    """For each layer the attention that its rows received, (heads, rows)."""
    by_layer: list[torch.Tensor | None] = [None] * len(full)
    for one in trace.attention:
        for at, scores in enumerate(one.read()):
            by_layer[one.first_layer + at] = scores
    for layer, is_full in enumerate(full):
        scores = by_layer[layer]
        if is_full and (scores is None or scores.shape[1] != span.rows):
            raise UsageError(
                f"the file does not say which attention the rows of layer {layer} received, which h2o goes by",
                hint="capture it with --attention",
            )
    return by_layer


def _choose(received: torch.Tensor, count: int, settings: H2OSettings) -> torch.Tensor:
    """Booleans (layers, heads, rows), `count` of them set for each head: sinks, recent rows, heavy
    hitters.
    """
    import torch

    rows = received.shape[-1]
    recent = min(count, round(settings.recent * count))
    sinks = min(settings.sinks, count - recent)
    scores = received.double().clone()
    scores[..., rows - recent :] = torch.inf
    scores[..., :sinks] = torch.inf
    chosen = scores.topk(count, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, value=True)


def _compact(group: LayerRows, span: Span, mask: torch.Tensor, count: int) -> LayerRows:
    """The group with the kept rows of every head moved to the first `count` row numbers of the
    span.
    """
    import torch

    order = mask.nonzero()[:, 2].view(*mask.shape[:2], count)  # ascending within each head
    rows = {}
    for part, tensor in group.rows.items():
        layers, batch, heads, _, size = tensor.shape
        index = order[:, None, :, :, None].expand(layers, batch, heads, count, size)
        slots = tensor[..., : span.rows, :].gather(3, index)
        rows[part] = torch.cat([slots, tensor[..., span.rows :, :]], 3)
    rest = [
        Span(max(one.first, span.stop), one.stop - max(one.first, span.stop))
        for one in group.spans
        if one.stop > span.stop
    ]
    return LayerRows(group.first_layer, group.layer_count, merged([Span(span.first, count), *rest]), rows)


def _slots(
    layers: tuple[tuple[Span, ...], ...], full: Sequence[bool], span: Span, count: int
) -> tuple[tuple[Span, ...], ...]:
    short: dict[tuple[Span, ...], tuple[Span, ...]] = {}

    def of(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        head, *others = spans
        rest = Span(span.stop, head.stop - span.stop)
        return merged([Span(span.first, count), rest, *others])

    return tuple(short.setdefault(spans, of(spans)) if full[at] else spans for at, spans in enumerate(layers))
