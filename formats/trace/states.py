"""States: what a layer replaces with every token, so that every snapshot has its own.

A state is coded as if it were the values of a layer whose rows are the snapshots; see
`docs/format.md`, STATES.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from formats.errors import CorruptError
from formats.limits import TARGET_RECORD_RAW
from formats.trace.blocks import BlockShape

from .geometry import Geometry, LayerSpec, StateSpec
from .views import Span

if TYPE_CHECKING:
    import torch


class StateKey(NamedTuple):
    """State `number` of layers [first_layer, first_layer + layer_count) at some consecutive
    snapshots.
    """

    number: int
    first_layer: int
    layer_count: int
    first_snapshot: int
    snapshots: int

    @property
    def span(self) -> Span:
        """The snapshots."""
        return Span(self.first_snapshot, self.snapshots)

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.layer_count)

    def covers(self, layer: int, snapshot: int) -> bool:
        return 0 <= layer - self.first_layer < self.layer_count and 0 <= snapshot - self.first_snapshot < self.snapshots


class States(Protocol):
    """Some states that can be had as a tensor."""

    @property
    def key(self) -> StateKey: ...

    def read(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """(layers, snapshots, batch, *shape of the state) in the state's dtype."""
        ...


@dataclass(frozen=True)
class MemoryStates:
    """States at hand."""

    key: StateKey
    tensor: torch.Tensor

    def read(self, device: str | torch.device = "cpu") -> torch.Tensor:
        return self.tensor.to(device)


def block_shape(key: StateKey, geometry: Geometry) -> BlockShape:
    """What a codec is told of the states."""
    state = geometry.layers[key.first_layer].states[key.number]
    spec = LayerSpec("full", state.heads, state.size, state.size)
    return BlockShape(
        state.dtype, state.item_bytes, key.layer_count, geometry.batch, key.snapshots, spec, key.first_snapshot
    )


def as_values(tensor: torch.Tensor, state: StateSpec) -> torch.Tensor:
    """(layers, snapshots, batch, *shape) as (layers, batch, heads, snapshots, head size)."""
    layers, snapshots, batch = tensor.shape[:3]
    return tensor.reshape(layers, snapshots, batch, state.heads, state.size).permute(0, 2, 3, 1, 4)


def from_values(values: torch.Tensor, state: StateSpec) -> torch.Tensor:
    """The inverse of `as_values`."""
    layers, batch, _, snapshots, _ = values.shape
    return values.permute(0, 3, 1, 2, 4).reshape(layers, snapshots, batch, *state.shape)


def of_snapshot(
    number: int, layers: Sequence[Mapping[str, torch.Tensor]], geometry: Geometry
) -> Iterator[MemoryStates]:
    """Copies of the states of all layers at one snapshot, by name, (batch, *shape) each; alike
    layers together.
    """
    import torch

    for first, count, spec in geometry.runs():
        for at, state in enumerate(spec.states):
            group = max(1, TARGET_RECORD_RAW // (geometry.batch * state.bytes))
            for layer in range(first, first + count, group):
                together = range(layer, min(layer + group, first + count))
                tensor = torch.stack(
                    [layers[one][state.name].detach() for one in together]
                )  # the model overwrites its own
                yield MemoryStates(StateKey(at, layer, len(together), number, 1), tensor[:, None])


def snapshots_of(keys: Iterable[StateKey]) -> dict[tuple[int, int], list[Span]]:
    """For each (layer, number of the state) the snapshots at which blocks hold it, sorted."""
    found: dict[tuple[int, int], list[Span]] = {}
    for key in sorted(keys, key=lambda key: key.span):
        span = key.span
        for layer in key.layers:
            found.setdefault((layer, key.number), []).append(span)
    return found


def check_coverage(keys: Iterable[StateKey], snapshots: int, geometry: Geometry) -> None:
    """Every state of every layer is stored once for every snapshot.  Raises CorruptError."""
    found = list(keys)
    needed = sum(len(spec.states) for spec in geometry.layers) * snapshots
    # before anything grows with it
    if sum(key.layer_count * key.snapshots for key in found) > 2 * needed:
        raise CorruptError("states are stored twice")
    stored = snapshots_of(found)
    for layer, spec in enumerate(geometry.layers):
        for number, state in enumerate(spec.states):
            at = 0
            for span in stored.get((layer, number), ()):
                if span.first < at:
                    raise CorruptError(
                        f"state {state.name!r} of layer {layer} is stored twice at snapshot {span.first}"
                    )
                if span.first > at:
                    break
                at = span.stop
            if at != snapshots:
                raise CorruptError(f"state {state.name!r} of layer {layer} is missing at snapshot {at}")
