"""A trace whose rows are in memory, to be encoded by many recipes."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from formats.container.encryption import Secret
from formats.errors import UsageError
from formats.file import promises
from formats.trace import eviction, row_store
from formats.trace.eviction import Filtered
from formats.trace.trace import Trace

from .recipe import Recipe


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
