"""A tier that a file states is kept by that file, whoever wrote it last; rows that lost something say so for ever."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import QuantizedCache

from formats import Trace, deduplicate, load, save
from formats.container.encryption import Secret
from formats.encode import write as compression
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import Header
from formats.errors import CorruptError, PromiseError, UsageError
from formats.file import promises, rewrite
from formats.file.reader import TraceFile
from formats.repair import recover
from formats.repair.diagnose import diagnose
from tests.format_conformance import samples
from tests.format_conformance.craft import HEADER, MODEL, Craft
from tests.format_conformance.second_reader import reader as second_reader
from tests.support import models
from tests.support.families import SUPPORTED
from tests.support.traces import FULL, full_trace, same_snapshots
from tests.tsc_cli.huggingface.test_foreign import batch
from tsc_cli import append, capture, compress, from_cache, verify
from tsc_cli.verification.recompute import recompute
from tsc_cli.verification.verify import VerifyOptions

SECRET = Secret.random()
KEEP = {"evict": "streaming", "evict_settings": {"sinks": 2, "window": 20}}
LOSSY = {
    "scalar": Recipe("scalar"),
    "delta": Recipe("delta"),
    "vq": Recipe("vq", {"block": 4}),
    "streaming+lossless": Recipe("lossless", **KEEP),
    "streaming+scalar": Recipe("scalar", **KEEP),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return models.llama(layers=4)


@pytest.fixture(scope="module")
def captured(model: Any) -> Trace:
    return capture(model, models.prompt(80), steps=30)


def ratio_of(path: Path) -> Fraction:
    file = TraceFile(path)
    return Fraction(file.header.raw_bytes_trace, file.size)


def digits(ratio: Fraction) -> str:
    """As a tier, rounded down to twelve decimals."""
    whole, part = divmod(ratio * 10**12 // 1, 10**12)
    return f"{whole}.{part:012d}x"


def stating(path: Path, target: Path, tier: str, codec: str = "") -> Path:
    """A copy of a file with another tier in its header, as a program that checks nothing writes it."""
    craft = Craft.of(path.read_bytes())
    craft[HEADER].edit_json(lambda value: value.update(tier=tier, **({"codec": codec} if codec else {})))
    for _ in range(4):  # the ratios are right: they are checked on their own
        length = len(craft.build())
        craft[HEADER].edit_json(
            lambda value, length=length: value.update(  # type: ignore[misc]
                ratio_trace=value["raw_bytes_trace"] / length, ratio_final=value["raw_bytes_final"] / length
            )
        )
    target.write_bytes(craft.build())
    return target


def refused_everywhere(path: Path, model: Any, lost_by: str) -> None:
    """Whatever takes rows for the captured ones refuses these, and names what they lost by."""
    trace, before = load(path), path.read_bytes()
    assert (trace.lost_by, TraceFile(path).lost_by) == (lost_by, lost_by)
    named = rf"was compressed.*\({lost_by.replace('+', '.')}\)"
    with pytest.raises(UsageError, match=named):
        append(model, [], path, steps=1)
    with pytest.raises(UsageError, match=named):
        compress(trace, path.with_name("never.tsc"), recipe=Recipe("scalar"))
    with pytest.raises(UsageError, match=named):
        verify(trace, model, against=trace, options=VerifyOptions(positions=4))
    assert path.read_bytes() == before
    assert not path.with_name("never.tsc").exists()


@pytest.mark.parametrize("name", LOSSY)
def test_what_is_lost_is_known_however_often_it_is_saved(
    name: str, model: Any, captured: Trace, tmp_path: Path
) -> None:
    small, again = tmp_path / "small.tsc", tmp_path / "again.tsc"
    compress(captured, small, recipe=LOSSY[name])
    refused_everywhere(small, model, name)
    save(load(small), again)
    save(load(again), again, overwrite=True)
    assert (load(again).codec, load(again).tier) == ("lossless", "")
    assert second_reader.read(again.read_bytes()).model["lost_by"] == name
    refused_everywhere(again, model, name)
    locked, plain, recovered = (tmp_path / f"{one}.tsc" for one in ("locked", "plain", "recovered"))
    with locked.open("wb") as sink:
        rewrite.encrypt(TraceFile(again), sink, SECRET)
    with plain.open("wb") as sink:
        rewrite.decrypt(TraceFile(locked, SECRET), sink)
    rewrite.record_quality(plain, [{"snapshot": 0, "kl_mean": 0.5}])
    recover.recover(plain, recovered)
    for path in (plain, recovered):
        refused_everywhere(path, model, name)
    assert load(locked, SECRET).lost_by == name
    assert all(same_snapshots(load(recovered).snapshot(n), load(small).snapshot(n)) for n in (0, 30))


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("again", [False, True])
def test_what_is_lost_is_known_when_the_header_is_not(name: str, again: bool, captured: Trace, tmp_path: Path) -> None:
    path, left = tmp_path / "t.tsc", tmp_path / "left.tsc"
    compress(captured, path, recipe=LOSSY[name])
    if again:
        save(load(path), path, overwrite=True)
    offset, _ = TraceFile(path).entries[-1]
    data = bytearray(path.read_bytes())
    data[offset + 70] ^= 0x55
    path.write_bytes(data)
    recover.recover(path, left)
    assert load(left).lost_by == (name if again else {"streaming+lossless": "eviction"}.get(name, name.split("+")[-1]))
    assert load(left).tier == ""


def test_what_states_lost_is_known_though_the_codec_is_lossless(tmp_path: Path) -> None:
    path, left = tmp_path / "t.tsc", tmp_path / "left.tsc"
    with path.open("wb") as sink:
        compression.write(Source(full_trace(finite=True)), Recipe("lossless", state_bits=8), sink)
    assert (load(path).codec, load(path).lost_by) == ("lossless", "scalar")
    with pytest.raises(UsageError, match=r"was compressed already \(scalar\)"):
        Source(load(path))
    craft = Craft.of(path.read_bytes())
    craft.records = [piece for piece in craft.records if piece.type != 0x0A or piece.first != 1]
    path.write_bytes(craft.build())
    recover.recover(path, left)
    assert load(left).lost_by == "scalar"


def test_what_is_lost_goes_with_sequences_and_snapshots(tmp_path: Path) -> None:
    model = SUPPORTED["llama"].build(torch.float32)
    ids, mask = batch()
    compress(capture(model, ids, attention_mask=mask, steps=2), tmp_path / "batch.tsc", recipe=Recipe("scalar"))
    one = load(tmp_path / "batch.tsc").sequence(1)
    save(one, tmp_path / "one.tsc")
    refused_everywhere(tmp_path / "one.tsc", model, "scalar")
    own = load(tmp_path / "one.tsc")
    save(deduplicate([own.snapshot(0), own.snapshot(2)], own.geometry, own.fingerprint), tmp_path / "own.tsc")
    refused_everywhere(tmp_path / "own.tsc", model, "scalar")
    assert load(tmp_path / "own.tsc").tier == ""


def test_what_a_quantized_cache_lost_is_known(tmp_path: Path) -> None:
    model, prompt = models.llama(), models.prompt(20)
    quantized = QuantizedCache("fp8", model.config)
    with torch.no_grad():
        model(torch.tensor([prompt]), past_key_values=quantized)
    with pytest.warns(UserWarning, match="dequantized"):
        trace = from_cache(quantized, model, prompt, next_tokens=[5])
    path = tmp_path / "t.tsc"
    save(trace, path)
    refused_everywhere(path, model, "Fp8QuantizedLayer, dequantized")
    assert load(path).tier == ""
    # files that were written before there was `lost_by` say it in `capture`, and still open
    craft = Craft.of(path.read_bytes())
    craft[MODEL].edit_json(lambda value: value.pop("lost_by"))
    path.write_bytes(craft.build())
    path.write_bytes(stating(path, path, "lossless").read_bytes())
    refused_everywhere(path, model, "Fp8QuantizedLayer, dequantized")


def test_rows_that_are_exact_say_nothing(model: Any, captured: Trace, tmp_path: Path) -> None:
    for path in (tmp_path / "a.tsc", tmp_path / "b.tsc"):
        save(captured if path.name == "a.tsc" else load(tmp_path / "a.tsc"), path)
        assert "lost_by" not in second_reader.read(path.read_bytes()).model
        assert (load(path).tier, load(path).lost_by, promises.loss_of_trace(captured)) == ("lossless", "", "")
    append(model, [], tmp_path / "b.tsc", steps=1)
    assert (load(tmp_path / "b.tsc").tier, load(tmp_path / "b.tsc").lost_by) == ("lossless", "")


def test_a_loss_before_the_file_is_no_lie_of_the_file(model: Any, captured: Trace, tmp_path: Path) -> None:
    compress(captured, tmp_path / "t.tsc", recipe=LOSSY["scalar"])
    assert recompute(load(tmp_path / "t.tsc"), model).lies == []
    save(load(tmp_path / "t.tsc"), tmp_path / "t.tsc", overwrite=True)
    with pytest.raises(UsageError, match=r"lossy before they came into it \(scalar\)"):
        recompute(load(tmp_path / "t.tsc"), model)
    compress(captured, tmp_path / "e.tsc", recipe=LOSSY["streaming+lossless"])
    save(load(tmp_path / "e.tsc"), tmp_path / "e.tsc", overwrite=True)
    assert recompute(load(tmp_path / "e.tsc"), model).lies == []  # the rows that are left are the captured ones


# The tier


def test_an_append_keeps_its_tier_or_states_none(model: Any, captured: Trace, tmp_path: Path) -> None:
    path = tmp_path / "t.tsc"
    save(captured, path)
    ratio = float(ratio_of(path))
    for tier, kept in ((f"{ratio - 0.5:.2f}x", False), ("2x", True)):
        compress(captured, path, tier=tier, overwrite=True)
        assert (load(path).tier, load(path).codec) == (tier, "lossless")
        done = append(model, models.prompt(60), path, steps=0)
        assert ratio_of(path) < ratio - 0.5
        assert (load(path).tier, done.tier, done.untrue) == ((tier, tier, "") if kept else ("", "", tier))
        second_reader.read(path.read_bytes())


def test_a_saved_trace_states_a_ratio_only_if_it_has_it(captured: Trace, tmp_path: Path) -> None:
    small, again = tmp_path / "small.tsc", tmp_path / "again.tsc"
    save(captured, small)
    wide, close = f"{float(ratio_of(small)) * 0.5:.3f}x", f"{float(ratio_of(small)) * 1.2:.3f}x"
    for tier, kept in ((wide, wide), (close, "")):
        compress(captured, small, tier=close, overwrite=True)
        assert load(small).codec != "lossless"
        save(replace(load(small), tier=tier), again, overwrite=True)
        assert load(again).tier == kept
    assert ratio_of(again) < Fraction(close[:-1]) <= ratio_of(small)


def test_a_tier_is_exact_to_the_last_digit(captured: Trace, tmp_path: Path) -> None:
    """Of a file whose length is known: the largest tier of twelve decimals is kept, and one more is not."""
    source, path = Source(captured), tmp_path / "t.tsc"

    def written(tier: str) -> int:
        with path.open("wb") as sink:
            _, length = compression.write(source, Recipe("scalar"), sink, header=Header(tier), file_id=bytes(16))
        return length

    raw = captured.raw_bytes
    shortest = written("1.000000000000x")
    kept = refused = exact = 0
    for length in range(shortest - 2, shortest + 40):  # the spelling of a tier is part of the length
        tier = digits(Fraction(raw, length))
        try:
            found = written(tier)
        except PromiseError:
            refused += 1
            continue
        kept += 1
        assert Fraction(tier[:-1]) * found <= raw
        if found == length:
            above = digits(Fraction(raw, length) + Fraction(1, 10**12))
            assert Fraction(above[:-1]) * found > raw
            with pytest.raises(PromiseError, match=r"x cannot be met: the file is [\d.]+ times smaller than its"):
                written(above)
            exact += 1
    assert min(kept, refused, exact) > 0


def test_a_header_that_states_what_the_file_has_not_is_refused(captured: Trace, tmp_path: Path) -> None:
    path, liar, left = (tmp_path / f"{name}.tsc" for name in ("t", "liar", "left"))
    save(captured, path)
    for tier, codec in (("125x", ""), ("60.0000x", ""), ("00060x", ""), ("lossless", "vq")):
        stating(path, liar, tier, codec)
        with pytest.raises(CorruptError, match=f"the tier header states tier {tier}, and ") as caught:
            load(liar)
        assert "tsc recover" in str(caught.value.hint)
        with pytest.raises(second_reader.Refused, match="tier"):
            second_reader.read(liar.read_bytes())
        assert any(f"states tier {tier}" in one.message and one.damage for one in diagnose(liar).problems)
        plan, _ = recover.recover(liar, left, overwrite=True)
        assert (plan.untrue, len(plan.numbers), load(left).tier) == (tier, len(captured), "")
        assert same_snapshots(load(left).snapshot(-1), captured.snapshot(-1))
    for fine in ("2x", "1x", "0.5x", "high", "60X", "+60x", "6e1x", "60,0x", "1x.", "x", "kl0.05", "9" * 21 + "x"):
        assert load(stating(path, liar, fine)).tier == fine
        second_reader.read(liar.read_bytes())


def test_a_promise_that_a_recipe_does_not_keep_is_refused(captured: Trace, tmp_path: Path) -> None:
    def write(recipe: Recipe, tier: str) -> Any:
        return compression.write(Source(captured), recipe, io.BytesIO(), header=Header(tier))

    for recipe, tier in (
        (Recipe("lossless"), "600x"),
        (Recipe("scalar"), "99999x"),
        (Recipe("scalar"), "lossless"),
        (Recipe("lossless", **KEEP), "lossless"),
        (Recipe("lossless"), "0.01bits"),
    ):
        with pytest.raises(PromiseError, match=f"{tier} cannot be met"):
            write(recipe, tier)
    for recipe, tier in ((Recipe("lossless"), "lossless"), (Recipe("lossless"), "99bits"), (Recipe("scalar"), "high")):
        assert write(recipe, tier)[0].tier == tier
    with pytest.raises(PromiseError) as caught:
        compress(captured, tmp_path / "never.tsc", tier="99999x")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "never.tsc").exists()


def test_bits_a_value_are_counted_again_when_a_session_grows(model: Any, tmp_path: Path) -> None:
    """New rows of another text take more bits than a file's first ones, of which many are alike."""
    path = tmp_path / "t.tsc"
    trace = capture(model, [7] * 120, steps=0)
    save(trace, path)
    bits = 8 * path.stat().st_size / Source(trace).stored_values
    tier = f"{bits + 0.05:.3f}bits"
    with path.open("wb") as sink:
        compression.write(Source(trace), Recipe("lossless"), sink, header=Header(tier))
    assert load(path).tier == tier
    append(model, models.prompt(200), path, steps=0)
    grown = load(path)
    assert 8 * path.stat().st_size / Source(grown).stored_values > bits + 0.05
    assert grown.tier == ""


def test_values_are_counted_as_they_are_stored() -> None:
    for trace in (samples.trace(), full_trace(finite=True), full_trace((FULL,), batch=3, padding=(2, 0, 1))):
        source = Source(trace)
        rows = sum(t.numel() for group in source.filtered(Recipe("lossless")).rows for t in group.rows.values())
        states = sum(one.read().numel() for one in trace.states)
        assert source.stored_values == rows + states


def test_names_of_tiers() -> None:
    assert promises.ratio_of("62.50x") == Fraction(125, 2)
    assert promises.bits_of("0.125bits") == Fraction(1, 8)
    for name in ("x", "60", "6e1x", "-6x", "60x ", "٦٠x", "1.x", ".5x", "lossless", "9" * 21 + "x"):
        assert promises.ratio_of(name) is None


def test_the_command_line_says_what_a_file_does_not_keep(tsc: Any, captured: Trace, tmp_path: Path) -> None:
    path, liar, left, again = (tmp_path / f"{name}.tsc" for name in ("t", "liar", "left", "again"))
    save(captured, path)
    stating(path, liar, "125x")
    assert (shown := tsc("inspect", liar)).code == 3
    assert "the tier header states tier 125x, and the file is" in shown.err
    assert "tsc recover writes a file of its rows" in shown.err
    assert (found := tsc("doctor", liar)).code == 3
    assert "damage: the tier header states tier 125x" in found.out
    assert "tsc recover can save 31 of 31 snapshots" in found.out
    done = tsc("recover", liar, "-o", left)
    assert (done.code, "its header was wrong, its rows are whole" in done.out) == (0, True)
    assert "tier 125x is not kept" in done.out
    assert tsc("recover", liar, "-o", left, "-f", "--json").json["tier_not_kept"] == "125x"
    assert re.search(r"^tier +none$", tsc("inspect", left).out, re.MULTILINE)
    assert tsc("doctor", left).code == 0
    compress(captured, path, recipe=LOSSY["scalar"], overwrite=True)
    save(load(path), again)
    assert re.search(r"^lost by +scalar: the rows are not as captured$", tsc("inspect", again).out, re.MULTILINE)
    assert "lost by" not in tsc("inspect", path).out
    assert [tsc("inspect", one, "--json").json["lost_by"] for one in (path, again, left)] == ["scalar", "scalar", None]
    assert "note: the rows are not as captured: scalar" in tsc("doctor", again).out
    refused = tsc("compress", again, "-t", "2x", "--no-verify", "-o", left, "-f")
    assert (refused.code, "was compressed already (scalar)" in refused.err) == (2, True)
