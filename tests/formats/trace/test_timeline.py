"""What is recorded is what is read back, and a row that did not change is stored once."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import Geometry, Recorder, Snapshot, Trace, TraceBuilder, deduplicate
from formats.errors import UsageError
from tests.support.traces import FULL, SLIDING, UNEVEN, growing_trace, random_rows, same_bits, same_snapshots


def stored_rows(trace: Trace) -> int:
    """Rows stored, over all layers, keys and values counted once."""
    return sum(block.key.layer_count * block.key.row_count for block in trace.blocks)


@pytest.mark.parametrize("lengths", [(1,), (1, 2, 3), (5, 6, 20), (300, 301, 302), (1030, 1031), (3, 3)])
@pytest.mark.parametrize("interval", [None, 1, 2])
def test_growing_trace_reads_back(lengths: tuple[int, ...], interval: int | None) -> None:
    layers = (FULL, FULL, UNEVEN, SLIDING)
    trace = growing_trace(layers, lengths=lengths, keyframe_interval=interval)
    whole = [random_rows(spec, lengths[-1], "bfloat16", 1, seed) for seed, spec in enumerate(layers)]
    for number, length in enumerate(lengths):
        moment = trace.snapshot(number)
        assert moment.token_ids == [3 * token + 1 for token in range(length)]
        for layer, spec in enumerate(layers):
            first = max(0, length - spec.window + 1) if spec.window else 0
            assert moment.row_positions[layer].tolist() == list(range(first, length))
            assert same_bits(moment.keys[layer], whole[layer][0][:, :, first:length])
            assert same_bits(moment.values[layer], whole[layer][1][:, :, first:length])


def test_rows_are_stored_once_and_keyframes_store_them_again() -> None:
    lengths = (10, 11, 12, 13)
    assert stored_rows(growing_trace((FULL, FULL), lengths=lengths)) == 2 * 13
    assert stored_rows(growing_trace((FULL, FULL), lengths=lengths, keyframe_interval=2)) == 2 * (11 + 13)


def test_rows_that_left_a_window_between_snapshots_are_not_stored() -> None:
    # after 20 tokens rows 16 to 19 are in the window, after 30 rows 26 to 29
    assert stored_rows(growing_trace((SLIDING,), lengths=(20, 30))) == 4 + 4


def test_one_layer_alone() -> None:
    trace = growing_trace(lengths=(7, 8))
    alone = trace.snapshot(1, layers=[2])
    assert len(alone.keys) == 1
    assert same_bits(alone.keys[0], trace.snapshot(1).keys[2])


def test_a_trace_shows_itself_in_a_line() -> None:
    trace = growing_trace((FULL, SLIDING), lengths=(3, 8))
    assert repr(trace) == "<Trace: 2 snapshots of 2 layers, the last of 8 tokens, bfloat16, codec lossless>"


@pytest.mark.parametrize("number", [2, -3])
def test_there_is_no_such_snapshot(number: int) -> None:
    with pytest.raises(UsageError, match=f"no snapshot {number}"):
        growing_trace(lengths=(7, 8)).snapshot(number)


def edited_snapshots(script: list[tuple[str, int]], seed: int) -> tuple[Geometry, list[Snapshot]]:
    """Snapshots that follow a script of edits: rows appended, dropped anywhere, replaced in some layers."""
    dice = random.Random(seed)
    geometry = Geometry("float16", (FULL, UNEVEN))
    rows: list[list[tuple[int, torch.Tensor, torch.Tensor]]] = [[], []]
    tokens: dict[int, int] = {}
    fresh = 0
    snapshots = []

    def row(layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal fresh
        fresh += 1
        return random_rows(geometry.layers[layer], 1, "float16", seed=1000 * seed + fresh)

    for action, amount in [("append", 3), *script]:
        if action == "append":
            for _ in range(amount):
                position = len(tokens)
                tokens[position] = dice.randrange(70000)
                for layer in (0, 1):
                    rows[layer].append((position, *row(layer)))
        for layer in (0, 1):
            if action == "drop" and len(rows[layer]) > amount:
                del rows[layer][dice.randrange(len(rows[layer]))]
            if action == "replace" and (layer or amount % 2):
                at = dice.randrange(len(rows[layer]))
                rows[layer][at] = (rows[layer][at][0], *row(layer))
        snapshots.append(
            Snapshot(
                [torch.cat([key for _, key, _ in rows[layer]], 2) for layer in (0, 1)],
                [torch.cat([value for _, _, value in rows[layer]], 2) for layer in (0, 1)],
                [torch.tensor([position for position, _, _ in rows[layer]]) for layer in (0, 1)],
                list(tokens.values()),
                list(tokens),
                None,
            )
        )
    return geometry, snapshots


edits = st.lists(st.tuples(st.sampled_from(["append", "drop", "replace"]), st.integers(1, 4)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(edits, st.integers(0, 10**6))
def test_any_history_reads_back_and_nothing_is_stored_twice(script: list[tuple[str, int]], seed: int) -> None:
    geometry, snapshots = edited_snapshots(script, seed)
    trace = deduplicate(snapshots, geometry)
    for number, want in enumerate(snapshots):
        assert same_snapshots(trace.snapshot(number), want)
    # every row of the script is new exactly once
    distinct = {
        (layer, snapshot.keys[layer][:, :, at].numpy().tobytes(), snapshot.values[layer][:, :, at].numpy().tobytes())
        for snapshot in snapshots
        for layer in (0, 1)
        for at in range(len(snapshot.row_positions[layer]))
    }
    assert stored_rows(trace) == len(distinct)


def test_an_edit_that_spares_a_layer_stores_the_other_only() -> None:
    geometry, snapshots = edited_snapshots([("replace", 2)], seed=1)
    assert stored_rows(deduplicate(snapshots, geometry)) == 2 * 3 + 1


def test_snapshots_that_do_not_fit_are_named() -> None:
    geometry, snapshots = edited_snapshots([], seed=2)
    snapshots[0].values[1] = snapshots[0].values[1].float()
    with pytest.raises(UsageError, match=r"snapshot 0, layer 1: values are .* not .* float16"):
        deduplicate(snapshots, geometry)
    geometry, snapshots = edited_snapshots([], seed=2)
    snapshots[0].row_positions[0][1] = 99
    with pytest.raises(UsageError, match=r"snapshot 0, layer 0: a row stands at a position that no token has"):
        deduplicate(snapshots, geometry)
    geometry, snapshots = edited_snapshots([], seed=2)
    snapshots[0].row_positions[1] = snapshots[0].row_positions[1].expand(UNEVEN.heads, -1)
    with pytest.raises(UsageError, match=r"snapshot 0, layer 1: its heads hold different tokens"):
        deduplicate(snapshots, geometry)


def test_a_snapshot_over_the_memory_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = growing_trace()
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "100")
    with pytest.raises(Exception, match="more than the budget of 100"):
        trace.snapshot()


def test_pending_rows_do_not_keep_the_grown_cache_alive() -> None:
    geometry = Geometry("float32", (FULL,))
    recorder = Recorder(TraceBuilder(geometry, {}), geometry)
    keys, values = random_rows(FULL, 4, "float32")
    recorder.snapshot([1, 2, 3, 4], [(keys, values)])
    recorder.snapshot([5], [(torch.cat([keys, keys[:, :, :1]], 2), torch.cat([values, values[:, :, :1]], 2))])
    held = recorder._pending._rows[0][1][0]  # noqa: SLF001
    assert held.untyped_storage().nbytes() == held.numel() * 4
