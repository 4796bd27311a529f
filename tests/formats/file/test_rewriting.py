"""A file that takes another one's place is one that can be opened, and of the same content; or nothing happens."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from formats import LayerSpec, load, save
from formats.container.atomic_write import only_writer
from formats.container.encryption import Secret
from formats.errors import CorruptError, LimitError, LockedError, StorageError
from formats.file import check, rewrite
from formats.file.reader import TraceFile
from formats.repair.scan import DamagedFile
from tests.format_conformance import samples
from tests.support.traces import finite_rows, growing_trace, same_snapshots


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "t.tsc"
    path.write_bytes(samples.valid())
    return path


def records(count: int) -> list[dict[str, Any]]:
    return [{"snapshot": number, "kl_mean": 0.1, "words": "x" * 200} for number in range(count)]


def test_more_measurements_than_a_header_holds_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="nothing was written, since no reader would take it"):
        rewrite.record_quality(path, records(6_000))
    assert path.read_bytes() == samples.valid()
    assert {one.name for one in tmp_path.iterdir()} <= {"t.tsc", ".t.tsc.lock"}
    rewrite.record_quality(path, records(2_000))
    assert len(load(path).quality) == 2_000


def test_measurements_are_recorded_by_one_process_at_a_time(path: Path) -> None:
    with only_writer(path), pytest.raises(StorageError, match="another process is writing to it"):
        rewrite.record_quality(path, [])


def test_measurements_go_into_the_file_that_was_measured(path: Path, tmp_path: Path) -> None:
    measured = TraceFile(path)
    rewrite.record_quality(path, records(1), measured=measured)
    rewrite.record_quality(path, records(2), measured=measured)  # another header is no other content
    assert len(load(path).quality) == 2
    save(growing_trace(lengths=(3, 4)), path, overwrite=True)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="changed while it was being measured: nothing was recorded"):
        rewrite.record_quality(path, records(1), measured=measured)
    assert path.read_bytes() == before


def test_a_tier_that_a_longer_file_does_not_keep_is_not_stated(tmp_path: Path) -> None:
    path = tmp_path / "t.tsc"
    spec = LayerSpec("full", 2, 16, 16)
    save(growing_trace([spec] * 2, lengths=range(40, 60), dtype="float32", rows=finite_rows), path)
    header = TraceFile(path).header
    ratio = header.raw_bytes_trace / path.stat().st_size

    def stated(tier: str, make: Any) -> str:
        file = TraceFile(path)
        file.header = replace(file.header, tier=tier)
        sink = io.BytesIO()
        found, length = make(file, sink)
        assert length == len(sink.getvalue())
        return str(found.tier)

    def encrypted(file: TraceFile, sink: Any) -> Any:
        return rewrite.encrypt(file, sink, Secret.random())

    close, wide = f"{ratio - 1e-4:.6f}x", f"{ratio / 2:.6f}x"
    assert ratio > 2
    assert stated(close, encrypted) == ""
    assert stated(wide, encrypted) == wide
    assert stated("99999x", encrypted) == ""  # nor was it kept before
    assert (stated("999bits", encrypted), stated("0.5bits", encrypted)) == ("999bits", "")
    assert stated("lossless", encrypted) == "lossless"
    assert stated("of another program", encrypted) == "of another program"


def test_a_plain_file_in_place_of_an_encrypted_one_is_not_recovered_from(path: Path) -> None:
    """Nor one whose damage hides whether it was encrypted: without its first bytes nothing opens such a file."""
    data = bytearray(path.read_bytes())
    for at in (33, 40, 60):
        data[at] ^= 0x55
    for octets, error, message in (
        (samples.valid(), LockedError, "is not encrypted, and a key was given"),
        (bytes(data), CorruptError, "no longer says how the file is encrypted"),
    ):
        path.write_bytes(octets)
        assert len(DamagedFile(path).records) == len(TraceFile(_sound(path)).entries) + 2
        with pytest.raises(error, match=message):
            DamagedFile(path, Secret.random())


def _sound(path: Path) -> Path:
    whole = path.with_name("sound.tsc")
    whole.write_bytes(samples.valid())
    return whole


def test_a_chain_is_held_against_the_budget_while_it_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty blocks that wait for the one below them take memory, too, long before the first one is done."""
    path = tmp_path / "t.tsc"
    path.write_bytes(samples.chained(60))
    block = check.check(path).blocks[-1]
    expected = load(path).snapshot()
    monkeypatch.setenv("TSC_MEMORY_BUDGET", str(10 * block.header.raw))
    with pytest.raises(LimitError, match="predictions take more than the budget"):
        TraceFile(path).blocks[-1].read()
    monkeypatch.setenv("TSC_MEMORY_BUDGET", str(90 * block.header.raw))
    assert same_snapshots(load(path).snapshot(), expected)
