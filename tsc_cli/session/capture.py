"""Capture: run a prompt and some decode steps, and record the cache at each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from formats import Geometry, Recorder, Trace, TraceBuilder, TraceWriter
from formats.container.atomic_write import atomic_write
from formats.container.encryption import Secret
from formats.errors import UsageError
from formats.file.writer import content_id
from formats.trace.recorder import RowSink
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.attention_observer import observed
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.generation import feed, prefill
from tsc_cli.huggingface.prompts import Prompt, by_row, check, prompt_of
from tsc_cli.huggingface.sampling import Sampler
from tsc_cli.huggingface.self_test import require_restorable
from tsc_cli.huggingface.wrappers import unwrapped
from tsc_cli.progress import Progress, nothing

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
        keyframe_interval: store all rows again at every such snapshot (a keyframe); None never does.
        attention: observe which attention the prompt's rows receive, which `h2o` eviction goes by.
        allow_beyond_positions: go on beyond the positions that the model was made for; never beyond those it has.
    """

    steps: int = 64
    every: int = 1
    chunk: int = 1024
    temperature: float = 0.0
    seed: int = 0
    keyframe_interval: int | None = None
    attention: bool = False
    allow_beyond_positions: bool = False


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
    model: PreTrainedModel,
    input_ids: Any = None,
    *,
    attention_mask: Any = None,
    decoder_input_ids: Any = None,
    input_features: Any = None,
    tokenizer: Any = None,
    reference: Sequence[int] = (),
    options: CaptureOptions | None = None,
    **settings: Any,
) -> Trace:
    """Capture a trace into memory (each row once).

    Args:
        input_ids: the prompt's token ids, a sequence or a tensor of shape (tokens,) or (batch, tokens).
        attention_mask: (batch, tokens), 0 at padding, which must be at the left.
        decoder_input_ids, input_features: for models with an encoder, as `model.generate` takes them.
        tokenizer: if given, its hash becomes part of the fingerprint.
        reference: the text that followed, as token ids, for `verify`.
        options, settings: `CaptureOptions`, or its fields by name, such as `steps=64`.
    Returns:
        a trace of `steps / every + 1` snapshots: the prompt's, and one after each decoded token.
    Raises:
        UnsupportedCacheError: the model's cache cannot be stored faithfully.
        UsageError: the prompt is empty or too long for the model.
    """
    model = unwrapped(model)
    options = options or CaptureOptions(**settings)
    caches.new_cache(model)  # a model that cannot be captured is refused before anything is said of its prompt
    prompt = prompt_of(
        model,
        input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=decoder_input_ids,
        input_features=input_features,
    )
    _check_reference(prompt, reference)
    builders: list[TraceBuilder] = []

    def open_sink(geometry: Geometry) -> RowSink:
        builders.append(TraceBuilder(geometry, fingerprint.of(model, tokenizer), geometry.batch))
        return builders[0]

    record(model, prompt, options, open_sink)
    trace = builders[0].trace
    trace.reference = list(reference)
    trace.info = capture_info(options, prompt)
    return trace


def capture_to_file(
    model: PreTrainedModel,
    prompt: Prompt | Sequence[int],
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    reference: Sequence[int] = (),
    options: CaptureOptions,
    info: dict[str, Any] | None = None,
    force: bool = False,
    deterministic: bool = False,
    progress: Progress = nothing,
    secret: Secret | None = None,
) -> Captured:
    """Capture straight into a .tsc file; rows are written as they come and never held twice."""
    with atomic_write(path, force=force) as file:
        return capture_to_sink(
            model,
            prompt,
            file,
            tokenizer=tokenizer,
            reference=reference,
            options=options,
            info=info,
            deterministic=deterministic,
            progress=progress,
            secret=secret,
        )


def capture_to_sink(
    model: PreTrainedModel,
    prompt: Prompt | Sequence[int],
    sink: BinaryIO,
    *,
    tokenizer: Any = None,
    reference: Sequence[int] = (),
    options: CaptureOptions,
    info: dict[str, Any] | None = None,
    deterministic: bool = False,
    progress: Progress = nothing,
    secret: Secret | None = None,
) -> Captured:
    """As `capture_to_file`, to anything that can be written to in order, such as a pipe.

    Args:
        prompt: from `prompt_of`, or the token ids of one sequence.
        secret: encrypt the file with it.
    """
    model = unwrapped(model)
    caches.new_cache(model)
    prompt = prompt if isinstance(prompt, Prompt) else prompt_of(model, prompt)
    _check_reference(prompt, reference)
    identity = fingerprint.of(model, tokenizer)
    facts = capture_info(options, prompt) | (info or {})
    writers: list[TraceWriter] = []

    def open_sink(geometry: Geometry) -> RowSink:
        given = repr((geometry, identity, facts, prompt.ids.tolist())).encode()
        fed = [tensor.numpy().tobytes() for _, tensor in prompt.encoder]
        file_id = content_id(given, *fed) if deterministic else None
        writers.append(
            TraceWriter(sink, geometry, identity, file_id=file_id, label_width=geometry.batch, secret=secret)
        )
        return writers[0]

    seconds = record(model, prompt, options, open_sink, progress)
    header, length = writers[0].finish(reference=reference, capture=facts)
    values = writers[0].geometry.values(header.raw_bytes_final)
    return Captured(
        length, header.raw_bytes_trace, header.raw_bytes_final, values, prompt.tokens, writers[0].snapshots, seconds
    )


def record(
    model: PreTrainedModel,
    prompt: Prompt,
    options: CaptureOptions,
    open_sink: Callable[[Geometry], RowSink],
    progress: Progress = nothing,
) -> float:
    """Run the model and record every snapshot in the sink; returns the seconds of the prefill.

    The sink is opened after the prefill, when the cache's shape is known, and before any row is handed to it.
    """
    _check(model, prompt, options)
    require_restorable(model)
    samplers = [Sampler(options.temperature, options.seed, sequence) for sequence in range(prompt.batch)]
    started = time.perf_counter()
    with observed(model, enabled=options.attention) as observation:
        cache, logits = prefill(
            model,
            prompt.ids,
            chunk=options.chunk,
            padding=prompt.padding,
            encoded=prompt.encoded(model),
            progress=progress,
        )
    seconds = time.perf_counter() - started
    geometry = caches.geometry_of(cache, type(model).__name__, prompt.padding)
    sink = open_sink(geometry)
    recorder = Recorder(sink, geometry, keyframe_interval=options.keyframe_interval, label_width=geometry.batch)
    if prompt.encoder:
        labels = prompt.encoder_labels(caches.encoded_rows(cache))
        recorder.encoder(labels)
        for number, sampler in enumerate(samplers):
            sampler.fed(labels[number :: prompt.batch])
    for sampler, ids, padding in zip(samplers, prompt.ids, prompt.padding or [0] * prompt.batch, strict=True):
        sampler.fed(ids[padding:].tolist())
    next_tokens = [choose(one) for choose, one in zip(samplers, logits, strict=True)]
    recorder.snapshot(by_row(prompt.ids), caches.rows_of(cache), next_tokens, caches.states_of(cache))
    fed: list[int] = []
    for step in range(1, options.steps + 1):
        fed += next_tokens
        ids = torch.tensor(next_tokens)[:, None]
        logits = feed(model, cache, ids, padding=prompt.padding, last_only=True)[:, -1]
        for choose, token in zip(samplers, next_tokens, strict=True):
            choose.fed([token])
        next_tokens = [choose(one) for choose, one in zip(samplers, logits, strict=True)]
        progress(1)
        if step % options.every == 0 or step == options.steps:
            recorder.snapshot(fed, caches.rows_of(cache), next_tokens, caches.states_of(cache))
            fed = []
    recorder.finish()
    for received in observation.records(geometry, prompt.tokens):
        sink.add_attention(received)
    return seconds


def capture_info(options: CaptureOptions, prompt: Prompt) -> dict[str, Any]:
    """What the tier header keeps of a capture, so that it can be replayed exactly."""
    info: dict[str, Any] = prompt.facts() | {
        "chunk": options.chunk,
        "steps": options.steps,
        "every": options.every,
        "temperature": options.temperature,
        "seed": options.seed,
    }
    if options.keyframe_interval:
        info["keyframe_interval"] = options.keyframe_interval
    return info


def _check_reference(prompt: Prompt, reference: Sequence[int]) -> None:
    if reference and prompt.batch > 1:
        raise UsageError("a batch has no one text that followed it: leave the reference out")


def _check(model: PreTrainedModel, prompt: Prompt, options: CaptureOptions) -> None:
    for name in ("every", "chunk"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name} must be at least 1")
    if options.steps < 0 or options.temperature < 0 or (options.keyframe_interval or 1) < 1:
        raise UsageError("steps, temperature and keyframe interval must not be negative")
    if options.attention and (prompt.batch > 1 or prompt.encoder):
        raise UsageError("attention is observed in one sequence of a model without an encoder only")
    check(model, prompt, options.steps, beyond=options.allow_beyond_positions)
    fingerprint.require_repeatable(model)
