"""A calibrated transform codec: one Karhunen-Loeve transform over all layers, keys and values together.

Keys and values of all layers are linear in one residual stream that changes little from layer to layer, so that a
token's rows lie near a space of far fewer dimensions than they have values.  KVTC (arXiv 2511.01815) does this with
keys and values apart and every direction alike; here the vectors are weighted by the Fisher information first, and
every token has a step of its own.  docs/klt.md has the derivation, the measurements and what was tried in vain.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..entropy import Decoder, Encoder
from ..errors import CorruptError, UsageError
from ..geometry import LayerSpec
from ..klt import importance, symbols
from ..klt.profile import MAX_GROUPS, MAX_RANK, SCALE_UNITS
from ..records import Part
from ..settings import require
from ..tensor_buffer import TensorView, expect, to_torch
from .base import ALONE, LAYOUT, BlockShape, Surroundings, to_cache_dtype

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from ..klt.profile import CodeTables, Profile
    from ..klt.transform import Transform

FINENESS = (-1024, 2048)
_WORTH_TRYING = 0.09  # of what a basis leaves of a usual token, in steps: from here on rests are looked at
_WORTH_CODING = 0.35  # root mean square, in steps, from which on a layer's rest is coded
_SMALLEST_SPREAD = -75  # 32nds of an octave: of a coefficient in steps, 0.2; smaller ones cost more than they give
_FITTING = "one of the same model is needed: tsc calibrate makes it"
_INTEGER_BITS = 28  # of a coefficient in steps, at most; a float32 has 24


@dataclass(frozen=True)
class KltSettings:
    """How rows are coded.

    Attributes:
        profile: SHA-256 of the profile, or a beginning of it; "" takes the one that fits the model.
        fineness: the step is 2 ** (-fineness / 32) nats ** 0.5 of weighted error; 32 more halve it.
        importance: how far the steps of rows follow their predicted importance, 0 to 1.
        price: squared steps of error that a bit is worth.
        rest: what the basis leaves is coded where it is worth it: "auto" decides by the fineness, "yes", "no".
    """

    profile: str = ""
    fineness: int = 360
    importance: float = 1.0
    price: float = 0.06
    rest: str = "auto"

    def __post_init__(self) -> None:
        low, high = FINENESS
        require(low <= self.fineness <= high, f"fineness={self.fineness} is not from {low} to {high}")
        require(0 <= self.importance <= 2, f"importance={self.importance} is not from 0 to 2")
        require(0 <= self.price <= 1, f"price={self.price} is not from 0 to 1")
        require(self.rest in ("auto", "yes", "no"), f"rest={self.rest} is not auto, yes or no")


class Klt:
    """Codec 6.  Payload, for T = batch x rows tokens:

    layout: fineness, whether the rest is coded for all tokens (else for first ones alone), groups, then the number of
    coefficients of each group;  words: U32, entropy-coded symbols;  apart: I32, integers beyond the tables

    Symbols, in this order: how much finer each token's step is; then for each group of layers the activities of its
    tokens' bands, their coefficients, the activities of their layers' rests, the rests.  First tokens (position 0) have
    no coefficients.
    """

    id: ClassVar[int] = 6
    name: ClassVar[str] = "klt"
    parts: ClassVar[tuple[Part, ...]] = (Part.JOINT,)
    exact: ClassVar[bool] = False
    Settings: ClassVar[type] = KltSettings

    def __init__(self, settings: KltSettings | None = None) -> None:
        self.settings = settings or KltSettings()

    def encode(self, rows: Mapping[Part, torch.Tensor], around: Surroundings = ALONE) -> dict[str, torch.Tensor]:
        import torch

        from ..klt.store import resolve

        encoder = Encoder()
        profile = resolve(self.settings.profile) if around.profile is None else around.profile()
        layout, apart = self.put(rows, around, profile, encoder)
        return {
            LAYOUT: torch.tensor(layout, dtype=torch.int32),
            "words": torch.from_numpy(encoder.words()), "apart": torch.tensor(apart, dtype=torch.int32),
        }  # fmt: skip

    def put(
        self, rows: Mapping[Part, torch.Tensor], around: Surroundings, profile: Profile, encoder: Encoder
    ) -> tuple[list[int], list[int]]:
        """Put the symbols of a block into a stream; returns its layout and the integers that are written apart.

        Raises:
            UsageError: the profile is of other layers than these; the step is far too fine.
        """
        import torch

        from ..klt.transform import transforms

        keys = rows[Part.KEYS]
        layers, batch, heads = keys.shape[:3]
        spec = LayerSpec("full", heads, keys.shape[4], rows[Part.VALUES].shape[4])
        try:
            groups = transforms(profile, around.first_layer, layers, keys.device)
        except CorruptError as error:
            raise UsageError(f"the profile does not fit the rows: {error.message}", hint=_FITTING) from error
        if not all(group.fits(spec) for group in groups):
            raise UsageError("the profile does not fit the rows: its heads are others", hint=_FITTING)
        positions = torch.tensor(list(around.positions), dtype=torch.int64)
        tokens = _Tokens(positions.repeat(batch), keys.device)
        unturned, at = [], 0
        for group in groups:
            part_of = {part: tensor[at : at + group.shape.layer_count] for part, tensor in rows.items()}
            unturned.append(group.unturned(part_of, positions))
            at += group.shape.layer_count
        predicted = [
            group.features(found, tokens.positions, around.end) @ group.importance
            for group, found in zip(groups, unturned, strict=True)
        ]
        finer = importance.finer(torch.stack(predicted).mean(0), self.settings.importance, tokens.first)
        weighted = [group.weigh(unturned.pop(0), tokens.first) for group in groups]
        finer = torch.minimum(finer, self._finest(weighted))
        tokens.set_steps(self.settings.fineness, finer)
        steps = (finer.cpu().numpy() + importance.SYMBOL_ZERO).astype("int32")
        encoder.put(profile.tables.importance, steps, _zeros(len(steps)))
        layout, apart = [self.settings.fineness, self._rest(groups), len(groups)], list[int]()
        before: torch.Tensor | None = None
        for group, vectors in zip(groups, weighted, strict=True):
            writer = _GroupWriter(group, tokens, profile.tables, self.settings, bool(layout[1]))
            before = writer.write(vectors, before, encoder, apart)
            layout.append(writer.rank)
        return layout, apart

    def _finest(self, weighted: Sequence[torch.Tensor]) -> torch.Tensor:
        """How much finer than the file's each token's step may be, so that integers hold its coefficients, (tokens,).

        Raises:
            UsageError: the file's own step is far too fine.
        """
        import torch

        sizes = torch.stack([one.norm(dim=1) for one in weighted]).amax(0).clamp_min(2.0**-100)
        exponents = (_INTEGER_BITS - sizes.log2()) * SCALE_UNITS - self.settings.fineness
        found = (exponents * (importance.STEPS_PER_OCTAVE / SCALE_UNITS)).floor().long()
        if int(found.min()) < -importance.SYMBOL_ZERO:
            raise UsageError(f"fineness={self.settings.fineness} is finer than 32 bits hold", hint="--codec lossless")
        return found

    def _rest(self, groups: Sequence[Transform]) -> bool:
        """Whether the step is fine enough for what the bases leave of a usual token."""
        if self.settings.rest != "auto":
            return self.settings.rest == "yes"
        usual = max(float(group.residual_scales.square().mean().sqrt()) for group in groups)
        return usual * 2 ** (self.settings.fineness / SCALE_UNITS) > _WORTH_TRYING

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, what: str) -> None:
        del part, shape
        expect(tensors, {LAYOUT: ("I32", (None,)), "words": ("U32", (None,)), "apart": ("I32", (None,))}, what)
        if not 4 <= tensors[LAYOUT].shape[0] <= 3 + MAX_GROUPS:
            raise CorruptError(f"{what}: a klt layout of {tensors[LAYOUT].shape[0]} numbers")
        fineness, rest, groups, *ranks = tensors[LAYOUT].integers()
        if (
            not FINENESS[0] <= fineness <= FINENESS[1] or rest not in (0, 1) or not 1 <= groups <= MAX_GROUPS
            or len(ranks) != groups or not all(0 <= rank <= MAX_RANK for rank in ranks)
        ):  # fmt: skip
            raise CorruptError(f"{what}: a klt layout that no writer makes")

    def decode(
        self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, device: str | torch.device,
        around: Surroundings = ALONE,
    ) -> dict[Part, torch.Tensor]:  # fmt: skip
        import torch

        from ..klt.transform import transforms

        del part
        if around.profile is None:
            raise CorruptError("rows that need a profile in a file that names none")
        profile = around.profile()
        fineness, rest, _, *ranks = tensors[LAYOUT].integers()
        groups = transforms(profile, around.first_layer, shape.layers, device)
        if len(ranks) != len(groups) or any(
            rank > group.shape.rank or not group.fits(shape.spec) for rank, group in zip(ranks, groups, strict=True)
        ):
            raise CorruptError("rows that do not fit the profile")
        positions = torch.tensor(list(around.positions), dtype=torch.int64)
        tokens = _Tokens(positions.repeat(shape.batch), device)
        decoder = Decoder(_words(tensors["words"]))
        apart = array("i", tensors["apart"].integers())
        finer = decoder.take(profile.tables.importance, _zeros(len(tokens.first))) - importance.SYMBOL_ZERO
        tokens.set_steps(fineness, torch.from_numpy(finer).long())
        result = {
            part: torch.empty(shape.tensor(part), dtype=getattr(torch, shape.dtype), device=device)
            for part in (Part.KEYS, Part.VALUES)
        }
        before: torch.Tensor | None = None
        at = 0
        for group, rank in zip(groups, ranks, strict=True):
            reader = _GroupReader(group, tokens, profile.tables, rank, bool(rest))
            before, added = reader.read(before, decoder, apart)
            prepared = group.prepared(before)
            for layer in range(group.shape.layer_count):
                rows = group.restore(prepared, added, tokens.first, positions, shape.batch, layer)
                for one, tensor in rows.items():
                    if not all(map(math.isfinite, map(float, tensor.aminmax()))):
                        raise CorruptError("rows that are not finite")
                    result[one][at] = to_cache_dtype(tensor, shape.dtype)
                at += 1
        decoder.finish()
        if apart:
            raise CorruptError("integers that are written apart are left over")
        return result


class _Tokens:
    """The tokens of a block: which are first ones, and their steps."""

    def __init__(self, positions: torch.Tensor, device: str | torch.device) -> None:
        self.positions = positions.to(device)
        self.first = self.positions == 0
        self.others = ~self.first.cpu().numpy()

    def set_steps(self, fineness: int, finer: torch.Tensor) -> None:
        """Args: finer: quarter octaves, int64 (tokens,)."""
        import torch

        exponents = fineness + finer.cpu() * (SCALE_UNITS // importance.STEPS_PER_OCTAVE)
        self.exponents = exponents.to(torch.int32).numpy()
        self.steps = torch.exp2(-exponents.double() / SCALE_UNITS).float().to(self.first.device)[:, None]


class _Group:
    """What writing and reading a group of layers have in common."""

    def __init__(self, group: Transform, tokens: _Tokens, tables: CodeTables, rest: bool) -> None:
        import numpy as np

        self.group, self.tokens, self.tables = group, tokens, tables
        self.with_rest = np.ones_like(tokens.others) if rest else ~tokens.others

    def predicted(self, before: torch.Tensor | None) -> torch.Tensor | None:
        """Coefficients (tokens, rank) from the decoded ones of the group before, over their scales."""
        if self.group.predict is None or before is None:
            return None
        count = min(before.shape[1], self.group.predict.shape[1])
        found = before[:, :count] @ self.group.predict[:, :count].T
        return found.masked_fill(self.tokens.first[:, None], 0)

    def decoded(self, integers: npt.NDArray[np.int32], predicted: torch.Tensor | None) -> torch.Tensor:
        """Coefficients over their scales, (tokens, rank), from the integers of all but first tokens."""
        import torch

        tokens, rank = self.tokens, integers.shape[1]
        steps = tokens.steps[~tokens.first] / self.group.scales[:rank]
        found = torch.zeros(len(tokens.first), rank, device=steps.device)
        found[~tokens.first] = torch.from_numpy(integers).to(steps.device).float() * steps
        if predicted is None:
            return found
        result = predicted.clone()
        result[:, :rank] += found
        return result

    def coefficient_classes(self, activity: npt.NDArray[np.int32], rank: int) -> symbols.Classes:
        """Classes of the coefficients of all but first tokens, (others, rank)."""
        exponents = self.tokens.exponents[self.tokens.others][:, None] + self.group.exponents[:rank]
        spread = symbols.by_band(activity - symbols.ACTIVITY_ZERO, self.group.shape.bands, rank)
        return symbols.classes_of(exponents + spread)

    def rest_classes(self, activity: npt.NDArray[np.int32], coded: npt.NDArray[np.bool_]) -> symbols.Classes:
        """Classes of what is coded of a rest, (values,): `coded` is (tokens with a rest, P)."""
        spread = (activity - symbols.ACTIVITY_ZERO)[:, self.group.layer_of] * symbols.PER_ACTIVITY
        exponents = self.tokens.exponents[self.with_rest][:, None] + self.group.residual_exponents
        return symbols.classes_of((exponents + spread)[coded])


class _GroupWriter(_Group):
    def __init__(
        self, group: Transform, tokens: _Tokens, tables: CodeTables, settings: KltSettings, rest: bool
    ) -> None:
        import numpy as np

        super().__init__(group, tokens, tables, rest)
        self._price = settings.price
        worth = group.exponents + settings.fineness > _SMALLEST_SPREAD
        self.rank = int(np.flatnonzero(worth)[-1]) + 1 if worth.any() else 0

    def write(
        self, weighted: torch.Tensor, before: torch.Tensor | None, encoder: Encoder, apart: list[int]
    ) -> torch.Tensor:
        """Put the group's symbols; returns its decoded coefficients over their scales, (tokens, rank)."""
        import numpy as np
        import torch

        tokens, group = self.tokens, self.group
        relative = group.analyse(weighted, self.rank)
        predicted = self.predicted(before)
        if predicted is not None:
            relative -= predicted[:, : self.rank]
        lively = relative.abs()
        stops = [min(stop, self.rank) for stop in group.shape.bands]
        spans = zip([0, *stops[:-1]], stops, strict=True)
        means = [lively[:, a:b].mean(1) if b > a else lively.new_ones(len(lively)) for a, b in spans]
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

    def _write_rest(
        self, weighted: torch.Tensor, decoded: torch.Tensor, encoder: Encoder, apart: list[int]
    ) -> None:  # fmt: skip
        import torch

        if not self.with_rest.any():
            return
        chosen = torch.from_numpy(self.with_rest).to(weighted.device)
        rest = weighted[chosen] - self.group.synthesise(decoded[chosen])
        scaled = rest / self.tokens.steps[chosen]
        relative = self.group.by_layer((rest / self.group.residual_scales).abs())
        activity = symbols.activity(relative.cpu().numpy())
        worth = self.group.by_layer(scaled.square()).sqrt() > _WORTH_CODING
        activity[~worth.cpu().numpy()] = 0
        encoder.put(self.tables.residual_activity, activity.ravel(), _zeros(activity.size))
        coded = (activity > 0)[:, self.group.layer_of]
        classes = self.rest_classes(activity, coded)
        integers = symbols.quantize(scaled.cpu().numpy()[coded], classes, self.tables.coefficients.bits, self._price)
        apart += symbols.put(encoder, self.tables.coefficients, integers, classes)


class _GroupReader(_Group):
    def __init__(self, group: Transform, tokens: _Tokens, tables: CodeTables, rank: int, rest: bool) -> None:
        super().__init__(group, tokens, tables, rest)
        self._rank = rank

    def read(
        self, before: torch.Tensor | None, decoder: Decoder, apart: MutableSequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(decoded coefficients over their scales, (tokens, rank); the rest, (tokens, P), or None)."""

        tokens, group = self.tokens, self.group
        others, bands = int(tokens.others.sum()), _band_count(group.shape.bands, self._rank)
        activity = decoder.take(self.tables.activity, _numbered(others, bands)).reshape(others, bands)
        classes = self.coefficient_classes(activity, self._rank)
        flat = symbols.Classes(classes.table.ravel(), classes.low.ravel())
        integers = symbols.take(decoder, self.tables.coefficients, flat, apart).reshape(others, self._rank)
        return self.decoded(integers, self.predicted(before)), self._read_rest(decoder, apart)

    def _read_rest(self, decoder: Decoder, apart: MutableSequence[int]) -> torch.Tensor | None:
        import numpy as np
        import torch

        count = int(self.with_rest.sum())
        if not count:
            return None
        layers = self.group.shape.layer_count
        activity = decoder.take(self.tables.residual_activity, _zeros(count * layers)).reshape(count, layers)
        coded = (activity > 0)[:, self.group.layer_of]
        integers = np.zeros(coded.shape, dtype=np.int32)
        integers[coded] = symbols.take(decoder, self.tables.coefficients, self.rest_classes(activity, coded), apart)
        chosen = torch.from_numpy(self.with_rest).to(self.tokens.first.device)
        rest = torch.zeros(len(chosen), self.group.shape.width, device=chosen.device)
        rest[chosen] = torch.from_numpy(integers).to(chosen.device).float() * self.tokens.steps[chosen]
        return rest


def _band_count(stops: Sequence[int], rank: int) -> int:
    """How many bands the first `rank` coefficients lie in."""
    return sum(1 for start in (0, *stops[:-1]) if start < rank)


def _numbered(count: int, bands: int) -> npt.NDArray[np.uint8]:
    """The band of each of `count` tokens' activities."""
    import numpy as np

    return np.tile(np.arange(bands, dtype=np.uint8), count)


def _zeros(count: int) -> npt.NDArray[np.uint8]:
    import numpy as np

    return np.zeros(count, dtype=np.uint8)


def _words(view: TensorView) -> npt.NDArray[np.uint32]:
    words: npt.NDArray[np.uint32] = to_torch(view).numpy().view("<u4").astype("uint32")
    return words
