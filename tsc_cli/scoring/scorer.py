"""Scoring candidates: one exact cache, one reference, many restored caches."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from formats import Trace, load
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import write
from formats.trace.recorder import Rows
from tsc_cli.huggingface import caches, restore
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import score
from tsc_cli.huggingface.sampling import check_seed
from tsc_cli.progress import Progress, nothing
from tsc_cli.scoring.result import Verified

from .continuations import check_positions, followed, needs_sample, reference_of, sample_after
from .fidelity import Fidelity, compare

if TYPE_CHECKING:
    from transformers import Cache


class Judge:
    """Scores recipes by the cache that they restore, against the cache of the captured trace.

    Both caches are fed the same continuation, the one that `verify` would use.
    """

    def __init__(
        self,
        source: Source,
        adapter: ModelAdapter,
        *,
        snapshot: int = -1,
        positions: int = 256,
        seed: int = 0,
        progress: Progress = nothing,
        beyond: bool = False,
    ) -> None:
        """Feed the continuation to the exact cache.

        Args:
            positions: teacher-forced positions to compare.
            seed: of the sampled continuation.
            beyond: go on beyond the positions that the model was made for.
        """
        check_positions(adapter, positions)
        check_seed(seed)
        trace = source.trace
        self.source = source
        self.snapshot = trace.index(snapshot)
        self._adapter = adapter
        self._measured: dict[str, Fidelity] = {}
        exact = restore.to_cache(trace, adapter, self.snapshot, allow_model_mismatch=True)
        sampled: list[int] = []
        if needs_sample(trace, self.snapshot):
            last = (
                exact
                if self.snapshot == len(trace) - 1
                else restore.to_cache(trace, adapter, -1, allow_model_mismatch=True)
            )
            sampled = sample_after(trace, adapter, last, positions, seed, progress, beyond=beyond)
        self.reference, tokens = reference_of(trace, self.snapshot, sampled)
        self._tokens = followed(trace, adapter, self.snapshot, tokens, positions, beyond=beyond)
        self._exact_logits = score(adapter, exact, self._tokens[:-1])
        self._cache = exact

    @property
    def device(self) -> torch.device:
        return self._adapter.device

    def of_trace(self, trace: Trace) -> Fidelity:
        """Return the fidelity of a restored trace at the judge's snapshot."""
        return self._of_cache(restore.to_cache(trace, self._adapter, self.snapshot, allow_model_mismatch=True))

    def of_rows(self, rows: Sequence[Rows]) -> Fidelity:
        """Return the fidelity of a cache that holds these rows instead of the exact ones."""
        return self._of_cache(caches.with_rows(self._cache, rows))

    def _of_cache(self, restored: Cache) -> Fidelity:
        logits = score(self._adapter, restored, self._tokens[:-1], finite=False)
        return compare(self._exact_logits, logits, self._tokens[1:])

    def exact_rows(self) -> list[Rows]:
        """Return keys and values of each layer of the exact cache, (batch, heads, rows, size)."""
        return caches.rows_of(self._cache)

    @property
    def config(self) -> Any:
        """The model's config."""
        return self._adapter.config

    def of_recipe(self, recipe: Recipe) -> Fidelity:
        """Return the fidelity of a recipe's file; every recipe is measured once."""
        key = repr(recipe)
        if key not in self._measured:
            with scratch_file(self.source, recipe, self.device) as trace:
                self._measured[key] = self.of_trace(trace)
        return self._measured[key]

    def record(self, recipe: Recipe) -> dict[str, Any]:
        """Return the quality record of a recipe's file, as `verify --record` writes one."""
        fidelity = self.of_recipe(recipe)
        tokens = len(self.source.trace.token_ids(self.snapshot))
        return Verified(self.snapshot, tokens, self.reference, "capture", recipe.exact, fidelity, 0, None).to_dict()

    def kl(self, recipe: Recipe) -> float:
        return self.of_recipe(recipe).kl_mean


@contextlib.contextmanager
def scratch_file(source: Source, recipe: Recipe, device: str | torch.device = "cpu") -> Iterator[Trace]:
    """Write the recipe's file to a scratch folder and load it, for the length of the context."""
    with tempfile.TemporaryDirectory(prefix="tsc-") as folder:
        path = Path(folder) / "candidate.tsc"
        with path.open("wb") as sink:
            secret = source.passing_secret
            write(source, recipe, sink, device=device, secret=secret)
        yield load(path, secret)
