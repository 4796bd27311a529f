"""A file that lies about what it holds is found out, and one that does not is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from formats import Trace, TraceBuilder, deduplicate, load, save
from formats.codecs.klt import profile_store
from formats.container.records import Part
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import Header, write
from formats.errors import MismatchError, UsageError
from formats.file.rewrite import record_quality
from formats.trace.blocks import MemoryBlock
from formats.trace.states import MemoryStates
from formats.trace.views import Labels, Span
from tests.formats.codecs.test_klt import profile_for
from tests.support import models
from tests.support.families import SUPPORTED
from tests.support.family_runs import capture_small
from tests.tsc_cli.huggingface.test_foreign import batch
from tsc_cli import capture, verify
from tsc_cli.session.append import append
from tsc_cli.session.decode_loop import CaptureOptions
from tsc_cli.verification.recompute import Findings, recompute
from tsc_cli.verification.recomputed_rows import passes
from tsc_cli.verification.tolerances import HEAD, ROUNDING, Distances, judge
from tsc_cli.verification.verify import VerifyOptions

RECIPES = {
    "lossless": Recipe("lossless"),
    "scalar": Recipe("scalar", {"bits": 4}),
    "scalar, 2 bits": Recipe("scalar", {"bits": 2, "hadamard": True, "keys": "token"}, exact_sinks=4, exact_last=6),
    "q8_0": Recipe("scalar", {"format": "q8_0"}),
    "vq": Recipe("vq", {"block": 4, "centroids": 32, "fallback": False, "iterations": 4}),
    "vq with fallback": Recipe("vq", {"block": 8, "centroids": 16, "threshold": 0.5, "iterations": 4}),
    "pq": Recipe("pq", {"block": 4, "m": 2, "centroids": 32, "iterations": 4}),
    "delta": Recipe("delta", {"keyframe_bits": 4, "prefer_append_for_growing": False}),
    "streaming": Recipe("scalar", evict="streaming", evict_settings={"window": 40}),
    "h2o": Recipe("scalar", {"bits": 5}, evict="h2o", evict_settings={"keep": 0.6}),
}
FAMILIES = ["gemma3", "mistral-sliding", "qwen3_next", "mamba", "t5", "deepseek_v32"]


@pytest.fixture(scope="module")
def model() -> Any:
    return models.llama(initializer_range=0.2)  # with larger weights rows depend on what was before


@pytest.fixture(scope="module")
def trace(model: Any) -> Trace:
    return capture(model, models.prompt(60), options=CaptureOptions(steps=4, chunk=16, attention=True))


@pytest.fixture(scope="module")
def other(model: Any) -> Trace:
    """Of another text."""
    return capture(model, models.prompt(60, seed=7), options=CaptureOptions(steps=4, chunk=16))


def coded(trace: Trace, recipe: Recipe, path: Path, quality: list[dict[str, Any]] | None = None) -> Trace:
    with path.open("wb") as sink:
        write(Source(trace), recipe, sink, header=Header(quality=quality or []))
    return load(path)


def changed(trace: Trace, change: Callable[[int, dict[Part, torch.Tensor]], None], **fields: Any) -> Trace:
    """The trace with a change made to the rows of each layer, by part: (batch, heads, rows, head size)."""
    builder = TraceBuilder(trace.geometry, trace.fingerprint)
    for block in trace.blocks:
        rows = {part: tensor.clone() for part, tensor in block.read().items()}
        for at in range(block.key.layer_count):
            change(block.key.first_layer + at, {part: tensor[at] for part, tensor in rows.items()})
        builder.add_block(MemoryBlock(block.key, rows))
    return replace(trace, blocks=builder.trace.blocks, **fields)


def verdicts(found: Findings) -> set[str]:
    return {one.verdict for one in found.snapshots}


@pytest.mark.parametrize("name", RECIPES)
def test_an_honest_file_passes(name: str, model: Any, trace: Trace, tmp_path: Path) -> None:
    file = coded(trace, RECIPES[name], tmp_path / "t.tsc")
    done: list[int] = []
    found = recompute(file, model, progress=done.append)
    assert (found.lies, verdicts(found), len(found.snapshots)) == ([], {"identical"}, 5)
    assert sum(done) == passes(file)
    # every row of every layer and part, each with the snapshot that is the first to hold it
    rows = sum(block.key.layer_count * block.key.row_count for block in file.blocks if block.key.part is Part.KEYS)
    joint = sum(block.key.layer_count * block.key.row_count for block in file.blocks if block.key.part is Part.JOINT)
    assert sum(one.tensors for one in found.snapshots) == 2 * (rows + joint)


def test_an_honest_file_of_codec_klt_passes(
    model: Any, trace: Trace, other: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_store, "remembered", {})
    profile = profile_store.remember(profile_for(model, windows=3))
    recipe = Recipe("klt", {"profile": profile.digest, "fineness": 400}, embed_profile=True)
    file = coded(trace, recipe, tmp_path / "t.tsc")
    profile_store.remembered.clear()  # it is in the file
    found = recompute(file, model)
    assert (found.lies, verdicts(found)) == ([], {"identical"})
    profile_store.remember(profile)
    swapped = coded(replace(other, labels=trace.labels), recipe, tmp_path / "o.tsc")
    assert "of the RMS away" in recompute(swapped, model).lies[0]


@pytest.mark.parametrize("name", RECIPES)
def test_rounding_is_no_lie(name: str, model: Any, trace: Trace, tmp_path: Path) -> None:
    file = coded(trace, RECIPES[name], tmp_path / "t.tsc")
    model.set_attn_implementation("eager")  # another kernel; its name in the fingerprint is not compared
    try:
        found = recompute(file, model)
    finally:
        model.set_attn_implementation("sdpa")
    assert found.lies == []
    assert "within tolerance" in verdicts(found) or name in ("q8_0", "streaming", "h2o")  # the same codes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("codec", ["lossless", "scalar"])
def test_every_kind_of_cache(family: str, codec: str, tmp_path: Path) -> None:
    sample = SUPPORTED[family]
    small = sample.build(torch.float32)
    honest = capture_small(sample, small, steps=3)
    found = recompute(coded(honest, RECIPES[codec], tmp_path / "t.tsc"), small)
    assert (found.lies, verdicts(found)) == ([], {"identical"})
    assert all(one.tensors for one in found.snapshots)
    lying = _damaged_states(honest) if honest.states else changed(honest, _last_layer_scaled(honest))
    found = recompute(coded(lying, RECIPES[codec], tmp_path / "o.tsc"), small)
    assert "of the RMS away" in found.lies[0]


def _last_layer_scaled(trace: Trace) -> Callable[[int, dict[Part, torch.Tensor]], None]:
    """The last layer's last part one and a half times as large: values, indexer keys or an encoder's."""
    last = max(number for number, spec in enumerate(trace.geometry.layers) if spec.parts)

    def change(layer: int, rows: dict[Part, torch.Tensor]) -> None:
        if layer == last:
            rows[trace.geometry.layers[last].parts[-1]].mul_(1.5)

    return change


def _damaged_states(trace: Trace) -> Trace:
    *rest, last = trace.states
    return replace(trace, states=[*rest, MemoryStates(last.key, last.read() * 1.5)])


def test_a_batch_with_padding_and_an_appended_file(tmp_path: Path) -> None:
    small = SUPPORTED["llama"].build(torch.float32)
    ids, mask = batch()
    together = capture(small, ids, attention_mask=mask, steps=3)
    found = recompute(coded(together, RECIPES["scalar"], tmp_path / "b.tsc"), small)
    assert (found.lies, verdicts(found)) == ([], {"identical"})

    def second_sequence(layer: int, rows: dict[Part, torch.Tensor]) -> None:
        rows[Part.VALUES][1] *= 1.5 if layer == 1 else 1

    assert "layer 1, values, sequence 1" in recompute(changed(together, second_sequence), small).lies[0]
    save(capture(small, [5, 6, 7, 8], steps=2), tmp_path / "t.tsc")
    append(small, [9, 8, 7, 6, 5], tmp_path / "t.tsc", options=CaptureOptions(steps=2, chunk=3))
    append(small, [], tmp_path / "t.tsc", steps=2)
    found = recompute(load(tmp_path / "t.tsc"), small)
    assert (found.lies, verdicts(found), len(found.snapshots)) == ([], {"identical"}, 8)


def test_snapshots_of_several_texts_and_keyframes(model: Any, trace: Trace, other: Trace) -> None:
    own = deduplicate([one.snapshot(n) for one in (trace, other) for n in (0, 4)], trace.geometry)
    assert recompute(own, model).lies == []
    keyed = capture(model, models.prompt(30), options=CaptureOptions(steps=5, keyframe_interval=2))
    found = recompute(keyed, model)
    assert (found.lies, verdicts(found)) == ([], {"identical"})


@pytest.mark.parametrize("name", RECIPES)
def test_rows_of_another_text_in_one_layer(name: str, model: Any, trace: Trace, other: Trace, tmp_path: Path) -> None:
    foreign = {block.key: block.read() for block in other.blocks}
    poisoned = replace(
        trace,
        blocks=[
            MemoryBlock(
                block.key,
                {
                    part: torch.cat([rows[:1], foreign[block.key][part][1:2], rows[2:]])
                    for part, rows in block.read().items()
                },
            )
            for block in trace.blocks
        ],
    )
    found = recompute(coded(poisoned, RECIPES[name], tmp_path / "t.tsc"), model)
    assert found.lies[0].startswith("snapshot 0, layer 1, ")
    assert {one.verdict for one in found.snapshots} & {"WRONG"}


@pytest.mark.parametrize("name", RECIPES)
def test_one_head_of_one_layer(name: str, model: Any, trace: Trace, other: Trace, tmp_path: Path) -> None:
    foreign = other.snapshot(-1)

    def change(layer: int, rows: dict[Part, torch.Tensor]) -> None:
        count = rows[Part.VALUES].shape[2]
        if layer == 2 and count > 1:
            rows[Part.VALUES][:, 1] = foreign.values[2][:, 1, :count]

    found = recompute(coded(changed(trace, change), RECIPES[name], tmp_path / "t.tsc"), model)
    first = found.snapshots[0].first_wrong
    assert first is not None
    assert (first.snapshot, first.layer, first.part, first.head) == (0, 2, "values", 1)
    assert found.lies[0] == str(first)


@pytest.mark.parametrize("part", [Part.KEYS, Part.VALUES])
def test_one_row_scaled_a_little(part: Part, model: Any, trace: Trace) -> None:
    def change(layer: int, rows: dict[Part, torch.Tensor]) -> None:
        if layer == 1 and rows[part].shape[2] > 41:
            rows[part][:, 0, 41] *= 1.05

    found = recompute(changed(trace, change), model)
    name = "keys" if part is Part.KEYS else "values"
    assert found.lies[0].startswith(f"snapshot 0, layer 1, {name}, head 0: row 41 is 0.0")
    assert [one.verdict for one in found.snapshots] == ["WRONG", *["identical"] * 4]
    assert len(found.lies) == 1


def test_bits_that_are_not_numbers(model: Any, trace: Trace) -> None:
    def change(layer: int, rows: dict[Part, torch.Tensor]) -> None:
        if layer == 0 and rows[Part.KEYS].shape[2] > 5:
            rows[Part.KEYS][0, 1, 5, 2] = torch.nan

    (line,) = recompute(changed(trace, change), model).lies
    assert line.startswith("snapshot 0, layer 0, keys, head 1: row 5 is nan")


@pytest.mark.parametrize("at", [0, 30, 59, 62])
def test_other_token_ids(at: int, model: Any, trace: Trace) -> None:
    labels = Labels(trace.labels.token_ids[:], trace.labels.positions[:])
    labels.token_ids[at] ^= 1
    found = recompute(replace(trace, labels=labels), model)
    assert f": row {at} is " in found.lies[0]
    assert f"snapshot {max(at - 59, 0)}, layer 0" in found.lies[0]


def test_shifted_positions(model: Any, trace: Trace) -> None:
    labels = Labels(trace.labels.token_ids[:], trace.labels.positions[:])
    for at in range(len(labels)):
        labels.positions[at] += 3
    found = recompute(replace(trace, labels=labels), models.must_not_run(models.llama(initializer_range=0.2)))
    assert found.lies[0] == "snapshot 0: token 0 has position 3, where 0 follows"
    assert not found.snapshots
    # the rows of a text that stood three tokens further on
    later = capture(model, [1, 2, 3, *models.prompt(60)], steps=4)
    moved = [later.snapshot(n) for n in range(5)]
    own = {layer: (moved[-1].keys[layer][:, :, 3:], moved[-1].values[layer][:, :, 3:]) for layer in range(3)}

    def change(layer: int, rows: dict[Part, torch.Tensor]) -> None:
        count = rows[Part.KEYS].shape[2]
        if count > 4:
            rows[Part.KEYS][:] = own[layer][0][:, :, :count]
            rows[Part.VALUES][:] = own[layer][1][:, :, :count]

    assert recompute(changed(trace, change), model).lies[0].startswith("snapshot 0, layer 0, keys, head 0: row 0")


def test_a_snapshot_with_the_rows_of_another(model: Any, trace: Trace) -> None:
    def exchanged(one: Any, other: Any) -> Any:
        return replace(
            one,
            layers=tuple(
                (Span(0, spans[0].rows - 1), Span(other.layers[layer][-1].stop - 1, 1)) if layer == 1 else spans
                for layer, spans in enumerate(one.layers)
            ),
        )

    views = [*trace.views[:2], exchanged(trace.views[2], trace.views[4]), *trace.views[3:]]
    found = recompute(replace(trace, views=views), model)
    assert found.lies == ["snapshot 2, layer 1: row 61 has position 63, where 61 follows"]
    # and with the rows themselves exchanged under honest labels
    last = trace.snapshot(-1)

    def change(layer: int, rows: dict[Part, torch.Tensor]) -> None:
        if layer == 1:
            rows[Part.KEYS][:, :, 60:] = last.keys[1][:, :, [61, 60, 62, 63]]

    found = recompute(changed(trace, change), model)
    assert found.lies[0].startswith("snapshot 1, layer 1, keys, head 0: row 60 is ")
    assert [one.verdict for one in found.snapshots] == ["identical", "WRONG", "WRONG", "identical", "identical"]


def test_rows_of_another_token_at_its_position(model: Any, trace: Trace) -> None:
    labels = Labels(trace.labels.token_ids[:], trace.labels.positions[:])
    labels.extend([labels.token_ids[5] + 1], [5])
    row = len(labels) - 1
    spans = (Span(0, 5), Span(row, 1), Span(6, 54))
    views = [replace(trace.views[0], layers=(spans, *trace.views[0].layers[1:])), *trace.views[1:]]
    found = recompute(replace(trace, labels=labels, views=views), model)
    assert found.lies == [f"snapshot 0, layer 0: row {row} is that of another token than the one at its position 5"]


def test_a_header_that_says_another_codec(model: Any, trace: Trace, other: Trace, tmp_path: Path) -> None:
    fine = coded(trace, RECIPES["q8_0"], tmp_path / "t.tsc")
    found = recompute(replace(fine, codec="scalar", parameters={"bits": 4}), model)
    assert found.lies == []  # better than it says, and of these tokens
    found = recompute(replace(fine, codec="lossless", parameters={}), model)
    assert "of the RMS away" in found.lies[0]
    assert "the header says codec lossless and records are coded by scalar" in found.lies
    found = recompute(replace(fine, tier="lossless"), model)
    assert found.lies == ["the header says tier lossless and codec scalar"]
    # so coarse a codec that nobody could tell the rows of one text from those of another: that proves nothing
    for lying in (trace, other):
        rough = coded(replace(lying, labels=trace.labels), RECIPES["lossless"], tmp_path / "o.tsc")
        rough = replace(rough, codec="vq", parameters={"block": 16, "centroids": 2, "fallback": False})
        assert recompute(rough, model).lies
    for parameters in ({"bits": 99}, {"no": 1}):
        (line,) = recompute(replace(fine, parameters=parameters), model).lies
        assert line.startswith("the header's codec and parameters make no file: ")
    endless = replace(fine, codec="vq", parameters={"iterations": 10**12})
    assert "would never end" in recompute(endless, model).lies[0]


def test_a_codec_that_leaves_little(model: Any, trace: Trace, other: Trace, tmp_path: Path) -> None:
    # rows of another text would be as far away as what the codec loses by itself: what it leaves must be alike
    rough = Recipe("scalar", {"levels": 2, "keys": "token"})
    generator = torch.Generator().manual_seed(0)

    def noisy(layer: int, rows: dict[Part, torch.Tensor]) -> None:  # so that records are not the same bytes
        for part in rows.values():
            part.mul_(1 + 0.002 * torch.randn(part.shape, generator=generator))

    honest, lying = (
        recompute(coded(changed(one, noisy, labels=trace.labels), rough, tmp_path / f"{at}.tsc"), model)
        for at, one in enumerate((trace, other))
    )
    assert "within tolerance" in verdicts(honest)
    assert honest.lies == []
    assert lying.lies[0].endswith("that rows of another text would pass")


def distances(stored: torch.Tensor, own: float = 0.0, apart: float = 0.0, size: float = 1.0) -> Distances:
    """Of one head whose rows are all of one size; unrelated ones are 1 apart, and so is what the codec leaves."""
    like, one = torch.ones_like(stored), torch.ones(1, 1, dtype=torch.float64)
    identical = torch.zeros_like(stored, dtype=torch.bool)
    return Distances(stored, own * like, size * like, identical, apart * like, one, one)


def test_what_is_allowed() -> None:
    rows = torch.zeros(1, 1, 10_000, dtype=torch.float64)
    rounding, one_row = ROUNDING["float32"], rows.clone()
    one_row[0, 0, 77] = 1.1 * rounding.row  # of so many rows it does not show in their RMS
    assert judge(distances(one_row), "float32").share.argmax() == 77
    assert judge(distances(one_row), "float32").share.amax() == pytest.approx(1.1)
    assert judge(distances(one_row), "float16").share.amax() < 1
    head = 1.1 * rounding.head + rows  # no row is over its own limit, but together they are
    assert judge(distances(head), "float32").share.amax() == pytest.approx(1.1)
    assert judge(distances(1.1 * HEAD * 0.3 + rows, own=0.3), "float32").share.amax() == pytest.approx(1.1, rel=1e-3)
    assert judge(distances(0.3 + rows, own=0.3), "float32").share.amax() < 1
    one_row[0, 0, 77] = 0.04
    assert judge(distances(one_row, own=1e-3), "float32").share.amax() > 1
    assert judge(distances(one_row, own=1e-3), "float32", 0.05).share.amax() < 1  # the codec keeps what is over 5%
    # more loss than the spread of rows, or a promise of more than that: only what the codec leaves can tell
    for own, promise, spread in ((0.9, 0.0, 1.0), (0.0, 9.0, 0.05)):
        for apart, coarse in ((0.2, False), (0.31, True), (torch.inf, True)):
            found = replace(distances(own + rows, own, apart=apart), spread=torch.full((1, 1), spread))
            judged = judge(found, "float32", promise)
            assert bool(judged.coarse.all()) == coarse
            assert bool(judged.share.amax() < 1) != coarse
    far = distances(0.9 + rows, 0.9)
    far.apart[0, 0, 5] = 2.1
    assert judge(far, "float32").share.amax() == torch.inf


def test_a_stated_quality_that_is_too_good(model: Any, trace: Trace, tsc: Any, tmp_path: Path) -> None:
    folder, path = models.save_small_model(tmp_path / "model", model), tmp_path / "t.tsc"
    rough = Recipe("scalar", {"bits": 2})
    words = (path, "-m", folder, "--positions", 60, "--greedy", 0, "--recompute")
    coded(trace, rough, path)
    assert tsc("verify", *words, "--record").code == 0
    (stated,) = load(path).quality
    assert stated["kl_mean"] > 1e-4
    assert tsc("verify", *words).code == 0  # what it says is so
    record_quality(path, [stated | {"kl_mean": 1e-5}])
    refused = tsc("verify", *words, "--record")
    assert refused.code == 1
    assert "FAILED: snapshot 4: the header states a KL of 1e-05, " in refused.out
    assert load(path).quality[0]["kl_mean"] == 1e-5  # what lies gets no new record
    record_quality(path, [stated | {"snapshot": 0}])
    assert "not measured: the quality that the header states (--snapshots 0)" in tsc("verify", *words).out


def test_the_command(model: Any, other: Trace, tsc: Any, tmp_path: Path) -> None:
    folder, path = models.save_small_model(tmp_path / "model", model), tmp_path / "t.tsc"
    model = models.loaded(folder)
    trace = capture(model, models.prompt(60), options=CaptureOptions(steps=4, chunk=16, attention=True))
    save(trace, path)
    words = (path, "-m", folder, "--positions", 4, "--greedy", 0, "--recompute")
    done = tsc("verify", *words, "--require-identical", "--json")
    facts = done.json["recomputed"]
    assert (done.code, facts["schema"], facts["lies"]) == (0, "tsc.recompute/1", [])
    assert [one["verdict"] for one in facts["snapshots"]] == ["identical"] * 5
    assert facts["snapshots"][0]["new_tensors"] == facts["snapshots"][0]["identical_tensors"] == 360
    save(replace(other, labels=trace.labels), path, overwrite=True)
    assert verify(load(path), model, options=VerifyOptions(positions=4, greedy=0)).fidelity.kl_mean > 0
    assert tsc("verify", *words[:-1]).code == 0  # a measurement is none: only a threshold or --recompute refuses
    refused = tsc("verify", *words)
    assert refused.code == 1
    assert "WRONG" in refused.out
    assert "FAILED: snapshot 0, layer 0, keys, head 0: row 0 is " in refused.out
    labels = Labels(trace.labels.token_ids[:], trace.labels.positions[:])
    labels.positions[7] = 3
    save(replace(trace, labels=labels), path, overwrite=True)
    refused = tsc("verify", *words, "--json")
    assert (refused.code, refused.json["results"], refused.json["recomputed"]["snapshots"]) == (1, [], [])
    for wrong in (["--against", path, "--recompute"], ["--force-model-mismatch", "--recompute"]):
        assert tsc("verify", path, "-m", folder, *wrong).code == 2
    assert tsc("verify", path, "-m", folder, "--require-identical").code == 2


def test_rounding_can_be_refused(model: Any, tsc: Any, tmp_path: Path) -> None:
    folder, path = models.save_small_model(tmp_path / "model", model), tmp_path / "t.tsc"
    model.set_attn_implementation("eager")
    try:
        save(capture(model, models.prompt(60), steps=1), path)
    finally:
        model.set_attn_implementation("sdpa")
    words = ("verify", path, "-m", folder, "--positions", 4, "--greedy", 0, "--recompute")
    assert tsc(*words).code == 0
    refused = tsc(*words, "--require-identical")
    assert (refused.code, "tensors are not bit-identical" in refused.out) == (1, True)


def test_what_cannot_be_recomputed(model: Any, trace: Trace) -> None:
    with pytest.raises(MismatchError, match="architecture"):
        recompute(trace, models.mistral_sliding())
    with pytest.raises(MismatchError, match="layers of float32"):
        recompute(replace(trace, fingerprint={}), models.llama(layers=2))
    sample = SUPPORTED["whisper"]
    speech = sample.build(torch.float32)
    with pytest.raises(UsageError, match="does not hold what the encoder was fed"):
        recompute(capture_small(sample, speech, steps=1), speech)
