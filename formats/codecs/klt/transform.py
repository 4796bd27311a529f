"""The transform of a group of layers: rows to weighted vectors, to coefficients, and back."""

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
    Rest = tuple[torch.Tensor, torch.Tensor]  # indices of tokens (n,), and residuals (n, P) to add

_LARGE = 64  # leading coefficients, which have most of the energy: always in float32
_SWEEPS = (_LARGE, 256, 1024)  # where the sweeps of the analysis stop
_RANGE = 6 * SCALE_UNITS  # the largest ratio of scales in one sweep


def _fast_dtype(device: str | torch.device) -> torch.dtype:
    """Choose the dtype of products with small coefficients: bfloat16 if the processor supports it.

    Its rounding is at least 50 dB below the quantization of these coefficients (docs/klt.md).
    """
    import torch

    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = torch.device(device).type == "cpu" and (able.get("amx_bf16") or able.get("avx512_bf16"))
    return torch.bfloat16 if fast else torch.float32


class Transform:
    """The transform of a group on one device, in float32.

    Vectors of tokens are (tokens, P): keys of all layers, then values (see `shape.Shape`).  They
    are weighted so that an error of the same size costs the same KL in every direction.

    Attributes:
        scales: of the coefficients, (rank,).
        residual_scales: of the residuals, (P,).
        exponents: the scales in 32nds of an octave, int32, on the CPU.
        residual_exponents: those of the residuals, likewise.
        layer_of: the layer of each of the P values.
        importance: weights of the regression.
        predict: the prediction from the group before, (rank, n), or None.
    """

    def __init__(self, group: Group, device: str | torch.device) -> None:
        import torch

        self.shape = shape = group.shape
        self.device = device
        # rows of the basis include the scales of their coefficients, which are relative to these
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
        # (P,)
        self.layer_of = torch.cat([layers.repeat_interleave(size) for size in sizes]).numpy()
        self._metric = {Part.KEYS: group.metric_keys.to(device), Part.VALUES: group.metric_values.to(device)}
        self._inverse = {part: _inverse(metric) for part, metric in self._metric.items()}
        self._mean = self._by_part(group.mean.to(device))
        self._first_mean = self._by_part(group.first_mean.to(device))
        self.importance = group.importance.to(device)
        self.predict = None if group.predict is None else group.predict.to(device)

    def _by_part(self, vector: torch.Tensor) -> dict[Part, torch.Tensor]:
        """Split a vector (P,) into keys and values, (layers, heads, 1, head size)."""
        s = self.shape
        keys = vector[: s.keys].view(s.layer_count, s.heads, 1, s.key_size)
        return {Part.KEYS: keys, Part.VALUES: vector[s.keys :].view(s.layer_count, s.heads, 1, s.value_size)}

    def unturned(self, rows: Mapping[Part, torch.Tensor], positions: torch.Tensor) -> dict[Part, torch.Tensor]:
        """Take RoPE off the keys and join sequences: tokens are batch x rows.

        Args:
            rows: by part, (layers, batch, heads, rows, head size).
            positions: of the rows, int64 (rows,).
        Returns:
            by part, (layers, heads, tokens, head size), float32.
        """
        import torch

        batch = rows[Part.KEYS].shape[1]
        result = {}
        for part, tensor in rows.items():
            layers = tensor.to(self.device).float().movedim(1, 2).flatten(2, 3)
            if part is Part.KEYS:
                of_tokens = positions.repeat(batch)
                turned = [
                    rotary.turn(layer, of_tokens, back=True)
                    for rotary, layer in zip(self.shape.rotary, layers, strict=True)
                ]
                layers = torch.stack(turned)
            result[part] = layers
        return result

    def features(self, unturned: Mapping[Part, torch.Tensor], positions: torch.Tensor, end: int) -> torch.Tensor:
        """Return the inputs of `importance` for tokens at these positions (tokens,)."""
        return features(unturned[Part.KEYS], unturned[Part.VALUES], positions.to(self.device), end)

    def weigh(self, unturned: Mapping[Part, torch.Tensor], first: torch.Tensor) -> torch.Tensor:
        """Return weighted vectors less their mean, (tokens, P); `first` marks first tokens."""
        import torch

        weighted = []
        for part in (Part.KEYS, Part.VALUES):
            mean = torch.where(first[:, None], self._first_mean[part], self._mean[part])
            less = (unturned[part] - mean).flatten(0, 1)
            weighted.append(torch.bmm(less, self._metric[part].flatten(0, 1)).transpose(0, 1).flatten(1))
        return torch.cat(weighted, 1)

    def fits(self, spec: LayerSpec) -> bool:
        """Tell whether the group has layers of this kind."""
        s = self.shape
        return (spec.heads, spec.key_size, spec.value_size) == (s.heads, s.key_size, s.value_size)

    def by_layer(self, values: torch.Tensor) -> torch.Tensor:
        """Average values (tokens, P) over each layer, (tokens, layers)."""
        s = self.shape
        parts = (values[:, : s.keys], values[:, s.keys :])
        keys, others = (part.reshape(len(values), s.layer_count, -1).sum(-1) for part in parts)
        return (keys + others) / (s.width // s.layer_count)

    def analyse(self, weighted: torch.Tensor, rank: int) -> torch.Tensor:
        """Return the first `rank` coefficients over their scales, (tokens, rank).

        The stored basis is rounded, more so for small coefficients, and so not quite orthogonal:
        the part of the large coefficients is subtracted before the small ones are computed, so that
        it does not leak into them.
        """
        import torch

        coefficients, left = [], weighted
        for start, stop in pairwise(self._stops(rank)):
            rows = self._large[start:stop] if stop <= _LARGE else self._small[start - _LARGE : stop - _LARGE]
            part = (left.to(rows.dtype) @ rows.T).float() / self.scales[start:stop].square()
            coefficients.append(part)
            if stop < rank:
                left = left - (part.to(rows.dtype) @ rows).float()
        return torch.cat(coefficients, 1)

    def _stops(self, rank: int) -> list[int]:
        """Return 0 and the stops of the sweeps in which coefficients are computed."""
        stops = [0]
        for index in range(1, rank):
            if index in _SWEEPS or self.exponents[stops[-1]] - self.exponents[index] > _RANGE:
                stops.append(index)
        return [*stops, rank]

    def synthesise(self, relative: torch.Tensor) -> torch.Tensor:
        """Return the weighted vectors (tokens, P) of coefficients over their scales."""
        return self._product(self.prepared(relative), slice(None))

    def prepared(self, relative: torch.Tensor) -> Prepared:
        """Convert coefficients over their scales to the dtypes of the products."""
        return relative[:, :_LARGE], relative[:, _LARGE:].to(self._small.dtype)

    def _product(self, prepared: Prepared, columns: slice) -> torch.Tensor:
        """Multiply coefficients by columns of the basis."""
        large, small = prepared
        product = large @ self._large[: large.shape[1], columns]
        if small.shape[1]:
            product += (small @ self._small[: small.shape[1], columns]).float()
        return product

    def restore(
        self,
        prepared: Prepared,
        rest: Rest | None,
        first: torch.Tensor,
        positions: torch.Tensor,
        batch: int,
        layer: int,
    ) -> dict[Part, torch.Tensor]:
        """Restore keys and values of one layer, (batch, heads, rows, head size), float32.

        Args:
            prepared: the coefficients.
            rest: added to the weighted vectors, or None.
            first: bool (tokens,): first tokens.
            positions: of the rows, (rows,).
            batch: how many sequences the tokens are of.
            layer: the layer's index in the group.
        """
        import torch

        s, result = self.shape, {}
        for part, size, start in ((Part.KEYS, s.key_size, 0), (Part.VALUES, s.value_size, s.keys)):
            columns = slice(start + layer * s.heads * size, start + (layer + 1) * s.heads * size)
            weighted = self._product(prepared, columns)
            if rest is not None:
                weighted[rest[0]] += rest[1][:, columns]
            heads = weighted.view(-1, s.heads, size).transpose(0, 1)
            mean = torch.where(first[:, None], self._first_mean[part][layer], self._mean[part][layer])
            rows = torch.bmm(heads, self._inverse[part][layer]) + mean
            rows = rows.view(s.heads, batch, -1, size).transpose(0, 1)
            result[part] = s.rotary[layer].turn(rows, positions) if part is Part.KEYS else rows
        return result


def _inverse(metric: torch.Tensor) -> torch.Tensor:
    """Invert a metric.  Raises CorruptError if it is singular."""
    import torch

    inverse: torch.Tensor
    inverse, info = torch.linalg.inv_ex(metric)
    if bool(info.any()) or not bool(torch.isfinite(inverse).all()):
        raise CorruptError("profile: a metric that has no inverse")
    return inverse


# by profile, then by the index of the group and the device
_ready: WeakKeyDictionary[Profile, dict[tuple[int, str], Transform]] = WeakKeyDictionary()


def transforms(profile: Profile, first_layer: int, layer_count: int, device: str | torch.device) -> list[Transform]:
    """Return the transforms of the groups of these layers, made once for a profile and device."""
    groups = []
    for index in profile.run(first_layer, layer_count):
        key = index, str(device)
        ready = _ready.setdefault(profile, {})
        if key not in ready:
            ready[key] = Transform(profile.groups[index], device)
        groups.append(ready[key])
    return groups
