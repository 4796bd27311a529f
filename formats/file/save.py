"""Saving a trace as a lossless file in one call."""

from __future__ import annotations

import os

from formats.container.atomic_write import atomic_write
from formats.container.encryption import Secret
from formats.trace import geometry as geometry_json
from formats.trace import views as viewing
from formats.trace.blocks import MemoryBlock
from formats.trace.trace import Trace

from . import promises
from .writer import TraceWriter, content_id


def save(
    trace: Trace,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    deterministic: bool = False,
    key: Secret | None = None,
) -> int:
    """Write a trace as a lossless .tsc file, atomically; returns its length in bytes.

    `formats.encode` writes smaller ones.  Of a trace whose rows are not as captured, the file says
    by what they lost; a tier that it does not keep is not stated.

    Args:
        overwrite: replace an existing file (the file from which the trace was loaded may be
            replaced, too).
        deterministic: derive the file's identity from the content, so that the same trace gives the
            same bytes.
        key: encrypts the file; by default the secret of the trace, if it has one.
    """
    spans, next_tokens = viewing.to_table(trace.views, trace.labels.width)
    lost_by = promises.loss_of_trace(trace)
    identity = content_id(
        geometry_json.to_json(trace.geometry, trace.fingerprint, lost_by),
        repr((list(trace.labels.token_ids), list(trace.labels.positions), spans, next_tokens)).encode(),
    )
    with atomic_write(path, overwrite=overwrite) as file:
        writer = TraceWriter(
            file,
            trace.geometry,
            trace.fingerprint,
            file_id=identity if deterministic else None,
            label_width=trace.labels.width,
            secret=trace.secret if key is None else key,
            lost_by=lost_by,
        )
        for head_map in trace.head_maps:
            writer.add_head_map(head_map)
        for block in trace.blocks:
            writer.add_block(MemoryBlock(block.key, block.read()))
        for states in trace.states:
            writer.add_states(states)
        writer.add_labels(trace.labels.token_ids, trace.labels.positions)
        for view in trace.views:
            writer.add_view(view)
        for attention in trace.attention:
            writer.add_attention(attention)
        _, length = writer.finish(
            tier=trace.tier,
            reference=trace.reference,
            capture=trace.info,
            quality=trace.quality,
            captured_bytes=trace.captured_bytes,
        )
    return length
