"""Statistics of a group of layers over calibration texts, as sums of a fixed size."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from formats.container.records import Part

# times the mean of the diagonal: a floor for directions that occur in few gradients
_FISHER_FLOOR = 1.0


class Statistics:
    """Sums over the tokens of one group of layers.

    Vectors are (tokens, P) as in `shape.Shape`, unweighted, float32.  First tokens are counted
    apart.

    Attributes:
        tokens: how many tokens other than first ones were added.
        firsts: how many first tokens were added.
        positions: products of predictions and tokens in `fisher`.
        origin: (P,), subtracted from all vectors but those of first tokens.
        sums: (P,), of vectors less the origin.
        first_sums: (P,), of first tokens' vectors.
        covariance: (P, P), sums of products of vectors less the origin.
        cross: (P, P of the group before), likewise, or None.
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
        """Add vectors of tokens.

        Args:
            vectors: (tokens, P).
            first: bool (tokens,): first tokens.
            before: what this method returned for the same tokens of the group before.
        Returns:
            the vectors of all but first tokens, less the origin.
        """
        others = vectors[~first]
        if not self.tokens:
            self.origin = others.mean(0)  # keeps sums of products small, and so precise
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
        """Add gradients of log-probabilities.

        Args:
            gradients: by part, (layers, heads, tokens, size).
            first: bool (tokens,): first tokens.
            positions: how many log-probabilities were summed, with random signs.
        """
        for part, tensor in gradients.items():
            others = tensor[:, :, ~first]
            self.fisher[part] += others.transpose(-1, -2) @ others
        self.positions += positions * int((~first).sum())

    def metric(self, part: Part) -> torch.Tensor:
        """Return the symmetric root of the floored Fisher information, (layers, heads, size, size).

        The unit of a weighted vector is the square root of a nat.
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
        """Estimate the Fisher information of each token's row by the present metric, (tokens,)."""
        total = torch.zeros(())
        for part, tensor in gradients.items():
            # (layers, heads, size, tokens)
            whitened = torch.linalg.solve(self.metric(part), tensor.mT)
            total = total + whitened.square().sum((0, 1, 2))
        return total

    def state(self) -> dict[str, torch.Tensor]:
        """Return all sums, for a checkpoint."""
        sums = {name: getattr(self, name) for name in ("origin", "sums", "first_sums", "covariance")}
        counts = torch.tensor([self.tokens, self.firsts, self.positions])
        cross = {} if self.cross is None else {"cross": self.cross}
        return sums | cross | {"counts": counts} | {f"fisher_{p.name}": t for p, t in self.fisher.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore a checkpoint."""
        for name in ("origin", "sums", "first_sums", "covariance", *(["cross"] if self.cross is not None else [])):
            setattr(self, name, state[name])
        self.tokens, self.firsts, self.positions = state["counts"].tolist()
        self.fisher = {part: state[f"fisher_{part.name}"] for part in self.fisher}


def flat(unturned: Mapping[Part, torch.Tensor]) -> torch.Tensor:
    """Join rows by part, (layers, heads, tokens, size), to vectors (tokens, P)."""
    parts = [unturned[part].permute(2, 0, 1, 3).flatten(1) for part in (Part.KEYS, Part.VALUES)]
    return torch.cat(parts, 1)
