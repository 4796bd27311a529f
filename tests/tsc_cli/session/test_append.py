"""A session grows: its file is the old one and what is new, whoever reads, writes or is killed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from formats import load, save
from formats.container.atomic_write import only_writer
from formats.encode.recipe import Recipe
from formats.errors import LimitError, MismatchError, StorageError, UsageError
from formats.file.check import check
from formats.file.reader import TraceFile
from tests.format_conformance.second_reader import reader as second_reader
from tests.format_conformance.test_second_reader import assert_same_content
from tests.support import models
from tests.support.families import PROMPT, SUPPORTED
from tests.support.family_runs import capture_small
from tests.support.traces import same_snapshots
from tests.tsc_cli.huggingface.test_foreign import batch
from tsc_cli import capture, compress, from_cache, to_cache, verify_snapshots
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import feed, prefill
from tsc_cli.session.append import append
from tsc_cli.session.capture import capture_to_file
from tsc_cli.session.decode_loop import CaptureOptions
from tsc_cli.session.replay import Feed, feeds_of, feeds_text
from tsc_cli.verification.verify import VerifyOptions

MORE = [9, 8, 7, 6, 5]


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral-sliding", "gemma3n", "qwen3_next", "mamba", "t5"])
def test_the_file_is_the_old_one_and_what_is_new(family: str, tmp_path: Path) -> None:
    model, path = SUPPORTED[family].build(torch.float32), tmp_path / "t.tsc"
    save(capture_small(SUPPORTED[family], model, steps=3), path)
    before, data, header = load(path), path.read_bytes(), TraceFile(path).entries[-1][0]
    last = before.views[-1].next_token
    done = append(model, MORE, path, options=CaptureOptions(steps=2, chunk=3))
    assert (done.new_snapshots, done.snapshots, done.new_tokens) == (3, 7, 8)
    done = append(model, [], path, options=CaptureOptions(steps=4, every=2))  # goes on with the token that was chosen
    after = load(path)
    check(path)
    assert_same_content(after, second_reader.read(path.read_bytes()))
    assert (len(after), done.tokens) == (9, len(after.token_ids()))
    assert path.read_bytes().startswith(data[:header])  # all but the tier header, the index and the end mark
    for number in range(len(before)):
        assert same_snapshots(after.snapshot(number), before.snapshot(number))
    tokens = after.token_ids()
    assert tokens[: len(before.token_ids())] == before.token_ids()
    assert tokens[len(before.token_ids()) :][:6] == [last, *MORE]
    live = to_cache(before, model)
    feed(ModelAdapter(model), live, [last])
    feed(ModelAdapter(model), live, MORE[:3])
    feed(ModelAdapter(model), live, MORE[3:])
    assert caches.identical(to_cache(after, model, 4), live)
    for token in tokens[len(before.token_ids()) + 6 :]:
        feed(ModelAdapter(model), live, [token])
    assert caches.identical(to_cache(after, model), live)
    results = verify_snapshots(after, model, range(len(after)), options=VerifyOptions(positions=4, greedy=2))
    assert all(result.identical and result.fidelity.kl_mean == 0 for result in results)


def test_a_session_in_parts_is_the_session_in_one(tmp_path: Path) -> None:
    model = models.llama()
    prompt = models.prompt(20)
    whole = capture(model, prompt, steps=12)
    capture_to_file(model, prompt, tmp_path / "t.tsc", options=CaptureOptions(steps=0))
    for _ in range(4):
        append(model, [], tmp_path / "t.tsc", steps=3)
    parts = load(tmp_path / "t.tsc")
    assert len(parts) == len(whole)
    assert all(same_snapshots(parts.snapshot(number), whole.snapshot(number)) for number in range(13))
    assert feeds_of(parts) == [Feed(20, 1024), Feed(12, 1)]
    assert parts.info["appended"] == 4


def test_what_cannot_go_on_is_refused(tmp_path: Path) -> None:
    model, path = models.llama(), tmp_path / "t.tsc"
    trace = capture(model, models.prompt(20), steps=2)
    save(trace, path)
    data = path.read_bytes()
    compress(trace, tmp_path / "small.tsc", recipe=Recipe("scalar"))
    with pytest.raises(UsageError, match="was compressed"):
        append(model, MORE, tmp_path / "small.tsc")
    with pytest.raises(UsageError, match="there is nothing to append"):
        append(model, [], path, steps=0)
    with pytest.raises(MismatchError, match="weights"):
        append(_other(), MORE, path)
    short = SUPPORTED["llama"].build(torch.float32)
    ids, mask = batch()
    save(capture(short, ids, attention_mask=mask, steps=0), tmp_path / "batch.tsc")
    with pytest.raises(UsageError, match="holds a batch"):
        append(short, MORE, tmp_path / "batch.tsc")
    cache, _ = prefill(ModelAdapter(model), PROMPT, chunk=64)
    save(from_cache(cache, model, PROMPT), tmp_path / "own.tsc")
    with pytest.raises(UsageError, match="chose no next token"):
        append(model, [], tmp_path / "own.tsc", steps=1)
    assert path.read_bytes() == data
    assert not list(tmp_path.glob(".*.tmp"))


def _other() -> Any:
    model = models.llama()
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    return model


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    model, path = models.llama(), tmp_path / "t.tsc"
    save(capture(model, models.prompt(20), steps=0), path)
    with only_writer(path), pytest.raises(StorageError, match="another process is writing to it"):
        append(model, [], path, steps=1)
    append(model, [], path, steps=1)
    assert len(load(path)) == 2


def test_a_link_stays_a_link_and_its_target_grows(tmp_path: Path) -> None:
    model, path, link = models.llama(), tmp_path / "t.tsc", tmp_path / "link.tsc"
    save(capture(model, models.prompt(20), steps=0), path)
    link.symlink_to(path)
    with only_writer(path), pytest.raises(StorageError, match="another process is writing to it"):
        append(model, [], link, steps=1)
    append(model, [], link, steps=1)
    assert link.is_symlink()
    assert len(load(path)) == 2


def test_an_append_after_which_nobody_could_open_the_session_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = models.llama(), tmp_path / "t.tsc"
    save(capture(model, models.prompt(20), steps=0), path)
    before = path.read_bytes()
    monkeypatch.setattr("formats.file.reader.MAX_COLUMNS", 2 * len(load(path).geometry.layers))
    with pytest.raises(LimitError, match="nothing was written, since no reader would take it"):
        append(model, [], path, steps=2)
    assert path.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} <= {"t.tsc", ".t.tsc.lock"}


def test_feeds_as_text() -> None:
    assert (
        feeds_text([Feed(1024, 512), Feed(3, 1), Feed(4, 1), Feed(20, 1024), Feed(1, 1)]) == "1024/512,7/1,20/1024,1/1"
    )


def test_the_command(tsc: Any, tmp_path: Path) -> None:
    folder, path = models.save_small_model(tmp_path / "model"), tmp_path / "t.tsc"
    assert tsc("capture", "Once upon a time", "-m", folder, "--steps", 2, "-o", path).code == 0
    done = tsc("capture", "--append", path, " there was", "-m", folder, "--steps", 3, "--json")
    assert (done.code, done.json["schema"]) == (0, "tsc.append/1")
    assert (done.json["new_tokens"], done.json["new_snapshots"], done.json["snapshots"]) == (14, 4, 7)
    shown = tsc("capture", "--append", path, "-m", folder, "--steps", 1)
    assert "1 tokens and 1 snapshots more, 33 and 8 in all" in shown.out
    assert tsc("verify", path, "-m", folder, "--positions", 4, "--greedy", 2, "-q").out == "0\n"
    for wrong in (("--output", tmp_path / "o.tsc"), ("--context", 3), ("--attention",), ("--dtype", "float16")):
        refused = tsc("capture", "--append", path, "x", "-m", folder, *wrong)
        assert (refused.code, f"{wrong[0]} has no meaning with --append" in refused.err) == (2, True)
    empty = tsc("capture", "--append", path, "", "-m", folder)
    assert (empty.code, "the prompt is empty" in empty.err) == (2, True)
    missing = tsc("capture", "--append", tmp_path / "none.tsc", "x", "-m", folder)
    assert (missing.code, "cannot be opened" in missing.err) == (2, True)
    assert not (tmp_path / "none.tsc").exists()
