"""Deduplication of snapshots between which rows may have been replaced, dropped or moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from formats.container.records import Part
from formats.errors import UsageError

from .geometry import Geometry
from .recorder import PendingRows, TraceBuilder
from .snapshot import Snapshot
from .trace import Trace
from .views import Span, View, merged


def deduplicate(
    snapshots: Iterable[Snapshot], geometry: Geometry, fingerprint: Mapping[str, str] | None = None
) -> Trace:
    """Make a trace of snapshots, which stores a row once if the previous snapshot also held it.

    A row is the same when its token, its position, and its keys and values are bit-identical; rows
    are compared layer by layer, so that an edit that leaves the first layers' rows as they were
    stores only the others again.

    Args:
        snapshots: The snapshots in order; they may differ in any way.
        geometry: The layers, shapes and dtype of the cache.
        fingerprint: What identifies the model, by name.

    Raises:
        UsageError: A snapshot's tensors do not fit the geometry.
    """
    builder = TraceBuilder(geometry, fingerprint or {})
    previous: list[dict[bytes, int]] = [{} for _ in geometry.layers]
    labelled: dict[tuple[int, int], int] = {}
    for number, snapshot in enumerate(snapshots):
        _check_shapes(snapshot, geometry, number)
        numbers, previous = _match(snapshot, geometry, previous, builder, labelled)
        builder.trace.lost_by = builder.trace.lost_by or snapshot.lost_by
        history = merged(Span(labelled[label], 1) for label in zip(snapshot.token_ids, snapshot.positions, strict=True))
        layers = tuple(merged(Span(row, 1) for row in rows) for rows in numbers)
        builder.add_view(View(history, layers, () if snapshot.next_token is None else (snapshot.next_token,)))
    return builder.trace


def _match(
    snapshot: Snapshot,
    geometry: Geometry,
    previous: list[dict[bytes, int]],
    builder: TraceBuilder,
    labelled: dict[tuple[int, int], int],
) -> tuple[list[list[int]], list[dict[bytes, int]]]:
    """Number the rows of a snapshot, and add those that the previous one lacked to `builder`.

    Args:
        snapshot: The snapshot.
        geometry: The layers, shapes and dtype of the cache.
        previous: For each layer the row numbers of the previous snapshot by `_identities`.
        builder: What receives the new rows and their labels.
        labelled: Row numbers by (token id, position); new labels are added.

    Returns:
        For each layer its row numbers in order, and the same by identity.
    """
    token_at = dict(zip(snapshot.positions, snapshot.token_ids, strict=True))
    # position -> new row number, shared by the layers in which that row is new
    fresh: dict[int, int] = {}
    numbers: list[list[int]] = []
    by_identity: list[dict[bytes, int]] = []
    new_rows: list[list[tuple[int, int]]] = []

    def number_for(position: int) -> int:
        if position not in fresh:
            fresh[position] = len(builder.trace.labels)
            builder.add_labels([token_at[position]], [position])
            labelled[token_at[position], position] = fresh[position]
        return fresh[position]

    for position, token in zip(snapshot.positions, snapshot.token_ids, strict=True):
        if (token, position) not in labelled:
            number_for(position)
    positions = [of_layer.tolist() for of_layer in snapshot.row_positions]
    for layer in range(len(geometry.layers)):
        table: dict[bytes, int] = {}
        rows: list[int] = []
        new: list[tuple[int, int]] = []
        for index, identity in enumerate(_identities(snapshot, layer, token_at)):
            row = previous[layer].get(identity)
            if row is None:
                row = number_for(positions[layer][index])
                new.append((row, index))
            table[identity] = row
            rows.append(row)
        numbers.append(rows)
        by_identity.append(table)
        new_rows.append(new)
    _emit_new(snapshot, geometry, new_rows, builder)
    return numbers, by_identity


def _identities(snapshot: Snapshot, layer: int, token_at: Mapping[int, int]) -> list[bytes]:
    """Return for each row its label and all its bytes; a hash could make different rows equal."""
    import torch

    def as_rows(tensor: torch.Tensor) -> list[bytes]:
        flat = tensor.detach().transpose(0, 2).reshape(-1).view(torch.uint8).cpu().numpy()
        return [row.tobytes() for row in flat.reshape(tensor.shape[2], -1)]

    labels = [f"{token_at[position]},{position};".encode() for position in snapshot.row_positions[layer].tolist()]
    return [
        label + key + value
        for label, key, value in zip(
            labels, as_rows(snapshot.keys[layer]), as_rows(snapshot.values[layer]), strict=True
        )
    ]


def _emit_new(
    snapshot: Snapshot, geometry: Geometry, new_rows: list[list[tuple[int, int]]], builder: TraceBuilder
) -> None:
    """Add blocks of new rows; `new_rows` has for each layer (row number, index in the snapshot)."""
    runs: dict[tuple[Span, tuple[int, ...]], list[int]] = {}
    for layer, new in enumerate(new_rows):
        ordered = sorted(new)
        while ordered:
            count = 1
            while count < len(ordered) and ordered[count][0] == ordered[0][0] + count:
                count += 1
            indices = tuple(index for _, index in ordered[:count])
            runs.setdefault((Span(ordered[0][0], count), indices), []).append(layer)
            ordered = ordered[count:]
    pending = PendingRows(builder, geometry)
    for (span, indices), layers in runs.items():
        for layer in layers:
            index = list(indices)
            pending.add(layer, span.first, (snapshot.keys[layer][:, :, index], snapshot.values[layer][:, :, index]))
        pending.flush()


def _check_shapes(snapshot: Snapshot, geometry: Geometry, number: int) -> None:
    """Raise a UsageError if the tensors of snapshot `number` do not fit the geometry."""
    if not geometry.rows_only:
        raise UsageError("only full and sliding layers without states can be deduplicated")
    if len(snapshot.keys) != len(geometry.layers) or len(snapshot.values) != len(geometry.layers):
        raise UsageError(f"snapshot {number} has {len(snapshot.keys)} layers, the model {len(geometry.layers)}")
    for layer, spec in enumerate(geometry.layers):
        if snapshot.row_positions[layer].dim() != 1:
            raise UsageError(f"snapshot {number}, layer {layer}: its heads hold different tokens")
        rows = len(snapshot.row_positions[layer])
        if not set(snapshot.row_positions[layer].tolist()) <= set(snapshot.positions):
            raise UsageError(f"snapshot {number}, layer {layer}: a row stands at a position that no token has")
        for part, tensor in ((Part.KEYS, snapshot.keys[layer]), (Part.VALUES, snapshot.values[layer])):
            want = (geometry.batch, spec.heads, rows, spec.head_size(part))
            if tuple(tensor.shape) != want or str(tensor.dtype) != f"torch.{geometry.dtype}":
                raise UsageError(
                    f"snapshot {number}, layer {layer}: {part.name.lower()} are {tuple(tensor.shape)} "
                    f"{tensor.dtype}, not {want} {geometry.dtype}"
                )
