"""A group's transform on one device: rows to weighted vectors, to coefficients, and back, a layer at a time."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from formats.container.records import Part
from formats.errors import CorruptError
from formats.trace.geometry import LayerSpec

from .group import SCALE_UNITS, Group
from .importance import features
from .profile import Profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    Prepared = tuple[torch.Tensor, torch.Tensor]
    Rest = tuple[torch.Tensor, torch.Tensor]  # numbers of tokens (n,), what is added to their weighted vectors (n, P)

_LARGE = 64  # coefficients that hold most of the energy: always float32
_SWEEPS = (_LARGE, 256, 1024)  # where coefficients are grouped by size for the analysis
_RANGE = 6 * SCALE_UNITS  # of the scales of one such group, at most


def _fast_dtype(device: str | torch.device) -> torch.dtype:
    """What small coefficients are multiplied in: bfloat16 where the processor has instructions for it.

    Its rounding, 2 ** -9 of small coefficients, is 50 dB and more below their quantization (docs/klt.md).
    """
    import torch

    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = torch.device(device).type == "cpu" and (able.get("amx_bf16") or able.get("avx512_bf16"))
    return torch.bfloat16 if fast else torch.float32


class Transform:
    """Tokens' vectors are (tokens, P): keys of all layers, then values, each weighted (see `shape.Shape`).

    The weighted error of a token's row is its share of the KL: unit error costs the same in every direction.

    Args:
        group: its statistics.
        device: where the arithmetic is done, in float32.
    """

    def __init__(self, group: Group, device: str | torch.device) -> None:
        import torch

        self.shape = shape = group.shape
        self.device = device
        # rows of the basis are as long as their coefficients are large, which are taken relative to their scale
        basis = group.basis.to(device).float() * shape.basis_step  # (rank, P)
        self._large, self._small = basis[:_LARGE], basis[_LARGE:].to(_fast_dtype(device))
        self.scales, self.residual_scales = (
            torch.exp2(exponents.double() / SCALE_UNITS).float().to(device)
            for exponents in (group.scale, group.residual_scale)
        )
        self.exponents = group.scale.to(torch.int32).numpy()
        self.residual_exponents = group.residual_scale.to(torch.int32).numpy()
        layers = torch.arange(shape.layer_count)
        sizes = (shape.heads * shape.key_size, shape.heads * shape.value_size)
        self.layer_of = torch.cat([layers.repeat_interleave(size) for size in sizes]).numpy()  # (P,)
        self._metric = {Part.KEYS: group.metric_keys.to(device), Part.VALUES: group.metric_values.to(device)}
        self._inverse = {part: _inverse(metric) for part, metric in self._metric.items()}
        self._mean = self._by_part(group.mean.to(device))
        self._first_mean = self._by_part(group.first_mean.to(device))
        self.importance = group.importance.to(device)
        self.predict = None if group.predict is None else group.predict.to(device)

    def _by_part(self, vector: torch.Tensor) -> dict[Part, torch.Tensor]:
        """(P,) as (layers, heads, 1, head size) of keys and of values."""
        s = self.shape
        keys = vector[: s.keys].view(s.layer_count, s.heads, 1, s.key_size)
        return {Part.KEYS: keys, Part.VALUES: vector[s.keys :].view(s.layer_count, s.heads, 1, s.value_size)}

    def unturned(self, rows: Mapping[Part, torch.Tensor], positions: torch.Tensor) -> dict[Part, torch.Tensor]:
        """Rows (layers, batch, heads, rows, head size) as (layers, heads, tokens, head size), keys without RoPE.

        Tokens are batch x rows, the rows of one sequence after those of another.
        """
        import torch

        batch = rows[Part.KEYS].shape[1]
        found = {}
        for part, tensor in rows.items():
            layers = tensor.to(self.device).float().movedim(1, 2).flatten(2, 3)
            if part is Part.KEYS:
                places = positions.repeat(batch)
                turned = [
                    rotary.turn(layer, places, back=True)
                    for rotary, layer in zip(self.shape.rotary, layers, strict=True)
                ]
                layers = torch.stack(turned)
            found[part] = layers
        return found

    def features(self, unturned: Mapping[Part, torch.Tensor], positions: torch.Tensor, end: int) -> torch.Tensor:
        """The features of `importance` for tokens at these positions (tokens,)."""
        return features(unturned[Part.KEYS], unturned[Part.VALUES], positions.to(self.device), end)

    def weigh(self, unturned: Mapping[Part, torch.Tensor], first: torch.Tensor) -> torch.Tensor:
        """Weighted vectors (tokens, P) less their mean; `first` (tokens,) says which tokens are first ones."""
        import torch

        weighted = []
        for part in (Part.KEYS, Part.VALUES):
            mean = torch.where(first[:, None], self._first_mean[part], self._mean[part])
            less = (unturned[part] - mean).flatten(0, 1)
            weighted.append(torch.bmm(less, self._metric[part].flatten(0, 1)).transpose(0, 1).flatten(1))
        return torch.cat(weighted, 1)

    def fits(self, spec: LayerSpec) -> bool:
        """Whether layers of this kind can be restored."""
        s = self.shape
        return (spec.heads, spec.key_size, spec.value_size) == (s.heads, s.key_size, s.value_size)

    def by_layer(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over each layer of values (tokens, P), (tokens, layers)."""
        s = self.shape
        keys, others = values[:, : s.keys], values[:, s.keys :]
        sums = keys.reshape(len(keys), s.layer_count, -1).sum(-1) + others.reshape(len(keys), s.layer_count, -1).sum(-1)
        return sums / (s.width // s.layer_count)

    def analyse(self, weighted: torch.Tensor, rank: int) -> torch.Tensor:
        """The first `rank` coefficients of weighted vectors over their scales, (tokens, rank).

        The stored basis is rounded, the more so the smaller a coefficient's scale, and so not quite orthogonal: what
        the large coefficients account for is taken out before the small ones are computed, or it would leak into them.
        """
        import torch

        found, left = [], weighted
        for start, stop in pairwise(self._stops(rank)):
            rows = self._large[start:stop] if stop <= _LARGE else self._small[start - _LARGE : stop - _LARGE]
            part = (left.to(rows.dtype) @ rows.T).float() / self.scales[start:stop].square()
            found.append(part)
            if stop < rank:
                left = left - (part.to(rows.dtype) @ rows).float()
        return torch.cat(found, 1)

    def _stops(self, rank: int) -> list[int]:
        """0, and where each group of coefficients that are computed together ends."""
        found = [0]
        for number in range(1, rank):
            if number in _SWEEPS or self.exponents[found[-1]] - self.exponents[number] > _RANGE:
                found.append(number)
        return [*found, rank]

    def synthesise(self, relative: torch.Tensor) -> torch.Tensor:
        """Weighted vectors (tokens, P) of coefficients over their scales, (tokens, up to rank)."""
        return self._product(self.prepared(relative), slice(None))

    def prepared(self, relative: torch.Tensor) -> Prepared:
        """Coefficients over their scales as they are multiplied."""
        return relative[:, :_LARGE], relative[:, _LARGE:].to(self._small.dtype)

    def _product(self, prepared: Prepared, columns: slice) -> torch.Tensor:
        """Coefficients times these columns of the basis."""
        large, small = prepared
        found = large @ self._large[: large.shape[1], columns]
        if small.shape[1]:
            found += (small @ self._small[: small.shape[1], columns]).float()
        return found

    def restore(
        self,
        prepared: Prepared,
        rest: Rest | None,
        first: torch.Tensor,
        positions: torch.Tensor,
        batch: int,
        layer: int,
    ) -> dict[Part, torch.Tensor]:
        """Keys and values of one layer of the group, (batch, heads, rows, head size), float32.

        Args:
            prepared: the coefficients.
            rest: what is added to the weighted vectors, or None.
            positions: of the rows, (rows,).
        """
        import torch

        s, found = self.shape, {}
        for part, size, start in ((Part.KEYS, s.key_size, 0), (Part.VALUES, s.value_size, s.keys)):
            columns = slice(start + layer * s.heads * size, start + (layer + 1) * s.heads * size)
            weighted = self._product(prepared, columns)
            if rest is not None:
                weighted[rest[0]] += rest[1][:, columns]
            heads = weighted.view(-1, s.heads, size).transpose(0, 1)
            mean = torch.where(first[:, None], self._first_mean[part][layer], self._mean[part][layer])
            rows = torch.bmm(heads, self._inverse[part][layer]) + mean
            rows = rows.view(s.heads, batch, -1, size).transpose(0, 1)
            found[part] = s.rotary[layer].turn(rows, positions) if part is Part.KEYS else rows
        return found


def _inverse(metric: torch.Tensor) -> torch.Tensor:
    """Raises CorruptError if there is none."""
    import torch

    found: torch.Tensor
    found, info = torch.linalg.inv_ex(metric)
    if bool(info.any()) or not bool(torch.isfinite(found).all()):
        raise CorruptError("profile: a metric that has no inverse")
    return found


# by profile, then by the number of the group and the device
_ready: WeakKeyDictionary[Profile, dict[tuple[int, str], Transform]] = WeakKeyDictionary()


def transforms(profile: Profile, first_layer: int, layer_count: int, device: str | torch.device) -> list[Transform]:
    """The transforms of the groups that make up these layers; unpacked once a profile and device."""
    found = []
    for number in profile.run(first_layer, layer_count):
        key = number, str(device)
        ready = _ready.setdefault(profile, {})
        if key not in ready:
            ready[key] = Transform(profile.groups[number], device)
        found.append(ready[key])
    return found
