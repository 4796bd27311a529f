"""Appending to a captured session and its file.

The file is replaced as a whole: its records are copied, new ones are written behind them, and the
result takes the file's name once it is on the disk. So a reader sees the session either before or
after, and a killed process leaves it as it was. A lock beside the file admits one writer at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats import Recorder, Trace
from formats.container.atomic_write import atomic_write, only_writer
from formats.container.encryption import KeySource
from formats.errors import UsageError
from formats.file import promises
from formats.file.finish import require_readable
from formats.file.reader import TraceFile
from formats.file.writer import TraceWriter
from tsc_cli.huggingface import caches, restore
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import feed
from tsc_cli.huggingface.prompts import as_ids
from tsc_cli.huggingface.sampling import Sampler, tokens_before
from tsc_cli.progress import Progress, nothing

from .decode_loop import CaptureOptions, DecodeLoop
from .replay import Feed, feeds_of, feeds_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_MAX_TEXT_ENDS = 4096  # a string in a header has a limit


@dataclass(frozen=True)
class Appended:
    """What an append did to a file.

    Attributes:
        file_bytes: the file's length.
        snapshots: all snapshots of the file.
        new_snapshots: those that were appended.
        tokens: all tokens of the file.
        new_tokens: those that were appended.
        raw_bytes_trace: bytes of all snapshots' tensors.
        tier: the tier that the file promises now.
        untrue: the tier that it promised before and does not keep at its new length, or "".
    """

    file_bytes: int
    snapshots: int
    new_snapshots: int
    tokens: int
    new_tokens: int
    raw_bytes_trace: int
    tier: str = ""
    untrue: str = ""


def append(
    model: PreTrainedModel | ModelAdapter,
    prompt: Sequence[int],
    path: str | os.PathLike[str],
    *,
    steps: int | None = None,
    options: CaptureOptions | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    timeout: float = 0,
    allow_model_mismatch: bool = False,
    progress: Progress = nothing,
    key: KeySource | None = None,
) -> Appended:
    """Restore the last snapshot of a file, feed and decode tokens, and append the new snapshots.

    The token that the last run generated and did not feed (`Trace.pending`) is fed first, by
    itself, as an unbroken run does. When this returns, the new snapshots are on the disk.

    Args:
        prompt: token ids to feed behind it; if empty, decoding goes on with the token that was
            chosen next.
        steps: tokens to decode, instead of the `steps` of the options; none by default.
        options: how the tokens are fed and chosen; without a keyframe interval and attention.
        timeout: seconds to wait for another writer.
        allow_model_mismatch: skip the check that the model is the one of the file.
        key: the secret of an encrypted file, or what gives it; the file stays encrypted.
    Raises:
        UsageError: the file was compressed, or made from a compressed one; it holds a batch, or its
            last snapshot is not the end of a run.
        MismatchError: the file belongs to another model.
        StorageError: another process appends, or the disk refuses.
    """
    adapter, options = ModelAdapter.of(model), CaptureOptions.of(options, steps)
    path = os.path.realpath(path)  # a link stays a link: its target grows
    with only_writer(path, timeout):
        file = TraceFile(path, key)
        trace = file.trace()
        _check(file, trace, prompt, options)
        adapter.check_tokens(as_ids([*prompt, *trace.pending]))
        upcoming = trace.pending if prompt else trace.views[-1].next_tokens
        if not prompt and not upcoming:
            raise UsageError("the last run chose no next token", path=str(path), hint="give a prompt")
        cache = restore.to_cache(trace, adapter, tokenizer=tokenizer, allow_model_mismatch=allow_model_mismatch)
        adapter.positions.require_fit(
            len(trace.pending if prompt else ()) + len(prompt),
            options.steps,
            held=len(trace.token_ids()),
            beyond=options.allow_beyond_positions,
        )
        if len(caches.layers_of(cache)) != len(file.geometry.layers):
            raise UsageError(
                "was captured by another version of transformers, with other cache layers: append there", path=str(path)
            )
        with atomic_write(path, overwrite=True) as sink:
            os.fchmod(sink.fileno(), os.stat(path).st_mode & 0o777)
            writer = TraceWriter.going_on(sink, file)
            recorder = Recorder(writer, file.geometry)
            recorder.go_on(file.labels, file.views)
            sampler = Sampler(options.temperature, options.seed).after(tokens_before(trace))
            loop = DecodeLoop(adapter, cache, recorder, [sampler], progress=progress, next_tokens=list(upcoming[:1]))
            feeds = _run(loop, prompt, options)
            appends = trace.info.get("appended", 0)
            appends = appends if isinstance(appends, int) else 0
            ends = trace.text_ends
            if prompt:
                ends = (*ends[-_MAX_TEXT_ENDS:], len(trace.token_ids()) + len(trace.pending) + len(prompt))
            info = (
                trace.info
                | {"text_ends": ",".join(map(str, ends))}
                | {"feeds": feeds_text([*feeds_of(trace), *feeds]), "appended": appends + 1}
            )
            header, length = writer.finish(tier=trace.tier, capture=info, quality=trace.quality)
            require_readable(sink, file.reader.secret, path)
    fed = sum(feed.tokens for feed in feeds)
    return Appended(
        file_bytes=length,
        snapshots=len(file.views) + writer.snapshots,
        new_snapshots=writer.snapshots,
        tokens=len(trace.token_ids()) + fed,
        new_tokens=fed,
        raw_bytes_trace=header.raw_bytes_trace,
        tier=header.tier,
        untrue=trace.tier if header.tier != trace.tier else "",
    )


def _check(file: TraceFile, trace: Trace, prompt: Sequence[int], options: CaptureOptions) -> None:
    """Raise UsageError for a file or options that an append cannot take."""
    if lost_by := promises.loss_of_trace(trace):
        raise UsageError(
            f"was compressed ({lost_by}): a session can only go on from what is exact",
            path=trace.path,
            hint="append to the captured file, and compress that",
        )
    if file.geometry.batch > 1:
        raise UsageError("holds a batch, to which nothing is appended", path=trace.path)
    options.check()
    if options.keyframe_interval is not None or options.attention:
        raise UsageError("an append takes neither a keyframe interval nor attention: these belong to the capture")
    if not prompt and not options.steps:
        raise UsageError("there is nothing to append: neither a prompt nor steps")


def _run(loop: DecodeLoop, prompt: Sequence[int], options: CaptureOptions) -> list[Feed]:
    """Feed the prompt behind the pending token and decode; return in which passes that was done."""
    feeds = []
    if prompt:
        pending = loop.next_tokens
        if pending:
            feed(loop.adapter, loop.cache, pending, last_only=True)
            feeds.append(Feed(1, 1))
        for start in range(0, len(prompt), options.chunk):
            piece = prompt[start : start + options.chunk]
            logits = feed(loop.adapter, loop.cache, piece, last_only=True)
            loop.progress(len(piece))
        loop.samplers[0].fed([*pending, *prompt])
        loop.choose(logits)
        loop.snapshot([*pending, *prompt])
        feeds.append(Feed(len(prompt), options.chunk))
    loop.decode(options.steps, options.every)
    loop.recorder.finish()
    return [*feeds, Feed(options.steps, 1)] if options.steps else feeds
