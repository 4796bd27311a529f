"""Calibration of a model: windows of texts, statistics, bases, tables, and the measured curve."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch

from formats.codecs.klt import profile_store
from formats.codecs.klt.fitting import Rank
from formats.codecs.klt.group import Group
from formats.codecs.klt.profile import Profile, loads
from formats.errors import UsageError
from formats.version import VERSION
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.text.tokenizing import encode
from tsc_cli.progress import Say, Stage, no_stage, silent

from .checkpoint import Checkpoint
from .curve import curve, with_curve
from .effort import Effort, window_size
from .gather import CalibrationOptions, Gatherer
from .layer_groups import WIDEST
from .symbol_counting import ContextCaches, profile_of
from .texts import library_texts, windows, written

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CHECKPOINT = 4  # the version of the checkpoints: another number if their meaning changes


@dataclass(frozen=True)
class _Job:
    """What all stages of a calibration need."""

    adapter: ModelAdapter
    tokenizer: PreTrainedTokenizerBase | None
    effort: Effort
    checkpoint: Checkpoint
    stage: Stage
    say: Say


def calibrate(
    model: PreTrainedModel | ModelAdapter,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str = "model",
    texts: Sequence[Sequence[int]] | None = None,
    effort: Effort | None = None,
    stage: Stage | None = None,
    say: Say | None = None,
) -> Profile:
    """Make the profile of a model, and install it in the user's cache folder for `compress`.

    An interrupted calibration goes on where it was when it is called with the same arguments.  The
    model's parameters are left without gradients.

    Args:
        name: the model's name, for people.
        texts: token ids; None takes this Python's documentation and library, and texts that the
            model writes.
        effort: how much is gathered and measured.
        stage: opens a progress bar.
        say: takes lines for a person.
    Raises:
        UsageError: the texts are too short; the rank is too high for so wide a model.
        LimitError: the statistics of so wide a model do not fit into memory.
        UnsupportedCacheError: the model's cache cannot be stored.
    """
    if texts is None and tokenizer is None:
        raise UsageError("without texts a tokenizer is needed")
    adapter = ModelAdapter.of(model)
    effort, stage, say = effort or Effort(), stage or no_stage, say or silent
    context, following = window_size(adapter)
    following = min(following, max(effort.following, effort.positions))
    wanted = -(-effort.tokens // context)
    count = wanted + min(effort.held_out, max(2, wanted // 4))
    started = time.time()
    options = CalibrationOptions(
        Rank(effort.rank, effort.energy), context, effort.following, effort.fisher_every, effort.seed
    )
    gatherer = Gatherer(adapter, options)
    checkpoint = Checkpoint(profile_store.folder(), _key(adapter, tokenizer, effort, texts), say)
    job = _Job(adapter, tokenizer, effort, checkpoint, stage, say)
    size = context + following
    chosen = _windows(job, count, size) if texts is None else windows(texts, count, size)
    gathered = min(wanted, len(chosen) - len(chosen) // 5)
    if len(chosen) < count:
        say(f"the texts give {len(chosen)} windows of {context} tokens, {count} were wanted: longer ones serve better")
    groups = _fitted(job, gatherer, chosen[:gathered])
    held_out = chosen[gathered:] or chosen[-1:]
    measured = held_out[-effort.curve :]
    info = {
        "texts": "given" if texts is not None else "library and own",
        "tokens": gathered * context,
        "windows": gathered,
        "context": context,
        "created": time.strftime("%Y-%m-%d"),
        "rank": effort.rank,
        "dtype": gatherer.geometry.dtype,
        "seed": effort.seed,
    }
    contexts = ContextCaches(adapter, context, measured)
    with stage("counting symbols", len(held_out)) as advance:
        profile = profile_of(gatherer, groups, held_out, name, info, advance, checkpoint, contexts)
    shortened = [tokens[: context + 1 + effort.positions] for tokens in measured]
    with stage("measuring", len(effort.finenesses) * len(measured)) as advance:
        points = curve(adapter, profile, shortened, advance, effort.finenesses, checkpoint, contexts)
    profile = with_curve(profile, points)
    profile_store.install(profile)
    checkpoint.forget()
    if gatherer.overflowed:
        say(f"the gradients of {gatherer.overflowed} windows were beyond {gatherer.geometry.dtype} and left out")
    say(f"calibrated in {time.time() - started:.0f} s")
    return profile


def _fitted(job: _Job, gatherer: Gatherer, chosen: Sequence[Sequence[int]]) -> list[Group]:
    """Gather statistics of windows and fit the groups; the checkpoint saves what is done."""
    checkpoint, say = job.checkpoint, job.say
    fitted: list[Group] = []
    state = checkpoint.load("fitted")
    if state is not None:
        fitted = list(loads(state["draft"].numpy().tobytes()).groups)
        gatherer.overflowed = int(state["overflowed"])
    if len(fitted) < len(gatherer.shapes):
        if (gathered := checkpoint.load("gathered")) is not None:
            gatherer.load(gathered)
            say(f"going on after {gatherer.done} of {len(chosen)} windows that were gathered before")
        with job.stage("gathering", len(chosen)) as advance:
            advance(gatherer.done)
            for window in chosen[gatherer.done :]:
                gatherer.add(window)
                checkpoint.save_now_and_then("gathered", gatherer.state)
                advance(1)
        checkpoint.save("gathered", gatherer.state())
    if fitted:
        say(f"going on after {len(fitted)} of {len(gatherer.shapes)} bases that were fitted before")
    with job.stage("fitting", len(gatherer.shapes)) as advance:
        groups = gatherer.groups(advance, checkpoint, fitted, state)
    checkpoint.drop("gathered")  # the largest file, which is no longer needed
    return groups


def _windows(job: _Job, count: int, size: int) -> list[list[int]]:
    """Return windows of texts that the model writes and of this Python's library, mixed evenly."""
    own = round(count * job.effort.own_share)
    others = count - own
    prose, code = library_texts()
    kinds = [_own_windows(job, own, size)] if own else []
    for texts, share in ((prose, others - others // 2), (code, others // 2)):
        kinds.append(windows([encode(text, job.tokenizer) for text in texts], share, size))
    placed = [((index + 0.5) / len(kind), window) for kind in kinds for index, window in enumerate(kind)]
    return [window for _, window in sorted(placed, key=lambda place: place[0])]


def _own_windows(job: _Job, count: int, size: int) -> list[list[int]]:
    """Return windows of texts that the model writes, or wrote before an interruption."""
    checkpoint = job.checkpoint
    length = min(job.effort.own, size)
    needed = -(-count * size // length)
    before = (checkpoint.load("written") or {}).get("tokens")
    if before is not None:
        done = int((before >= 0).sum())
        job.say(f"going on after {done} of {needed * length} tokens that the model wrote before")
    with job.stage("letting the model write", needed * length) as advance:
        texts = written(
            job.adapter,
            job.tokenizer,
            needed,
            length,
            job.effort.seed,
            advance,
            before=before,
            keep=lambda tokens: checkpoint.save_now_and_then("written", lambda: {"tokens": tokens}),
        )
    checkpoint.save("written", {"tokens": torch.tensor(texts)})
    return windows(texts, count, size)


def _key(
    adapter: ModelAdapter,
    tokenizer: PreTrainedTokenizerBase | None,
    effort: Effort,
    texts: Sequence[Sequence[int]] | None,
) -> str:
    """Return a digest of all that decides the result, by which checkpoints are found again."""
    identity = (
        sorted(fingerprint.of(adapter, tokenizer).items()),
        sorted(asdict(effort).items()),
        window_size(adapter),
        WIDEST,
        adapter.device.type,
        torch.__version__,
        VERSION,
    )
    digest = hashlib.sha256(repr((_CHECKPOINT, *identity)).encode())
    for text in texts or ():
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(torch.tensor(list(text), dtype=torch.int64).numpy().tobytes())
    for page in chain.from_iterable(library_texts()) if texts is None else ():
        digest.update(hashlib.sha256(page.encode()).digest())
    return digest.hexdigest()[:16] + ("" if texts is None else "-texts")
