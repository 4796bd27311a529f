"""Coding of a group of layers: coefficients and residuals of the basis, to symbols and back."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import TYPE_CHECKING

from . import importance, symbols
from .group import SCALE_UNITS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from .ans import Decoder, Encoder
    from .group import CodeTables
    from .transform import Rest, Transform

_WORTH_CODING = 0.5  # root mean square, in steps, above which a layer's rest is coded
_WORTH_SHARE = 0.05  # share of a group's squared error above which rests of its tokens are coded
# 32nds of an octave (0.2 steps): smaller coefficients cost more than they gain
_SMALLEST_SPREAD = -75


class Tokens:
    """The tokens of a block.

    Attributes:
        positions: position ids, int64 (tokens,).
        first: bool (tokens,): first tokens (position 0), which have no coefficients.
        others: bool (tokens,), on the CPU: all other tokens.
        exponents: of the steps, in 32nds of an octave, int32 (tokens,), once they are set.
        steps: quantization steps, float32 (tokens, 1), once they are set.
    """

    def __init__(self, positions: torch.Tensor, device: str | torch.device) -> None:
        self.positions = positions.to(device)
        self.first = self.positions == 0
        self.others = ~self.first.cpu().numpy()

    def set_steps(self, fineness: int, finer: torch.Tensor) -> None:
        """Set the step of each token.

        Args:
            fineness: the file's, in 32nds of an octave.
            finer: how much finer each token's step is, in quarter octaves, int64 (tokens,).
        """
        import torch

        exponents = fineness + finer.cpu() * (SCALE_UNITS // importance.STEPS_PER_OCTAVE)
        self.exponents = exponents.to(torch.int32).numpy()
        self.steps = torch.exp2(-exponents.double() / SCALE_UNITS).float().to(self.first.device)[:, None]


class _Group:
    """The common part of writing and reading a group of layers."""

    def __init__(self, group: Transform, tokens: Tokens, tables: CodeTables) -> None:
        self.group, self.tokens, self.tables = group, tokens, tables

    def with_rest(self, rest: bool) -> npt.NDArray[np.bool_]:
        """Mark the tokens whose rests may be coded, bool (tokens,): all, or the first ones only."""
        return ~self.tokens.others | rest

    def predicted(self, before: torch.Tensor | None) -> torch.Tensor | None:
        """Predict coefficients over their scales, (tokens, rank), from the group before."""
        if self.group.predict is None or before is None:
            return None
        count = min(before.shape[1], self.group.predict.shape[1])
        predicted = before[:, :count] @ self.group.predict[:, :count].T
        return predicted.masked_fill(self.tokens.first[:, None], 0)

    def decoded(self, integers: npt.NDArray[np.int32], predicted: torch.Tensor | None) -> torch.Tensor:
        """Return coefficients over their scales, (tokens, rank); first tokens have no integers."""
        import torch

        tokens, rank = self.tokens, integers.shape[1]
        steps = tokens.steps[~tokens.first] / self.group.scales[:rank]
        relative = torch.zeros(len(tokens.first), rank, device=steps.device)
        relative[~tokens.first] = torch.from_numpy(integers).to(steps.device).float() * steps
        if predicted is None:
            return relative
        result = predicted.clone()
        result[:, :rank] += relative
        return result

    def coefficient_classes(self, activity: npt.NDArray[np.int32], rank: int) -> symbols.Classes:
        """Return classes of the coefficients of all but first tokens, (others, rank)."""
        exponents = self.tokens.exponents[self.tokens.others][:, None] + self.group.exponents[:rank]
        spread = symbols.by_band(activity - symbols.ACTIVITY_ZERO, self.group.shape.bands, rank)
        return symbols.classes_of(exponents + spread)

    def rest_classes(
        self, activity: npt.NDArray[np.int32], coded: npt.NDArray[np.bool_], chosen: npt.NDArray[np.bool_]
    ) -> symbols.Classes:
        """Return classes of the coded values, bool (chosen, P), in the rests of chosen tokens."""
        spread = (activity - symbols.ACTIVITY_ZERO)[:, self.group.layer_of] * symbols.PER_ACTIVITY
        exponents = self.tokens.exponents[chosen][:, None] + self.group.residual_exponents
        return symbols.classes_of((exponents + spread)[coded])


class GroupWriter(_Group):
    """The writer of a group.

    Attributes:
        rank: the number of coefficients that were written.
        rest: whether the rests of all tokens were written.
    """

    def __init__(
        self, group: Transform, tokens: Tokens, tables: CodeTables, fineness: int, price: float, rest: str
    ) -> None:
        """Take the group, the block's tokens, the tables, and settings of codec klt."""
        super().__init__(group, tokens, tables)
        self._fineness, self._price, self._auto = fineness, price, rest == "auto"
        self.rank, self.rest = 0, rest == "yes"

    def write(
        self, weighted: torch.Tensor, before: torch.Tensor | None, encoder: Encoder, apart: list[int]
    ) -> torch.Tensor:
        """Put the group's symbols.

        Args:
            weighted: weighted vectors, (tokens, P).
            before: decoded coefficients of the group before, or None.
            apart: takes the integers that no table codes.
        Returns:
            decoded coefficients over their scales, (tokens, rank).
        """
        import numpy as np
        import torch

        tokens, group = self.tokens, self.group
        large_enough = np.flatnonzero(group.exponents + self._fineness > _SMALLEST_SPREAD)
        self.rank = int(large_enough[-1]) + 1 if len(large_enough) else 0
        relative = group.analyse(weighted, self.rank)
        predicted = self.predicted(before)
        if predicted is not None:
            relative -= predicted[:, : self.rank]
        sizes = relative.abs()
        stops = [min(stop, self.rank) for stop in group.shape.bands]
        spans = zip([0, *stops[:-1]], stops, strict=True)
        means = [sizes[:, start:stop].mean(1) if stop > start else sizes.new_ones(len(sizes)) for start, stop in spans]
        activity = symbols.activity(torch.stack(means, 1).cpu().numpy())[tokens.others]
        classes = self.coefficient_classes(activity, self.rank)
        scaled = (relative * group.scales[: self.rank] / tokens.steps).cpu().numpy()[tokens.others]
        integers = symbols.quantize(scaled, classes, self.tables.coefficients.bits, self._price)
        used = np.flatnonzero(integers.any(0))
        self.rank = int(used[-1]) + 1 if len(used) else 0
        integers = integers[:, : self.rank]
        bands = _band_count(group.shape.bands, self.rank)
        encoder.put(self.tables.activity, activity[:, :bands].ravel(), _numbered(len(activity), bands))
        classes = symbols.Classes(classes.table[:, : self.rank].ravel(), classes.low[:, : self.rank].ravel())
        apart += symbols.put(encoder, self.tables.coefficients, integers.ravel(), classes)
        decoded = self.decoded(integers, predicted)
        self._write_rest(weighted, decoded, encoder, apart)
        return decoded

    def _write_rest(self, weighted: torch.Tensor, decoded: torch.Tensor, encoder: Encoder, apart: list[int]) -> None:
        import torch

        auto = self._auto
        chosen = self.with_rest(self.rest or auto)
        if not chosen.any():
            return
        indices = torch.from_numpy(chosen).to(weighted.device)
        rest = weighted[indices] - self.group.synthesise(decoded[indices])
        scaled = rest / self.tokens.steps[indices]
        error = self.group.by_layer(scaled.square())
        worth = error.sqrt() > _WORTH_CODING
        if auto:
            # compare errors, not rows: a few rows far outside the basis may cause most of the error
            error = error * ~self.tokens.first[:, None]
            self.rest = float((error * worth).sum()) > _WORTH_SHARE * float(error.sum())
            if not self.rest:
                chosen, indices = self.with_rest(False), self.tokens.first
                rest, scaled, worth = rest[indices], scaled[indices], worth[indices]
        if not chosen.any():
            return
        relative = self.group.by_layer((rest / self.group.residual_scales).abs())
        activity = symbols.activity(relative.cpu().numpy())
        activity[~worth.cpu().numpy()] = 0
        encoder.put(self.tables.residual_activity, activity.ravel(), zeros(activity.size))
        scaled = scaled[torch.from_numpy((activity > 0).any(1)).to(scaled.device)]
        activity = _narrowed(chosen, activity)
        coded = (activity > 0)[:, self.group.layer_of]
        classes = self.rest_classes(activity, coded, chosen)
        tables = self.tables.coefficients
        integers = symbols.quantize(scaled.cpu().numpy()[coded], classes, tables.bits, self._price)
        apart += symbols.put(encoder, tables, integers, classes)


class GroupReader(_Group):
    """The reader of a group, given the rank and the rest that `GroupWriter` had."""

    def __init__(self, group: Transform, tokens: Tokens, tables: CodeTables, rank: int, rest: bool) -> None:
        super().__init__(group, tokens, tables)
        self._rank, self._rest = rank, rest

    def read(
        self, before: torch.Tensor | None, decoder: Decoder, apart: MutableSequence[int]
    ) -> tuple[torch.Tensor, Rest | None]:
        """Take the group's symbols.

        Returns:
            decoded coefficients over their scales, (tokens, rank); the rest, or None.
        """
        tokens, group = self.tokens, self.group
        others, bands = int(tokens.others.sum()), _band_count(group.shape.bands, self._rank)
        activity = decoder.take(self.tables.activity, _numbered(others, bands)).reshape(others, bands)
        classes = self.coefficient_classes(activity, self._rank)
        flat = symbols.Classes(classes.table.ravel(), classes.low.ravel())
        integers = symbols.take(decoder, self.tables.coefficients, flat, apart).reshape(others, self._rank)
        return self.decoded(integers, self.predicted(before)), self._read_rest(decoder, apart)

    def _read_rest(self, decoder: Decoder, apart: MutableSequence[int]) -> Rest | None:
        import numpy as np
        import torch

        with_rest = self.with_rest(self._rest)
        count = int(with_rest.sum())
        if not count:
            return None
        layers = self.group.shape.layer_count
        activity = decoder.take(self.tables.residual_activity, zeros(count * layers)).reshape(count, layers)
        activity = _narrowed(with_rest, activity)
        coded = (activity > 0)[:, self.group.layer_of]
        integers = np.zeros(coded.shape, dtype=np.int32)
        integers[coded] = symbols.take(
            decoder, self.tables.coefficients, self.rest_classes(activity, coded, with_rest), apart
        )
        device = self.tokens.first.device
        indices = torch.from_numpy(np.flatnonzero(with_rest)).to(device)
        return indices, torch.from_numpy(integers).to(device).float() * self.tokens.steps[indices]


def _narrowed(chosen: npt.NDArray[np.bool_], activity: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Drop the chosen tokens that have no layer whose rest is coded; return the others' activities.

    At coarse steps few remain, which saves computation.
    """
    coded = (activity > 0).any(1)
    chosen[chosen] = coded
    remaining: npt.NDArray[np.int32] = activity[coded]
    return remaining


def _band_count(stops: Sequence[int], rank: int) -> int:
    """Count the bands in which the first `rank` coefficients lie."""
    return sum(1 for start in (0, *stops[:-1]) if start < rank)


def _numbered(count: int, bands: int) -> npt.NDArray[np.uint8]:
    """Return the classes of the activities of `count` tokens: the number of the band."""
    import numpy as np

    return np.tile(np.arange(bands, dtype=np.uint8), count)


def zeros(count: int) -> npt.NDArray[np.uint8]:
    """Return the classes of symbols of a table with one row."""
    import numpy as np

    return np.zeros(count, dtype=np.uint8)
