"""Two readers, one written from the specification alone, agree on what a file is and what it holds."""

from __future__ import annotations

import math
import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from formats import LayerSpec, Snapshot, Trace, deduplicate, load
from formats.codecs import CODECS
from formats.container.encryption import Secret
from formats.errors import CorruptError, LimitError, LockedError, TscError, UnsupportedFileError
from formats.file import check
from formats.trace.geometry import DTYPE_BYTES
from tests.format_conformance import (
    liars_codecs,
    liars_json,
    liars_klt,
    liars_profile,
    liars_states,
    liars_tables,
    samples,
    samples_encrypted,
    samples_states,
)
from tests.format_conformance.craft import Craft
from tests.format_conformance.liars import LIARS, Liar
from tests.format_conformance.mutate import mutant
from tests.format_conformance.seal import Seal
from tests.format_conformance.second_reader import reader as second_reader
from tests.support.traces import FULL, SLIDING, UNEVEN, finite_rows, growing_trace, octets, same_bits

assert liars_codecs
assert liars_json
assert liars_klt
assert liars_profile
assert liars_states
assert liars_tables  # importing these adds their files to LIARS

WIDE = LayerSpec("sliding", heads=3, key_size=1, value_size=5, window=2)


def key(*_: object) -> Secret:
    """That of encrypted files; of others nobody asks for one."""
    return samples_encrypted.secret_of(samples_encrypted.KEY)


def first_reader(path: Path) -> Trace | TscError:
    """What the product makes of a file that it reads to the last row; other exceptions fail the test."""
    try:
        trace = check.check(path, key).trace()
        for block in trace.blocks:
            block.read()
    except (CorruptError, UnsupportedFileError, LockedError) as refused:
        return refused
    return trace


def open_lazily(path: Path, number: int) -> None:
    """What `check` refuses may open, and give snapshots of rows that are in order, but fails in no other way."""
    with suppress(CorruptError, UnsupportedFileError, LockedError, LimitError):
        trace = load(path, key)
        trace.snapshot(number % len(trace))


def other_reader(data: bytes) -> second_reader.Document | second_reader.Refused:
    try:
        return second_reader.read(data, secret=samples_encrypted.KEY)
    except second_reader.Refused as refused:
        return refused


def assert_same_content(trace: Trace, document: second_reader.Document, only: int | None = None) -> None:
    """Everything that both found in a file, with the tensors of all snapshots or of one."""
    assert len(trace) == len(document.snapshots)
    assert trace.reference == document.reference
    assert list(trace.labels.token_ids) == document.labels.reshape(-1).tolist()
    assert list(trace.geometry.padding or [0] * trace.geometry.batch) == document.geometry.padding
    assert list(trace.labels.positions) == document.positions
    header = document.header
    assert (trace.raw_bytes, trace.raw_bytes_final) == (header["raw_bytes_trace"], header["raw_bytes_final"])
    assert (trace.tier, trace.codec, trace.parameters, trace.info, trace.quality) == (
        header["tier"],
        header.get("codec", ""),
        header.get("parameters", {}),
        header["capture"],
        header["quality"],
    )
    assert document.model["fingerprint"] == trace.fingerprint
    assert document.model.get("lost_by", trace.lost_by) == trace.lost_by
    assert [(one.first_layer, one.layer_count, octets(one.read())) for one in trace.attention] == [
        (one.layers.start, len(one.layers), one.received) for one in document.attention
    ]
    for number in range(len(trace)) if only is None else [only % len(trace)]:
        snapshot = trace.snapshot(number)
        assert_same_values(snapshot, document, number)
        assert snapshot.token_ids == document.history(number)
        assert snapshot.next_token == document.next_token(number)
        assert snapshot.positions == document.history_positions(number)
        heads = [spec.heads for spec in trace.geometry.layers]
        assert [
            positions.expand(count, -1).tolist() for positions, count in zip(snapshot.row_positions, heads, strict=True)
        ] == document.row_positions(number)


def assert_same_values(snapshot: Snapshot, document: second_reader.Document, number: int) -> None:
    """Equal to the last bit; near where a matrix was multiplied with, whose sums have no order of their own."""
    rotated = uses_rotation(document)
    transformed = any(record.codec == 6 for record in document.rows.stored)
    indexer_keys = zip(snapshot.indexer_keys, document.indexer_keys(number), strict=True)
    pairs = [
        *zip(snapshot.keys, snapshot.values, document.snapshot(number), strict=True),
        *((one, one, (data, data)) for one, data in indexer_keys if one is not None),
        *(
            (one, one, (data, data))
            for found, stored in zip(snapshot.states, document.states(number), strict=True)
            for one, data in zip(found.values(), stored, strict=True)
        ),
    ]
    for keys, values, stored in pairs:
        for found, data in zip((keys, values), stored, strict=True):
            if octets(found) == data:
                continue
            want = torch.frombuffer(bytearray(data), dtype=found.dtype).view(found.shape).double()
            have = found.double()
            assert torch.equal(have.isnan(), want.isnan())  # which of the NaNs a result is nothing says
            have, want = (values.masked_fill(values.isnan(), 0.0) for values in (have, want))
            if rotated or transformed:
                near = (8 * torch.finfo(found.dtype).eps + 1e-4 * transformed) * want.abs().amax(-1, keepdim=True)
                assert torch.where(have == want, 0.0, (have - want).abs() - near).amax() <= 0
            else:
                assert same_bits(have, want)


def uses_rotation(document: second_reader.Document) -> bool:
    return any(
        second_reader.read_tables(second_reader.payload(document.rows.data, record))["layout"].integers()[4]
        for record in document.rows.stored
        if record.codec == 2
    )


def edited_trace() -> Trace:
    """Snapshots that drop, replace and reorder rows, as no growing cache does."""
    whole = growing_trace((FULL, UNEVEN), dtype="float16", lengths=(6, 9)).snapshot()
    snapshots = []
    for order in ([0, 1, 2, 3, 4], [0, 3, 4, 5, 7, 8], [8, 7, 2, 1, 0], [3]):
        keys, values = ([rows[:, :, order].clone() for rows in side] for side in (whole.keys, whole.values))
        positions = [whole.positions[at] for at in order]
        tokens = [whole.token_ids[at] for at in order]
        snapshots.append(Snapshot(keys, values, [torch.tensor(positions)] * 2, tokens, positions))
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


@pytest.mark.parametrize("name", samples.COMPRESSED)
def test_compressed_files(name: str, tmp_path: Path) -> None:
    data = samples.sample(name)
    path = tmp_path / "compressed.tsc"
    path.write_bytes(data)
    trace, document = first_reader(path), other_reader(data)
    assert isinstance(trace, Trace)
    assert isinstance(document, second_reader.Document)
    assert_same_content(trace, document)


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_a_result_beyond_the_range_is_the_largest_number(dtype: str, tmp_path: Path) -> None:
    craft = Craft.of(samples.sample(f"scalar, {dtype}"))
    piece = craft.rows(0)
    levels, group, symmetric, axis, rotated, _, offset = piece.integers("layout")
    _, (_, *groups), _ = piece.tensors()["scales"]
    scale = struct.pack("<d", 1.5e308 if dtype == "float64" else 3e38)
    octets = b"".join(bytes([byte]) * math.prod(groups) for byte in scale)
    piece.set_integers("layout", [levels, group, symmetric, axis, rotated, 8, offset])
    piece.set_tensors(piece.tensors() | {"scales": ("U8", [8, *groups], octets)})
    path = tmp_path / "beyond.tsc"
    path.write_bytes(craft.build())
    trace, document = first_reader(path), second_reader.read(path.read_bytes())
    assert isinstance(trace, Trace)
    for number in range(len(trace)):
        keys = trace.snapshot(number).keys[0].double()
        assert keys.isfinite().all()
        assert keys.max() == torch.finfo(getattr(torch, dtype)).max
    assert_same_content(trace, document)


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn"])
def test_a_ratio_that_does_not_settle_is_stated_well_enough(dtype: str, tmp_path: Path) -> None:
    """A ratio's spelling changes the length of the file that it is the ratio of, here in a circle."""
    trace = growing_trace((FULL, UNEVEN), dtype=dtype, lengths=(5, 7), rows=finite_rows)
    path = tmp_path / "circle.tsc"
    path.write_bytes(samples.compressed(trace, "scalar", {"bits": 8, "hadamard": True}))
    check.check(path)


@pytest.mark.parametrize(
    "name",
    ["scalar, 3 levels", "scalar, 5 levels", "scalar, 6 levels", "scalar, 17 levels", "scalar, 257 levels", "delta"],
)
def test_any_byte_is_a_code(name: str, tmp_path: Path) -> None:
    """Alphabets that do not fill their bytes leave some that no writer writes."""
    craft = Craft.of(samples.sample(name))
    for number, piece in enumerate(piece for piece in craft.records if piece.codec > 1):
        dtype, shape, octets = piece.tensors()["codes"]
        octets = bytes((37 * at + 11 * number) % 256 for at in range(len(octets)))
        piece.set_tensors(piece.tensors() | {"codes": (dtype, shape, octets)})
    path = tmp_path / "codes.tsc"
    path.write_bytes(craft.build())
    trace = first_reader(path)
    assert isinstance(trace, Trace)
    assert_same_content(trace, second_reader.read(path.read_bytes()))


def test_compressed_files_have_what_the_format_has() -> None:
    """Else a sample that turned out differently would leave a part of the format unread."""
    found: set[tuple[str, object]] = set()
    for name in samples.COMPRESSED:
        document = second_reader.read(samples.sample(name))
        found |= {("kept", len(document.kept) > 0), ("attention", len(document.attention) > 0)}
        for record in document.rows.stored:
            tables = second_reader.read_tables(second_reader.payload(document.rows.data, record))
            found.add(("codec", record.codec))
            # a codec need not have one
            layout = list(tables["layout"].integers()) if "layout" in tables else []
            if record.codec == 2:
                levels, group, symmetric, axis, rotated, scale, offset = layout
                found |= {("group", group), ("symmetric", (symmetric, levels % 2)), ("axis", (axis, record.part))}
                found |= {("rotated", rotated), ("scale", scale), ("offset", offset)}
                found.add(("codes", "a byte" if levels == 256 else "two bytes" if levels > 256 else "shared bytes"))
            elif record.codec in (3, 4):
                _, subs, _, books, normalization, kind = layout
                found |= {("subs", subs), ("books", books), ("normalization", normalization), ("kind", kind)}
                found.add(("one book of several layers", books < record.layer_count))
            elif record.codec == 5:
                for base in tables["bases"].integers():
                    found.add(("base", "none" if base < 0 else "inside" if base >= record.first else "outside"))
                found.add(("exact rows", any(tables["exact_rows"].data)))
            elif record.codec == 6:
                _, groups, *numbers = layout
                ranks, rests = numbers[:groups], numbers[groups:]
                apart, integers = len(tables["apart"].integers()), document.rows.integers[record.offset]
                beyond = sum(abs(number) > 127 for number in integers)
                found |= {("groups", groups), ("apart", apart > 0), ("low bits", beyond > apart)}
                found |= {("rest", rest) for rest in rests}
                described = document.rows.profile.groups_of(record.first_layer, record.layer_count)
                found |= {
                    ("coded", "nothing" if not rank else "all" if rank == group.rank else "some")
                    for rank, group in zip(ranks, described, strict=True)
                }
                found |= {("predicted", at > 0) for at, group in enumerate(described) if group.predict is not None}
                found |= {
                    ("turned", "no pairs" if not rates else "interleaved" if interleaved else "halves")
                    for group in described
                    for rates, interleaved in group.rotary
                }
    everything: dict[str, set[object]] = {
        "kept": {True, False},
        "attention": {True, False},
        "codec": set(CODECS),
        "group": {0, 2, 3, 4, 32, 64},
        "symmetric": {(0, 0), (0, 1), (1, 0), (1, 1)},
        "axis": {(0, 1), (0, 2), (1, 1), (1, 2)},
        "rotated": {0, 1},
        "scale": {2, 4, 8},
        "offset": {0, 2, 4, 8},
        "codes": {"a byte", "two bytes", "shared bytes"},
        "subs": {1, 2, 3},
        "books": {1, 2},
        "normalization": {0, 1},
        "kind": {0, 1, 2, 3, 4},
        "one book of several layers": {True, False},
        "base": {"none", "inside", "outside"},
        "exact rows": {True, False},
        "rest": {0, 1},
        "groups": {1, 2, 4},
        "apart": {True, False},
        "low bits": {True, False},
        "coded": {"nothing", "some", "all"},
        "predicted": {True, False},
        "turned": {"no pairs", "interleaved", "halves"},
    }
    assert found == {(what, value) for what, values in everything.items() for value in values}


@pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.name)
def test_liars(liar: Liar) -> None:
    with pytest.raises(second_reader.Refused, match=r"^(corrupt|unsupported): "):
        second_reader.read(liar.build())


@cache
def bases() -> list[bytes]:
    small = growing_trace((FULL, FULL, SLIDING), lengths=(3, 5, 6), dtype="float8_e4m3fn")
    small.reference = [40, 41]
    compressed = (
        "scalar, 5 levels",
        "scalar, 1,000 levels",
        "scalar, rotated",
        "vq",
        "pq",
        "delta, chains",
        "delta, edited",
        "h2o",
        "attention",
        "klt",
        "klt, two groups",
    )
    held = {name.split(",")[0] for name in compressed}
    others = [kind.name for kind in CODECS.values() if kind.name in samples.COMPRESSED and kind.name not in held]
    newest = samples_states.SAMPLES
    return [
        samples.file_bytes(small),
        samples.file_bytes(edited_trace()),
        samples.valid(),
        *map(samples.sample, (*compressed, *others, *newest)),
    ]


class Bounds:
    """How long reading took, and how much memory the process had more than before, at most."""

    def __init__(self) -> None:
        self.seconds, self.bytes = 0.0, 0

    @contextmanager
    def measured(self) -> Iterator[None]:
        before = self._memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        begin = time.thread_time()
        yield
        self.seconds = max(self.seconds, time.thread_time() - begin)
        self.bytes = max(self.bytes, self._memory("VmHWM") - before)

    @staticmethod
    def _memory(what: str) -> int:
        found = re.search(rf"^{what}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        return 1024 * int(found[1]) if found else 0


SEAL = samples_encrypted.seal()
ENCRYPTED = ("valid", "scalar, 5 levels", "by hand, hybrid")


@cache
def all_bases() -> list[tuple[bytes, Seal | None]]:
    encrypted = [samples_encrypted.sample(name) for name in ENCRYPTED]
    return [*((data, None) for data in bases()), *((data, SEAL) for data in encrypted)]


def compare_mutants(numbers: Iterable[int], path: Path, bounds: Bounds) -> Counter[str]:
    """Both readers on mutants of these numbers; returns how many had which outcome."""
    outcomes: Counter[str] = Counter()
    for number in numbers:
        random = Random(number)
        valid, seal = random.choice(all_bases())
        data = mutant(valid, random, seal)
        path.write_bytes(data)
        with bounds.measured():
            first = first_reader(path)
        second = other_reader(data)
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
        outcomes["of encrypted files"] += seal is not None
    return outcomes


BUDGET = 64 << 20


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(range(500), id="500"),
        pytest.param(range(500, 1_000), id="500 from 500", marks=pytest.mark.full),
        *(
            pytest.param(range(first, first + 11_000), id=f"11000 from {first}", marks=pytest.mark.full)
            for first in range(1_000, 100_000, 11_000)
        ),
    ],
)
def test_mutants(numbers: range, tmp_path: Path, tally: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSC_MEMORY_BUDGET", str(BUDGET))
    bounds = Bounds()
    with tally("hostile mutation") as hostile, tally("the second reader") as readers:
        for first in range(numbers.start, numbers.stop, 500):
            chunk = range(first, min(first + 500, numbers.stop))
            readers.update(compare_mutants(chunk, tmp_path / "mutant.tsc", bounds))
            hostile["mutants"] += len(chunk)
        readers["disagreements"] += 0
        hostile["other errors than those of tsc"] += 0
    print(f"at most {bounds.seconds:.2f} s and {bounds.bytes / 2**20:.1f} MiB")
    assert readers["over budget"] < len(numbers) / 1_000
    assert readers["accepted by both"] > len(numbers) / 50  # else the mutants do not get far
    assert bounds.seconds < 2
    assert bounds.bytes < BUDGET + (64 << 20)
