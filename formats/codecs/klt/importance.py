"""The importance of a token's row: a regression that predicts what an error of the row costs.

The Fisher information of a row, summed over its values and taken over the 256 tokens that follow,
spans three decades: errors cost most in the last rows of a context and in the few that attention
returns to.  Finer steps for these rows and coarser ones for the others halve the KL at about the
same size (docs/klt.md).  Only the encoder predicts: a file states the step of every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

POSITION_FEATURES = 6
HORIZON = 1024  # tokens: the regression treats larger distances alike
STEPS_PER_OCTAVE = 4  # a row's step is finer than the file's by 2 ** (finer / 4)
FINEST, COARSEST = 40, -16  # quarter octaves
SYMBOL_ZERO = 128  # the symbol of a row with the file's own step
FIRST = 24  # quarter octaves, of first tokens (attention sinks), which are close to their mean


def features(keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, end: int) -> torch.Tensor:
    """Return the inputs of the regression, (tokens, 6 + 2 x layers x heads), float32.

    Args:
        keys: (layers, heads, tokens, head size), without RoPE.
        values: (layers, heads, tokens, head size).
        positions: int64 (tokens,).
        end: one more than the last position of the context.
    """
    import torch

    before = (positions.clamp(0, HORIZON) + 1).float().log()
    behind = (end - positions).clamp(1, HORIZON).float().log()
    distances = torch.stack([behind, behind**2, behind**3, before, before**2, torch.ones_like(before)])
    energies = [part.float().square().mean(-1).clamp_min(1e-12).log().flatten(0, 1) for part in (keys, values)]
    inputs: torch.Tensor = torch.cat([distances, *(part.to(distances.device) for part in energies)]).T
    return inputs


def finer(log_importance: torch.Tensor, strength: float, first: torch.Tensor) -> torch.Tensor:
    """Return how much finer each row's step is than the file's, int64 (tokens,).

    The unit is a quarter octave.

    Args:
        log_importance: natural logarithm of a row's Fisher information over the mean, (tokens,);
            the best step is the inverse square root of the information.
        strength: 1 trusts the prediction, 0 gives every row the same step.
        first: bool (tokens,): first tokens.
    """
    quarters = (log_importance * (strength * STEPS_PER_OCTAVE / 2 / 0.6931471805599453)).round().long()
    clamped: torch.Tensor = quarters.clamp(COARSEST, FINEST).masked_fill(first, FIRST)
    return clamped


def fit(rows: Sequence[torch.Tensor], information: Sequence[torch.Tensor], ridge: float = 10.0) -> torch.Tensor:
    """Fit the weights of the regression, (features,), float32; the mean prediction is 0.

    Args:
        rows: features of some tokens, (tokens, features) each.
        information: Fisher information of the same tokens, (tokens,) each.
        ridge: the strength of the regularization.
    """
    import torch

    inputs = torch.cat(list(rows)).double()
    targets = torch.cat(list(information)).double()
    targets = targets.clamp_min(targets.mean() * 1e-4).log()
    targets -= targets.mean()
    products = inputs.T @ inputs + ridge * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(products, inputs.T @ targets)
    weights[POSITION_FEATURES - 1] -= (inputs @ weights).mean()
    rounded: torch.Tensor = weights.float()
    return rounded
