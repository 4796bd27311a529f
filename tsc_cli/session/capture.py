"""Capture: feed a prompt, decode some steps, and record the cache at each."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from formats import Geometry, Recorder, Trace, TraceBuilder, TraceWriter
from formats.container.atomic_write import atomic_write
from formats.container.encryption import Secret
from formats.errors import UsageError
from formats.file.writer import content_id
from formats.trace.recorder import RowSink
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.attention_observer import Observation, observed
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.generation import prefill
from tsc_cli.huggingface.prompts import Prompt, TokenIds, by_row, check, prompt_of
from tsc_cli.huggingface.sampling import Sampler
from tsc_cli.huggingface.self_test import require_restorable
from tsc_cli.progress import Progress, nothing

from .decode_loop import CaptureOptions, DecodeLoop

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

REFERENCE_TOKENS = 257  # 256 positions to score, and the target of the last


@dataclass(frozen=True)
class Captured:
    """What a capture wrote to a file.

    Attributes:
        file_bytes: the file's length.
        raw_bytes_trace: bytes of all snapshots' tensors.
        raw_bytes_final: bytes of the last snapshot's tensors.
        values_final: scalars of the last snapshot's tensors.
        prompt_tokens: tokens of each sequence of the prompt, with padding.
        snapshots: how many were recorded.
        prefill_seconds: the time that the prompt's passes took.
    """

    file_bytes: int
    raw_bytes_trace: int
    raw_bytes_final: int
    values_final: int
    prompt_tokens: int
    snapshots: int
    prefill_seconds: float


def capture(
    model: PreTrainedModel | ModelAdapter,
    input_ids: TokenIds | None = None,
    *,
    steps: int | None = None,
    options: CaptureOptions | None = None,
    attention_mask: TokenIds | None = None,
    decoder_input_ids: TokenIds | None = None,
    input_features: torch.Tensor | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reference: Sequence[int] = (),
) -> Trace:
    """Capture a trace into memory, each row once.

    Args:
        input_ids: the prompt's token ids, a sequence or a tensor of shape (tokens,) or (batch,
            tokens).
        steps: tokens to decode after the prompt, instead of the `steps` of the options; none by
            default.
        attention_mask: (batch, tokens), 0 at padding, which must be at the left.
        decoder_input_ids: as `model.generate` takes them, for a model with an encoder.
        input_features: as `model.generate` takes them, for a speech model.
        tokenizer: if given, its hash becomes part of the fingerprint.
        reference: the text that followed, as token ids, for `verify`.
    Returns:
        a trace of the prompt's snapshot, and of one after each decoded token
        (`CaptureOptions.every`).
    Raises:
        UnsupportedCacheError: the model's cache cannot be stored faithfully.
        UsageError: the prompt is empty or too long for the model.
    """
    adapter, options = ModelAdapter.of(model), CaptureOptions.of(options, steps)
    # a model that cannot be captured is refused before its prompt is checked
    caches.new_cache(adapter)
    prompt = prompt_of(
        adapter,
        input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=decoder_input_ids,
        input_features=input_features,
    )
    _check_reference(prompt, reference)
    prefilled = prefill_prompt(adapter, prompt, options)
    builder = TraceBuilder(prefilled.geometry, fingerprint.of(adapter, tokenizer), prefilled.geometry.batch)
    record(adapter, prompt, options, prefilled, builder)
    trace = builder.trace
    trace.reference = list(reference)
    trace.info = capture_info(options, prompt)
    return trace


def capture_to_file(
    model: PreTrainedModel | ModelAdapter,
    prompt: Prompt | Sequence[int],
    path: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reference: Sequence[int] = (),
    options: CaptureOptions,
    info: dict[str, Any] | None = None,
    overwrite: bool = False,
    deterministic: bool = False,
    progress: Progress = nothing,
    key: Secret | None = None,
) -> Captured:
    """Capture into a .tsc file; see `capture_to_sink`."""
    with atomic_write(path, overwrite=overwrite) as file:
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
            key=key,
        )


def capture_to_sink(
    model: PreTrainedModel | ModelAdapter,
    prompt: Prompt | Sequence[int],
    sink: BinaryIO,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reference: Sequence[int] = (),
    options: CaptureOptions,
    info: dict[str, Any] | None = None,
    deterministic: bool = False,
    progress: Progress = nothing,
    key: Secret | None = None,
) -> Captured:
    """Capture into a file or pipe; rows are written as they come and never held twice.

    Args:
        prompt: from `prompt_of`, or the token ids of one sequence.
        reference: the text that followed, as token ids, for `verify`.
        info: further facts for the tier header.
        deterministic: give equal captures equal files.
        key: encrypts the file.
    """
    adapter = ModelAdapter.of(model)
    caches.new_cache(adapter)
    prompt = prompt if isinstance(prompt, Prompt) else prompt_of(adapter, prompt)
    _check_reference(prompt, reference)
    identity = fingerprint.of(adapter, tokenizer)
    facts = capture_info(options, prompt) | (info or {})
    prefilled = prefill_prompt(adapter, prompt, options, progress)
    geometry = prefilled.geometry
    file_id = None
    if deterministic:
        text = repr((geometry, identity, facts, prompt.ids.tolist())).encode()
        file_id = content_id(text, *(tensor.numpy().tobytes() for _, tensor in prompt.encoder))
    writer = TraceWriter(sink, geometry, identity, file_id=file_id, label_width=geometry.batch, secret=key)
    record(adapter, prompt, options, prefilled, writer, progress)
    header, length = writer.finish(reference=reference, capture=facts)
    return Captured(
        file_bytes=length,
        raw_bytes_trace=header.raw_bytes_trace,
        raw_bytes_final=header.raw_bytes_final,
        values_final=geometry.values(header.raw_bytes_final),
        prompt_tokens=prompt.tokens,
        snapshots=writer.snapshots,
        prefill_seconds=prefilled.seconds,
    )


@dataclass(frozen=True)
class Prefilled:
    """A cache filled with a prompt.

    Attributes:
        logits: after the last token, (batch, vocabulary).
        seconds: the time that the passes took.
        observation: the attention that the rows received, if the options ask for it.
    """

    cache: Cache
    logits: torch.Tensor
    geometry: Geometry
    seconds: float
    observation: Observation | None


def prefill_prompt(
    adapter: ModelAdapter, prompt: Prompt, options: CaptureOptions, progress: Progress = nothing
) -> Prefilled:
    """Check the request as far as possible before the model runs, and feed it the prompt."""
    options.check()
    if options.attention and (prompt.batch > 1 or prompt.encoder):
        raise UsageError("attention is observed in one sequence of a model without an encoder only")
    check(adapter, prompt, options.steps, beyond=options.allow_beyond_positions)
    fingerprint.require_repeatable(adapter)
    require_restorable(adapter)
    started = time.perf_counter()
    with observed(adapter) if options.attention else nullcontext() as observation:
        cache, logits = prefill(
            adapter,
            prompt.ids,
            chunk=options.chunk,
            padding=prompt.padding,
            encoded=prompt.encoded(adapter),
            progress=progress,
        )
    seconds = time.perf_counter() - started
    geometry = caches.geometry_of(cache, adapter.name, prompt.padding)
    return Prefilled(cache, logits, geometry, seconds, observation)


def record(
    adapter: ModelAdapter,
    prompt: Prompt,
    options: CaptureOptions,
    prefilled: Prefilled,
    sink: RowSink,
    progress: Progress = nothing,
) -> None:
    """Record the prompt's snapshot and those of the decode steps into the sink."""
    geometry = prefilled.geometry
    samplers = [Sampler(options.temperature, options.seed, sequence) for sequence in range(prompt.batch)]
    recorder = Recorder(sink, geometry, keyframe_interval=options.keyframe_interval, label_width=geometry.batch)
    if prompt.encoder:
        labels = prompt.encoder_labels(caches.encoded_rows(prefilled.cache))
        recorder.encoder(labels)
        for sequence, sampler in enumerate(samplers):
            sampler.fed(labels[sequence :: prompt.batch])
    for sampler, ids, padding in zip(samplers, prompt.ids, prompt.padding or [0] * prompt.batch, strict=True):
        sampler.fed(ids[padding:].tolist())
    loop = DecodeLoop(adapter, prefilled.cache, recorder, samplers, prompt.padding, progress)
    loop.choose(prefilled.logits)
    loop.snapshot(by_row(prompt.ids))
    loop.decode(options.steps, options.every)
    recorder.finish()
    if prefilled.observation is not None:
        for received in prefilled.observation.records(geometry, prompt.tokens):
            sink.add_attention(received)


def capture_info(options: CaptureOptions, prompt: Prompt) -> dict[str, Any]:
    """Return what the tier header keeps of a capture, so that it can be replayed exactly."""
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
