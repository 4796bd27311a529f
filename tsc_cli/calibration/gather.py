"""Calibration: what a model's caches look like and what their errors cost, gathered into a profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from formats.codecs import BlockContext
from formats.codecs.klt import fitting, importance
from formats.codecs.klt.codec import Klt, KltSettings
from formats.codecs.klt.fitting import Rank
from formats.codecs.klt.group import MAX_BASIS, Group
from formats.codecs.klt.profile import MAX_GROUPS, Profile, dumps
from formats.codecs.klt.shape import Shape
from formats.codecs.klt.statistics import Statistics, flat
from formats.codecs.klt.tables import Counter, assumed
from formats.container.records import Part
from formats.errors import UsageError
from formats.limits import memory_budget, require_memory
from formats.trace.geometry import Geometry
from formats.trace.recorder import Rows
from tsc_cli.huggingface import caches, rotary_detection
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.generation import prefill
from tsc_cli.progress import Progress, nothing

from .texts import CONTEXT, CONTINUATION, drawn_at

if TYPE_CHECKING:
    from transformers import Cache

    from formats.codecs.klt.rotary import Rotary

    from .checkpoint import Checkpoint

WIDEST = 12_000  # values of a token in one joint basis: its covariance takes 4 * WIDEST ** 2 bytes, 0.6 GB
_COUNTED = (250, 300, 340, 370, 400, 440)  # the finenesses at which symbols are counted
LOSS_SCALE = {torch.float16: 1024.0}  # gradients of a log-probability are small for float16
_KEPT_SHARE = 16  # of the memory budget, for caches that are used again
_EARLY = 2  # Fisher windows before the metric is known well enough to weigh gradients


@dataclass(frozen=True)
class CalibrationOptions:
    """How much is gathered.

    Attributes:
        rank: of the joint basis of a group of layers.
        context: tokens of a window whose rows are taken.
        following: tokens behind them, at most, from which gradients come.
        fisher_every: one window of so many is run backwards, too, which takes three times as long.
    """

    rank: Rank = Rank(3072)  # noqa: RUF009 - frozen
    context: int = CONTEXT
    following: int = CONTINUATION
    fisher_every: int = 2
    seed: int = 0


def plan(geometry: Geometry, turns: Sequence[Rotary]) -> list[Shape]:
    """Groups of layers, each no wider than `WIDEST` unless a single layer is; neighbours that are alike share one."""
    shapes = []
    for first, count, spec in geometry.runs():
        if not spec.parts:
            continue
        width = spec.heads * (spec.key_size + spec.value_size)
        groups = -(-count // max(1, WIDEST // width))
        each = -(-count // groups)
        for layer in range(first, first + count, each):
            layers = min(each, first + count - layer)
            shapes.append(
                Shape(
                    layer,
                    layers,
                    spec.heads,
                    spec.key_size,
                    spec.value_size,
                    1,
                    0,
                    1.0,
                    (1,),
                    tuple(turns[layer : layer + layers]),
                )
            )
    return shapes


def _check_size(shapes: Sequence[Shape], rank: int) -> None:
    """Before hours are spent: the statistics must fit into memory, the bases into a profile.

    Raises:
        UsageError: the rank is too high. LimitError: the model is too wide for this machine.
    """
    if len(shapes) > MAX_GROUPS or sum(min(rank, shape.width) * shape.width for shape in shapes) > MAX_BASIS:
        fits = MAX_BASIS // sum(shape.width for shape in shapes)
        raise UsageError(
            f"{len(shapes)} bases of rank {rank} for {sum(shape.width for shape in shapes)} values a token are more "
            "than a profile holds",
            hint=f"--rank {fits}",
        )
    widths = [0, *(shape.width for shape in shapes)]
    needed = sum(4 * width * (width + before) for before, width in pairwise(widths))
    require_memory(needed, "the statistics of this model take")


def continues(shapes: Sequence[Shape], number: int, geometry: Geometry) -> bool:
    """Whether a group continues the run of the group before."""
    shape = shapes[number]
    return number > 0 and all(first != shape.first_layer for first, _, _ in geometry.runs())


class Gatherer:
    """Sums over windows, one at a time; can be put aside and taken up again between any two of them."""

    def __init__(self, adapter: ModelAdapter, options: CalibrationOptions) -> None:
        self.adapter, self.options = adapter, options
        adapter.model.requires_grad_(False)
        if adapter.config.is_encoder_decoder:
            raise UsageError(
                f"{adapter.name} has an encoder: codec klt is for models without one",
                hint="compress with --codec scalar",
            )
        cache, _ = prefill(adapter, list(range(1, 9)), chunk=8)
        self.geometry = caches.geometry_of(cache, adapter.name)
        if not any(spec.parts for spec in self.geometry.layers):
            raise UsageError(
                f"{adapter.name} keeps states and no keys and values, which codec klt is for",
                hint="compress with --codec scalar",
            )
        self.shapes = plan(self.geometry, rotary_detection.layers_of(adapter))
        _check_size(self.shapes, options.rank.most)
        self.statistics: list[Statistics] = []
        for number, s in enumerate(self.shapes):
            before = self.shapes[number - 1].width if continues(self.shapes, number, self.geometry) else 0
            self.statistics.append(Statistics(s.layer_count, s.heads, s.key_size, s.value_size, before))
        self.done = self.overflowed = 0
        self._inputs: list[list[torch.Tensor]] = [[] for _ in self.shapes]
        self._targets: list[list[torch.Tensor]] = [[] for _ in self.shapes]

    def add(self, tokens: Sequence[int]) -> None:
        """Take up a window: rows of its context, gradients of what follows it."""
        size = self.options.context
        context, following = list(tokens[:size]), list(tokens[size : size + self.options.following])
        cache, _ = prefill(self.adapter, context, chunk=CONTEXT)
        before: torch.Tensor | None = None
        every = self.options.fisher_every
        # one of so many, each time at another place among them: texts that take turns all come up
        backwards = (self.done + self.done // every) % every == 0 and len(following) > 0
        gradients = self._gradients(cache, following) if backwards else None
        self.overflowed += backwards and gradients is None
        for number, (unturned, positions) in enumerate(self._unturned(caches.rows_of(cache))):
            before = self.statistics[number].add_rows(flat(unturned), positions == 0, before)
            if gradients is not None:
                self._add_gradients(number, unturned, gradients[number], positions, len(following))
        self.done += 1

    def _unturned(self, rows: Sequence[Rows]) -> Iterator[tuple[dict[Part, torch.Tensor], torch.Tensor]]:
        """For each group: its rows (layers, heads, tokens, size) in float32, keys turned back; their positions."""
        for shape in self.shapes:
            layers = range(shape.first_layer, shape.first_layer + shape.layer_count)
            count = rows[shape.first_layer][0].shape[2]
            positions = torch.arange(self.options.context - count, self.options.context)
            keys = [rows[layer][0][0].float().cpu() for layer in layers]
            back = [turn.turn(one, positions, back=True) for turn, one in zip(shape.rotary, keys, strict=True)]
            values = torch.stack([rows[layer][1][0].float().cpu() for layer in layers])
            yield {Part.KEYS: torch.stack(back), Part.VALUES: values}, positions

    def _gradients(self, cache: Cache, following: Sequence[int]) -> list[dict[Part, torch.Tensor]] | None:
        """Of the log-probabilities of tokens that the model itself draws, with respect to the rows of each group.

        None where they are beyond the model's dtype.

        Random signs make one backward pass an unbiased sample of the sum over positions of g g^T.
        """
        device = self.adapter.device
        twin, leaves = caches.with_leaves(cache)
        ids = torch.tensor([following], device=device)
        logits = self.adapter.run(twin, input_ids=ids)[0].float()
        logp = torch.log_softmax(logits, -1)
        generator = torch.Generator().manual_seed((self.options.seed + self.done) % (1 << 63))
        drawn = drawn_at(logp.detach(), torch.rand(len(logp), generator=generator, dtype=torch.float64))[:, None]
        signs = torch.randint(2, drawn.shape, generator=generator) * 2.0 - 1
        scale = LOSS_SCALE.get(self.adapter.dtype, 1.0)
        total = (logp.gather(1, drawn.to(device)) * signs.to(device)).sum() * scale
        found = torch.autograd.grad(total, [part for rows in leaves for part in rows])
        found = tuple(one.float() / scale for one in found)  # in float32: what is small is why there is a scale
        if not all(bool(torch.isfinite(one).all()) for one in found):
            return None
        flat_gradients = iter(found)
        by_layer = [tuple(next(flat_gradients) for _ in rows) for rows in leaves]
        return [gradients for gradients, _ in self._unturned(by_layer)]  # turning is orthogonal: gradients turn alike

    def _add_gradients(
        self,
        number: int,
        unturned: Mapping[Part, torch.Tensor],
        gradients: Mapping[Part, torch.Tensor],
        positions: torch.Tensor,
        predictions: int,
    ) -> None:
        first = positions == 0
        self.statistics[number].add_gradients(gradients, first, predictions)
        if self.done // self.options.fisher_every >= _EARLY:
            information = self.statistics[number].information(gradients)
            seen = importance.features(unturned[Part.KEYS], unturned[Part.VALUES], positions, self.options.context)
            self._inputs[number].append(seen[~first])
            self._targets[number].append(information[~first])

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that was gathered, for a checkpoint."""
        found = {"done": torch.tensor(self.done), "overflowed": torch.tensor(self.overflowed)}
        for number, statistics in enumerate(self.statistics):
            found |= {f"{number}.{name}": tensor for name, tensor in statistics.state().items()}
            for at, (inputs, targets) in enumerate(zip(self._inputs[number], self._targets[number], strict=True)):
                found |= {f"{number}.inputs.{at}": inputs.contiguous(), f"{number}.targets.{at}": targets.contiguous()}
        return found

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up a checkpoint of the same model and options."""
        self.done, self.overflowed = int(state["done"]), int(state["overflowed"])
        for number, statistics in enumerate(self.statistics):
            prefix = f"{number}."
            statistics.load({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})
            count = sum(name.startswith(f"{number}.inputs.") for name in state)
            self._inputs[number] = [state[f"{number}.inputs.{at}"] for at in range(count)]
            self._targets[number] = [state[f"{number}.targets.{at}"] for at in range(count)]

    def groups(
        self,
        progress: Progress = nothing,
        checkpoint: Checkpoint | None = None,
        found: Sequence[Group] = (),
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> list[Group]:
        """The groups of a profile of what was gathered.

        Args:
            checkpoint: takes each group as its stage "fitted", from which `fitted_before` takes it up.
            found, state: the groups that were fitted before, and what the last of them leaves for the next.
        """
        found = list(found)
        before: fitting.Fitted | None = None
        if state is not None and 0 < len(found) < len(self.shapes):
            before = fitting.Fitted.of(found[-1], state)
        progress(len(found))
        for number in range(len(found), len(self.shapes)):
            shape, statistics = self.shapes[number], self.statistics[number]
            weights = torch.zeros(importance.POSITION_FEATURES + 2 * shape.layer_count * shape.heads)
            if self._inputs[number]:
                weights = importance.fit(self._inputs[number], self._targets[number])
            continued = before if continues(self.shapes, number, self.geometry) else None
            before = fitting.fit(statistics, shape, self.options.rank, weights, continued)
            found.append(before.group)
            if checkpoint is not None:
                data = torch.frombuffer(bytearray(self.draft(found).data), dtype=torch.uint8)
                left = before.state() if number < len(self.shapes) - 1 else {}
                checkpoint.save("fitted", left | {"draft": data, "overflowed": torch.tensor(self.overflowed)})
            progress(1)
        return found

    def draft(self, groups: Sequence[Group]) -> Profile:
        """A profile of some groups, before anything was counted."""
        return dumps("draft", fingerprint.of(self.adapter), groups, assumed(), {}, [])


def profile_of(
    gatherer: Gatherer,
    groups: Sequence[Group],
    sample: Sequence[Sequence[int]],
    name: str,
    info: Mapping[str, Any],
    progress: Progress = nothing,
    checkpoint: Checkpoint | None = None,
    contexts: Contexts | None = None,
) -> Profile:
    """The profile of these groups: symbols of sample windows are counted for its tables.

    Args:
        sample: windows of tokens.
        progress: called with 1 for each of them.
        checkpoint: takes what was counted after each of them, and gives it back.
        contexts: gives the windows' caches.
    """
    contexts = contexts or Contexts(gatherer.adapter, gatherer.options.context)
    draft = gatherer.draft(groups)
    counter, done = Counter(draft.tables), 0
    if checkpoint is not None and (state := checkpoint.load("counted")) is not None:
        done = int(state.pop("done"))
        counter.load({table: counts.numpy() for table, counts in state.items()})
        progress(done)
    for tokens in sample[done:]:
        for rows, around in joint_blocks(contexts.cache(tokens), gatherer.geometry):
            for fineness in _COUNTED:
                settings = KltSettings(fineness=fineness)
                Klt(settings).put(rows, around, draft, counter)
        done += 1
        if checkpoint is not None:
            counts = {table: torch.from_numpy(found) for table, found in counter.state().items()}
            checkpoint.save("counted", counts | {"done": torch.tensor(done)})
        progress(1)
    return dumps(name, fingerprint.of(gatherer.adapter), groups, counter.fitted(), info, [])


class Contexts:
    """The caches of windows' contexts; those that are asked for again are kept, if they are small."""

    def __init__(self, adapter: ModelAdapter, context: int, again: Sequence[Sequence[int]] = ()) -> None:
        self._adapter, self._context = adapter, context
        self._again = {tuple(tokens[:context]) for tokens in again}
        self._kept: dict[tuple[int, ...], Cache] = {}

    def cache(self, tokens: Sequence[int]) -> Cache:
        """The cache of a window's context; it must not be changed."""
        key = tuple(tokens[: self._context])
        if key in self._kept:
            return self._kept[key]
        cache, _ = prefill(self._adapter, list(key), chunk=CONTEXT)
        octets = sum(part.numel() * part.element_size() for rows in caches.rows_of(cache) for part in rows)
        if key in self._again and octets * len(self._again) <= memory_budget() // _KEPT_SHARE:
            self._kept[key] = cache
        return cache


def joint_blocks(cache: Cache, geometry: Geometry) -> Iterator[tuple[dict[Part, torch.Tensor], BlockContext]]:
    """The rows of each run of layers as codec klt takes them, (layers, 1, heads, rows, head size)."""
    rows = caches.rows_of(cache)
    for first, count, spec in geometry.runs():
        if not spec.parts:
            continue
        layers = rows[first : first + count]
        held = layers[0][0].shape[2]
        seen = caches.tokens_seen(cache)
        around = BlockContext(first_layer=first, positions=range(seen - held, seen), end=seen)
        yield (
            {
                Part.KEYS: torch.stack([parts[0] for parts in layers]),
                Part.VALUES: torch.stack([parts[1] for parts in layers]),
            },
            around,
        )


def with_curve(profile: Profile, curve: Sequence[Mapping[str, float]]) -> Profile:
    """The same profile with what was measured of it."""
    return dumps(profile.name, profile.fingerprint, profile.groups, profile.tables, profile.info, curve)
