"""The curve of a profile: bits, KL and top-1 agreement at some finenesses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from formats.codecs.klt.codec import Klt, KltSettings
from formats.codecs.klt.profile import Profile, dumps
from formats.container.records import Part
from formats.container.safetensors_buffer import pack, parse
from formats.trace.blocks import BlockShape
from formats.trace.recorder import Rows
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import score
from tsc_cli.progress import Progress
from tsc_cli.scoring.fidelity import compare

from .checkpoint import Checkpoint
from .effort import CURVE, window_size
from .symbol_counting import ContextCaches, joint_blocks

if TYPE_CHECKING:
    from transformers import Cache


def curve(
    adapter: ModelAdapter,
    profile: Profile,
    held_out: Sequence[Sequence[int]],
    progress: Progress,
    finenesses: Sequence[int] = CURVE,
    checkpoint: Checkpoint | None = None,
    contexts: ContextCaches | None = None,
) -> list[dict[str, float]]:
    """Measure a profile: {"fineness", "bits" a value, "kl" in nats, "top1"} at each fineness.

    Args:
        held_out: windows of tokens.
        progress: called with 1 for each window and fineness.
        checkpoint: saves each measurement, and restores them.
        contexts: gives the windows' caches.
    """
    context, _ = window_size(adapter)
    contexts = contexts or ContextCaches(adapter, context)
    state = None if checkpoint is None else checkpoint.load("measured")
    measured = torch.zeros(0, 3, dtype=torch.float64) if state is None else state["found"]
    progress(len(measured))
    for number, tokens in enumerate(held_out):
        todo = finenesses[max(0, len(measured) - number * len(finenesses)) :]
        if not todo:
            continue
        cache = contexts.cache(tokens)
        fed, targets = list(tokens[context:-1]), list(tokens[context + 1 :])
        exact = score(adapter, cache, fed)
        for fineness in todo:
            bits, restored = coded(cache, adapter, profile, fineness)
            fidelity = compare(exact, score(adapter, restored, fed, finite=False), targets)
            row = torch.tensor([[bits, fidelity.kl_mean, fidelity.top1]], dtype=torch.float64)
            measured = torch.cat([measured, row])
            if checkpoint is not None:
                checkpoint.save("measured", {"found": measured})
            progress(1)
    means = measured.view(len(held_out), len(finenesses), 3).mean(0).tolist()
    return [
        {"fineness": float(fineness), "bits": bits, "kl": kl, "top1": top1}
        for fineness, (bits, kl, top1) in zip(finenesses, means, strict=True)
    ]


def coded(cache: Cache, adapter: ModelAdapter, profile: Profile, fineness: int) -> tuple[float, Cache]:
    """Encode and decode a cache with codec klt; return the bits a value and the restored cache."""
    geometry = caches.geometry_of(cache, adapter.name)
    restored: list[Rows] = [()] * len(geometry.layers)
    codec = Klt(KltSettings(profile.digest, fineness))
    payload_bytes = values = 0
    for rows, block_context in joint_blocks(cache, geometry):
        keys, first = rows[Part.KEYS], block_context.first_layer
        with_profile = replace(block_context, profile=lambda: profile)
        payload = pack(codec.encode(rows, with_profile))
        shape = BlockShape(geometry.dtype, geometry.item_bytes, len(keys), 1, keys.shape[3], geometry.layers[first])
        decoded = codec.decode(parse(payload, "klt"), Part.JOINT, shape, keys.device, with_profile)
        restored[first : first + len(keys)] = zip(decoded[Part.KEYS], decoded[Part.VALUES], strict=True)
        payload_bytes += len(payload)
        values += sum(tensor.numel() for tensor in rows.values())
    return 8 * payload_bytes / values, caches.with_rows(cache, restored)


def with_curve(profile: Profile, points: Sequence[Mapping[str, float]]) -> Profile:
    """Return the same profile with a measured curve."""
    return dumps(profile.name, profile.fingerprint, profile.groups, profile.tables, profile.info, points)
