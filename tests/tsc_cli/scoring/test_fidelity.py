"""The statistics equal a direct computation, and they can be bad."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tsc_cli.scoring.fidelity import compare, first_difference


def logits(positions: int = 150, vocabulary: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def test_equals_a_direct_computation_in_float64() -> None:
    p_logits, q_logits = logits(), logits() + 0.3 * logits(seed=1)
    targets = torch.randint(0, 40, (150,), generator=torch.Generator().manual_seed(2)).tolist()
    got = compare(p_logits, q_logits, targets)

    p = np.exp(p_logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    q = np.exp(q_logits.double().numpy())
    q /= q.sum(1, keepdims=True)
    kl = (p * np.log(p / q)).sum(1)
    at = np.arange(150), targets
    same = (p.argmax(1) == q.argmax(1)).mean()
    assert got.positions == 150
    assert got.kl_mean == pytest.approx(kl.mean())
    assert got.kl_mean_se == pytest.approx(kl.std(ddof=1) / math.sqrt(150))
    assert got.kl_max == pytest.approx(kl.max())
    for name, share in (("kl_p999", 99.9), ("kl_p99", 99), ("kl_p95", 95), ("kl_p90", 90), ("kl_median", 50)):
        assert getattr(got, name) == pytest.approx(np.percentile(kl, share))
    assert got.rms_delta_p == pytest.approx(np.sqrt(((q[at] - p[at]) ** 2).mean()))
    assert got.top1 == pytest.approx(same)
    assert got.top1_se == pytest.approx(math.sqrt(same * (1 - same) / 149))
    assert got.perplexity_exact == pytest.approx(np.exp(-np.log(p[at]).mean()))
    assert got.perplexity_ratio == pytest.approx(np.exp(-np.log(q[at]).mean()) / np.exp(-np.log(p[at]).mean()))
    assert 0 < got.top1 < 1
    assert got.kl_mean > 0.01


def test_equal_logits_give_exactly_nothing() -> None:
    got = compare(logits(), logits().clone(), [1] * 150)
    assert (got.kl_mean, got.kl_max, got.rms_delta_p, got.top1, got.perplexity_ratio) == (0, 0, 0, 1, 1)


def test_a_token_that_both_rule_out_counts_nothing_and_one_that_only_q_does_is_infinite() -> None:
    p, q = logits(), logits()
    p[:, 3] = q[:, 3] = -math.inf
    assert compare(p, q, [1] * 150).kl_mean == 0
    q[7, 5] = -math.inf
    assert compare(p, q, [1] * 150).kl_mean == math.inf


def test_nan_does_not_pass_for_agreement() -> None:
    q = logits()
    q[0, 0] = math.nan
    assert math.isnan(compare(logits(), q, [1] * 150).kl_mean)


@pytest.mark.parametrize(("positions", "sufficient"), [(99, False), (100, True)])
def test_few_positions_are_marked(positions: int, sufficient: bool) -> None:
    assert compare(logits(positions), logits(positions), [0] * positions).sufficient is sufficient


def test_shapes_must_agree() -> None:
    for targets in ([], [1] * 149):
        with pytest.raises(ValueError, match="150"):
            compare(logits(), logits(), targets)


def test_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
