"""The benchmark of codecs: every row of a suite is measured on every captured prompt.

A prompt is a window of a text.  Its first tokens are captured with some decode steps, and restored
caches are scored on the tokens that follow in the text.  Ratios are of the whole trace; quality is
measured on the first snapshot, which is the one that real text follows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from formats import Trace
from formats.codecs.klt import profile_store
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.errors import PromiseError, UsageError
from formats.file.blocks import FileBlock
from tsc_cli.calibration.texts import spaced_windows
from tsc_cli.compression.candidates import Sizer
from tsc_cli.compression.compressor import Compressor
from tsc_cli.progress import Progress
from tsc_cli.scoring.fidelity import Fidelity
from tsc_cli.scoring.published import Tier
from tsc_cli.scoring.scorer import Judge, scratch_file
from tsc_cli.session.capture import capture
from tsc_cli.session.decode_loop import CaptureOptions

from .suites import Row

if TYPE_CHECKING:
    from formats.codecs.klt.profile import Profile
    from tsc_cli.huggingface.models.loading import Loaded

    from .peers import Peer


@dataclass(frozen=True)
class Protocol:
    """The protocol of a measurement.

    Attributes:
        prompts: how many windows there are, spread evenly over the texts.
        context: tokens of a window that are captured.
        steps: decode steps of each trace.
        positions: teacher-forced positions of the text after the context.
        seed: the seed of capturing and measuring.
        allow_beyond_positions: go on beyond the positions that the model was made for.
    """

    prompts: int = 4
    context: int = 1024
    steps: int = 64
    positions: int = 256
    seed: int = 0
    allow_beyond_positions: bool = False


@dataclass
class Prompt:
    """A captured window, with what measures its restored caches and files."""

    source: Source
    judge: Judge
    sizer: Sizer
    profile: Profile | None = None


@dataclass
class Measured:
    """The measurement of one row on one prompt.

    Attributes:
        recipe: the recipe that was measured; None for a peer.
        coded_share: see `coded_share`.
    """

    recipe: Recipe | None
    file_bytes: int
    encode_seconds: float
    fidelity: Fidelity
    coded_share: float | None


@dataclass
class Bench:
    """A model and its captured prompts."""

    loaded: Loaded
    protocol: Protocol
    prompts: list[Prompt] = field(default_factory=list)

    def capture(self, texts: Sequence[Sequence[int]], progress: Progress, *, attention: bool = True) -> None:
        """Capture windows of the texts (token ids).  Raises UsageError if a text is too short."""
        p = self.protocol
        beyond = p.allow_beyond_positions
        options = CaptureOptions(steps=p.steps, seed=p.seed, attention=attention, allow_beyond_positions=beyond)
        for tokens in windows(texts, p.prompts, p.context + p.positions + 1):
            trace = capture(
                self.loaded.adapter,
                tokens[: p.context],
                tokenizer=self.loaded.tokenizer,
                reference=tokens[p.context :],
                options=options,
            )
            source = Source(trace)
            judge = Judge(source, self.loaded.adapter, snapshot=0, positions=p.positions, seed=p.seed, beyond=beyond)
            profile = profile_store.for_model(trace.fingerprint)
            self.prompts.append(Prompt(source, judge, Sizer(source, judge.device), profile))
            progress(1)

    def run(self, rows: Iterable[Row], progress: Progress) -> list[tuple[list[Measured], list[str]]]:
        """Measure every row on every prompt, and return pairs of measurements and failures.

        A row fails on a prompt if its promise cannot be kept there.
        """
        results = []
        for row in rows:
            measured: list[Measured] = []
            failures: list[str] = []
            for prompt in self.prompts:
                try:
                    measured.append(_measure(prompt, row))
                except PromiseError as error:
                    failures.append(error.message)
                progress(1)
            results.append((measured, failures))
        return results


def windows(texts: Sequence[Sequence[int]], count: int, size: int) -> list[list[int]]:
    """Cut `count` windows of `size` tokens, from the texts in turn, spread evenly over each.

    Raises:
        UsageError: a text is too short for its windows.
    """
    cut: list[list[int]] = []
    for number, text in enumerate(texts):
        share = len(range(number, count, len(texts)))
        last = len(text) - size
        if share and (last < 0 or (share > 1 and last // (share - 1) < size)):
            raise UsageError(
                f"text {number + 1} has {len(text)} tokens, too few for {share} windows of {size}",
                hint="fewer --prompts, a smaller --context, or a longer text",
            )
        cut += spaced_windows(text, share, size)
    return cut


def _measure(prompt: Prompt, row: Row) -> Measured:
    if row.peer is not None:
        return _measure_peer(prompt, row.peer)
    recipe = row.recipe
    if recipe is None:
        compressor = Compressor(prompt.source, prompt.judge, prompt.sizer, prompt.profile)
        recipe = compressor.choose(_promise(row, prompt)).winner.recipe
    started = time.perf_counter()
    with scratch_file(prompt.source, recipe, prompt.judge.device) as trace:
        seconds = time.perf_counter() - started
        size = trace.stored_bytes or 0
        fidelity = prompt.judge.of_trace(trace)
        share = coded_share(trace)
    return Measured(recipe, size, seconds, fidelity, share)


def _promise(row: Row, prompt: Prompt) -> Tier:
    """Return a row's tier as a ratio of the captured trace; the ladder's is of a float32 cache."""
    assert row.tier is not None
    if row.kind != "klt" or row.tier.ratio is None:
        return row.tier
    raw, raw_final = prompt.source.captured_bytes
    in_float32 = raw_final * 4 / prompt.source.trace.geometry.item_bytes
    return replace(row.tier, ratio=row.tier.ratio * raw / in_float32)


def _measure_peer(prompt: Prompt, peer: Peer) -> Measured:
    judge = prompt.judge
    started = time.perf_counter()
    result = peer.run([(keys, values) for keys, values in judge.exact_rows()], judge.config)
    seconds = time.perf_counter() - started
    return Measured(None, result.stored_bytes, seconds, judge.of_rows(result.rows), None)


def coded_share(trace: Trace) -> float | None:
    """Return the share of vq or pq blocks that are coded, not exact; None without such blocks."""
    blocks = exact = 0
    for block in trace.blocks:
        assert isinstance(block, FileBlock)
        codec, tensors, _ = block.tensors()
        record_blocks, record_exact = codec.coded_blocks(tensors)
        blocks, exact = blocks + record_blocks, exact + record_exact
    return 1 - exact / blocks if blocks else None


def default_texts() -> list[str]:
    """Return paths of texts on every machine: modules of Python's library, prose and code."""
    import argparse
    import pathlib
    import statistics
    import typing

    return [path for path in (m.__file__ for m in (argparse, statistics, typing, pathlib)) if path is not None]
