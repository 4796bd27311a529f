"""What is gathered of a group of layers while calibration texts go by; memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from formats.container.records import Part

_FISHER_FLOOR = 1.0  # times the mean of the diagonal: without one, directions that few gradients showed are lost


class Statistics:
    """Sums over tokens of one group of layers; vectors are (tokens, P) as in `shape.Shape`, unweighted, float32.

    Attributes:
        tokens: other tokens than first ones that were seen.
        covariance: (P, P), sums of products of rows less `origin`; `cross` (P, P of the group before), likewise.
        fisher: by part, (layers, heads, size, size), sums of products of gradients.
    """

    def __init__(self, layers: int, heads: int, key_size: int, value_size: int, width_before: int = 0) -> None:
        self.width = layers * heads * (key_size + value_size)
        self.tokens, self.firsts, self.positions = 0, 0, 0
        self.origin = torch.zeros(self.width)
        self.sums, self.first_sums = torch.zeros(self.width), torch.zeros(self.width)
        self.covariance = torch.zeros(self.width, self.width)
        self.cross = torch.zeros(self.width, width_before) if width_before else None
        self.fisher = {
            part: torch.zeros(layers, heads, size, size)
            for part, size in ((Part.KEYS, key_size), (Part.VALUES, value_size))
        }

    def add_rows(self, vectors: torch.Tensor, first: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """Add tokens' vectors (tokens, P); `first` (tokens,) says which are first ones.

        Args:
            before: what this method returned for the same tokens of the group before.
        Returns:
            the vectors of the others less the origin.
        """
        others = vectors[~first]
        if not self.tokens:
            self.origin = others.mean(0)  # so that sums of products do not drown in the mean
        less = others - self.origin
        self.tokens += len(less)
        self.sums += less.sum(0)
        self.covariance.addmm_(less.T, less)
        if self.cross is not None and before is not None:
            self.cross.addmm_(less.T, before)
        self.firsts += int(first.sum())
        self.first_sums += vectors[first].sum(0)
        return less

    def add_gradients(self, gradients: Mapping[Part, torch.Tensor], first: torch.Tensor, positions: int) -> None:
        """Add gradients of a log-probability, (layers, heads, tokens, size) by part.

        Args:
            positions: predictions whose log-probabilities were summed, with random signs, for the gradient.
        """
        for part, tensor in gradients.items():
            others = tensor[:, :, ~first]
            self.fisher[part] += others.transpose(-1, -2) @ others
        self.positions += positions * int((~first).sum())

    def metric(self, part: Part) -> torch.Tensor:
        """The symmetric root of the Fisher information with a floor, (layers, heads, size, size).

        A unit of a weighted vector is a square root of a nat.
        """
        fisher = self.fisher[part].double() / max(1, self.positions)
        mean = fisher.diagonal(dim1=-2, dim2=-1).mean(-1)
        mean = mean.clamp_min(float(mean.mean()) * 1e-6 + 1e-30)[..., None, None]
        floored = (fisher + _FISHER_FLOOR * mean * torch.eye(fisher.shape[-1], dtype=fisher.dtype)) / (
            1 + _FISHER_FLOOR
        )
        values, vectors = torch.linalg.eigh(floored)
        root: torch.Tensor = ((vectors * values.sqrt()[..., None, :]) @ vectors.mT).float()
        return root

    def information(self, gradients: Mapping[Part, torch.Tensor]) -> torch.Tensor:
        """The Fisher information of each token's row, measured by the metric as it is known so far, (tokens,)."""
        total = torch.zeros(())
        for part, tensor in gradients.items():
            whitened = torch.linalg.solve(self.metric(part), tensor.mT)  # (layers, heads, size, tokens)
            total = total + whitened.square().sum((0, 1, 2))
        return total

    def state(self) -> dict[str, torch.Tensor]:
        """Everything, for a checkpoint."""
        found = {name: getattr(self, name) for name in ("origin", "sums", "first_sums", "covariance")}
        counts = torch.tensor([self.tokens, self.firsts, self.positions])
        cross = {} if self.cross is None else {"cross": self.cross}
        return found | cross | {"counts": counts} | {f"fisher_{p.name}": t for p, t in self.fisher.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up a checkpoint."""
        for name in ("origin", "sums", "first_sums", "covariance", *(["cross"] if self.cross is not None else [])):
            setattr(self, name, state[name])
        self.tokens, self.firsts, self.positions = state["counts"].tolist()
        self.fisher = {part: state[f"fisher_{part.name}"] for part in self.fisher}


def flat(unturned: Mapping[Part, torch.Tensor]) -> torch.Tensor:
    """Rows (layers, heads, tokens, size) by part as vectors (tokens, P)."""
    parts = [unturned[part].permute(2, 0, 1, 3).flatten(1) for part in (Part.KEYS, Part.VALUES)]
    return torch.cat(parts, 1)
