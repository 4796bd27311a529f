"""The whole of a calibration: texts, statistics, profile, and a measurement of what the profile is worth."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from formats.codecs import BlockShape
from formats.codecs.klt import Klt, KltSettings
from formats.errors import UsageError
from formats.klt import store
from formats.klt.fitting import Rank
from formats.klt.profile import Profile
from formats.records import Part
from formats.tensor_buffer import pack, parse
from formats.timeline import Rows

from . import bridge, fingerprint
from .calibration import WIDEST, CalibrationOptions, Gatherer, joint_blocks, profile_of, with_curve
from .calibration_texts import CONTEXT, CONTINUATION, OWN, OWN_SHARE, library_texts, windows, written
from .fidelity import compare
from .files import encode
from .generation import Progress, nothing, prefill, score
from .positions import reach_of

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Bar = Callable[[str, int | None], AbstractContextManager[Progress]]  # a progress bar for a stage of so many units
_CHECKPOINT = 2  # of what is put aside: another number where its meaning changes
_CHECKPOINT_SECONDS = 60.0
_CHECKPOINT_SHARE = 20  # a checkpoint takes a twentieth of the time at most
_CURVE = (260, 300, 330, 360, 390, 420, 450)  # finenesses at which a profile is measured


@dataclass(frozen=True)
class Effort:
    """How much a calibration takes in.

    Attributes:
        tokens: of the windows' contexts.
        rank, energy: see `fitting.Rank`.
        held_out: windows that are kept from the statistics, for tables and for the curve.
        curve: of these, those (the last ones) on which the curve is measured.
    """

    tokens: int = 96 * CONTEXT
    rank: int = 3072
    energy: float = 1.0
    held_out: int = 6
    curve: int = 3
    fisher_every: int = 2
    seed: int = 0


QUICK = Effort(tokens=8 * CONTEXT, rank=1280, held_out=2, curve=1)


def calibrate(
    model: PreTrainedModel, tokenizer: Any, *, name: str = "model", texts: Sequence[Sequence[int]] | None = None,
    effort: Effort | None = None, stage: Bar | None = None, say: Callable[[str], None] | None = None,
) -> Profile:  # fmt: skip
    """Make the profile of a model, and keep it in the user's cache folder, where `compress` finds it.

    What was gathered is put aside every minute or so and taken up again by the next call.  The model's parameters are
    left without gradients.

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
    effort, stage, say = effort or Effort(), stage or _no_bar, say or _silent
    context, following = window_size(model)
    wanted = -(-effort.tokens // context)
    count = wanted + min(effort.held_out, max(1, wanted // 4))
    started = time.time()
    options = CalibrationOptions(Rank(effort.rank, effort.energy), context, effort.fisher_every, effort.seed)
    gatherer = Gatherer(model, options)
    partial = _Partial(store.folder(), f"calibration-{_key(model, tokenizer, effort, texts)}", say)
    chosen = _windows(model, tokenizer, texts, count, context + following, effort, partial, stage)
    kept = min(wanted, len(chosen) - len(chosen) // 5)
    if len(chosen) < count:
        say(f"the texts give {len(chosen)} windows of {context} tokens, {count} were wanted: longer ones serve better")
    if (state := partial.load("gathered")) is not None:
        gatherer.load(state)
        say(f"going on after {gatherer.done} of {kept} windows that were gathered before")
    with stage("gathering", kept) as advance:
        advance(gatherer.done)
        for window in chosen[gatherer.done : kept]:
            gatherer.add(window)
            partial.save_now_and_then("gathered", gatherer.state)
            advance(1)
    with stage("fitting", len(gatherer.shapes)) as advance:
        groups = gatherer.groups(advance)
    held_out = chosen[kept:] or chosen[-1:]
    info = {
        "texts": "given" if texts is not None else "library and own", "tokens": kept * context,
        "windows": kept, "context": context, "created": time.strftime("%Y-%m-%d"), "rank": effort.rank,
        "dtype": gatherer.geometry.dtype, "seed": effort.seed,
    }  # fmt: skip
    with stage("counting symbols", len(held_out)) as advance:
        profile = profile_of(gatherer, groups, held_out, name, info, advance)
    with stage("measuring", len(_CURVE) * min(effort.curve, len(held_out))) as advance:
        points = curve(model, profile, held_out[-effort.curve :], advance)
    profile = with_curve(profile, points)
    store.install(profile)
    partial.forget()
    if gatherer.overflowed:
        say(f"the gradients of {gatherer.overflowed} windows were beyond {gatherer.geometry.dtype} and left out")
    say(f"calibrated in {time.time() - started:.0f} s")
    return profile


def window_size(model: PreTrainedModel) -> tuple[int, int]:
    """(context, tokens that follow it) of a calibration window: the usual, or what the model's positions allow."""
    most = reach_of(model) or CONTEXT + CONTINUATION
    if most >= CONTEXT + CONTINUATION:
        return CONTEXT, CONTINUATION
    return most * 4 // 5, most - most * 4 // 5


def _windows(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[Sequence[int]] | None, count: int, size: int,
    effort: Effort, partial: _Partial, stage: Bar,
) -> list[list[int]]:  # fmt: skip
    if texts is not None:
        return windows(texts, count, size)
    own = max(1, round(count * OWN_SHARE))
    state = partial.load("written")
    if state is None:
        length = min(OWN, size)
        needed = -(-own * size // length)
        with stage("letting the model write", needed * length) as advance:
            found = list(written(model, tokenizer, needed, length, effort.seed, advance))
        state = {"tokens": torch.tensor(found)}
        partial.save("written", state)
    prose, code = library_texts()
    rest = count - own
    kinds = [windows(state["tokens"].tolist(), own, size)]
    for kind, share in ((prose, rest - rest // 2), (code, rest // 2)):
        kinds.append(windows([encode(text, tokenizer) for text in kind], share, size))
    return _spread_evenly(kinds)


def _spread_evenly(kinds: Sequence[Sequence[list[int]]]) -> list[list[int]]:
    """The windows of all kinds, each kind spread evenly over the whole."""
    placed = [((at + 0.5) / len(kind), window) for kind in kinds for at, window in enumerate(kind)]
    return [window for _, window in sorted(placed, key=lambda one: one[0])]


def curve(
    model: PreTrainedModel, profile: Profile, held_out: Sequence[Sequence[int]], progress: Progress
) -> list[dict[str, float]]:
    """What the profile is worth at some finenesses: {"fineness", "bits" a value, "kl" in nats, "top1"}."""
    context, _ = window_size(model)
    sums = {fineness: [0.0, 0.0, 0.0] for fineness in _CURVE}
    for tokens in held_out:
        cache, _ = prefill(model, list(tokens[:context]), chunk=CONTEXT)
        fed, targets = list(tokens[context:-1]), list(tokens[context + 1 :])
        exact = score(model, cache, fed)
        for fineness, total in sums.items():
            bits, twin = coded(cache, model, profile, fineness)
            fidelity = compare(exact, score(model, twin, fed), targets)
            for at, value in enumerate((bits, fidelity.kl_mean, fidelity.top1)):
                total[at] += value / len(held_out)
            progress(1)
    names = ("bits", "kl", "top1")
    return [{"fineness": float(f)} | dict(zip(names, total, strict=True)) for f, total in sums.items()]


def coded(cache: Cache, model: PreTrainedModel, profile: Profile, fineness: int) -> tuple[float, Cache]:
    """(bits a value, the cache that comes back) of a cache through codec klt, without a file."""
    geometry = bridge.geometry_of(cache, type(model).__name__)
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
    return 8 * size / values, bridge.with_rows(cache, restored)


class _Partial:
    """What a calibration has done so far, in hidden files beside the profiles."""

    def __init__(self, folder: Path, key: str, say: Callable[[str], None]) -> None:
        self._folder, self._key, self._say = folder, key, say
        self._next = time.monotonic() + _CHECKPOINT_SECONDS

    def _path(self, what: str) -> Path:
        return self._folder / f".{self._key}.{what}.safetensors"

    def load(self, what: str) -> dict[str, torch.Tensor] | None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self._path(what))
        except (OSError, SafetensorError):  # not there, or a disk that was full: done again
            return None

    def save(self, what: str, state: Mapping[str, torch.Tensor]) -> None:
        """Put a state aside; where that fails, the calibration goes on without."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._path(what)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file(dict(state), f"{path}.new")
            os.replace(f"{path}.new", path)
        except (OSError, SafetensorError) as error:
            Path(f"{path}.new").unlink(missing_ok=True)
            self._say(f"what was gathered cannot be put aside in {self._folder}: {error}")

    def save_now_and_then(self, what: str, state: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Save if the last time is long ago: seldom where saving itself takes long."""
        started = time.monotonic()
        if started > self._next:
            self.save(what, state())
            took = time.monotonic() - started
            self._next = time.monotonic() + max(_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * took)

    def forget(self) -> None:
        for path in self._folder.glob(f".{self._key}.*"):
            path.unlink(missing_ok=True)


def _key(model: PreTrainedModel, tokenizer: Any, effort: Effort, texts: Sequence[Sequence[int]] | None) -> str:
    """Of everything that decides what is gathered: an interrupted calibration goes on only with the same."""
    identity = fingerprint.of(model, tokenizer), sorted(asdict(effort).items()), window_size(model)
    digest = hashlib.sha256(repr((_CHECKPOINT, *identity, WIDEST, OWN, OWN_SHARE, sys.version_info)).encode())
    for text in texts or ():
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(torch.tensor(list(text), dtype=torch.int64).numpy().tobytes())
    return digest.hexdigest()[:16] + ("" if texts is None else "-texts")


@contextlib.contextmanager
def _no_bar(what: str, total: int | None) -> Iterator[Progress]:
    del what, total
    yield nothing


def _silent(text: str) -> None:
    del text
