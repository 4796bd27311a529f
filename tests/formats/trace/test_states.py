"""Layers that keep states, indexer keys, an encoder's rows or nothing: what files hold of them, and how small."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import Geometry, LayerSpec, Recorder, TraceBuilder, load, save
from formats.codecs import codec_by_name
from formats.encode.recipe import Recipe, recipe_of
from formats.encode.source import Source
from formats.encode.write import write
from formats.errors import LimitError, UsageError
from formats.file.check import check
from formats.file.reader import TraceFile
from formats.file.writer import TraceWriter
from formats.trace.geometry import StateSpec, from_json, to_json
from formats.trace.states import MemoryStates, StateKey, as_values, from_values
from formats.trace.views import Span, View
from tests.support.traces import CONV, EVERYTHING, NOTHING, RECURRENT, STATES, full_trace, same_bits, same_snapshots

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple)
dtypes = st.sampled_from(["float32", "bfloat16", "float16", "float64", "float8_e4m3fn"])


@settings(max_examples=60, deadline=None)
@given(
    shape=shapes,
    dtype=dtypes,
    layers=st.integers(1, 3),
    snapshots=st.integers(1, 3),
    batch=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_every_state_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    dtype: str,
    layers: int,
    snapshots: int,
    batch: int,
    seed: int,
) -> None:
    state = StateSpec("s", shape, dtype)
    octets = torch.randint(
        0,
        256,
        (layers * snapshots * batch * state.bytes,),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )
    tensor = octets.view(getattr(torch, dtype)).view(layers, snapshots, batch, *shape)
    assert same_bits(from_values(as_values(tensor, state), state).contiguous(), tensor)
    geometry = Geometry("float32", (LayerSpec("none", states=(state,)),) * layers, batch)
    assert from_json(to_json(geometry, {})) == (geometry, {}, "")
    sink = io.BytesIO()
    writer = TraceWriter(sink, geometry, {})
    for first in range(snapshots):  # a record a snapshot and layer, in any order
        for layer in reversed(range(layers)):
            key = StateKey(0, layer, 1, first, 1)
            writer.add_states(MemoryStates(key, tensor[layer : layer + 1, first : first + 1]))
        writer.add_labels([7], [first])
    for _ in range(snapshots):
        writer.add_view(View((Span(0, 1),), ((),) * layers))
    writer.finish()
    path = tmp_path_factory.mktemp("states") / "t.tsc"
    path.write_bytes(sink.getvalue())
    check(path)
    for number in range(snapshots):
        found = load(path).snapshot(number).states
        assert all(same_bits(found[layer]["s"], tensor[layer, number]) for layer in range(layers))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_file_gives_back_every_bit(batch: int, tmp_path: Path) -> None:
    trace = full_trace(batch=batch, padding=(2, 0, 1) if batch == 3 else ())
    save(trace, tmp_path / "t.tsc")
    check(tmp_path / "t.tsc")
    back = load(tmp_path / "t.tsc")
    assert (back.geometry, back.views, back.labels) == (trace.geometry, trace.views, trace.labels)
    assert (back.raw_bytes, back.raw_bytes_final) == (trace.raw_bytes, trace.raw_bytes_final)
    for number in range(len(trace)):
        assert same_snapshots(back.snapshot(number), trace.snapshot(number))
    save(back, tmp_path / "again.tsc", deterministic=True)
    save(trace, tmp_path / "t.tsc", deterministic=True, overwrite=True)
    assert (tmp_path / "again.tsc").read_bytes() == (tmp_path / "t.tsc").read_bytes()


def test_rows_of_an_encoder_are_stored_once(tmp_path: Path) -> None:
    save(full_trace(), tmp_path / "t.tsc")
    cross = len(EVERYTHING) - 1
    rows = [block.key for block in TraceFile(tmp_path / "t.tsc").blocks if block.key.first_layer == cross]
    assert [(key.first_row, key.row_count) for key in rows] == [(0, 3)] * 2  # keys and values


def test_only_the_wanted_layers_are_read() -> None:
    trace = full_trace()
    whole = trace.snapshot(2)
    some = trace.snapshot(2, layers=[5, 0])
    assert same_bits(some.keys[0], whole.keys[5])
    assert some.indexer_keys[0] is not None
    assert same_bits(some.indexer_keys[0], whole.indexer_keys[5])
    assert list(some.states[1]) == ["conv.0", "recurrent.0"]
    assert all(same_bits(some.states[1][name], whole.states[0][name]) for name in some.states[1])


def test_a_recorder_keeps_no_tensor_that_the_model_overwrites() -> None:
    geometry = Geometry("float32", (STATES,))
    builder = TraceBuilder(geometry, {})
    recorder = Recorder(builder, geometry)
    live = {"conv.0": torch.ones(1, 6, 3, dtype=torch.bfloat16), "recurrent.0": torch.ones(1, 2, 4, 3)}
    recorder.snapshot([1], [()], (), [live])
    for state in live.values():
        state.zero_()
    assert all(bool((state == 1).all()) for state in builder.trace.snapshot().states[0].values())


@pytest.mark.parametrize(
    ("codec", "settings"),
    [("scalar", {"bits": 8}), ("vq", {}), ("pq", {}), ("delta", {}), ("scalar", {"format": "q8_0"})],
    ids=["scalar", "vq", "pq", "delta", "q8_0"],
)
def test_every_codec_takes_every_layer(codec: str, settings: dict[str, Any], tmp_path: Path) -> None:
    trace = full_trace(finite=True, dtype="float32")
    with (tmp_path / "t.tsc").open("wb") as sink:
        write(Source(trace), Recipe(codec, settings), sink)
    check(tmp_path / "t.tsc")
    back = load(tmp_path / "t.tsc")
    exact, lossy = trace.snapshot(), back.snapshot()
    for layer in range(len(EVERYTHING)):
        for name, state in exact.states[layer].items():
            have = lossy.states[layer][name]
            assert (have.dtype, have.shape) == (state.dtype, state.shape)
            assert 0 < float((have.float() - state.float()).norm() / state.float().norm()) < 0.02
        indexer, want = lossy.indexer_keys[layer], exact.indexer_keys[layer]
        assert (indexer is None) == (want is None)
        assert indexer is None or want is None or 0 <= float((indexer - want).norm() / want.norm()) < 0.7


def states_of(trace: Any, recipe: Recipe, path: Path) -> tuple[float, int]:
    """(relative error of the recurrent state, length of the file)."""
    with path.open("wb") as sink:
        write(Source(trace), recipe, sink)
    have, want = (one.snapshot().states[0]["recurrent.0"] for one in (load(path), trace))
    return float((have - want).norm() / want.norm()), path.stat().st_size


def test_bits_of_states(tmp_path: Path) -> None:
    trace = full_trace((LayerSpec("none", states=(StateSpec("recurrent.0", (4, 16, 16), "float32"),)),), finite=True)
    path = tmp_path / "t.tsc"
    errors = {
        name: states_of(trace, recipe, path)
        for name, recipe in {
            "exact": recipe_of("vq", "", {"state_bits": "0"}),
            "8": recipe_of("vq", "", {"state_bits": "8"}),
            "default": recipe_of("vq", "", {}),
            "4": recipe_of("vq", "", {"state_bits": "4"}),
            "scalar": recipe_of("scalar", "", {"bits": "3"}),
            "lossless": Recipe("lossless"),
        }.items()
    }
    assert errors["exact"][0] == errors["lossless"][0] == 0
    assert 0 < errors["default"][0] < 0.01 < errors["4"][0] < errors["scalar"][0]
    assert errors["scalar"][1] < errors["4"][1] < errors["8"][1] < errors["exact"][1]
    assert errors["default"][0] == errors["8"][0]
    assert load(path).parameters == {}


@pytest.mark.parametrize("value", ["1", "17", "x", "-1", ""])
def test_bits_of_states_that_cannot_be(value: str) -> None:
    with pytest.raises(UsageError, match="state_bits="):
        recipe_of("scalar", "", {"state_bits": value})


def test_a_state_that_is_not_finite_is_refused_by_layer_and_name(tmp_path: Path) -> None:
    trace = full_trace(finite=True)
    trace.states[3].tensor[0, 0].view(-1)[0] = torch.nan  # type: ignore[attr-defined]
    key = trace.states[3].key
    name = EVERYTHING[key.first_layer].states[key.number].name
    with (
        (tmp_path / "t.tsc").open("wb") as sink,
        pytest.raises(UsageError, match=rf"the {name} of layer {key.first_layer} hold a value that is not finite"),
    ):
        write(Source(trace), Recipe("scalar"), sink)
    save(trace, tmp_path / "t.tsc", overwrite=True)  # lossless keeps it
    assert bool(load(tmp_path / "t.tsc").snapshot(key.first_snapshot).states[key.first_layer][name].isnan().any())


@pytest.mark.parametrize("evict", ["h2o", "streaming"])
def test_rows_beside_states_are_not_evicted(evict: str) -> None:
    with pytest.raises(UsageError, match="cannot evict rows beside states"):
        write(Source(full_trace(finite=True)), Recipe("scalar", evict=evict), io.BytesIO())


def test_states_count_against_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = full_trace((STATES, NOTHING))
    monkeypatch.setenv("TSC_MEMORY_BUDGET", str(CONV.bytes + RECURRENT.bytes - 1))
    with pytest.raises(LimitError):
        trace.snapshot()
    monkeypatch.setenv("TSC_MEMORY_BUDGET", str(CONV.bytes + RECURRENT.bytes))
    assert trace.snapshot().states[1] == {}


def test_a_sequence_of_a_batch_is_a_trace_of_its_own(tmp_path: Path) -> None:
    trace = full_trace(batch=3, padding=(2, 0, 1), dtype="float32")
    with pytest.raises(UsageError, match="a batch of 3 sequences has no one text"):
        trace.token_ids()
    with pytest.raises(UsageError, match="there is no sequence 3"):
        trace.sequence(3)
    for number, skipped in enumerate((2, 0, 1)):
        alone = trace.sequence(number)
        assert alone.token_ids(1) == [100 * number + token for token in range(skipped, 8)]
        assert alone.views[1].next_token == 100 * number + 8
        whole, moment = trace.snapshot(1), alone.snapshot(1)
        assert moment.positions == list(range(8 - skipped))
        for layer, spec in enumerate(EVERYTHING):
            first = {"none": 0, "cross": 0, "sliding": 0}.get(spec.kind, skipped)
            assert same_bits(moment.keys[layer], whole.keys[layer][number : number + 1, :, first:])
            assert all(
                same_bits(state, whole.states[layer][name][number : number + 1])
                for name, state in moment.states[layer].items()
            )
        save(alone, tmp_path / f"{number}.tsc")
        assert same_snapshots(load(tmp_path / f"{number}.tsc").snapshot(1), moment)


@pytest.mark.parametrize("recipe", [Recipe("scalar"), Recipe("lossless", state_bits=4)], ids=["rows", "states"])
def test_what_was_compressed_is_no_source(recipe: Recipe, tmp_path: Path) -> None:
    trace = full_trace(finite=True, batch=2)
    with (tmp_path / "t.tsc").open("wb") as sink:
        write(Source(trace), recipe, sink)
    whole = load(tmp_path / "t.tsc")
    for one in (whole, whole.sequence(1)):
        with pytest.raises(UsageError, match="was compressed already"):
            Source(one)


def test_a_snapshot_has_states_of_its_own() -> None:
    trace = full_trace()
    trace.snapshot().states[0]["recurrent.0"].zero_()
    assert bool((trace.snapshot().states[0]["recurrent.0"] != 0).any())


def test_a_wide_batch_of_many_tokens_can_be_read(tmp_path: Path) -> None:
    trace = full_trace((LayerSpec("sliding", 1, 1, 1, window=2),), batch=1 << 14, lengths=(300, 301))
    save(trace, tmp_path / "t.tsc")
    assert load(tmp_path / "t.tsc").labels == trace.labels


def test_what_no_reader_would_take_is_not_written() -> None:
    sink = io.BytesIO()
    writer = TraceWriter(
        sink, Geometry("float32", (LayerSpec("none", states=(StateSpec("s", (1 << 23,), "float32"),)),)), {}
    )
    with pytest.raises(LimitError, match="bytes that are all alike"):
        writer.add_states(MemoryStates(StateKey(0, 0, 1, 0, 1), torch.zeros(1, 1, 1, 1 << 23)))


def test_the_scalar_codec_of_states_is_the_rows_own() -> None:
    recipe = Recipe("scalar", {"bits": 5})
    assert recipe.state_codec.settings == codec_by_name("scalar", {"bits": 5}).settings
    assert Recipe("pq").state_codec.settings.bits == 8
    assert Recipe("lossless").state_codec.exact
