"""From a trace to a small file: promises, recipes, mixed codecs, edits, and what the header says."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from formats import Geometry, LayerSpec, Snapshot, Trace, TraceBuilder, deduplicate, load, save
from formats.container.records import Part
from formats.encode.prediction import bases_of
from formats.encode.recipe import Recipe, recipe_of
from formats.encode.source import Source
from formats.encode.write import Header, write
from formats.errors import LockedError, PromiseError, UsageError
from formats.file.check import check
from formats.file.header import rounded_down
from formats.file.rewrite import record_quality
from formats.trace.distortion import relative_error
from formats.trace.recorder import Recorder
from formats.trace.views import Labels, Span
from tests.support import models
from tests.support.codec_samples import RECIPES
from tests.support.traces import same_bits
from tsc_cli import Secret, capture, compress
from tsc_cli.bench.codecs import coded_share
from tsc_cli.compression.candidates import Candidate, Sizer
from tsc_cli.compression.search import choose, knob_settings, largest_within, recipe_at, smallest, smallest_for
from tsc_cli.scoring.published import (
    QUALITIES,
    TIERS,
    VERDICTS,
    Family,
    Goal,
    families,
    goal_of,
    klt_family,
    tier_of,
    verdict,
)

SPEC = LayerSpec("full", heads=2, key_size=16, value_size=16)


def smooth_trace(lengths: tuple[int, ...] = (200, 201, 202, 203), layers: int = 3, dtype: str = "float32") -> Trace:
    """A growing trace of finite rows whose channels have scales of their own."""
    geometry = Geometry(dtype, (SPEC,) * layers)
    builder = TraceBuilder(geometry, {"weights": "test"})
    recorder = Recorder(builder, geometry)
    generator = torch.Generator().manual_seed(1)
    scales = torch.rand(layers, 1, SPEC.heads, 1, 16, generator=generator) * 3 + 0.1
    keys, values = (
        (torch.randn(layers, 1, SPEC.heads, lengths[-1], 16, generator=generator) * scales).to(getattr(torch, dtype))
        for _ in range(2)
    )
    fed = 0
    for length in lengths:
        cache = [(keys[layer, :, :, :length], values[layer, :, :, :length]) for layer in range(layers)]
        recorder.snapshot(list(range(fed, length)), cache, [length])
        fed = length
    recorder.finish()
    return builder.trace


def edited_trace(edits: int = 5) -> Trace:
    """Snapshots in each of which rows from 20 on change a little, as after an edit of an earlier token; one row more
    is dropped each time."""
    base = smooth_trace((60,), layers=2).snapshot(0)
    generator = torch.Generator().manual_seed(2)
    snapshots = [base]
    for number in range(1, edits + 1):
        last = snapshots[-1]
        keep = [row for row in range(len(last.token_ids)) if row != 5]

        def changed(tensor: torch.Tensor, keep: list[int] = keep) -> torch.Tensor:
            result = tensor[:, :, keep].clone()
            result[:, :, 20:] += 0.02 * torch.randn(result[:, :, 20:].shape, generator=generator)
            return result

        snapshots.append(
            Snapshot(
                [changed(t) if layer else t[:, :, keep] for layer, t in enumerate(last.keys)],
                [changed(t) for t in last.values],
                [positions[keep] for positions in last.row_positions],
                [last.token_ids[row] for row in keep],
                [last.positions[row] for row in keep],
                number,
            )
        )
    return deduplicate(snapshots, Geometry("float32", (SPEC,) * 2))


def compressed(trace: Trace, recipe: Recipe, folder: Path, **header: Any) -> Trace:
    path = folder / "small.tsc"
    with path.open("wb") as sink:
        write(Source(trace), recipe, sink, header=Header(**header))
    check(path)
    return load(path)


def error(one: Snapshot, other: Snapshot) -> float:
    pairs = list(zip([*one.keys, *one.values], [*other.keys, *other.values], strict=True))
    return max(float((a - b).norm() / a.norm()) for a, b in pairs)


@pytest.mark.parametrize("recipe", RECIPES, ids=[f"{r.name}-{i}" for i, r in enumerate(RECIPES)])
@pytest.mark.parametrize("make", [smooth_trace, edited_trace], ids=["growing", "edited"])
def test_every_snapshot_comes_back(recipe: Recipe, make: Any, tmp_path: Path) -> None:
    trace = make()
    small = compressed(trace, recipe, tmp_path)
    assert len(small) == len(trace)
    for number in range(len(trace)):
        have, want = small.snapshot(number), trace.snapshot(number)
        assert (have.token_ids, have.next_token) == (want.token_ids, want.next_token)
        if recipe.evict:
            rows = [want.positions.index(p) for p in have.row_positions[0].tolist()]
            want = dataclasses.replace(
                want, keys=[k[:, :, rows] for k in want.keys], values=[v[:, :, rows] for v in want.values]
            )
        else:
            assert all(torch.equal(a, b) for a, b in zip(have.row_positions, want.row_positions, strict=True))
        assert error(want, have) <= (0.0 if recipe.codec == "lossless" else 0.11)


def test_a_layer_can_be_read_alone(tmp_path: Path) -> None:
    trace = edited_trace()
    small = compressed(trace, Recipe("delta", {"bits": 8}), tmp_path)
    whole, alone = small.snapshot(-1), small.snapshot(-1, layers=[1])
    assert same_bits(alone.keys[0], whole.keys[1])


def test_the_header_says_how_and_how_small(tmp_path: Path) -> None:
    trace = smooth_trace()
    small = compressed(trace, Recipe("scalar", {"bits": 3}, exact_sinks=4), tmp_path, tier="9x")
    header = small.blocks[0].file.header  # type: ignore[attr-defined]
    size = (tmp_path / "small.tsc").stat().st_size
    assert (header.tier, header.codec) == ("9x", "scalar")
    assert header.parameters["bits"] == 3
    assert header.parameters["exact_sinks"] == 4
    assert "levels" not in header.parameters
    assert header.ratios == (rounded_down(trace.raw_bytes / size), rounded_down(trace.raw_bytes_final / size))
    record_quality(tmp_path / "small.tsc", [{"snapshot": 0, "kl_mean": 0.5, "note": "x" * 300}])
    again = load(tmp_path / "small.tsc").blocks[0].file.header  # type: ignore[attr-defined]
    assert again.ratios[0] < header.ratios[0]
    assert again.codec == "scalar"


def test_rounding_a_ratio_never_flatters() -> None:
    for ratio in (1.0, 9.9999, 125.0, 125.04999, 1033.99, 0.0123456):
        assert rounded_down(ratio) <= ratio < rounded_down(ratio) * 1.00101


def test_sinks_are_kept_better(tmp_path: Path) -> None:
    trace = smooth_trace()
    small = compressed(trace, Recipe("scalar", {"bits": 2}, exact_sinks=4), tmp_path).snapshot(0)
    want = trace.snapshot(0)
    relative = ((small.keys[0] - want.keys[0]).norm(dim=-1) / want.keys[0].norm(dim=-1))[0, 0]
    assert relative[:4].max() < 0.01
    assert relative[4:].mean() > 0.05


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", ["scalar", "vq", "pq", "delta"])
def test_a_value_that_is_not_finite_is_refused_by_layer(codec: str, value: float) -> None:
    trace = smooth_trace((40, 41, 44))
    (block,) = trace.blocks

    block.rows[Part.KEYS][2, 0, 1, 41, 3] = value  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=rf"the keys of layer 2 hold a value that is not finite.*{codec}") as caught:
        write(Source(trace), Recipe(codec), io.BytesIO())
    assert caught.value.hint is not None
    assert "lossless" in caught.value.hint
    write(Source(trace), Recipe("lossless"), io.BytesIO())


def test_what_was_lossy_is_not_compressed_again(tmp_path: Path) -> None:
    small = compressed(smooth_trace(), Recipe("scalar"), tmp_path)
    with pytest.raises(UsageError, match="compressed already"):
        Source(small)


@pytest.mark.parametrize("codec", ["vq", "pq"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8, 1e9])
def test_the_coded_share_is_that_of_blocks_which_come_back_changed(
    codec: str, threshold: float, tmp_path: Path
) -> None:
    """The other blocks have lost no more than 16 bits do."""
    settings = {"block": 8, "centroids": 4, "samples": 256, "iterations": 2, "threshold": threshold}
    trace = smooth_trace((100,))
    small = compressed(trace, Recipe(codec, settings), tmp_path)
    snapshots = small.snapshot(0), trace.snapshot(0)
    have, want = (torch.stack([*one.keys, *one.values]).unflatten(-1, (-1, 8)) for one in snapshots)
    changed = (have - want).norm(dim=-1) > 0.002 * want.norm(dim=-1)
    share = float(changed.double().mean())
    assert coded_share(small) == pytest.approx(share)
    assert (share == 0, share == 1) == (threshold == 0, threshold == 1e9)


def test_a_codec_without_codebooks_has_no_coded_share(tmp_path: Path) -> None:
    assert coded_share(compressed(smooth_trace((9,)), Recipe("scalar"), tmp_path)) is None


# rate control


@pytest.mark.parametrize("family", families(), ids=lambda family: family.label)
def test_what_rate_control_chooses_from_keeps_the_first_four_rows(family: Family, tmp_path: Path) -> None:
    """At 12 bits, whatever the others get: the damage of attention sinks costs more than their bytes."""
    trace = smooth_trace((100,), layers=1)
    small = compressed(trace, recipe_at(family, knob_settings(family)[0]), tmp_path).snapshot(0)
    whole = trace.snapshot(0)
    for have, want in zip([*small.keys, *small.values], [*whole.keys, *whole.values], strict=True):
        distances = ((have - want).norm(dim=-1) / want.norm(dim=-1)).amax((0, 1))
        assert distances[:4].max() < 0.01
        assert distances[4:].median() > 0.02


def test_the_knob_fills_the_promise() -> None:
    sizer = Sizer(Source(smooth_trace()))
    family = families()[0]
    sizes = [sizer(recipe_at(family, levels)) for levels in (3, 5, 16, 200)]
    assert sizes == sorted(sizes)
    budget = sizes[2] + 100
    found = largest_within(sizer, family, budget)
    assert found is not None
    assert found.file_bytes <= budget
    known = knob_settings(family)
    bigger = recipe_at(family, known[known.index(found.recipe.settings["levels"]) + 1])
    assert sizer(bigger) > budget
    assert largest_within(sizer, family, 500) is None


class FakeSizer(Sizer):
    """Sizes that follow from codec klt's fineness."""

    def __init__(self, size: Callable[[int], int]) -> None:
        self._size = size
        self.tried: list[int] = []

    def __call__(self, recipe: Recipe) -> int:
        fineness = recipe.settings["fineness"]
        if fineness not in self.tried:
            self.tried.append(fineness)
        return self._size(fineness)

    def known(self, recipe: Recipe) -> int | None:
        fineness = recipe.settings["fineness"]
        return self._size(fineness) if fineness in self.tried else None


@pytest.mark.parametrize("start", [None, 3, 160, 500, 720, 9999])
@pytest.mark.parametrize("limit", [1, 9_000, 20_000.5, 123_456, 10**9])
@pytest.mark.parametrize("jump", [1.0, 3.0])
def test_the_largest_file_is_found_from_any_guess(limit: float, start: int | None, jump: float) -> None:
    """The same as by trying every setting, of sizes that bend and that jump somewhere, in a few trials."""

    def size(fineness: int) -> int:
        return round((5_000 + fineness) * 2 ** (fineness / 60) * (jump if fineness >= 399 else 1))

    sizer = FakeSizer(size)
    tried = sizer.tried
    found = largest_within(sizer, klt_family(""), limit, start)
    fitting = [fineness for fineness in range(160, 721) if size(fineness) <= limit]
    assert (found is None) == (not fitting)
    if found is not None:
        assert found.recipe.settings["fineness"] == fitting[-1]
        assert found.file_bytes == size(fitting[-1])
    assert len(set(tried)) <= 16


def test_a_good_guess_of_a_size_is_cheap() -> None:
    sizer = FakeSizer(lambda fineness: round(1_000 * 2 ** (fineness / 50)))
    largest_within(sizer, klt_family(""), 260_000, 410)
    assert len(sizer.tried) <= 4
    largest_within(sizer, klt_family(""), 130_000, 500)  # known sizes are a better guess than any other
    assert len(sizer.tried) <= 7
    before = len(sizer.tried)
    found = largest_within(sizer, klt_family(""), 60_000, slack=0.03)
    assert found is not None
    assert 0.97 * 60_000 <= found.file_bytes <= 60_000
    assert len(sizer.tried) <= before + 2


def quality_by_error(source: Source) -> Any:
    def measure(recipe: Recipe) -> float:
        sink = io.BytesIO()
        write(source, recipe, sink)
        path = Path(str(source.trace.info["folder"])) / "candidate.tsc"
        path.write_bytes(sink.getvalue())
        return relative_error(source.trace, load(path))

    return measure


def test_the_best_recipe_within_the_promise_wins(tmp_path: Path) -> None:
    trace = smooth_trace()
    trace.info["folder"] = str(tmp_path)
    source = Source(trace)
    sizer, ticks = Sizer(source), []
    choice = choose(sizer, tier_of("20x"), quality_by_error(source), ticks.append)
    assert trace.raw_bytes / choice.winner.file_bytes >= 20
    assert len(ticks) == len(families())
    assert len(choice.candidates) > 4
    assert choice.winner.quality == min(candidate.quality for candidate in choice.candidates)  # type: ignore[type-var]
    assert all(trace.raw_bytes / candidate.file_bytes >= 20 for candidate in choice.candidates)


def test_lossless_wins_where_it_fits() -> None:
    source = Source(smooth_trace())
    choice = choose(Sizer(source), tier_of("3x"), lambda recipe: pytest.fail("nothing to measure"), lambda _: None)
    assert choice.winner.recipe == Recipe("lossless")


def test_a_promise_that_nothing_keeps() -> None:
    source = Source(smooth_trace((200,)))
    with pytest.raises(PromiseError, match="no codec makes this trace 500 times smaller"):
        choose(Sizer(source), tier_of("500x"), lambda recipe: 0.0, lambda _: None)


def test_the_smallest_file_at_a_quality(tmp_path: Path) -> None:
    trace = smooth_trace()
    trace.info["folder"] = str(tmp_path)
    source = Source(trace)
    sizer, measure = Sizer(source), quality_by_error(source)
    found = smallest_for(sizer, lambda recipe: measure(recipe) <= 0.01)
    assert found is not None
    assert found.file_bytes == sizer(found.recipe)
    assert measure(found.recipe) <= 0.01
    levels = found.recipe.settings["levels"]
    family = next(one for one in families() if one.label == found.label)
    known = knob_settings(family)
    assert measure(recipe_at(family, known[known.index(levels) - 1])) > 0.01
    assert smallest_for(sizer, lambda recipe: False) is None
    exact = Candidate("lossless", Recipe("lossless"), sizer(Recipe("lossless")))
    assert smallest_for(sizer, lambda recipe: False, tried=[exact]) is exact
    tiny = Candidate("tiny", Recipe("lossless"), 1)
    assert smallest_for(sizer, lambda recipe: measure(recipe) <= 0.01, tried=[exact, tiny]) is tiny


@pytest.mark.parametrize("start", [None, 3, 160, 500, 720, 9999])
@pytest.mark.parametrize("threshold", [160, 161, 333, 500, 719, 720, 721])
def test_the_knob_is_found_from_any_guess(threshold: int, start: int | None) -> None:
    """Every integer between the bounds is tried, not only the coarse ones, and only a few of them."""
    tried: list[int] = []

    def good(recipe: Recipe) -> bool:
        tried.append(recipe.settings["fineness"])
        return tried[-1] >= threshold

    found = smallest(lambda recipe: 10 * recipe.settings["fineness"], klt_family("f" * 64), good, start)  # type: ignore[arg-type]
    if threshold > 720:
        assert found is None
    else:
        assert found is not None
        assert found.recipe == Recipe("klt", {"profile": "f" * 64, "fineness": threshold})
        assert found.file_bytes == 10 * threshold
    assert len(tried) == len(set(tried)) <= 16


def test_a_good_guess_is_cheap() -> None:
    tried: list[int] = []

    def good(recipe: Recipe) -> bool:
        tried.append(recipe.settings["fineness"])
        return tried[-1] >= 402

    smallest(lambda recipe: 1, klt_family(""), good, 400)  # type: ignore[arg-type]
    assert len(tried) <= 6


# tiers


def test_every_published_recipe_can_be_made() -> None:
    for tier in TIERS.values():
        assert tier.published is not None
        assert tier.published.recipe.parameters() is not None


def test_tier_names() -> None:
    assert (tier_of("125x").max_kl, tier_of("219x").max_kl) == (0.053, 0.053)
    assert (tier_of("300x").ratio, tier_of("300x").max_kl) == (300, 0.154)
    assert (tier_of("62.5x").ratio, tier_of("62.5x").max_kl) == (62.5, 0.01)
    assert tier_of("5000x").max_kl == 0.5
    for wrong in ("126", "x", "0x", "-5x", "1e3x", "losless", "0.5x"):
        with pytest.raises(UsageError, match="there is no tier"):
            tier_of(wrong)
    with pytest.raises(UsageError) as caught:
        tier_of("losless")
    assert caught.value.hint == "did you mean lossless?"


def test_no_larger_file_may_be_worse_than_a_smaller_one() -> None:
    """Nor worse than what the reports state for any file that is at least as small."""
    asked = [
        *(count / 4 for count in range(4, 8_000)),
        1e4,
        1e6,
        999_999_999.0,
        *(t.ratio or 1 for t in TIERS.values()),
    ]
    limits = [tier_of(f"{ratio:.2f}x").max_kl for ratio in sorted(asked)]
    assert limits == sorted(limits)
    names = ("61x", "63x", "70x", "84x", "100x", "125x", "126x", "219x", "220x", "500x", "2000x")
    named = [tier_of(name).max_kl for name in names]
    assert named == [0.01, 0.01, *[0.053] * 6, 0.154, 0.5, 0.5]
    for one in TIERS.values():
        if one.published is not None and one.published.kl is not None and one.ratio is not None:
            assert all(tier_of(f"{ratio}x").max_kl <= one.published.kl for ratio in range(1, round(one.ratio) + 1))


def test_qualities() -> None:
    assert list(QUALITIES.values()) == sorted(QUALITIES.values())
    assert goal_of("balanced") == Goal("balanced", 0.05)
    assert goal_of("balanced").promise == "a KL of at most 0.05"
    assert Goal("", min_top1=0.9).promise == "a top-1 share of at least 0.9"
    assert Goal("", 0.1, 0.9).promise == "a KL of at most 0.1 and a top-1 share of at least 0.9"
    for wrong, hint in (
        ("near_exact", "did you mean near-exact?"),
        ("best", "one of near-exact, high, balanced, small"),
    ):
        with pytest.raises(UsageError, match=f"there is no quality '{wrong}'") as caught:
            goal_of(wrong)
        assert caught.value.hint == hint


def test_verdicts() -> None:
    words = [verdict(kl) for kl in (0.0, 9e-7, 1e-6, 0.0099, 0.01, 0.099, 0.1, 0.49, 0.5, 9.0, math.inf, math.nan)]
    assert words == [
        "exact",
        "exact",
        "proven",
        "proven",
        "defensible",
        "defensible",
        "borderline",
        "borderline",
        *["archival"] * 4,
    ]
    assert [one.below for one in VERDICTS] == sorted(one.below for one in VERDICTS)


def test_settings_by_hand_find_their_owner() -> None:
    recipe = recipe_of("delta", "h2o", {"bits": "5", "keep": "0.5", "exact_sinks": "2"})
    assert (recipe.settings, recipe.evict_settings, recipe.exact_sinks) == ({"bits": "5"}, {"keep": "0.5"}, 2)
    assert recipe.parameters()["keep"] == 0.5
    with pytest.raises(UsageError, match="codec delta has no setting 'keep'"):
        recipe_of("delta", "", {"keep": "0.5"})
    with pytest.raises(UsageError, match="there is no filter 'h20'"):
        recipe_of("delta", "h20", {})
    with pytest.raises(UsageError, match="exact_sinks=many"):
        recipe_of("delta", "", {"exact_sinks": "many"})


# prediction


def test_a_replaced_row_is_predicted_from_what_it_replaces() -> None:
    labels = Labels()
    labels.extend([1] * 9, [0, 1, 2, 1, 2, 3, 2, 4, 5])
    column = [(Span(0, 3),), (Span(0, 1), Span(3, 3)), (Span(0, 1), Span(3, 1), Span(5, 2)), (Span(7, 2),)]
    assert bases_of(column, labels, longest_chain=64, append=True) == {3: 1, 4: 2, 6: 4}
    assert bases_of(column, labels, longest_chain=1, append=True) == {3: 1, 4: 2}
    assert bases_of(column, labels, longest_chain=64, append=False) == {3: 1, 4: 2, 5: 4, 6: 4, 8: 7}


def test_edits_cost_little(tmp_path: Path) -> None:
    trace = edited_trace(8)
    sizer = Sizer(Source(trace))
    assert sizer(Recipe("delta", {"bits": 4})) < 0.6 * sizer(Recipe("lossless"))
    small = compressed(trace, Recipe("delta", {"bits": 4}), tmp_path)
    errors = [error(trace.snapshot(n), small.snapshot(n)) for n in range(len(trace))]
    assert errors[0] == 0.0
    assert max(errors) < 0.01  # residuals are small, and so is what quantizing them costs


def test_compressing_a_file_equals_compressing_its_trace(tmp_path: Path) -> None:
    model = models.llama()
    trace = capture(model, models.prompt(50), steps=5)
    save(trace, tmp_path / "raw.tsc")
    recipe = Recipe("scalar", {"bits": 4})
    sinks = [io.BytesIO(), io.BytesIO()]
    for sink, source in zip(sinks, (trace, load(tmp_path / "raw.tsc")), strict=True):
        write(Source(source), recipe, sink, file_id=bytes(16))
    assert sinks[0].getvalue() == sinks[1].getvalue()


def test_a_file_is_encrypted_with_the_key_that_is_given(tmp_path: Path) -> None:
    key = Secret.of_key(bytes(range(32)))
    trace, path = capture(models.llama(), models.prompt(40)), tmp_path / "small.tsc"
    compress(trace, path, recipe=Recipe("scalar", {"bits": 8}), key=key)
    assert trace.secret is None
    with pytest.raises(LockedError):
        load(path)
    assert load(path, key=key).codec == "scalar"
