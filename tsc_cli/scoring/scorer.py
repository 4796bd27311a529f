"""Judging candidates: one exact cache, one reference, many restored caches."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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

from .continuations import check_positions, followed, reference_of, sample_after
from .fidelity import Fidelity, compare


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
        """Run the exact cache; `beyond` goes on beyond the positions that the model was made for."""
        check_positions(adapter, positions)
        check_seed(seed)
        trace = source.trace
        self.source = source
        self.snapshot = trace.index(snapshot)
        self._adapter = adapter
        self._known: dict[str, Fidelity] = {}
        exact = restore.to_cache(trace, adapter, self.snapshot, allow_model_mismatch=True)
        sampled: list[int] = []
        if not (self.snapshot == 0 and len(trace.reference) > 1):
            last = (
                exact
                if self.snapshot == len(trace) - 1
                else restore.to_cache(trace, adapter, -1, allow_model_mismatch=True)
            )
            sampled = sample_after(trace, adapter, last, positions, seed, progress, beyond=beyond)
        self.reference, tokens = reference_of(trace, self.snapshot, sampled)
        self._tokens = followed(trace, adapter, self.snapshot, tokens, positions, beyond=beyond)
        self._exact = score(adapter, exact, self._tokens[:-1])
        self._cache = exact

    @property
    def device(self) -> torch.device:
        return self._adapter.device

    def of_trace(self, trace: Trace) -> Fidelity:
        """The fidelity of a restored trace at the judge's snapshot."""
        restored = restore.to_cache(trace, self._adapter, self.snapshot, allow_model_mismatch=True)
        return compare(self._exact, score(self._adapter, restored, self._tokens[:-1], finite=False), self._tokens[1:])

    def exact_rows(self) -> list[Rows]:
        """Keys and values of every layer of the exact cache, (batch, heads, rows, head size)."""
        return caches.rows_of(self._cache)

    @property
    def config(self) -> Any:
        """The model's."""
        return self._adapter.config

    def of_rows(self, rows: Sequence[Rows]) -> Fidelity:
        """The fidelity of a cache that holds these rows instead of the exact ones."""
        restored = caches.with_rows(self._cache, rows)
        return compare(self._exact, score(self._adapter, restored, self._tokens[:-1], finite=False), self._tokens[1:])

    def of_recipe(self, recipe: Recipe) -> Fidelity:
        """The fidelity of the file that a recipe gives; every recipe is measured once."""
        key = repr(recipe)
        if key not in self._known:
            with scratch_file(self.source, recipe, self.device) as trace:
                self._known[key] = self.of_trace(trace)
        return self._known[key]

    def record(self, recipe: Recipe) -> dict[str, Any]:
        """The quality record of a recipe's file, as `verify --record` writes one."""
        fidelity = self.of_recipe(recipe)
        tokens = len(self.source.trace.token_ids(self.snapshot))
        return Verified(self.snapshot, tokens, self.reference, "capture", recipe.exact, fidelity, 0, None).to_dict()

    def kl(self, recipe: Recipe) -> float:
        return self.of_recipe(recipe).kl_mean


@contextlib.contextmanager
def scratch_file(source: Source, recipe: Recipe, device: str | torch.device = "cpu") -> Iterator[Trace]:
    """The recipe's file, written to a scratch folder and loaded, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="tsc-") as folder:
        path = Path(folder) / "candidate.tsc"
        with path.open("wb") as sink:
            secret = source.passing_secret
            write(source, recipe, sink, device=device, secret=secret)
        yield load(path, secret)
