"""Linear predictions that are fitted on the first half of the tokens and scored on the second.

The halves are contiguous. Neighbouring tokens share their context, so that a row between two fitted
ones is partly known already: alternating rows would flatter every direction. A batch's members are
halved each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

LEAST_ROWS = 8  # in each half, for any fit
# of the ridge, relative to a regressor's energy
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e3)
_SHARE = 2 / 3  # of the fitting half fits while a strength is chosen; the rest scores it


@dataclass(frozen=True)
class Halves:
    """Two contiguous parts of the tokens: (tokens of all members, ...) each."""

    fit: torch.Tensor
    score: torch.Tensor


def halves(rows: torch.Tensor, share: float = 0.5) -> Halves:
    """(batch, tokens, ...) -> the first tokens of every member, and the others."""
    cut = int(rows.shape[1] * share)
    return Halves(rows[:, :cut].flatten(0, 1), rows[:, cut:].flatten(0, 1))


def own(signal: torch.Tensor, reference: torch.Tensor) -> torch.Tensor | None:
    """Return what a line per channel, with slope and offset, leaves of the targets.

    Args:
        signal, reference: (batch, tokens, heads, size).
    Returns:
        (tokens scored, heads, size); None if there are too few tokens.
    """
    here, there = halves(signal), halves(reference)
    if min(here.fit.shape[0], here.score.shape[0]) < LEAST_ROWS:
        return None
    x_mean, y_mean = there.fit.mean(0), here.fit.mean(0)
    x, y = there.fit - x_mean, here.fit - y_mean
    energy = x.square().sum(0)
    slope = torch.where(energy > 0, (x * y).sum(0) / energy.clamp(min=torch.finfo(energy.dtype).tiny), 0.0)
    return here.score - y_mean - slope * (there.score - x_mean)


def enough(inputs: torch.Tensor) -> bool:
    """Return whether the fitting half has at least one row per regressor."""
    return rows_a_regressor(inputs) >= 1 and inputs.shape[0] * inputs.shape[1] // 2 >= LEAST_ROWS


def rows_a_regressor(inputs: torch.Tensor) -> float:
    batch, tokens, regressors = inputs.shape
    return batch * int(tokens * 0.5) / regressors


def mapped(inputs: torch.Tensor, targets: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What a ridge regression from all inputs leaves of each target.

    The strength is chosen for each target within the fitting half: fitted on its first two thirds,
    the one that saves most bits on its last third is taken, and the whole half fitted again with
    it.

    Args:
        inputs: (batch, tokens, regressors).
        targets: (batch, tokens, heads, size) each.
    Returns:
        (tokens scored, heads, size) each.
    """
    x = halves(inputs)
    ys = [halves(target) for target in targets]
    members = inputs.shape[0]
    trial_x = halves(x.fit.reshape(members, -1, inputs.shape[2]), _SHARE)
    trials = [halves(y.fit.reshape(members, -1, *y.fit.shape[1:]), _SHARE) for y in ys]
    trial = _Fit(trial_x.fit)
    best = [(float("inf"), STRENGTHS[-1])] * len(ys)
    for strength in STRENGTHS:
        solve = trial.at(strength)
        for target_index, y in enumerate(trials):
            left = trial.left(solve, y.fit, trial_x.score, y.score)
            size = float(left.square().mean(0).clamp(min=torch.finfo(left.dtype).tiny).log2().mean())
            best[target_index] = min(best[target_index], (size, strength))
    whole = _Fit(x.fit)
    solvers = {strength: whole.at(strength) for strength in {strength for _, strength in best}}
    return [whole.left(solvers[strength], y.fit, x.score, y.score) for y, (_, strength) in zip(ys, best, strict=True)]


class _Fit:
    """Standardized regressors and their second moments."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self._mean = inputs.mean(0)
        spread = inputs.std(0, correction=0)
        self._spread = torch.where(spread > 0, spread, 1.0)
        self._inputs = (inputs - self._mean) / self._spread
        self._moments = self._inputs.T @ self._inputs

    def at(self, strength: float) -> torch.Tensor:
        """The Cholesky factor of the moments with a ridge."""
        ridge = strength * self._inputs.shape[0]
        factor: torch.Tensor = torch.linalg.cholesky(
            self._moments + ridge * torch.eye(len(self._moments), dtype=self._moments.dtype)
        )
        return factor

    def left(
        self, factor: torch.Tensor, fitted: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """What the map that was fitted to `fitted` leaves of other tokens' targets."""
        mean = fitted.flatten(1).mean(0)
        weights = torch.cholesky_solve(self._inputs.T @ (fitted.flatten(1) - mean), factor)
        left = targets.flatten(1) - mean - ((inputs - self._mean) / self._spread) @ weights
        return left.view_as(targets)
