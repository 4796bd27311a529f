"""Capture: run a prompt and some decode steps, and record the cache at each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from formats import Geometry, Recorder, Trace, TraceBuilder, TraceWriter
from formats.atomic import atomic_write
from formats.errors import UsageError
from formats.timeline import RowSink
from formats.trace_writer import content_id

from . import bridge, fingerprint
from .attention import observed
from .generation import Progress, Sampler, feed, nothing, prefill
from .positions import check_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFERENCE_TOKENS = 257  # 256 positions to score, and the target of the last


@dataclass(frozen=True)
class CaptureOptions:
    """How a capture runs.

    Attributes:
        steps: tokens to decode after the prompt.
        every: a snapshot after each `every` of them (and after the last).
        chunk: tokens of the prompt in one forward pass.
        temperature, seed: how the decoded tokens are chosen; 0 is greedy.
        keyframe_interval: store all rows again at every such snapshot (the reports' kf); None never does.
        attention: observe which attention the prompt's rows receive, which `h2o` eviction goes by.
    """

    steps: int = 64
    every: int = 1
    chunk: int = 1024
    temperature: float = 0.0
    seed: int = 0
    keyframe_interval: int | None = None
    attention: bool = False


@dataclass(frozen=True)
class Captured:
    """What a capture to a file tells: its length, the cached scalars of its final cache, the seconds of the prefill."""

    file_bytes: int
    raw_bytes_trace: int
    raw_bytes_final: int
    values_final: int
    prompt_tokens: int
    snapshots: int
    prefill_seconds: float


def capture(
    model: PreTrainedModel, input_ids: torch.Tensor | Sequence[int], *, tokenizer: Any = None,
    reference: Sequence[int] = (), options: CaptureOptions | None = None, **settings: Any,
) -> Trace:  # fmt: skip
    """Capture a trace into memory (each row once).

    Args:
        input_ids: the prompt's token ids, a sequence or a tensor of shape (tokens,) or (1, tokens).
        tokenizer: if given, its hash becomes part of the fingerprint.
        reference: the text that followed, as token ids, for `verify`.
        options, settings: `CaptureOptions`, or its fields by name, such as `steps=64`.
    Returns:
        a trace of `steps / every + 1` snapshots: the prompt's, and one after each decoded token.
    Raises:
        UnsupportedCacheError: the model's cache cannot be stored faithfully.
        UsageError: the prompt is empty or too long for the model.
    """
    options = options or CaptureOptions(**settings)
    tokens = token_list(input_ids)
    builders: list[TraceBuilder] = []

    def open_sink(geometry: Geometry) -> RowSink:
        builders.append(TraceBuilder(geometry, fingerprint.of(model, tokenizer)))
        return builders[0]

    record(model, tokens, options, open_sink)
    trace = builders[0].trace
    trace.reference = list(reference)
    trace.info = capture_info(options, len(tokens))
    return trace


def capture_to_file(
    model: PreTrainedModel, tokens: Sequence[int], path: str | os.PathLike[str], *, tokenizer: Any = None,
    reference: Sequence[int] = (), options: CaptureOptions, info: dict[str, Any] | None = None, force: bool = False,
    deterministic: bool = False, progress: Progress = nothing,
) -> Captured:  # fmt: skip
    """Capture straight into a .tsc file; rows are written as they come and never held twice."""
    with atomic_write(path, force=force) as file:
        return capture_to_sink(
            model, tokens, file, tokenizer=tokenizer, reference=reference, options=options, info=info,
            deterministic=deterministic, progress=progress,
        )  # fmt: skip


def capture_to_sink(
    model: PreTrainedModel, tokens: Sequence[int], sink: BinaryIO, *, tokenizer: Any = None,
    reference: Sequence[int] = (), options: CaptureOptions, info: dict[str, Any] | None = None,
    deterministic: bool = False, progress: Progress = nothing,
) -> Captured:  # fmt: skip
    """As `capture_to_file`, to anything that can be written to in order, such as a pipe."""
    identity = fingerprint.of(model, tokenizer)
    facts = capture_info(options, len(tokens)) | (info or {})
    writers: list[TraceWriter] = []

    def open_sink(geometry: Geometry) -> RowSink:
        file_id = content_id(repr((geometry, identity, facts, list(tokens))).encode()) if deterministic else None
        writers.append(TraceWriter(sink, geometry, identity, file_id=file_id))
        return writers[0]

    seconds = record(model, tokens, options, open_sink, progress)
    header, length = writers[0].finish(reference=reference, capture=facts)
    values = header.raw_bytes_final // writers[0].geometry.item_bytes
    return Captured(
        length, header.raw_bytes_trace, header.raw_bytes_final, values, len(tokens), writers[0].snapshots, seconds
    )


def record(
    model: PreTrainedModel, tokens: Sequence[int], options: CaptureOptions,
    open_sink: Callable[[Geometry], RowSink], progress: Progress = nothing,
) -> float:  # fmt: skip
    """Run the model and record every snapshot in the sink; returns the seconds of the prefill.

    The sink is opened after the prefill, when the cache's shape is known, and before any row is handed to it.
    """
    bridge.new_cache(model)  # a model that cannot be captured is refused before anything is said of its prompt
    _check(model, tokens, options)
    choose = Sampler(options.temperature, options.seed)
    started = time.perf_counter()
    with observed(model, enabled=options.attention) as observation:
        cache, logits = prefill(model, tokens, chunk=options.chunk, progress=progress)
    seconds = time.perf_counter() - started
    geometry = bridge.geometry_of(cache, type(model).__name__)
    sink = open_sink(geometry)
    recorder = Recorder(sink, geometry, keyframe_interval=options.keyframe_interval)
    next_token = choose(logits)
    recorder.snapshot(tokens, bridge.rows_of(cache), next_token)
    fed: list[int] = []
    for step in range(1, options.steps + 1):
        fed.append(next_token)
        next_token = choose(feed(model, cache, [next_token], last_only=True)[-1])
        progress(1)
        if step % options.every == 0 or step == options.steps:
            recorder.snapshot(fed, bridge.rows_of(cache), next_token)
            fed = []
    recorder.finish()
    for received in observation.records(geometry, len(tokens)):
        sink.add_attention(received)
    return seconds


def capture_info(options: CaptureOptions, prompt_tokens: int) -> dict[str, Any]:
    """What the tier header keeps of a capture, so that it can be replayed exactly."""
    info: dict[str, Any] = {
        "prompt_tokens": prompt_tokens, "chunk": options.chunk, "steps": options.steps, "every": options.every,
        "temperature": options.temperature, "seed": options.seed,
    }  # fmt: skip
    if options.keyframe_interval:
        info["keyframe_interval"] = options.keyframe_interval
    return info


def token_list(input_ids: torch.Tensor | Sequence[int]) -> list[int]:
    """Token ids as a list.  Raises UsageError for a batch of more than one."""
    if isinstance(input_ids, torch.Tensor):
        if input_ids.dim() == 2 and input_ids.shape[0] != 1:
            raise UsageError("only a batch of one can be captured")
        return [int(token) for token in input_ids.reshape(-1).tolist()]
    return list(input_ids)


def _check(model: PreTrainedModel, tokens: Sequence[int], options: CaptureOptions) -> None:
    if not tokens:
        raise UsageError("the prompt is empty")
    for name in ("every", "chunk"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name} must be at least 1")
    if options.steps < 0 or options.temperature < 0 or (options.keyframe_interval or 1) < 1:
        raise UsageError("steps, temperature and keyframe interval must not be negative")
    known = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    wrong = next((token for token in tokens if not 0 <= token < known), None)
    if wrong is not None:
        raise UsageError(f"the model has no token {wrong}: its ids go from 0 to {known - 1}",
                         hint="take the tokenizer that belongs to the model")  # fmt: skip
    check_prompt(model, len(tokens), options.steps)
    fingerprint.require_repeatable(model)
