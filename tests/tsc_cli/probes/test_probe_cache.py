"""Probing a cache: figures of rows whose redundancy is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from formats import Geometry, LayerSpec, Recorder, Snapshot, Trace, TraceBuilder, deduplicate
from formats.codecs.klt.rotary import Rotary
from formats.container.records import Part
from formats.errors import UsageError
from formats.trace import head_maps
from formats.trace.blocks import MemoryBlock
from formats.trace.recorder import Rows
from formats.trace.views import BlockKey, Span, View
from tests.support.traces import finite_rows, growing_trace
from tsc_cli.probes.cache import job, report, ridge, rows, turning
from tsc_cli.probes.cache.directions import HEADS, LAYERS, MEAN, PARTS, TOKENS
from tsc_cli.probes.cache.job import Probe
from tsc_cli.probes.cache.rows import KEYS, UNDONE, VALUES
from tsc_cli.probes.cache.snapshots import held_before

SINKS = 4
NAMES = ("ratio", "ratio_raw", "bits", "own_r2", "own_bits", "map_r2", "map_bits")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def walk(rho: float, *shape: int, seed: int = 0) -> torch.Tensor:
    """AR(1) along the last axis but one, of variance 1."""
    shocks = noise(*shape, seed=seed)
    made = [shocks[..., 0, :]]
    for at in range(1, shape[-2]):
        made.append(rho * made[-1] + math.sqrt(1 - rho**2) * shocks[..., at, :])
    return torch.stack(made, -2)


def cache(layers: Sequence[Rows], dtype: str = "float32") -> Trace:
    """A trace of one snapshot with these keys and values, (batch, heads, rows, size)."""
    layers = [(keys.to(getattr(torch, dtype)), values.to(getattr(torch, dtype))) for keys, values in layers]
    specs = tuple(LayerSpec("full", keys.shape[1], keys.shape[3], values.shape[3]) for keys, values in layers)
    geometry = Geometry(dtype, specs, layers[0][0].shape[0])
    builder = TraceBuilder(geometry, {"weights": "test"})
    recorder = Recorder(builder, geometry)
    recorder.snapshot(list(range(layers[0][0].shape[2])), layers)
    recorder.finish()
    return builder.trace


def probed(trace: Trace, turns: Sequence[Rotary] | None = None, snapshot: int = -1, skip: int = SINKS) -> Probe:
    return job.probe(trace, snapshot, skip, turns, lambda _: None)


def figures(found: Probe, direction: str, part: str) -> Any:
    entries = found.chosen(direction, part)
    return SimpleNamespace(**{name: job.mean(entries, name) for name in NAMES})


# along tokens


@pytest.mark.parametrize("rho", [0.8, 0.3, -0.5])
def test_tokens_that_foretell_each_other_by_a_known_share(rho: float) -> None:
    found = probed(cache([(walk(rho, 1, 2, 8192, 3), walk(rho, 1, 2, 8192, 2, seed=1))]))
    for part in (KEYS, VALUES):
        seen = figures(found, TOKENS, part)
        assert seen.ratio == pytest.approx(2 * (1 - rho), rel=0.05)
        assert seen.bits == pytest.approx(-0.5 * math.log2(2 * (1 - rho)), abs=0.04)
        for r2, bits in ((seen.own_r2, seen.own_bits), (seen.map_r2, seen.map_bits)):
            assert r2 == pytest.approx(rho**2, abs=0.03)
            assert bits == pytest.approx(-0.5 * math.log2(1 - rho**2), abs=0.04)


def test_independent_tokens_double_the_energy_of_a_difference() -> None:
    seen = figures(probed(cache([(noise(1, 2, 8192, 3), noise(1, 2, 8192, 2, seed=1))])), TOKENS, VALUES)
    assert seen.ratio == pytest.approx(2, abs=0.05)
    assert seen.bits == pytest.approx(-0.5, abs=0.02)
    for value in (seen.own_r2, seen.own_bits, seen.map_r2, seen.map_bits):
        assert value == pytest.approx(0, abs=0.01)


def test_a_large_mean_does_not_make_differences_look_good() -> None:
    found = probed(cache([(100 + noise(1, 1, 4096, 2), 100 + noise(1, 1, 4096, 2, seed=1))]))
    seen, means = figures(found, TOKENS, KEYS), figures(found, MEAN, KEYS)
    assert seen.ratio == pytest.approx(2, abs=0.1)
    assert seen.ratio_raw == pytest.approx(2e-4, rel=0.05)
    assert seen.bits == pytest.approx(-0.5, abs=0.03)
    assert means.bits == pytest.approx(0.5 * math.log2(10001), abs=0.02)
    assert means.ratio == pytest.approx(1e-4, rel=0.05)


def test_no_difference_is_taken_across_members_of_a_batch() -> None:
    slow = walk(0.99, 2, 1, 2048, 2)
    slow[1] += 1000  # a step between the last row of one member and the first of the other
    seen = figures(probed(cache([(slow, slow)])), TOKENS, KEYS)
    # the step is in the variance of the pooled rows, and in no difference
    assert seen.ratio == pytest.approx(0.02 / 250000, rel=0.3)


def test_no_difference_is_taken_across_a_gap_in_the_positions() -> None:
    made = walk(0.99, 1, 1, 200, 2).float()
    made[:, :, 100:] += 1000
    held = torch.tensor([*range(100), *range(500, 600)])
    moment = Snapshot([made], [made], [held], list(range(600)), list(range(600)))
    trace = deduplicate([moment], Geometry("float32", (LayerSpec("full", 1, 2, 2),)))
    assert 0 < figures(probed(trace), TOKENS, KEYS).ratio < 1e-5


def test_the_first_tokens_are_left_out() -> None:
    made = walk(0.9, 1, 1, 4096, 2)
    made[:, :, :4] *= 1e4
    trace = cache([(made, made)])
    assert figures(probed(trace), TOKENS, KEYS).ratio == pytest.approx(0.2, rel=0.1)
    assert figures(probed(trace, skip=0), TOKENS, KEYS).ratio == pytest.approx(1, abs=0.9)
    assert figures(probed(trace, skip=0), MEAN, KEYS).ratio != figures(probed(trace), MEAN, KEYS).ratio
    assert figures(probed(trace, skip=3), TOKENS, KEYS).ratio > 0.5


# along layers, heads, parts


def test_a_layer_that_is_a_map_of_the_one_before_and_noise() -> None:
    heads, size, sigma = 2, 4, 0.5
    turn = torch.linalg.qr(noise(16, 16, seed=9)).Q
    layers = [noise(1, 4096, 16)]
    for seed in (1, 2):
        layers.append(layers[-1] / layers[-1].std() @ turn + sigma * noise(1, 4096, 16, seed=seed))
    parts = [layer.view(1, 4096, 2, heads, size).permute(2, 0, 3, 1, 4) for layer in layers]
    found = probed(cache([(keys, values) for keys, values in parts]))
    for part in (KEYS, VALUES):
        seen = figures(found, LAYERS, part)
        assert seen.map_r2 == pytest.approx(1 / (1 + sigma**2), abs=0.02)
        assert seen.map_bits == pytest.approx(0.5 * math.log2(1 + 1 / sigma**2), abs=0.03)
        assert seen.ratio > 1.2  # and no difference shows it
        assert seen.own_r2 < 0.3
    assert {entry.layer for entry in found.chosen(LAYERS, KEYS)} == {1, 2}
    verdict = report.verdict_of(found)
    assert verdict.most is not None
    assert (verdict.most.direction, verdict.most.way) == (LAYERS, "map_bits")
    said = report.sentence(found, verdict)
    assert said.startswith(f"a linear map from the layer before saves most, {verdict.most.bits:.2f} bits a value; the")
    assert said.endswith("costs 0.50 on keys as cached, costs 0.50 on values")


@pytest.mark.parametrize("tokens", [100, 400])
def test_unrelated_layers_are_not_related_by_fitting(tokens: int) -> None:
    """Fitted and scored on the same rows, 32 regressors would explain 32 / 48 and 32 / 198 of nothing."""
    layers = [(noise(1, 2, tokens, 8, seed=2 * n), noise(1, 2, tokens, 8, seed=2 * n + 1)) for n in range(4)]
    found = probed(cache(layers))
    for direction in (TOKENS, LAYERS, HEADS, PARTS):
        for part in (KEYS, VALUES):
            seen = figures(found, direction, part)
            assert -0.1 < seen.map_r2 < 0.01
            assert -0.1 < seen.map_bits < 0.01
    assert figures(found, LAYERS, KEYS).ratio == pytest.approx(2, abs=0.2)


def test_heads_that_repeat_each_other() -> None:
    one, other = noise(1, 1, 2048, 3), noise(1, 1, 2048, 3, seed=1)
    sigma = 0.25
    keys = torch.cat([one, one + sigma * noise(1, 1, 2048, 3, seed=2)], 1)
    values = torch.cat([other, noise(1, 1, 2048, 3, seed=3)], 1)
    found = probed(cache([(keys, values)]))
    second = [entry for entry in found.chosen(HEADS, KEYS) if entry.head == 1]
    assert second[0].ratio == pytest.approx(sigma**2 / (1 + sigma**2), rel=0.1)
    assert second[0].map_r2 == pytest.approx(1 / (1 + sigma**2), abs=0.02)
    assert found.chosen(HEADS, KEYS)[0].ratio is None  # there is no head before the first
    assert figures(found, HEADS, VALUES).map_r2 == pytest.approx(0, abs=0.02)
    verdict = report.verdict_of(found)
    assert verdict.most is not None
    assert verdict.most.direction == HEADS
    assert "from the other heads saves most, 1.0" in report.sentence(found, verdict)
    assert "though not on all of them at once; the difference of" in report.sentence(found, verdict)


def test_one_head_has_no_others() -> None:
    found = probed(cache([(noise(1, 1, 99, 2), noise(1, 1, 99, 2))]))
    assert not found.chosen(HEADS, KEYS)
    shown = report.text(found, "", report.verdict_of(found), layers=True)
    assert [line.split()[:3] for line in shown.splitlines() if line.startswith("other heads")] == [
        ["other", "heads", "none"]
    ]


def test_keys_that_values_give_away() -> None:
    keys = noise(1, 2, 2048, 3)
    found = probed(cache([(keys, keys.sum(-1, keepdim=True).expand(1, 2, 2048, 2))]))
    assert figures(found, PARTS, VALUES).map_r2 == pytest.approx(1, abs=1e-3)
    assert figures(found, PARTS, VALUES).map_bits > 5
    assert figures(found, PARTS, KEYS).map_r2 == pytest.approx(1 / 3, abs=0.03)  # the sum of three
    assert figures(found, PARTS, KEYS).bits is None


# RoPE


ROTARY = Rotary((1.0, 0.3))


def test_keys_that_only_their_positions_turn() -> None:
    tokens = 2048
    slow = noise(1, 2, 1, 4, seed=5) * 3 + walk(0.99, 1, 2, tokens, 4)
    keys = ROTARY.turn(slow, torch.arange(tokens))
    found = probed(cache([(keys, noise(1, 2, tokens, 2))]), [ROTARY])
    assert figures(found, TOKENS, UNDONE).ratio < 0.05
    assert figures(found, TOKENS, KEYS).ratio > 0.2
    assert figures(found, MEAN, UNDONE).bits > 0.5 > figures(found, MEAN, KEYS).bits
    assert not found.chosen(LAYERS, KEYS)  # other directions take the keys without RoPE
    assert {part for direction, part in found.lines() if direction == PARTS} == {UNDONE, VALUES}
    assert not probed(cache([(keys, keys)])).chosen(TOKENS, UNDONE)


def test_a_profile_knows_how_keys_turn() -> None:
    geometry = Geometry("float32", (LayerSpec("full", 2, 4, 4),) * 3)
    shapes = [SimpleNamespace(heads=2, key_size=4, layer_count=count, rotary=(ROTARY,) * count) for count in (1, 2)]
    assert turning.of_profile(SimpleNamespace(shapes=shapes), geometry) == (ROTARY,) * 3  # type: ignore[arg-type]
    for other in (Geometry("float32", geometry.layers[:2]), Geometry("float32", (LayerSpec("full", 2, 8, 4),) * 3)):
        assert turning.of_profile(SimpleNamespace(shapes=shapes), other) is None  # type: ignore[arg-type]


# snapshots


@pytest.mark.parametrize("interval", [None, 1])
def test_rows_that_the_snapshot_before_holds(interval: int | None) -> None:
    """Whether they are stored once, or again at every keyframe."""
    trace = growing_trace(
        (LayerSpec("full", 2, 4, 4),) * 3, lengths=(30, 38, 40), rows=finite_rows, keyframe_interval=interval
    )
    held = held_before(trace, 2)
    assert held is not None
    assert (held.identical, held.differing, held.new, held.ratio) == (3 * 38, 0, 3 * 2, None)
    assert held_before(trace, 0) is None
    found = probed(trace)
    assert found.held == held
    assert "114 of 120 rows (95.0%)" in report.text(found, "", report.verdict_of(found), layers=False)


def test_rows_that_were_changed_since() -> None:
    spec = LayerSpec("full", 1, 4, 4)
    keys, values = (noise(1, 1, 50, 4, seed=seed).float() for seed in (1, 2))
    positions, tokens = [torch.arange(50)], list(range(50))
    moments = [
        Snapshot([keys * scale], [values * scale], positions, tokens, tokens) for scale in (1.0, torch.ones(50, 1))
    ]
    scale = torch.ones(50, 1)
    scale[40:] = 1.5
    moments[1].keys[0], moments[1].values[0] = keys * scale, values * scale
    held = held_before(deduplicate(moments, Geometry("float32", (spec,))), 1)
    assert held is not None
    assert (held.identical, held.differing, held.new) == (40, 10, 0)
    assert held.ratio == pytest.approx(1 / 9, rel=0.2)  # (0.5 / 1.5)^2, but for the mean


# what cannot be compared


def test_too_few_tokens_for_a_map_are_said_to_be() -> None:
    found = probed(cache([(noise(1, 2, 60, 8, seed=n), noise(1, 2, 60, 8, seed=n + 5)) for n in range(2)]))
    seen = figures(found, LAYERS, KEYS)
    assert seen.map_r2 is seen.map_bits is None
    assert seen.ratio is not None
    assert found.unfitted[LAYERS] == 32
    assert figures(found, PARTS, KEYS).map_r2 is not None  # 16 regressors and 28 rows
    assert found.weak == {PARTS: 28 / 16, HEADS: 28 / 16}
    shown = report.text(found, "", report.verdict_of(found), layers=False)
    assert "layer before: no map, too few tokens to fit 32 regressors" in shown
    assert "maps had few rows to fit a regressor (other heads 1.8, other part 1.8)" in shown.replace("\n", " ")
    with pytest.raises(UsageError, match="has 15 rows after the first 4 tokens"):
        probed(cache([(noise(1, 1, 19, 2), noise(1, 1, 19, 2))]))


def test_constant_channels_have_no_figures() -> None:
    keys = noise(1, 1, 200, 2)
    keys[..., 0] = 0.1
    found = probed(cache([(keys, torch.full((1, 1, 200, 2), 0.1))]))
    assert figures(found, TOKENS, KEYS).bits == pytest.approx(-0.5, abs=0.15)  # of the other channel
    seen = figures(found, TOKENS, VALUES)
    assert seen.bits is seen.own_bits is seen.map_bits is None
    assert report.verdict_of(found).most is None
    assert "no direction saves 0.05 bits a value" in report.sentence(found, report.verdict_of(found))


def test_what_repeats_exactly_saves_no_more_bits_than_there_are() -> None:
    one = noise(1, 2, 400, 2)
    found = probed(cache([(one, one), (one, one)]))
    seen = figures(found, LAYERS, KEYS)
    assert (seen.ratio, seen.bits) == (0, 24)
    assert seen.own_r2 == pytest.approx(1)
    assert seen.own_bits <= 24


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    keys = noise(1, 1, 40, 2)
    keys[0, 0, 30, 1] = value
    with pytest.raises(UsageError, match="the values of layer 1 hold a value that is not finite"):
        probed(cache([(keys.nan_to_num(0, 0, 0),) * 2, (noise(1, 1, 40, 2), keys)]))


def test_layers_of_all_shapes() -> None:
    """Windows, other head counts and sizes: by tokens, not by row numbers."""
    rows_40 = walk(0.9, 1, 2, 400, 4).float()
    window = rows_40[:, :, -99:]
    specs = (LayerSpec("full", 2, 4, 4), LayerSpec("sliding", 2, 4, 4, window=100), LayerSpec("full", 1, 6, 3))
    geometry = Geometry("float32", specs)
    builder = TraceBuilder(geometry, {"weights": "test"})
    recorder = Recorder(builder, geometry)
    third = noise(1, 1, 400, 6).float(), noise(1, 1, 400, 3).float()
    recorder.snapshot(list(range(400)), [(rows_40, rows_40), (window, window), third])
    recorder.finish()
    found = probed(builder.trace)
    second = [entry for entry in found.chosen(LAYERS, KEYS) if entry.layer == 1]
    assert [entry.ratio for entry in second] == [0, 0]  # the same tokens' rows are equal
    last = [entry for entry in found.chosen(LAYERS, KEYS) if entry.layer == 2]
    assert last[0].ratio is None
    assert last[0].map_r2 is not None
    assert "layers of different shapes are compared by the map alone" in found.notes


def test_heads_that_hold_different_tokens() -> None:
    tokens, slots = 200, 80
    whole = walk(0.95, 1, 1, 2, tokens, 4)
    mask = torch.zeros(1, 2, tokens, dtype=torch.bool)
    mask[0, 0, :slots] = True  # one head keeps the first tokens, the other every second one
    mask[0, 1, : 2 * slots : 2] = True
    slotted = torch.stack([whole[0, 0, head][mask[0, head]] for head in range(2)])[None, None].float()
    builder = TraceBuilder(Geometry("float32", (LayerSpec("full", 2, 4, 4),)), {"weights": "test"})
    builder.add_labels(range(tokens), range(tokens))
    builder.add_block(MemoryBlock(BlockKey(Part.JOINT, 0, 1, 0, slots), {Part.KEYS: slotted, Part.VALUES: slotted}))
    builder.add_view(View((Span(0, tokens),), ((Span(0, slots),),)))
    builder.trace.head_maps = [head_maps.of_mask(0, Span(0, tokens), mask)]
    found = probed(builder.trace, [Rotary(())])
    assert [entry.head for entry in found.chosen(TOKENS, KEYS)] == [0]  # the other has no neighbours
    assert figures(found, TOKENS, KEYS).ratio == pytest.approx(0.1, rel=0.5)
    assert {direction for direction, _ in found.lines()} == {MEAN, TOKENS}
    assert any("heads hold different tokens" in note for note in found.notes)


def test_layers_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = cache([(noise(1, 2, 60, 2, seed=n), noise(1, 2, 60, 2, seed=n + 9)) for n in range(5)])
    at_once = probed(trace).entries
    assert list(rows.groups(trace, 0)) == [[0, 1, 2, 3, 4]]
    monkeypatch.setattr(rows, "GROUP_BYTES", 2 * trace.geometry.row_bytes[0] * 60)
    assert list(rows.groups(trace, 0)) == [[0, 1], [2, 3], [4]]
    assert probed(trace).entries == at_once


# fits


def test_halves_are_contiguous_in_every_member() -> None:
    cut = ridge.halves(torch.arange(10).view(2, 5, 1), 0.5)
    assert cut.fit[:, 0].tolist() == [0, 1, 5, 6]
    assert cut.score[:, 0].tolist() == [2, 3, 4, 7, 8, 9]


def test_neighbours_would_give_away_what_contiguous_halves_do_not() -> None:
    """Slow signals that are unrelated: alternating rows would relate them, since each row's neighbours are fitted."""
    x, y = walk(0.995, 1, 600, 40), walk(0.995, 1, 600, 8, seed=1)
    (left,) = ridge.mapped(x, [y[:, :, None]])
    scored = ridge.halves(y).score
    assert float(left.square().sum() / (scored - scored.mean(0)).square().sum()) > 0.9
    shuffled = torch.cat([torch.arange(0, 600, 2), torch.arange(1, 600, 2)])
    (flattered,) = ridge.mapped(x[:, shuffled], [y[:, shuffled][:, :, None]])
    scored = ridge.halves(y[:, shuffled]).score
    assert float(flattered.square().sum() / (scored - scored.mean(0)).square().sum()) < 0.7
