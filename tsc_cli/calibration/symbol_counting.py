"""Counting the symbols of sample windows, which gives a profile its entropy tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from formats.codecs import BlockContext
from formats.codecs.klt.codec import Klt, KltSettings
from formats.codecs.klt.group import Group
from formats.codecs.klt.profile import Profile, dumps
from formats.codecs.klt.tables import Counter
from formats.container.records import Part
from formats.limits import memory_budget
from formats.trace.geometry import Geometry
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.generation import prefill
from tsc_cli.progress import Progress, nothing

from .effort import CONTEXT
from .gather import Gatherer

if TYPE_CHECKING:
    from transformers import Cache

    from .checkpoint import Checkpoint

_COUNTED = (250, 300, 340, 370, 400, 440)  # the finenesses at which symbols are counted
_CACHE_SHARE = 16  # the caches that are kept take this fraction of the memory budget


def profile_of(
    gatherer: Gatherer,
    groups: Sequence[Group],
    sample: Sequence[Sequence[int]],
    name: str,
    info: Mapping[str, Any],
    progress: Progress = nothing,
    checkpoint: Checkpoint | None = None,
    contexts: ContextCaches | None = None,
) -> Profile:
    """Make the profile of these groups.

    Args:
        sample: windows of tokens whose symbols are counted.
        name: the model's name.
        info: how the profile was made.
        progress: called with 1 for each window.
        checkpoint: saves the counts after each window, and restores them.
        contexts: gives the windows' caches.
    """
    contexts = contexts or ContextCaches(gatherer.adapter, gatherer.options.context)
    draft = gatherer.draft(groups)
    counter, done = Counter(draft.tables), 0
    if checkpoint is not None and (state := checkpoint.load("counted")) is not None:
        done = int(state.pop("done"))
        counter.load({table: counts.numpy() for table, counts in state.items()})
        progress(done)
    for tokens in sample[done:]:
        for rows, block_context in joint_blocks(contexts.cache(tokens), gatherer.geometry):
            for fineness in _COUNTED:
                Klt(KltSettings(fineness=fineness)).put(rows, block_context, draft, counter)
        done += 1
        if checkpoint is not None:
            state = {table: torch.from_numpy(counts) for table, counts in counter.state().items()}
            checkpoint.save("counted", state | {"done": torch.tensor(done)})
        progress(1)
    return dumps(name, fingerprint.of(gatherer.adapter), groups, counter.fitted(), info, [])


class ContextCaches:
    """The caches of windows' contexts.

    Args:
        context: tokens of a context.
        reused: windows whose caches are asked for again; they are kept if they are small.
    """

    def __init__(self, adapter: ModelAdapter, context: int, reused: Sequence[Sequence[int]] = ()) -> None:
        self._adapter, self._context = adapter, context
        self._reused = {tuple(tokens[:context]) for tokens in reused}
        self._caches: dict[tuple[int, ...], Cache] = {}

    def cache(self, tokens: Sequence[int]) -> Cache:
        """Return the cache of a window's context, which must not be changed."""
        key = tuple(tokens[: self._context])
        if key in self._caches:
            return self._caches[key]
        cache, _ = prefill(self._adapter, list(key), chunk=CONTEXT)
        cache_bytes = sum(part.nbytes for rows in caches.rows_of(cache) for part in rows)
        if key in self._reused and cache_bytes * len(self._reused) <= memory_budget() // _CACHE_SHARE:
            self._caches[key] = cache
        return cache


def joint_blocks(cache: Cache, geometry: Geometry) -> Iterator[tuple[dict[Part, torch.Tensor], BlockContext]]:
    """Yield the rows of each run of layers, (layers, 1, heads, rows, size), and their context."""
    rows = caches.rows_of(cache)
    end = caches.tokens_seen(cache)
    for first, count, spec in geometry.runs():
        if not spec.parts:
            continue
        layers = rows[first : first + count]
        keys, values = (torch.stack([parts[index] for parts in layers]) for index in range(2))
        positions = range(end - keys.shape[3], end)
        yield {Part.KEYS: keys, Part.VALUES: values}, BlockContext(first_layer=first, positions=positions, end=end)
