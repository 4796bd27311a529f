"""The whole of a calibration: texts, statistics, profile, and a measurement of what the profile is worth."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch

from formats.codecs.klt import profile_store
from formats.codecs.klt.codec import Klt, KltSettings
from formats.codecs.klt.fitting import Rank
from formats.codecs.klt.group import Group
from formats.codecs.klt.profile import Profile, loads
from formats.container.records import Part
from formats.container.safetensors_buffer import pack, parse
from formats.errors import UsageError
from formats.trace.blocks import BlockShape
from formats.trace.recorder import Rows
from formats.version import VERSION
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.generation import score
from tsc_cli.huggingface.text.tokenizing import encode
from tsc_cli.progress import Progress, Say, Stage, no_stage, silent
from tsc_cli.scoring.fidelity import compare

from .checkpoint import Checkpoint
from .gather import WIDEST, CalibrationOptions, Contexts, Gatherer, joint_blocks, profile_of, with_curve
from .texts import CONTEXT, CONTINUATION, OWN, OWN_SHARE, library_texts, windows, written

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

_CHECKPOINT = 4  # of what is put aside: another number where its meaning changes
CURVE = (260, 300, 330, 360, 390, 420, 450)  # finenesses at which a profile is measured


@dataclass(frozen=True)
class Effort:
    """How much a calibration takes in.

    Attributes:
        tokens: of the windows' contexts.
        rank, energy: see `fitting.Rank`.
        held_out: windows that are kept from the statistics, for tables and for the curve.
        curve: of these, those (the last ones) on which the curve is measured.
        finenesses, positions: at which it is measured, and over how many tokens at most.
        following: tokens behind a window's context, at most, from which its gradients come.
        own, own_share: tokens of a text that the model writes; the share of the windows that are made of such texts.
    """

    tokens: int = 96 * CONTEXT
    rank: int = 3072
    energy: float = 1.0
    held_out: int = 6
    curve: int = 3
    finenesses: tuple[int, ...] = CURVE
    positions: int = CONTINUATION
    fisher_every: int = 2
    following: int = CONTINUATION
    own: int = OWN
    own_share: float = OWN_SHARE
    seed: int = 0


# many short texts are written in a third of the time of few long ones, as each token reads all weights once a batch
QUICK = Effort(
    tokens=7 * CONTEXT,
    rank=1280,
    held_out=2,
    curve=1,
    finenesses=(300, 360, 420),
    positions=CONTINUATION // 2,
    following=CONTINUATION // 4,
    own=OWN // 16,
    own_share=1 / 9,
)


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
    """Make the profile of a model, and keep it in the user's cache folder, where `compress` finds it.

    What is done is put aside, stage by stage and item by item, and taken up again by the next call with the same
    arguments.  The model's parameters are left without gradients.

    Args:
        name: of the model, for people.
        texts: token ids; None takes this Python's documentation and library, and text that the model writes.
        stage: opens a progress bar.
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
    partial = Checkpoint(profile_store.folder(), _key(adapter, tokenizer, effort, texts), say)
    chosen = _windows(adapter, tokenizer, texts, count, context + following, effort, partial, stage, say)
    kept = min(wanted, len(chosen) - len(chosen) // 5)
    if len(chosen) < count:
        say(f"the texts give {len(chosen)} windows of {context} tokens, {count} were wanted: longer ones serve better")
    groups = _fitted(gatherer, chosen[:kept], partial, stage, say)
    held_out = chosen[kept:] or chosen[-1:]
    measured = held_out[-effort.curve :]
    info = {
        "texts": "given" if texts is not None else "library and own",
        "tokens": kept * context,
        "windows": kept,
        "context": context,
        "created": time.strftime("%Y-%m-%d"),
        "rank": effort.rank,
        "dtype": gatherer.geometry.dtype,
        "seed": effort.seed,
    }
    contexts = Contexts(adapter, context, measured)
    with stage("counting symbols", len(held_out)) as advance:
        profile = profile_of(gatherer, groups, held_out, name, info, advance, partial, contexts)
    with stage("measuring", len(effort.finenesses) * len(measured)) as advance:
        points = curve(
            adapter,
            profile,
            [tokens[: context + 1 + effort.positions] for tokens in measured],
            advance,
            effort.finenesses,
            partial,
            contexts,
        )
    profile = with_curve(profile, points)
    profile_store.install(profile)
    partial.forget()
    if gatherer.overflowed:
        say(f"the gradients of {gatherer.overflowed} windows were beyond {gatherer.geometry.dtype} and left out")
    say(f"calibrated in {time.time() - started:.0f} s")
    return profile


def _fitted(
    gatherer: Gatherer, chosen: Sequence[Sequence[int]], partial: Checkpoint, stage: Stage, say: Say
) -> list[Group]:
    """The groups of what these windows give: gathered and fitted, as far as that was not done before."""
    found: list[Group] = []
    state = partial.load("fitted")
    if state is not None:
        found = list(loads(state["draft"].numpy().tobytes()).groups)
        gatherer.overflowed = int(state["overflowed"])
    if len(found) < len(gatherer.shapes):
        if (gathered := partial.load("gathered")) is not None:
            gatherer.load(gathered)
            say(f"going on after {gatherer.done} of {len(chosen)} windows that were gathered before")
        with stage("gathering", len(chosen)) as advance:
            advance(gatherer.done)
            for window in chosen[gatherer.done :]:
                gatherer.add(window)
                partial.save_now_and_then("gathered", gatherer.state)
                advance(1)
        partial.save("gathered", gatherer.state())
    if found:
        say(f"going on after {len(found)} of {len(gatherer.shapes)} bases that were fitted before")
    with stage("fitting", len(gatherer.shapes)) as advance:
        groups = gatherer.groups(advance, partial, found, state)
    partial.drop("gathered")  # the largest, and of no more use
    return groups


def window_size(adapter: ModelAdapter) -> tuple[int, int]:
    """(context, tokens that follow it) of a calibration window: the usual, or what the model's positions allow."""
    most = adapter.positions.reach or CONTEXT + CONTINUATION
    if most >= CONTEXT + CONTINUATION:
        return CONTEXT, CONTINUATION
    return most * 4 // 5, most - most * 4 // 5


def _windows(
    adapter: ModelAdapter,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: Sequence[Sequence[int]] | None,
    count: int,
    size: int,
    effort: Effort,
    partial: Checkpoint,
    stage: Stage,
    say: Say,
) -> list[list[int]]:
    if texts is not None:
        return windows(texts, count, size)
    own = round(count * effort.own_share)
    rest = count - own
    prose, code = library_texts()
    kinds = [_own_windows(adapter, tokenizer, own, size, effort, partial, stage, say)] if own else []
    for kind, share in ((prose, rest - rest // 2), (code, rest // 2)):
        kinds.append(windows([encode(text, tokenizer) for text in kind], share, size))
    return _spread_evenly(kinds)


def _own_windows(
    adapter: ModelAdapter,
    tokenizer: PreTrainedTokenizerBase | None,
    count: int,
    size: int,
    effort: Effort,
    partial: Checkpoint,
    stage: Stage,
    say: Say,
) -> list[list[int]]:
    """Windows of texts that the model writes, as far as it did not write them before."""
    length = min(effort.own, size)
    needed = -(-count * size // length)
    before = (partial.load("written") or {}).get("tokens")
    if before is not None:
        done = int((before >= 0).sum())
        say(f"going on after {done} of {needed * length} tokens that the model wrote before")
    with stage("letting the model write", needed * length) as advance:
        found = written(
            adapter,
            tokenizer,
            needed,
            length,
            effort.seed,
            advance,
            before=before,
            keep=lambda tokens: partial.save_now_and_then("written", lambda: {"tokens": tokens}),
        )
    partial.save("written", {"tokens": torch.tensor(found)})
    return windows(found, count, size)


def _spread_evenly(kinds: Sequence[Sequence[list[int]]]) -> list[list[int]]:
    """The windows of all kinds, each kind spread evenly over the whole."""
    placed = [((at + 0.5) / len(kind), window) for kind in kinds for at, window in enumerate(kind)]
    return [window for _, window in sorted(placed, key=lambda one: one[0])]


def curve(
    adapter: ModelAdapter,
    profile: Profile,
    held_out: Sequence[Sequence[int]],
    progress: Progress,
    finenesses: Sequence[int] = CURVE,
    partial: Checkpoint | None = None,
    contexts: Contexts | None = None,
) -> list[dict[str, float]]:
    """What the profile is worth at some finenesses: {"fineness", "bits" a value, "kl" in nats, "top1"}.

    Args:
        progress: called with 1 for each window and fineness.
        partial: takes each of them, and gives back what was measured before.
        contexts: gives the windows' caches.
    """
    context, _ = window_size(adapter)
    contexts = contexts or Contexts(adapter, context)
    state = None if partial is None else partial.load("measured")
    found = torch.zeros(0, 3, dtype=torch.float64) if state is None else state["found"]
    progress(len(found))
    for number, tokens in enumerate(held_out):
        todo = finenesses[max(0, len(found) - number * len(finenesses)) :]
        if not todo:
            continue
        cache = contexts.cache(tokens)
        fed, targets = list(tokens[context:-1]), list(tokens[context + 1 :])
        exact = score(adapter, cache, fed)
        for fineness in todo:
            bits, twin = coded(cache, adapter, profile, fineness)
            fidelity = compare(exact, score(adapter, twin, fed, finite=False), targets)
            row = torch.tensor([[bits, fidelity.kl_mean, fidelity.top1]], dtype=torch.float64)
            found = torch.cat([found, row])
            if partial is not None:
                partial.save("measured", {"found": found})
            progress(1)
    means = found.view(len(held_out), len(finenesses), 3).mean(0).tolist()
    names = ("bits", "kl", "top1")
    return [{"fineness": float(f)} | dict(zip(names, m, strict=True)) for f, m in zip(finenesses, means, strict=True)]


def coded(cache: Cache, adapter: ModelAdapter, profile: Profile, fineness: int) -> tuple[float, Cache]:
    """(bits a value, the cache that comes back) of a cache through codec klt, without a file."""
    geometry = caches.geometry_of(cache, adapter.name)
    restored: list[Rows] = [()] * len(geometry.layers)
    size = values = 0
    for rows, around in joint_blocks(cache, geometry):
        keys = rows[Part.KEYS]
        codec = Klt(KltSettings(profile.digest, fineness))
        known = replace(around, profile=lambda: profile)
        payload = pack(codec.encode(rows, known))
        shape = BlockShape(
            geometry.dtype, geometry.item_bytes, len(keys), 1, keys.shape[3], geometry.layers[around.first_layer]
        )
        back = codec.decode(parse(payload, "klt"), Part.JOINT, shape, keys.device, known)
        first = around.first_layer
        restored[first : first + len(keys)] = zip(back[Part.KEYS], back[Part.VALUES], strict=True)
        size += len(payload)
        values += sum(tensor.numel() for tensor in rows.values())
    return 8 * size / values, caches.with_rows(cache, restored)


def _key(
    adapter: ModelAdapter,
    tokenizer: PreTrainedTokenizerBase | None,
    effort: Effort,
    texts: Sequence[Sequence[int]] | None,
) -> str:
    """Of everything that decides the result: an interrupted calibration goes on only with the same."""
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
