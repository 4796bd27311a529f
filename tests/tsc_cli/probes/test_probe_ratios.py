"""The figures of `tsc probe-weights` against a direct computation in float64, and what they are for known matrices."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from formats.errors import CorruptError, LimitError
from tests.support import checkpoints
from tsc_cli.checkpoints.matrices import Band, Matrix, spread
from tsc_cli.probes.weights import coding
from tsc_cli.probes.weights.coding import coded, rows_for_bits
from tsc_cli.probes.weights.probe import judged
from tsc_cli.probes.weights.ranks import effective_rank, rows_for_rank
from tsc_cli.probes.weights.ratios import survey, work

TYPES = ["q", "k", "v", "o", "gate", "up", "down"]
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers, half alike: cosines, factors and ranks are none of 0 or 1."""
    made = checkpoints.tensors(5, near=1.0)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in made.items():
        if "proj" in name:  # rows of different sizes, as trained weights have
            tensor *= torch.exp(torch.randn(tensor.shape[0], 1, generator=generator) / 2)
    return checkpoints.write(tmp_path_factory.mktemp("probe") / "alike", made, shards=3)


def matrices(folder: Path) -> dict[str, list[Matrix]]:
    from tsc_cli.probes.weights.stacks import stack_of

    stack = stack_of(checkpoints.opened(folder))
    return {one.name: list(one.series[0].layers.values()) for one in stack.types}


def direct(weight: Array, reference: Array) -> dict[str, float]:
    """The figures of one pair by their definitions, in float64."""
    w, r = weight.astype(np.float64), reference.astype(np.float64)
    factor = float(np.linalg.lstsq(r.reshape(-1, 1), w.reshape(-1), rcond=None)[0][0])
    left = float(np.linalg.norm(w - factor * r) / np.linalg.norm(w))
    ratios = np.sqrt((w**2).sum(axis=1) / ((w - r) ** 2).sum(axis=1))
    return {
        "ratio": float(np.abs(w - r).max() / np.abs(r).max()),
        "frobenius": float(np.linalg.norm(w - r) / np.linalg.norm(w)),
        "cosine": float((w * r).sum() / np.linalg.norm(w) / np.linalg.norm(r)),
        "factor": factor,
        "left": left,
        "rank_weight": participation(w),
        "rank_delta": participation(w - r),
        "bits_saved_estimate": float(np.log2(ratios).mean()),
        "bits_saved_factor": -float(np.log2(left)),
    }


def participation(matrix: Array) -> float:
    squared = np.linalg.svd(matrix, compute_uv=False) ** 2
    return float(squared.sum() ** 2 / (squared**2).sum())


def test_every_figure_is_that_of_a_direct_computation(folder: Path) -> None:
    _, held = checkpoints.read(folder)
    reports = checkpoints.probed(folder)
    assert [one.type.name for one in reports] == TYPES
    for one in reports:
        assert [entry.layer for entry in one.entries] == [0, 1, 2, 3, 4]
        for entry in one.entries:
            weight = held[f"{one.type.name}.{entry.layer}"]
            others = {n: direct(weight, held[f"{one.type.name}.{n}"]) for n in range(5) if n != entry.layer}
            best = min(others, key=lambda n: others[n]["ratio"])
            assert (entry.best_reference, entry.best) == (best, pytest.approx(others[best]["ratio"], rel=1e-6))
            assert entry.bits_saved_best == pytest.approx(max(o["bits_saved_factor"] for o in others.values()), 1e-6)
            if not entry.layer:
                assert (entry.reference, entry.ratio, entry.rank_delta, entry.bits_delta) == (None,) * 4
                continue
            assert entry.reference == entry.layer - 1
            for name, value in others[entry.layer - 1].items():
                assert getattr(entry, name) == pytest.approx(value, rel=2e-5), name


def test_the_summary_is_over_the_layers_that_have_a_reference(folder: Path) -> None:
    from tsc_cli.probes.weights.report import ratio_figures

    _, held = checkpoints.read(folder)
    one = checkpoints.probed(folder)[0]
    values = [direct(held[f"q.{n}"], held[f"q.{n - 1}"])["ratio"] for n in range(1, 5)]
    assert ratio_figures(one) == pytest.approx((np.mean(values), np.percentile(values, 90), max(values)), rel=1e-6)


def test_one_model_against_another_is_layer_by_layer(folder: Path, tmp_path: Path) -> None:
    base = checkpoints.write(tmp_path / "base", checkpoints.tensors(5, seed=7))
    (_, ours), (_, theirs) = checkpoints.read(folder), checkpoints.read(base)
    for one in checkpoints.probed(folder, base):
        for entry in one.entries:
            assert (entry.reference, entry.best, entry.bits_saved_best) == (entry.layer, None, None)
            name = f"{one.type.name}.{entry.layer}"
            for field, value in direct(ours[name], theirs[name]).items():
                assert getattr(entry, field) == pytest.approx(value, rel=2e-5, abs=1e-7), field


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_blocks_and_threads_change_nothing(folder: Path, threads: int, rows: int) -> None:
    for one in matrices(folder).values():
        count, inputs = len(one), one[0].shape[1]
        with ThreadPoolExecutor(1) as pool:
            whole = survey(one, pool, lambda units: None)
        told: list[int] = []
        with ThreadPoolExecutor(threads) as pool:
            found = survey(one, pool, told.append, budget=rows * count * inputs * 4)
        assert sum(told) == work(count, *one[0].shape)
        np.testing.assert_array_equal(found.apart, whole.apart)
        np.testing.assert_array_equal(found.peak, whole.peak)
        np.testing.assert_allclose(found.inner, whole.inner, rtol=1e-12, atol=1e-15)


def test_progress_ends_where_it_said(folder: Path) -> None:
    from tsc_cli.probes.weights.probe import probe
    from tsc_cli.probes.weights.stacks import stack_of

    stack = stack_of(checkpoints.opened(folder))
    for other in (None, stack):
        for sample in (None, 5):
            bar = checkpoints.Bar()
            probe(stack, other, sample, bar)
            assert bar.done == bar.totals
            assert len(bar.totals) == 7


def test_memory_is_the_budgets_not_the_matrices(tmp_path: Path) -> None:
    made = {f"layers.{n}.mlp.up_proj.weight": torch.randn(4096, 512) for n in range(4)}
    one = matrices(checkpoints.write(tmp_path / "m", made))["up"]
    matrix, budget = 4096 * 512 * 4, 1 << 19
    tracemalloc.start()
    with ThreadPoolExecutor(2) as pool:
        survey(one, pool, lambda units: None, budget=budget)
        tracemalloc.reset_peak()
        survey(one, pool, lambda units: None, budget=budget)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < matrix  # of four matrices of 8 MiB, which are never in memory


def test_a_row_that_does_not_fit_is_refused_before_it_is_read(folder: Path) -> None:
    one = matrices(folder)["q"]
    with ThreadPoolExecutor(1) as pool, pytest.raises(LimitError, match="one row of 16 weights in each of 5 layers"):
        survey(one, pool, lambda units: None, budget=5 * 16 * 4 - 1)


def test_equal_matrices_are_at_no_distance_and_zeros_have_no_figures(tmp_path: Path) -> None:
    weight = torch.randn(8, 32)
    made = {f"layers.{n}.mlp.up_proj.weight": tensor.clone() for n, tensor in enumerate([weight, weight])}
    entry = checkpoints.probed(checkpoints.write(tmp_path / "same", made))[0].entries[1]
    assert (entry.ratio, entry.frobenius, entry.left, entry.rank_delta) == (0, 0, 0, None)
    assert (entry.bits_delta, entry.bits_saved_estimate, entry.bits_saved_factor) == (0, None, None)
    assert entry.bits_weight is not None
    assert 7 < entry.bits_weight < 8.1
    made = {f"layers.{n}.mlp.up_proj.weight": torch.zeros(8, 32) for n in range(2)}
    reports = checkpoints.probed(checkpoints.write(tmp_path / "zero", made))
    entry = reports[0].entries[1]
    assert (entry.ratio, entry.best, entry.frobenius, entry.cosine, entry.factor) == (None,) * 5
    assert (entry.bits_weight, entry.bits_delta, entry.rank_weight, entry.bits_saved_best) == (None,) * 4
    assert judged(reports) is None


def pair(tmp_path: Path, weight: Array, reference: Array) -> tuple[Matrix, Matrix]:
    made = {f"layers.{n}.mlp.up_proj.weight": torch.from_numpy(one) for n, one in enumerate([weight, reference])}
    one, other = matrices(checkpoints.write(tmp_path / "pair", made))["up"]
    return one, other


def gaussian(rows: int, columns: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


@pytest.mark.parametrize(("size", "saved", "weight"), [(None, -0.5, 4.05), (1.0, 0.0, 4.05), (0.25, 2.0, 6.05)])
def test_bits_of_known_sources(tmp_path: Path, size: float | None, saved: float, weight: float) -> None:
    """Unrelated matrices cost half a bit; a difference of a quarter of the size saves two bits, whatever a row's scale.

    4.05 is the entropy of a normal variable quantized in steps of a quarter of its deviation: log2(4 sqrt(2 pi e)).
    """
    scale = np.exp(np.random.default_rng(2).standard_normal((64, 1))).astype(np.float32)
    other = gaussian(64, 4096, 0)
    one = gaussian(64, 4096, 1) if size is None else other + np.float32(size) * gaussian(64, 4096, 1)
    if size == 1.0:
        one = one / np.float32(2**0.5)  # of the other's size, half of whose energy is the other's
        saved = 0.5 * np.log2(1 / (2 - 2**0.5))
        weight += saved
    first, second = pair(tmp_path, one * scale, other * scale)
    bits = coded(first, second, rows_for_bits(first))
    assert bits.saved == pytest.approx(saved, abs=0.02 if size != 0.25 else 0.06)
    assert bits.estimate == pytest.approx(saved, abs=0.02 if size != 0.25 else 0.06)
    assert bits.weight == pytest.approx(weight, abs=0.06)


def test_bits_are_the_entropy_of_the_quantized_values(tmp_path: Path) -> None:
    one, other = gaussian(6, 512, 3), gaussian(6, 512, 4)
    one /= np.sqrt((one**2).mean(axis=1, keepdims=True))  # rows of one size, so that one table serves all
    first, second = pair(tmp_path, one, other)
    values = one.astype(np.float64) / 0.25
    _, counts = np.unique(np.rint(values), return_counts=True)
    share = counts / counts.sum()
    assert coded(first, second, rows_for_bits(first)).weight == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-3)


def test_both_errors_are_equal(tmp_path: Path) -> None:
    """What makes the bits comparable: one step for both, fine enough that neither error is the signal."""
    one, other = gaussian(16, 4096, 5), gaussian(16, 4096, 6)
    change = one - other
    step = np.minimum(np.std(one, axis=1), np.std(change, axis=1))[:, None] / coding.PER_RMS
    errors = [float(((np.rint(x / step) * step - x) ** 2).mean()) for x in (one, change)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)
    assert errors[0] == pytest.approx(float((step**2).mean()) / 12, rel=0.02)


def test_a_heavy_tail_is_counted_whole(tmp_path: Path) -> None:
    one = np.zeros((2, 4096), np.float32)
    one[:, 0] = 1.0  # a row's root mean square is 1/64 of its largest value
    first, second = pair(tmp_path, one, np.zeros_like(one))
    bits = coded(first, second, rows_for_bits(first))
    share = 1 / 4096
    assert bits.weight == pytest.approx(-(share * np.log2(share) + (1 - share) * np.log2(1 - share)))
    assert bits.saved == 0


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (1, 8), (40, 40)])
def test_rank_of_all_rows_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    rows = gaussian(*shape, seed=8) @ np.diag(np.linspace(0, 2, shape[1])).astype(np.float32)
    assert effective_rank(rows, shape[0]) == pytest.approx(participation(rows.astype(np.float64)), rel=1e-5)


def test_rank_from_some_rows_is_near() -> None:
    rows = gaussian(2048, 300, 9) * np.exp(-np.arange(300) / 60).astype(np.float32)
    want = participation(rows.astype(np.float64))
    found = effective_rank(rows[spread(2048, 256)], 2048)
    assert found == pytest.approx(want, rel=0.05)
    assert effective_rank(rows[:1], 2048) is None
    assert effective_rank(np.zeros((4, 4), np.float32), 4) is None


def test_large_matrices_are_sampled(tmp_path: Path) -> None:
    def shaped(rows: int, columns: int) -> Matrix:
        real = pair(tmp_path, np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32))[0]
        return Matrix(real.tensor, Band(0, rows, rows), (rows, columns))

    assert len(rows_for_rank(shaped(1536, 576))) == 1536
    assert len(rows_for_rank(shaped(4096, 4096))) == 512
    assert len(rows_for_rank(shaped(8192, 28672))) == 146
    assert len(rows_for_rank(shaped(8192, 28672), 64)) == 64
    assert len(rows_for_bits(shaped(4096, 4096))) == 4096
    assert len(rows_for_bits(shaped(8192, 28672))) == 585
    assert rows_for_bits(shaped(8, 1 << 26)).tolist() == [0]


def test_a_sample_of_rows_is_those_rows(folder: Path, tmp_path: Path) -> None:
    made = checkpoints.tensors(5, seed=3)
    some = {n: t[torch.from_numpy(spread(t.shape[0], 4))] if "proj" in n else t for n, t in made.items()}
    whole = checkpoints.probed(checkpoints.write(tmp_path / "all", made), sample=4)
    cut = checkpoints.probed(checkpoints.write(tmp_path / "cut", some))
    for one, other in zip(whole, cut, strict=True):
        assert one.entries == other.entries


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("inf"), "beyond"), (-1e30, "beyond")])
def test_values_that_no_weight_has_are_refused_by_name(tmp_path: Path, value: float, what: str) -> None:
    made = checkpoints.tensors(3)
    made["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    with pytest.raises(CorruptError, match=rf"'model\.layers\.1\.mlp\.up_proj\.weight' holds .*{what}"):
        checkpoints.probed(checkpoints.write(tmp_path / "bad", made))


def test_unrelated_layers_give_no_and_near_ones_yes(tmp_path: Path) -> None:
    far = checkpoints.write(tmp_path / "far", checkpoints.tensors(6, wide=8))
    verdict = judged(checkpoints.probed(far))
    assert verdict is not None
    assert (verdict.yes, verdict.yes_for) == (False, [])
    assert verdict.saved == pytest.approx(-0.5, abs=0.03)
    assert verdict.saved_best == pytest.approx(0, abs=0.001)
    near = checkpoints.write(tmp_path / "near", checkpoints.tensors(6, near=0.05, wide=8))
    verdict = judged(checkpoints.probed(near))
    assert verdict is not None
    assert (verdict.yes, verdict.yes_for) == (True, TYPES)
    # the difference of two layers is 0.05 sqrt(2) of the common part
    assert verdict.saved == pytest.approx(np.log2(1 / (0.05 * 2**0.5)), abs=0.1)


def test_a_fine_tune_gives_yes_against_its_base_and_no_against_another(tmp_path: Path) -> None:
    made = checkpoints.tensors(4, wide=8)
    generator = torch.Generator().manual_seed(5)
    tuned = {
        n: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator) if "proj" in n else t for n, t in made.items()
    }
    base, fine = checkpoints.write(tmp_path / "base", made), checkpoints.write(tmp_path / "tuned", tuned)
    other = checkpoints.write(tmp_path / "other", checkpoints.tensors(4, seed=9, wide=8))
    verdict = judged(checkpoints.probed(fine, base))
    assert verdict is not None
    assert verdict.yes
    assert verdict.saved_best is None
    # the steps are 1/64 of a weight's size, 0.8 of the difference's: 8.05 bits against 2.4
    assert verdict.saved == pytest.approx(np.log2(50), abs=0.1)
    verdict = judged(checkpoints.probed(fine, other))
    assert verdict is not None
    assert not verdict.yes
    verdict = judged(checkpoints.probed(fine))
    assert verdict is not None
    assert not verdict.yes
