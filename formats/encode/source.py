"""The source of encoding: a trace whose rows are in memory, to be encoded by many recipes."""

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
    """A trace whose rows are in memory, so that many recipes can be tried on it.

    Raises:
        UsageError: the trace was compressed with a loss.
    """

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
        """Return what the recipe's filter keeps.  Raises UsageError if it cannot be applied."""
        key = (recipe.evict, *sorted(recipe.evict_settings.items()))
        if key not in self._filtered:
            unfiltered = self._filtered.get(("",))
            # at most two sets of rows are in memory
            self._filtered = {} if unfiltered is None else {("",): unfiltered}
            self._filtered[key] = eviction.apply(recipe.evict, recipe.evict_settings, self.trace)
        return self._filtered[key]

    @cached_property
    def stored_values(self) -> int:
        """How many scalars the snapshots need, each counted once."""
        return row_store.stored_values(self.trace.geometry, self.trace.views)

    @property
    def passing_secret(self) -> Secret | None:
        """The secret of files that are only measured: random if the trace is encrypted, else None.

        Such a file is as long as one with the trace's secret, without stretching a passphrase
        again.
        """
        return None if self.trace.secret is None else Secret.random()

    @cached_property
    def captured_bytes(self) -> tuple[int, int]:
        """Raw bytes of the whole trace, and of its final cache."""
        return self.trace.raw_bytes, self.trace.raw_bytes_final
