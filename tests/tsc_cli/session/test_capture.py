"""What capture records, and what it refuses."""

from __future__ import annotations

import io
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from formats.container.records import RecordType
from formats.errors import CorruptError, UsageError
from formats.file.check import check
from formats.file.reader import TraceFile
from formats.repair.recover import recover
from tests.support import models
from tests.support.traces import same_snapshots
from tsc_cli import capture, load
from tsc_cli.session.capture import capture_to_file, capture_to_sink
from tsc_cli.session.decode_loop import CaptureOptions


@pytest.fixture(scope="module")
def model() -> Any:
    return models.llama()


@pytest.mark.parametrize(
    ("steps", "every", "lengths"),
    [(0, 1, [9]), (3, 1, [9, 10, 11, 12]), (6, 3, [9, 12, 15]), (5, 3, [9, 12, 14]), (2, 9, [9, 11])],
)
def test_snapshots(model: Any, steps: int, every: int, lengths: list[int]) -> None:
    trace = capture(model, models.prompt(9), options=CaptureOptions(steps=steps, every=every))
    assert [view.tokens_seen for view in trace.views] == lengths
    assert trace.token_ids(0) == models.prompt(9)


def test_a_snapshot_names_the_token_that_was_fed_next(model: Any) -> None:
    trace = capture(model, models.prompt(9), steps=4)
    for number in range(4):
        assert trace.token_ids(number + 1)[-1] == trace.views[number].next_token


def test_a_prompt_in_chunks_gives_the_same_cache_within_rounding(model: Any) -> None:
    whole, chunked = (
        capture(model, models.prompt(40), options=CaptureOptions(steps=0, chunk=chunk)).snapshot() for chunk in (64, 7)
    )
    for a, b in zip(whole.keys + whole.values, chunked.keys + chunked.values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_sampled_steps_follow_the_seed(model: Any) -> None:
    runs = [
        capture(model, models.prompt(9), options=CaptureOptions(steps=8, temperature=1.0, seed=seed)).token_ids()
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_memory_file_and_pipe_hold_the_same(model: Any, tmp_path: Path) -> None:
    options = CaptureOptions(steps=3)
    path = tmp_path / "t.tsc"
    made = capture_to_file(model, models.prompt(9), path, options=options, deterministic=True)
    assert made.file_bytes == path.stat().st_size
    assert made.raw_bytes_trace == capture(model, models.prompt(9), options=options).raw_bytes
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as sink:
        capture_to_sink(model, models.prompt(9), sink, options=options, deterministic=True)
        sink.close()
        assert source.read() == path.read_bytes()


def test_deterministic_captures_are_equal_and_others_have_an_identity_of_their_own(model: Any, tmp_path: Path) -> None:
    def make(name: str, deterministic: bool) -> bytes:
        capture_to_file(
            model, models.prompt(9), tmp_path / name, options=CaptureOptions(steps=1), deterministic=deterministic
        )
        return (tmp_path / name).read_bytes()

    assert make("a", True) == make("b", True)
    assert make("c", False)[16:32] != make("d", False)[16:32]


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([1], {"every": 0}, "every must be at least 1"),
        ([1], {"chunk": 0}, "chunk must be at least 1"),
        ([1], {"steps": -1}, "must not be negative"),
        (torch.ones(2, 3, dtype=torch.int64), {"attention": True}, "attention is observed in one sequence"),
        (torch.ones(2, 3, dtype=torch.int64), {"reference": [1, 2]}, "a batch has no one text that followed"),
        (torch.ones(1, 3, dtype=torch.int64), {"attention_mask": [[1, 1]]}, "the attention mask is"),
        (torch.ones(1, 3, dtype=torch.int64), {"attention_mask": [[1, 0, 1]]}, "holes, or padding at the right"),
        (torch.ones(1, 3, dtype=torch.int64), {"attention_mask": [[1, 1, 0]]}, "holes, or padding at the right"),
        (torch.ones(2, 3, dtype=torch.int64), {"attention_mask": [[1] * 3, [0] * 3]}, "nothing but padding"),
        (torch.ones(1, 3, dtype=torch.int64), {"decoder_input_ids": [1]}, "has no encoder"),
        ([1] * 250, {"steps": 7}, "250 tokens and 7 steps make 257, which do not fit into the model's 256 positions"),
    ],
)
def test_refused(prompt: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        names = {field.name for field in fields(CaptureOptions)}
        options = CaptureOptions(**{name: value for name, value in settings.items() if name in names})
        others = {name: value for name, value in settings.items() if name not in names}
        capture(models.gpt2() if len(prompt) > 9 else models.llama(), prompt, options=options, **others)


def test_a_failed_capture_leaves_nothing_behind(model: Any, tmp_path: Path) -> None:
    calls: list[int] = []

    def progress(units: int) -> None:
        calls.append(units)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_to_file(model, models.prompt(9), tmp_path / "t.tsc", options=CaptureOptions(steps=9), progress=progress)
    assert list(tmp_path.iterdir()) == []


def test_reference_and_settings_are_in_the_file(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.tsc"
    options = CaptureOptions(steps=2, chunk=4)
    capture_to_file(model, models.prompt(9), path, options=options, reference=[7, 8, 99999], info={"model": "small"})
    trace = load(path)
    assert trace.reference == [7, 8, 99999]
    assert (trace.info["chunk"], trace.info["model"], trace.info["prompt_tokens"]) == (4, "small", 9)
    check(path)


def test_a_capture_that_is_cut_gives_the_snapshots_before(model: Any, tmp_path: Path) -> None:
    """Labels and views are written with each block of rows, so that what a killed capture leaves can be recovered."""
    sink, options = io.BytesIO(), CaptureOptions(steps=3, keyframe_interval=1)
    capture_to_sink(model, models.prompt(300), sink, options=options)
    whole, cut, saved = tmp_path / "whole.tsc", tmp_path / ".t.tsc.x.tmp", tmp_path / "saved.tsc"
    whole.write_bytes(sink.getvalue())
    check(whole)
    views = [(offset, entry) for offset, entry in TraceFile(whole).entries if entry.type == RecordType.VIEWS]
    assert len(views) == 4
    for number, (offset, entry) in enumerate(views):
        for length in (offset + 64 + entry.stored - 1, offset + 64 + entry.stored):
            cut.write_bytes(sink.getvalue()[:length])
            count = number + (length > offset + 64 + entry.stored - 1)
            if not count:
                with pytest.raises(CorruptError, match="no snapshot"):
                    recover(cut, saved)
                continue
            recover(cut, saved, overwrite=True)
            found = load(saved)
            assert len(found) == count
            assert all(same_snapshots(found.snapshot(at), load(whole).snapshot(at)) for at in range(count))
