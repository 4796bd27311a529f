"""States, such as recurrent ones, which a layer replaces at every token; each snapshot has its own.

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
    """A key names one state of consecutive layers at consecutive snapshots.

    Attributes:
        number: The index of the state in `LayerSpec.states`.
        first_layer: The index of the first layer.
        layer_count: How many layers there are.
        first_snapshot: The index of the first snapshot.
        snapshots: How many snapshots there are.
    """

    number: int
    first_layer: int
    layer_count: int
    first_snapshot: int
    snapshots: int

    @property
    def span(self) -> Span:
        """The range of snapshots."""
        return Span(self.first_snapshot, self.snapshots)

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + self.layer_count)

    def covers(self, layer: int, snapshot: int) -> bool:
        return 0 <= layer - self.first_layer < self.layer_count and 0 <= snapshot - self.first_snapshot < self.snapshots


class States(Protocol):
    """States of some layers and snapshots, which can be read as one tensor."""

    @property
    def key(self) -> StateKey: ...

    def read(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return (layers, snapshots, batch, *shape of the state), in the state's dtype."""
        ...


@dataclass(frozen=True)
class MemoryStates:
    """States that are held in memory."""

    key: StateKey
    tensor: torch.Tensor

    def read(self, device: str | torch.device = "cpu") -> torch.Tensor:
        return self.tensor.to(device)


def block_shape(key: StateKey, geometry: Geometry) -> BlockShape:
    """Return the shape of the states as a codec sees them: one row for each snapshot."""
    state = geometry.layers[key.first_layer].states[key.number]
    spec = LayerSpec("full", state.heads, state.size, state.size)
    return BlockShape(
        state.dtype, state.item_bytes, key.layer_count, geometry.batch, key.snapshots, spec, key.first_snapshot
    )


def as_values(tensor: torch.Tensor, state: StateSpec) -> torch.Tensor:
    """Rearrange (layers, snapshots, batch, *shape) to (layers, batch, heads, snapshots, size)."""
    layers, snapshots, batch = tensor.shape[:3]
    return tensor.reshape(layers, snapshots, batch, state.heads, state.size).permute(0, 2, 3, 1, 4)


def from_values(values: torch.Tensor, state: StateSpec) -> torch.Tensor:
    """Invert `as_values`."""
    layers, batch, _, snapshots, _ = values.shape
    return values.permute(0, 3, 1, 2, 4).reshape(layers, snapshots, batch, *state.shape)


def of_snapshot(
    number: int, layers: Sequence[Mapping[str, torch.Tensor]], geometry: Geometry
) -> Iterator[MemoryStates]:
    """Copy the states of one snapshot; consecutive layers of one kind are stacked.

    Args:
        number: The index of the snapshot.
        layers: For each layer its states by name, (batch, *shape) each.
        geometry: The layers, shapes and dtype of the cache.
    """
    import torch

    for first, count, spec in geometry.runs():
        for index, state in enumerate(spec.states):
            layers_per_block = max(1, TARGET_RECORD_RAW // (geometry.batch * state.bytes))
            for layer in range(first, first + count, layers_per_block):
                together = range(layer, min(layer + layers_per_block, first + count))
                # the model overwrites its tensors in place, so they are copied
                tensor = torch.stack([layers[stacked_layer][state.name].detach() for stacked_layer in together])
                yield MemoryStates(StateKey(index, layer, len(together), number, 1), tensor[:, None])


def snapshots_of(keys: Iterable[StateKey]) -> dict[tuple[int, int], list[Span]]:
    """Return the snapshots that keys cover, ascending, by (layer, number of the state)."""
    covered: dict[tuple[int, int], list[Span]] = {}
    for key in sorted(keys, key=lambda key: key.span):
        span = key.span
        for layer in key.layers:
            covered.setdefault((layer, key.number), []).append(span)
    return covered


def check_coverage(keys: Iterable[StateKey], snapshots: int, geometry: Geometry) -> None:
    """Check that every state of every layer is stored once for every snapshot.

    Raises:
        CorruptError: A state is missing at a snapshot, or is stored twice.
    """
    all_keys = list(keys)
    needed = sum(len(spec.states) for spec in geometry.layers) * snapshots
    # checked first, since `snapshots_of` takes memory for each layer of each key
    if sum(key.layer_count * key.snapshots for key in all_keys) > 2 * needed:
        raise CorruptError("states are stored twice")
    stored = snapshots_of(all_keys)
    for layer, spec in enumerate(geometry.layers):
        for number, state in enumerate(spec.states):
            next_snapshot = 0
            for span in stored.get((layer, number), ()):
                if span.first < next_snapshot:
                    raise CorruptError(
                        f"state {state.name!r} of layer {layer} is stored twice at snapshot {span.first}"
                    )
                if span.first > next_snapshot:
                    break
                next_snapshot = span.stop
            if next_snapshot != snapshots:
                raise CorruptError(f"state {state.name!r} of layer {layer} is missing at snapshot {next_snapshot}")
