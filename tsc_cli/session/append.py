"""Append: a captured session goes on, and its file with it.

The file is replaced as a whole: what it held is copied, what is new is written behind it, and the result
takes the file's name when it lies on the disk.  So a reader sees the session before or after, never between, and a
process that is killed leaves the session as it was last acknowledged.  One writer at a time holds a lock beside it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from formats import Recorder
from formats.container.atomic_write import atomic_write
from formats.container.encryption import KeySource
from formats.container.locking import only_writer
from formats.errors import UsageError
from formats.file import loss
from formats.file.finish import require_readable
from formats.file.reader import TraceFile
from formats.file.writer import TraceWriter
from tsc_cli.huggingface import caches, restore
from tsc_cli.huggingface.generation import feed
from tsc_cli.huggingface.positions import require_fit
from tsc_cli.huggingface.prompts import as_ids, check_ids
from tsc_cli.huggingface.sampling import Sampler, tokens_before
from tsc_cli.huggingface.wrappers import unwrapped
from tsc_cli.progress import Progress, nothing

from .replay import Feed, feeds_of, feeds_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_MOST_ENDS = 4096  # texts whose ends a file remembers: the string has a limit


@dataclass(frozen=True)
class Appended:
    """What an append tells: the file's length, its snapshots and tokens, and how many of them are new.

    Attributes:
        tier: what the file promises now; `untrue` what it promised before and does not keep at its new length.
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
    model: PreTrainedModel,
    prompt: Sequence[int],
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    steps: int = 64,
    every: int = 1,
    chunk: int = 1024,
    temperature: float = 0.0,
    seed: int = 0,
    timeout: float = 0,
    force: bool = False,
    progress: Progress = nothing,
    key: KeySource | None = None,
    allow_beyond_positions: bool = False,
) -> Appended:
    """Restore the last snapshot of a file, feed it more text, decode, and append a snapshot after each.

    The token that the last run generated and did not feed (`Trace.pending`) is fed first, by itself, as the unbroken
    run does, whatever token it is.  When this returns, the new snapshots are on the disk.

    Args:
        prompt: token ids to feed behind it; without any, decoding goes on with the token that was chosen next.
        steps, every, chunk, temperature, seed, allow_beyond_positions: as in `CaptureOptions`.
        timeout: seconds to wait for another writer.
        force: skip the check that the model is the one of the file.
        key: the secret of an encrypted file, or what gives it; the file stays encrypted.
    Raises:
        UsageError: the file was compressed, or made of one that was; it is a batch, or its last snapshot is not the
            end of a run.
        MismatchError: another model.  StorageError: another process appends, or the disk refuses.
    """
    model = unwrapped(model)
    path = os.path.realpath(path)  # a link stays a link: its target grows
    with only_writer(path, timeout):
        file = TraceFile(path, key)
        trace = file.trace()
        if lost_by := loss.of_trace(trace):
            raise UsageError(
                f"was compressed ({lost_by}): a session can only go on from what is exact",
                path=str(path),
                hint="append to the captured file, and compress that",
            )
        if file.geometry.batch > 1:
            raise UsageError("holds a batch, to which nothing is appended", path=str(path))
        if steps < 0 or every < 1 or chunk < 1 or (not prompt and not steps):
            raise UsageError("there is nothing to append: neither a prompt nor steps")
        check_ids(model, as_ids([*prompt, *trace.pending]))
        upcoming = trace.pending if prompt else trace.views[-1].next_tokens
        if not prompt and not upcoming:
            raise UsageError("the last run chose no next token", path=str(path), hint="give a prompt")
        cache = restore.to_cache(trace, model, tokenizer=tokenizer, force=force)
        more = len(trace.pending if prompt else ()) + len(prompt)
        require_fit(model, more, steps, held=len(trace.token_ids()), beyond=allow_beyond_positions)
        if len(caches.layers_of(cache)) != len(file.geometry.layers):
            raise UsageError(
                "was captured by another version of transformers, with other cache layers: append there", path=str(path)
            )
        with atomic_write(path, force=True) as sink:
            os.fchmod(sink.fileno(), os.stat(path).st_mode & 0o777)
            writer = TraceWriter.going_on(sink, file)
            recorder = Recorder(writer, file.geometry)
            recorder.go_on(file.labels, file.views)
            choose = Sampler(temperature, seed).after(tokens_before(trace))
            feeds = _run(model, cache, recorder, prompt, upcoming, steps, every, chunk, choose, progress)
            ends = trace.text_ends
            if prompt:
                ends = (*ends[-_MOST_ENDS:], len(trace.token_ids()) + len(trace.pending) + len(prompt))
            info = (
                trace.info
                | {"text_ends": ",".join(map(str, ends))}
                | {"feeds": feeds_text([*feeds_of(trace), *feeds]), "appended": _times(trace) + 1}
            )
            header, length = writer.finish(tier=trace.tier, capture=info, quality=trace.quality)
            require_readable(sink, file.reader.secret, path)
            new = writer.snapshots
    fed = sum(one.tokens for one in feeds)
    untrue = trace.tier if header.tier != trace.tier else ""
    return Appended(
        length,
        len(file.views) + new,
        new,
        len(trace.token_ids()) + fed,
        fed,
        header.raw_bytes_trace,
        header.tier,
        untrue,
    )


def _times(trace: Any) -> int:
    found = trace.info.get("appended", 0)
    return found if isinstance(found, int) else 0


def _run(
    model: PreTrainedModel,
    cache: Any,
    recorder: Recorder,
    prompt: Sequence[int],
    pending: Sequence[int],
    steps: int,
    every: int,
    chunk: int,
    choose: Sampler,
    progress: Progress,
) -> list[Feed]:
    """Feed the prompt and decode, with a snapshot after the prompt and after each `every` steps; what was fed."""
    feeds = []
    next_token = next(iter(pending), None)
    if prompt:
        if pending:
            feed(model, cache, pending, last_only=True)
            feeds.append(Feed(1, 1))
        for start in range(0, len(prompt), chunk):
            logits = feed(model, cache, prompt[start : start + chunk], last_only=True)[-1]
            progress(len(prompt[start : start + chunk]))
        choose.fed([*pending, *prompt])
        next_token = choose(logits)
        recorder.snapshot([*pending, *prompt], caches.rows_of(cache), [next_token], caches.states_of(cache))
        feeds.append(Feed(len(prompt), chunk))
    fed: list[int] = []
    for step in range(1, steps + 1):
        assert next_token is not None
        fed.append(next_token)
        logits = feed(model, cache, [next_token], last_only=True)[-1]
        choose.fed([next_token])
        next_token = choose(logits)
        progress(1)
        if step % every == 0 or step == steps:
            recorder.snapshot(fed, caches.rows_of(cache), [next_token], caches.states_of(cache))
            fed = []
    recorder.finish()
    return [*feeds, *([Feed(steps, 1)] if steps else [])]
