"""Two readers, one written from the specification alone, agree on what a file is and what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from random import Random

import pytest

from formats import LayerSpec, Snapshot, Trace, deduplicate, integrity, load
from formats.errors import CorruptError, TscError, UnsupportedFileError
from formats.geometry import DTYPE_BYTES
from tests import second_reader
from tests.format import liars_json, liars_tables, samples
from tests.format.liars import LIARS, Liar
from tests.format.mutate import mutant
from tests.traces import FULL, SLIDING, UNEVEN, growing_trace, octets

assert liars_json
assert liars_tables  # importing these adds their files to LIARS

WIDE = LayerSpec("sliding", heads=3, key_size=1, value_size=5, window=2)


def first_reader(path: Path) -> Trace | TscError:
    """What the product makes of a file; exceptions of any other kind fail the test."""
    try:
        return integrity.check(path).trace()
    except (CorruptError, UnsupportedFileError) as refused:
        return refused


def open_lazily(path: Path, number: int) -> None:
    """What `check` refuses may open, and give snapshots of rows that are in order, but fails in no other way."""
    with suppress(CorruptError, UnsupportedFileError):
        trace = load(path)
        trace.snapshot(number % len(trace))


def other_reader(data: bytes) -> second_reader.Document | second_reader.Refused:
    try:
        return second_reader.read(data)
    except second_reader.Refused as refused:
        return refused


def assert_same_content(trace: Trace, document: second_reader.Document, only: int | None = None) -> None:
    """Everything that both found in a file, with the tensors of all snapshots or of one."""
    assert len(trace) == len(document.snapshots)
    assert trace.reference == document.reference
    assert list(trace.labels.token_ids) == document.token_ids
    assert list(trace.labels.positions) == document.positions
    assert trace.raw_bytes == sum(map(document.raw_bytes, range(len(trace))))
    assert document.header["capture"] == trace.info
    assert document.header["quality"] == trace.quality
    assert document.model["fingerprint"] == trace.fingerprint
    for number in range(len(trace)) if only is None else [only % len(trace)]:
        snapshot = trace.snapshot(number)
        tensors = [(octets(k), octets(v)) for k, v in zip(snapshot.keys, snapshot.values, strict=True)]
        assert tensors == document.snapshot(number)
        assert snapshot.token_ids == document.history(number)
        assert snapshot.next_token == document.next_token(number)
        rows = {-1: [], **{layer: [] for layer in range(len(tensors))}}  # type: dict[int, list[int]]
        for first, layers, spans in document.snapshots[number].groups():
            for layer in range(first, first + layers):
                rows[layer] += [document.positions[row] for span in spans for row in range(*span)]
        assert [snapshot.positions, *snapshot.row_positions] == [rows[layer] for layer in sorted(rows)]


def edited_trace() -> Trace:
    """Snapshots that drop, replace and reorder rows, as no growing cache does."""
    whole = growing_trace((FULL, UNEVEN), dtype="float16", lengths=(6, 9)).snapshot()
    snapshots = []
    for order in ([0, 1, 2, 3, 4], [0, 3, 4, 5, 7, 8], [8, 7, 2, 1, 0], [3]):
        keys, values = ([rows[:, :, order].clone() for rows in side] for side in (whole.keys, whole.values))
        positions = [whole.positions[at] for at in order]
        tokens = [whole.token_ids[at] for at in order]
        snapshots.append(Snapshot(keys, values, [positions] * 2, tokens, positions))
    snapshots[2].values[1][0, 0, 0, 0] = 1.0
    return deduplicate(snapshots, growing_trace((FULL, UNEVEN), dtype="float16", lengths=(6, 9)).geometry)


VALID: dict[str, Callable[[], Trace]] = {
    **{f"all layers in {dtype}": partial(growing_trace, dtype=dtype) for dtype in DTYPE_BYTES},
    "batch of 3": lambda: growing_trace(batch=3, dtype="float32"),
    "one token": lambda: growing_trace((FULL,), lengths=(1,)),
    "one row, one head": lambda: growing_trace((LayerSpec("full", 1, 1, 1),), lengths=(1, 2)),
    "narrow window": lambda: growing_trace((WIDE, FULL, WIDE), lengths=(2, 3, 9), batch=2),
    "sliding only": lambda: growing_trace((SLIDING, SLIDING), lengths=(3, 20)),
    "keyframes": lambda: growing_trace(keyframe_interval=2, lengths=(5, 6, 7, 8, 9)),
    "same length twice": lambda: growing_trace(lengths=(4, 4, 6)),
    "many layers": lambda: growing_trace((FULL, SLIDING, UNEVEN) * 20, lengths=(3, 5)),
    "more rows than a block": lambda: growing_trace((UNEVEN,), lengths=(1_500, 2_600)),
    "edited caches": edited_trace,
    "every record": samples.trace,
}


@pytest.mark.parametrize("name", VALID)
def test_valid_files(name: str, tmp_path: Path) -> None:
    data = samples.file_bytes(VALID[name]())
    path = tmp_path / "valid.tsc"
    path.write_bytes(data)
    trace, document = first_reader(path), other_reader(data)
    assert isinstance(trace, Trace)
    assert isinstance(document, second_reader.Document)
    assert_same_content(trace, document)


@pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.name)
def test_liars(liar: Liar) -> None:
    with pytest.raises(second_reader.Refused, match=r"^(corrupt|unsupported): "):
        second_reader.read(liar.build(samples.valid()))


@cache
def bases() -> list[bytes]:
    small = growing_trace((FULL, FULL, SLIDING), lengths=(3, 5, 6), dtype="float8_e4m3fn")
    small.reference = [40, 41]
    return [samples.file_bytes(small), samples.file_bytes(edited_trace()), samples.valid()]


def compare_mutants(numbers: Iterable[int], path: Path) -> Counter[str]:
    """Both readers on mutants of these numbers; returns how many had which outcome."""
    outcomes: Counter[str] = Counter()
    for number in numbers:
        random = Random(number)
        data = mutant(random.choice(bases()), random)
        path.write_bytes(data)
        first, second = first_reader(path), other_reader(data)
        if isinstance(second, second_reader.Refused) and str(second).startswith("budget:"):
            outcomes["refused by both" if isinstance(first, TscError) else "over budget"] += 1
        elif isinstance(first, TscError) or isinstance(second, second_reader.Refused):
            assert isinstance(first, TscError) and isinstance(second, second_reader.Refused), (  # noqa: PT018
                f"mutant {number}: {first!r} and {second!r}"
            )
            outcomes["refused by both"] += 1
            open_lazily(path, number)
        else:
            assert_same_content(first, second, only=number)
            outcomes["accepted by both"] += 1
    return outcomes


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(range(3_000), id="3000"),
        pytest.param(range(3_000, 103_000), id="100000", marks=pytest.mark.full),
    ],
)
def test_mutants(numbers: range, tmp_path: Path) -> None:
    outcomes = compare_mutants(numbers, tmp_path / "mutant.tsc")
    print(dict(outcomes))
    assert outcomes["over budget"] < len(numbers) / 1_000
    assert outcomes["accepted by both"] > len(numbers) / 50  # else the mutants do not get far
