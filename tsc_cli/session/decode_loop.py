"""The decode loop of capture and append, which records snapshots of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from formats import Recorder
from formats.errors import UsageError
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import feed
from tsc_cli.huggingface.sampling import Sampler
from tsc_cli.progress import Progress, nothing

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True)
class CaptureOptions:
    """How a capture, or an append to one, runs.

    Attributes:
        steps: tokens to decode after the prompt.
        every: take a snapshot after each `every` of these tokens, and after the last.
        chunk: tokens of the prompt in one forward pass.
        temperature: of sampling; 0 takes the likeliest token.
        seed: decides the draws of sampling.
        keyframe_interval: store all rows again at every such snapshot; None never does. Of a
            capture only.
        attention: record the attention that the prompt's rows receive, for `h2o` eviction. Of a
            capture only.
        allow_beyond_positions: go on beyond the positions that the model was made for; never beyond
            those it has.
    """

    steps: int = 0
    every: int = 1
    chunk: int = 1024
    temperature: float = 0.0
    seed: int = 0
    keyframe_interval: int | None = None
    attention: bool = False
    allow_beyond_positions: bool = False

    @classmethod
    def of(cls, options: CaptureOptions | None, steps: int | None) -> CaptureOptions:
        """Return the options, or the defaults, with other `steps` where those are given."""
        options = options or cls()
        return options if steps is None else replace(options, steps=steps)

    def check(self) -> None:
        """Raise UsageError for invalid values; the sampler checks seed and temperature."""
        for name in ("every", "chunk", "keyframe_interval"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1")
        if self.steps < 0 or self.temperature < 0:
            raise UsageError("steps and temperature must not be negative")


@dataclass
class DecodeLoop:
    """A model, the cache that it fills, and the recorder that takes snapshots of it.

    Attributes:
        samplers: one for each sequence of the batch; they know what was fed.
        padding: tokens at the beginning of each sequence that are padding.
        next_tokens: the token that was chosen for each sequence and not yet fed.
    """

    adapter: ModelAdapter
    cache: Cache
    recorder: Recorder
    samplers: Sequence[Sampler]
    padding: Sequence[int] = ()
    progress: Progress = nothing
    next_tokens: list[int] = field(default_factory=list)

    def choose(self, logits: torch.Tensor) -> None:
        """Choose the next token of each sequence from logits, (batch, vocabulary)."""
        self.next_tokens = [sampler(row) for sampler, row in zip(self.samplers, logits, strict=True)]

    def snapshot(self, tokens: Sequence[int]) -> None:
        """Record the cache as it is now.

        Args:
            tokens: the ids fed since the last snapshot, one a sequence, token by token.
        """
        rows, states = caches.rows_of(self.cache), caches.states_of(self.cache)
        self.recorder.snapshot(tokens, rows, self.next_tokens, states)

    def decode(self, steps: int, every: int) -> None:
        """Decode `steps` tokens; record a snapshot after each `every` of them and the last."""
        fed: list[int] = []
        for step in range(1, steps + 1):
            tokens = self.next_tokens
            fed += tokens
            ids = torch.tensor(tokens)[:, None]
            logits = feed(self.adapter, self.cache, ids, padding=self.padding, last_only=True)[:, -1]
            for sampler, token in zip(self.samplers, tokens, strict=True):
                sampler.fed([token])
            self.choose(logits)
            self.progress(1)
            if step % every == 0 or step == steps:
                self.snapshot(fed)
                fed = []
