"""Gathering statistics of a model's caches and of the cost of their errors, for a profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from formats.codecs.klt import fitting, importance
from formats.codecs.klt.fitting import Rank
from formats.codecs.klt.group import Group
from formats.codecs.klt.profile import Profile, dumps
from formats.codecs.klt.statistics import Statistics, flat
from formats.codecs.klt.tables import assumed
from formats.container.records import Part
from formats.errors import UsageError
from formats.trace.recorder import Rows
from tsc_cli.huggingface import caches, rotary_detection
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.generation import prefill
from tsc_cli.progress import Progress, nothing

from .effort import CONTEXT, CONTINUATION
from .layer_groups import check_size, continues_run, plan
from .texts import drawn_at

if TYPE_CHECKING:
    from transformers import Cache

    from .checkpoint import Checkpoint

LOSS_SCALE = {torch.float16: 1024.0}  # gradients of log-probabilities would underflow
_EARLY = 2  # windows with gradients, until the metric is good enough to weigh gradients


@dataclass(frozen=True)
class CalibrationOptions:
    """The options of a `Gatherer`.

    Attributes:
        rank: limits the joint basis of a group of layers.
        context: tokens of a window whose rows are taken.
        following: the most tokens after them that gradients come from.
        fisher_every: one window of so many gives gradients, which takes three times as long.
        seed: the seed of drawn tokens and signs.
    """

    rank: Rank = Rank(3072)  # noqa: RUF009 - frozen
    context: int = CONTEXT
    following: int = CONTINUATION
    fisher_every: int = 2
    seed: int = 0


class Gatherer:
    """Sums over windows of tokens, with checkpoints between any two windows.

    Attributes:
        geometry: the geometry of the model's cache.
        shapes: the groups of layers.
        statistics: the sums of each group.
        done: how many windows were added.
        overflowed: how many windows had gradients beyond the model's dtype.
    """

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
        check_size(self.shapes, options.rank.most)
        self.statistics: list[Statistics] = []
        for index, s in enumerate(self.shapes):
            before = self.shapes[index - 1].width if continues_run(self.shapes, index, self.geometry) else 0
            self.statistics.append(Statistics(s.layer_count, s.heads, s.key_size, s.value_size, before))
        self.done = self.overflowed = 0
        self._inputs: list[list[torch.Tensor]] = [[] for _ in self.shapes]
        self._targets: list[list[torch.Tensor]] = [[] for _ in self.shapes]

    def add(self, tokens: Sequence[int]) -> None:
        """Add a window: rows of its context, gradients of what follows."""
        size = self.options.context
        context, following = list(tokens[:size]), list(tokens[size : size + self.options.following])
        cache, _ = prefill(self.adapter, context, chunk=CONTEXT)
        before: torch.Tensor | None = None
        every = self.options.fisher_every
        # the place among `every` windows moves on, so that texts that take turns all give gradients
        backwards = (self.done + self.done // every) % every == 0 and len(following) > 0
        gradients = self._gradients(cache, following) if backwards else None
        self.overflowed += backwards and gradients is None
        for number, (unturned, positions) in enumerate(self._unturned(caches.rows_of(cache))):
            before = self.statistics[number].add_rows(flat(unturned), positions == 0, before)
            if gradients is not None:
                self._add_gradients(number, unturned, gradients[number], positions, len(following))
        self.done += 1

    def _unturned(self, rows: Sequence[Rows]) -> Iterator[tuple[dict[Part, torch.Tensor], torch.Tensor]]:
        """Yield for each group its rows with keys turned back, and their positions.

        Rows are (layers, heads, tokens, size), float32.
        """
        for shape in self.shapes:
            layers = range(shape.first_layer, shape.first_layer + shape.layer_count)
            count = rows[shape.first_layer][0].shape[2]
            positions = torch.arange(self.options.context - count, self.options.context)
            keys = [rows[layer][0][0].float().cpu() for layer in layers]
            unturned = [
                rotary.turn(layer, positions, back=True) for rotary, layer in zip(shape.rotary, keys, strict=True)
            ]
            values = torch.stack([rows[layer][1][0].float().cpu() for layer in layers])
            yield {Part.KEYS: torch.stack(unturned), Part.VALUES: values}, positions

    def _gradients(self, cache: Cache, following: Sequence[int]) -> list[dict[Part, torch.Tensor]] | None:
        """Return gradients of log-probabilities of drawn tokens, with respect to each group's rows.

        The tokens are drawn from the model's own distribution.  Random signs make one backward pass
        an unbiased sample of the sum over positions of g g^T.

        Returns:
            None if a gradient is beyond the model's dtype.
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
        scaled = torch.autograd.grad(total, [part for rows in leaves for part in rows])
        gradients = [gradient.float() / scale for gradient in scaled]  # unscaled ones need float32
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return None
        remaining = iter(gradients)
        by_layer = [tuple(next(remaining) for _ in rows) for rows in leaves]
        # turning is orthogonal: gradients turn as rows
        return [by_part for by_part, _ in self._unturned(by_layer)]

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
        """Return all sums, for a checkpoint."""
        state = {"done": torch.tensor(self.done), "overflowed": torch.tensor(self.overflowed)}
        for number, statistics in enumerate(self.statistics):
            state |= {f"{number}.{name}": tensor for name, tensor in statistics.state().items()}
            for window, (inputs, targets) in enumerate(zip(self._inputs[number], self._targets[number], strict=True)):
                state[f"{number}.inputs.{window}"] = inputs.contiguous()
                state[f"{number}.targets.{window}"] = targets.contiguous()
        return state

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore a checkpoint of the same model and options."""
        self.done, self.overflowed = int(state["done"]), int(state["overflowed"])
        for number, statistics in enumerate(self.statistics):
            prefix = f"{number}."
            statistics.load({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})
            count = sum(name.startswith(f"{number}.inputs.") for name in state)
            self._inputs[number] = [state[f"{number}.inputs.{window}"] for window in range(count)]
            self._targets[number] = [state[f"{number}.targets.{window}"] for window in range(count)]

    def groups(
        self,
        progress: Progress = nothing,
        checkpoint: Checkpoint | None = None,
        fitted: Sequence[Group] = (),
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> list[Group]:
        """Fit the groups of a profile to the sums.

        Args:
            progress: called with 1 for each group.
            checkpoint: saves each group as stage "fitted".
            fitted: groups that were fitted before.
            state: the saved state of the last of them.
        """
        groups = list(fitted)
        before: fitting.Fitted | None = None
        if state is not None and 0 < len(groups) < len(self.shapes):
            before = fitting.Fitted.of(groups[-1], state)
        progress(len(groups))
        for number in range(len(groups), len(self.shapes)):
            shape, statistics = self.shapes[number], self.statistics[number]
            weights = torch.zeros(importance.POSITION_FEATURES + 2 * shape.layer_count * shape.heads)
            if self._inputs[number]:
                weights = importance.fit(self._inputs[number], self._targets[number])
            continued = before if continues_run(self.shapes, number, self.geometry) else None
            before = fitting.fit(statistics, shape, self.options.rank, weights, continued)
            groups.append(before.group)
            if checkpoint is not None:
                data = torch.frombuffer(bytearray(self.draft(groups).data), dtype=torch.uint8)
                left = before.state() if number < len(self.shapes) - 1 else {}
                checkpoint.save("fitted", left | {"draft": data, "overflowed": torch.tensor(self.overflowed)})
            progress(1)
        return groups

    def draft(self, groups: Sequence[Group]) -> Profile:
        """Make a profile of some groups with tables before counting."""
        return dumps("draft", fingerprint.of(self.adapter), groups, assumed(), {}, [])
