"""Limits and requests that no small file comes near: with the limits lowered, they are kept."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest

from formats import deduplicate, load
from formats.codecs.klt import profile_store
from formats.container.reader import RecordReader
from formats.container.records import RecordType
from formats.container.writer import RecordWriter
from formats.encode.recipe import recipe_of
from formats.errors import CorruptError, LimitError, StorageError, UsageError
from formats.file import check
from formats.limits import FREE_RAW, GIB, memory_budget
from formats.repair.diagnose import diagnose
from formats.trace.distortion import relative_error
from formats.trace.eviction import apply
from formats.trace.views import Span
from tests.format_conformance import samples
from tests.support.traces import FULL, SLIDING, finite_rows, growing_trace


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("reader.MAX_ROWS", 10, "labels: more than 10 token ids"),
        ("reader.MAX_NEXT_TOKENS", 3, "more than 3 next tokens"),
        ("reader.MAX_SPANS", 2, "views: more than 2 spans"),
        ("record_contents.MAX_LABELS_PER_RECORD", 2, "a labels record holds too many rows"),
        ("record_contents.MAX_BLOCK_BYTES", 9, "a block of more than 9 bytes"),
    ],
)
def test_files_beyond_a_limit(
    limit: str, value: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "padded.tsc"
    path.write_bytes(samples.sample("by hand, padded"))
    assert check.check(path)
    monkeypatch.setattr(f"formats.file.{limit}", value)
    with pytest.raises(CorruptError, match=message):
        check.check(path)


def test_a_writer_makes_nothing_that_no_reader_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    writer = RecordWriter(sink, bytes(16))
    with pytest.raises(LimitError, match="bytes that are all alike"):
        writer.record(RecordType.ROWS, bytes(FREE_RAW + 1))
    written = sink.tell()
    writer.record(RecordType.ROWS, b"one")
    entry = writer.entries[0][1]
    with pytest.raises(ValueError, match="in order"):
        writer.copy_record(b"one", entry)
    monkeypatch.setattr("formats.limits.MAX_RECORD_RAW", 3)
    length = sink.tell()
    with pytest.raises(LimitError, match="records of at most 3 bytes"):
        writer.record(RecordType.ROWS, b"four")
    monkeypatch.setattr("formats.limits.MAX_RECORDS", 3)
    with pytest.raises(LimitError, match="a file holds at most 3 records"):
        writer.record(RecordType.ROWS, b"two")
    assert (written, sink.tell()) == (64, length)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sample.tsc"
    path.write_bytes(samples.valid())
    trace = load(path)
    os.truncate(path, 200)
    with pytest.raises(CorruptError, match="truncated while it was being read"):
        trace.snapshot()


def test_a_descriptor_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: Bad file descriptor"):
        RecordReader(-1, "nothing")


def test_a_disk_that_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sample.tsc"
    path.write_bytes(samples.valid())
    trace = load(path)

    def fails(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(StorageError, match=r"cannot be read: Input/output error .*byte"):
        trace.snapshot()
    with pytest.raises(StorageError, match="cannot be read: Input/output error"):
        diagnose(path)


def test_requests_for_what_there_is_not() -> None:
    trace = growing_trace((FULL, SLIDING))
    for layers in ([2], [-1]):
        with pytest.raises(UsageError, match=f"there is no layer {layers[0]}"):
            trace.snapshot(layers=layers)
    for values, message in (
        ({"exact_last": "some"}, "exact_last=some is not a number of rows"),
        ({"exact_sinks": "²"}, "exact_sinks=² is not a number of rows"),
        ({"state_bits": "1"}, "state_bits=1 is neither 0 nor from 2 to 16"),
    ):
        with pytest.raises(UsageError, match=message):
            recipe_of("scalar", "", values)
    with pytest.raises(UsageError, match="there is no filter"):
        recipe_of("scalar", "half", {})


def test_what_cannot_be_deduplicated() -> None:
    trace = growing_trace()
    geometry = dataclasses.replace(trace.geometry, batch=2, padding=(1, 0))
    with pytest.raises(UsageError, match="only full and sliding layers without states can be deduplicated"):
        deduplicate([trace.snapshot()], geometry, {})


def test_attention_says_nothing_of_rows_that_moved() -> None:
    trace = samples.attended(growing_trace((FULL, FULL), keyframe_interval=2))
    with pytest.raises(UsageError, match="h2o needs snapshots that grow from the first one"):
        apply("h2o", {"keep": 0.5}, trace)
    trace = samples.attended(growing_trace((FULL, FULL)))
    first = trace.views[0]
    rows = first.layers[0][0].rows
    halves = (Span(0, 2), Span(3, rows - 3))
    for layers in ((halves, halves), (first.layers[0], (Span(0, rows - 1),))):
        trace.views[0] = dataclasses.replace(first, layers=layers)
        with pytest.raises(UsageError, match="h2o needs a first snapshot whose full-attention layers hold the same"):
            apply("h2o", {"keep": 0.5}, trace)


def test_rows_of_another_shape_are_wholly_wrong() -> None:
    one, other = growing_trace((FULL,), rows=finite_rows), growing_trace((FULL,), rows=finite_rows)
    assert relative_error(one, one, 0) == 0
    other.views[0] = dataclasses.replace(other.views[0], layers=((Span(0, 3),),))
    assert relative_error(one, other, 0) == 1


def test_the_budget_where_the_machine_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.delenv("TSC_MEMORY_BUDGET", raising=False)
    assert memory_budget() > 1 << 20
    monkeypatch.setattr(os, "sysconf", unknown)
    assert memory_budget() == 64 * GIB
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "12345")
    assert memory_budget() == 12345


def test_profiles_that_begin_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_store, "remembered", {})
    monkeypatch.setattr(profile_store, "folder", lambda: tmp_path)
    alike = [("one", "abcdef0" + "0" * 57), ("two", "abcdef1" + "0" * 57)]
    profiles: list[Any] = [type("Profile", (), {"digest": digest, "name": name}) for name, digest in alike]
    monkeypatch.setattr(profile_store, "matching", lambda _: ((tmp_path / one.name, one) for one in profiles))
    for search in (profile_store.find, profile_store.resolve):
        with pytest.raises(UsageError, match="2 profiles begin with abcdef"):
            search("abcdef")
        with pytest.raises(UsageError, match="is not a profile"):
            search("ABC")


def test_a_folder_of_profiles_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone.klt"
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(Path, "glob", lambda *_: iter([gone]))
    assert list(profile_store.installed()) == []  # it went away between the listing and the look at it


def test_a_digest_of_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "some").write_bytes(b"some")
    assert profile_store.digest_of_file(tmp_path / "some") == hashlib.sha256(b"some").hexdigest()
    assert profile_store.digest_of_file(tmp_path / "none") == ""
