"""Codec klt: a calibrated Karhunen-Loeve transform over all layers, keys and values together.

Keys and values of all layers are linear in one residual stream that changes little from layer to
layer, so that a token's rows lie near a space of far fewer dimensions than they have values.  KVTC
(arXiv 2511.01815) transforms keys and values separately and treats all directions alike; here the
vectors are weighted by the Fisher information first, and every token has its own step.  docs/klt.md
has the derivation, the measurements and the experiments that failed.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from formats.codecs.base import NO_CONTEXT, BlockContext, Codec
from formats.codecs.packing import LAYOUT, to_cache_dtype
from formats.container.records import Part
from formats.container.safetensors_buffer import TensorView, expect, to_torch
from formats.errors import CorruptError, UsageError
from formats.settings import Settings, require
from formats.trace.blocks import BlockShape
from formats.trace.geometry import LayerSpec

from . import importance
from .ans import Decoder, Encoder
from .block_coding import GroupReader, GroupWriter, Tokens, zeros
from .group import SCALE_UNITS
from .profile import MAX_GROUPS
from .shape import MAX_RANK

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from .profile import Profile

FINENESS = (-1024, 2048)
_FITTING = "one of the same model is needed: tsc calibrate makes it"
_INTEGER_BITS = 28  # the most bits of a coefficient in steps; a float32 has 24


@dataclass(frozen=True)
class KltSettings(Settings):
    """The settings of codec klt.

    Attributes:
        profile: SHA-256 of the profile, or its first digits; by default chosen by the model.
        fineness: the step is 2 ** (-fineness / 32) nats ** 0.5 of weighted error; 32 more halve it.
        importance: how far the steps of rows follow their predicted importance, 0 to 1.
        price: squared steps of error that a bit is worth.
        rest: whether the residual of the basis is coded: "yes", "no", or "auto", where it is worth
            its bits.
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


class Klt(Codec):
    """Codec 6.  Its payload:

    layout: fineness, groups, the rank (number of coefficients) of each group, then 1 or 0 for each
        group: the rests are coded of all its tokens, or of first tokens only
    words: U32, entropy-coded symbols
    apart: I32, integers beyond the tables

    A rest is the residual that the basis leaves of a token's vector.  The symbols are, in this
    order: how much finer the step of each token (batch x rows) is; then for each group of layers
    the activities of its tokens' bands, their coefficients, the activities of their layers' rests,
    and the rests.  First tokens (position 0) have no coefficients.
    """

    id = 6
    name = "klt"
    Settings = KltSettings
    parts = (Part.JOINT,)
    needs_profile = True
    needs_positions = True
    groups_layers = True
    block_rows = 512  # small enough to decode a range of tokens without the others
    settings: KltSettings

    def encode(self, rows: Mapping[Part, torch.Tensor], context: BlockContext = NO_CONTEXT) -> dict[str, torch.Tensor]:
        import torch

        from .profile_store import resolve

        encoder = Encoder()
        profile = resolve(self.settings.profile) if context.profile is None else cast("Profile", context.profile())
        layout, apart = self.put(rows, context, profile, encoder)
        return {
            LAYOUT: torch.tensor(layout, dtype=torch.int32),
            "words": torch.from_numpy(encoder.words()),
            "apart": torch.tensor(apart, dtype=torch.int32),
        }

    def put(
        self, rows: Mapping[Part, torch.Tensor], context: BlockContext, profile: Profile, encoder: Encoder
    ) -> tuple[list[int], list[int]]:
        """Put the symbols of a block into a stream; return its layout and the integers "apart".

        Raises:
            UsageError: the profile has other layers than the rows; the step is far too fine.
        """
        import torch

        from .transform import transforms

        keys = rows[Part.KEYS]
        layers, batch, heads = keys.shape[:3]
        spec = LayerSpec("full", heads, keys.shape[4], rows[Part.VALUES].shape[4])
        try:
            groups = transforms(profile, context.first_layer, layers, keys.device)
        except CorruptError as error:
            raise UsageError(f"the profile does not fit the rows: {error.message}", hint=_FITTING) from error
        if not all(group.fits(spec) for group in groups):
            raise UsageError("the profile does not fit the rows: its heads are others", hint=_FITTING)
        positions = torch.tensor(list(context.positions), dtype=torch.int64)
        tokens = Tokens(positions.repeat(batch), keys.device)
        unturned, layer = [], 0
        for group in groups:
            group_rows = {part: tensor[layer : layer + group.shape.layer_count] for part, tensor in rows.items()}
            unturned.append(group.unturned(group_rows, positions))
            layer += group.shape.layer_count
        predicted = [
            group.features(group_rows, tokens.positions, context.end) @ group.importance
            for group, group_rows in zip(groups, unturned, strict=True)
        ]
        finer = importance.finer(torch.stack(predicted).mean(0), self.settings.importance, tokens.first)
        weighted = [group.weigh(unturned.pop(0), tokens.first) for group in groups]
        finer = torch.minimum(finer, self._finest(weighted))
        tokens.set_steps(self.settings.fineness, finer)
        steps = (finer.cpu().numpy() + importance.SYMBOL_ZERO).astype("int32")
        encoder.put(profile.tables.importance, steps, zeros(len(steps)))
        ranks, rests, apart = list[int](), list[int](), list[int]()
        s = self.settings
        before: torch.Tensor | None = None
        for group, vectors in zip(groups, weighted, strict=True):
            writer = GroupWriter(group, tokens, profile.tables, s.fineness, s.price, s.rest)
            before = writer.write(vectors, before, encoder, apart)
            ranks.append(writer.rank)
            rests.append(int(writer.rest))
        return [self.settings.fineness, len(groups), *ranks, *rests], apart

    def _finest(self, weighted: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return how much finer each token's step may be so that integers hold its coefficients.

        Returns:
            quarter octaves, int64 (tokens,).
        Raises:
            UsageError: the file's own step is far too fine.
        """
        import torch

        sizes = torch.stack([vectors.norm(dim=1) for vectors in weighted]).amax(0).clamp_min(2.0**-100)
        exponents = (_INTEGER_BITS - sizes.log2()) * SCALE_UNITS - self.settings.fineness
        finest = (exponents * (importance.STEPS_PER_OCTAVE / SCALE_UNITS)).floor().long()
        if int(finest.min()) < -importance.SYMBOL_ZERO:
            raise UsageError(f"fineness={self.settings.fineness} is finer than 32 bits hold", hint="--codec lossless")
        return finest

    def check(self, tensors: Mapping[str, TensorView], part: Part, shape: BlockShape, where: str) -> None:
        del part, shape
        expect(tensors, {LAYOUT: ("I32", (None,)), "words": ("U32", (None,)), "apart": ("I32", (None,))}, where)
        if not 4 <= tensors[LAYOUT].shape[0] <= 2 + 2 * MAX_GROUPS:
            raise CorruptError(f"{where}: a klt layout of {tensors[LAYOUT].shape[0]} numbers")
        fineness, groups, *numbers = tensors[LAYOUT].integers()
        if (
            not FINENESS[0] <= fineness <= FINENESS[1]
            or groups < 1
            or len(numbers) != 2 * groups
            or not all(0 <= rank <= MAX_RANK for rank in numbers[:groups])
            or not set(numbers[groups:]) <= {0, 1}
        ):
            raise CorruptError(f"{where}: a klt layout that no writer makes")

    def decode(
        self,
        tensors: Mapping[str, TensorView],
        part: Part,
        shape: BlockShape,
        device: str | torch.device,
        context: BlockContext = NO_CONTEXT,
    ) -> dict[Part, torch.Tensor]:
        import torch

        from .transform import transforms

        del part
        if context.profile is None:
            raise CorruptError("rows that need a profile in a file that names none")
        profile = cast("Profile", context.profile())
        fineness, count, *numbers = tensors[LAYOUT].integers()
        ranks, rests = numbers[:count], numbers[count:]
        groups = transforms(profile, context.first_layer, shape.layers, device)
        if len(ranks) != len(groups) or any(
            rank > group.shape.rank or not group.fits(shape.spec) for rank, group in zip(ranks, groups, strict=True)
        ):
            raise CorruptError("rows that do not fit the profile")
        positions = torch.tensor(list(context.positions), dtype=torch.int64)
        tokens = Tokens(positions.repeat(shape.batch), device)
        decoder = Decoder(_words(tensors["words"]))
        apart = array("i", tensors["apart"].integers())
        finer = decoder.take(profile.tables.importance, zeros(len(tokens.first))) - importance.SYMBOL_ZERO
        tokens.set_steps(fineness, torch.from_numpy(finer).long())
        result = {
            part: torch.empty(shape.tensor(part), dtype=getattr(torch, shape.dtype), device=device)
            for part in (Part.KEYS, Part.VALUES)
        }
        before: torch.Tensor | None = None
        offset = 0
        for group, rank, rest in zip(groups, ranks, rests, strict=True):
            reader = GroupReader(group, tokens, profile.tables, rank, bool(rest))
            before, rest_vectors = reader.read(before, decoder, apart)
            prepared = group.prepared(before)
            for layer in range(group.shape.layer_count):
                rows = group.restore(prepared, rest_vectors, tokens.first, positions, shape.batch, layer)
                for part, tensor in rows.items():
                    if not all(map(math.isfinite, map(float, tensor.aminmax()))):
                        raise CorruptError("rows that are not finite")
                    result[part][offset] = to_cache_dtype(tensor, shape.dtype)
                offset += 1
        decoder.finish()
        if apart:
            raise CorruptError("integers that are written apart are left over")
        return result


def _words(view: TensorView) -> npt.NDArray[np.uint32]:
    words: npt.NDArray[np.uint32] = to_torch(view).numpy().view("<u4").astype("uint32")
    return words
