"""The divergence between the predictions of two caches: pure functions of logits.

The statistics are those of llama.cpp's `llama-perplexity --kl-divergence`, as its README defines
them: p is the exact model, q the restored one, both distributions over the vocabulary at one
position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

ENOUGH_POSITIONS = 100  # fewer give no more than a hint; marked as insufficient
_PERCENTILES = (("kl_p999", 0.999), ("kl_p99", 0.99), ("kl_p95", 0.95), ("kl_p90", 0.90), ("kl_median", 0.5))
_CHUNK = 64  # positions at a time in float64, to bound memory for large vocabularies


@dataclass(frozen=True)
class Fidelity:
    """Divergence over `positions` teacher-forced positions; KL in nats.

    Attributes:
        kl_mean, kl_mean_se: mean of KL(p || q) and its standard error (positions taken as
            independent).
        kl_max, kl_p999, kl_p99, kl_p95, kl_p90, kl_median: of KL(p || q) over positions.
        rms_delta_p: root mean square of q(target) - p(target).
        top1, top1_se: share of positions at which p and q have the same most likely token.
        perplexity_exact, perplexity_restored: over the targets; `perplexity_ratio` is restored /
            exact.
    """

    positions: int
    kl_mean: float
    kl_mean_se: float
    kl_max: float
    kl_p999: float
    kl_p99: float
    kl_p95: float
    kl_p90: float
    kl_median: float
    rms_delta_p: float
    top1: float
    top1_se: float
    perplexity_exact: float
    perplexity_restored: float
    perplexity_ratio: float

    @property
    def sufficient(self) -> bool:
        return self.positions >= ENOUGH_POSITIONS

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def compare(exact: torch.Tensor, restored: torch.Tensor, targets: Sequence[int]) -> Fidelity:
    """Compare two sets of logits, (positions, vocabulary) each.

    Args:
        targets: the token that followed each position.
    Raises:
        ValueError: the shapes do not agree or there is no position.
    """
    if exact.shape != restored.shape or exact.dim() != 2 or len(targets) != len(exact) or not targets:
        raise ValueError(f"logits {tuple(exact.shape)} and {tuple(restored.shape)} for {len(targets)} targets")
    kl, delta_p, nll_p, nll_q, top1_matches = [], [], [], [], []
    for start in range(0, len(targets), _CHUNK):
        log_p = torch.log_softmax(exact[start : start + _CHUNK].double(), -1)
        log_q = torch.log_softmax(restored[start : start + _CHUNK].double(), -1)
        target = torch.tensor(targets[start : start + _CHUNK], device=log_p.device)[:, None]
        # a token that both exclude contributes 0, where 0 * (-inf - -inf) would be NaN
        terms = torch.where(log_p == -math.inf, 0.0, log_p.exp() * (log_p - log_q))
        kl.append(terms.sum(-1))
        target_p, target_q = log_p.gather(1, target)[:, 0], log_q.gather(1, target)[:, 0]
        delta_p.append(target_q.exp() - target_p.exp())
        nll_p.append(-target_p)
        nll_q.append(-target_q)
        top1_matches.append((log_p.argmax(-1) == log_q.argmax(-1)).double())
    divergence, agreement = torch.cat(kl).cpu(), torch.cat(top1_matches).cpu()
    count = len(targets)
    perplexity = [float(torch.cat(nll).mean().exp()) for nll in (nll_p, nll_q)]
    top1 = float(agreement.mean())
    return Fidelity(
        positions=count,
        kl_mean=float(divergence.mean()),
        kl_mean_se=float(divergence.std()) / math.sqrt(count) if count > 1 else math.nan,
        kl_max=float(divergence.max()),
        **{name: float(divergence.quantile(level)) for name, level in _PERCENTILES},
        rms_delta_p=float(torch.cat(delta_p).square().mean().sqrt()),
        top1=top1,
        top1_se=math.sqrt(top1 * (1 - top1) / (count - 1)) if count > 1 else math.nan,
        perplexity_exact=perplexity[0],
        perplexity_restored=perplexity[1],
        perplexity_ratio=perplexity[1] / perplexity[0],
    )


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Return the first position at which two token sequences differ, or None."""
    return next((position for position, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), None)
