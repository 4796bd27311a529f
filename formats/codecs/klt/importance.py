"""How much the error of a token's row costs: a regression on what an encoder sees of the row.

Rows are far from equal.  The Fisher information of a row, summed over its values and taken over the 256 tokens that
follow, spans three decades: the last rows of a context and the few that attention returns to cost most.  Where it can
be predicted, finer steps for these rows and coarser ones for the others halve the KL at about the same size
(docs/klt.md).  The prediction is the encoder's business alone: a file states the step of every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

POSITION_FEATURES = 6
HORIZON = 1024  # tokens; beyond it, being further away makes no difference to the regression
STEPS_PER_OCTAVE = 4  # a row's step is finer than the file's by 2 ** (finer / 4)
FINEST, COARSEST = 40, -16  # quarter octaves
SYMBOL_ZERO = 128  # the symbol of a row with the file's own step
FIRST = 24  # of the first token, an attention sink: few bits, as it is close to its mean


def features(keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, end: int) -> torch.Tensor:
    """What the prediction is made from, (tokens, 6 + 2 x layers x heads), float32.

    Args:
        keys, values: (layers, heads, tokens, head size), keys without RoPE.
        positions: int64 (tokens,).
        end: one more than the last position of the context.
    """
    import torch

    before = (positions.clamp(0, HORIZON) + 1).float().log()
    behind = (end - positions).clamp(1, HORIZON).float().log()
    place = [behind, behind**2, behind**3, before, before**2, torch.ones_like(before)]
    energy = [part.float().square().mean(-1).clamp_min(1e-12).log().flatten(0, 1) for part in (keys, values)]
    found: torch.Tensor = torch.cat([torch.stack(place), *(part.to(place[0].device) for part in energy)]).T
    return found


def finer(log_importance: torch.Tensor, strength: float, first: torch.Tensor) -> torch.Tensor:
    """How much finer than the file's a row's step is, int64 (tokens,), in quarter octaves.

    Args:
        log_importance: natural logarithm of a row's Fisher information over the mean, (tokens,).  The best step is its
            inverse square root.
        strength: 1 trusts the prediction, 0 gives every row the same step.
        first: bool (tokens,): first tokens.
    """
    found = (log_importance * (strength * STEPS_PER_OCTAVE / 2 / 0.6931471805599453)).round().long()
    clamped: torch.Tensor = found.clamp(COARSEST, FINEST).masked_fill(first, FIRST)
    return clamped


def fit(rows: Sequence[torch.Tensor], information: Sequence[torch.Tensor], ridge: float = 10.0) -> torch.Tensor:
    """The weights of the regression, (features,), float32; the mean prediction over the given rows is 0.

    Args:
        rows: features of some tokens, (tokens, features) each.
        information: Fisher information of the same tokens, (tokens,) each.
    """
    import torch

    inputs = torch.cat(list(rows)).double()
    targets = torch.cat(list(information)).double()
    targets = targets.clamp_min(targets.mean() * 1e-4).log()
    targets -= targets.mean()
    products = inputs.T @ inputs + ridge * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(products, inputs.T @ targets)
    weights[POSITION_FEATURES - 1] -= (inputs @ weights).mean()
    found: torch.Tensor = weights.float()
    return found
