"""Crafted files with right checksums and lying content are refused, with the reason, and cheaply."""

from __future__ import annotations

import copy
import io
import math
import re
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from formats import TscError, load, save
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import write
from formats.errors import CorruptError, LimitError, UnsupportedFileError
from formats.file import block_decoding, check
from formats.file.block_decoding import BlockDecoder
from formats.file.blocks import FileBlock
from formats.file.reader import TraceFile
from formats.file.writer import TraceWriter
from tests.format_conformance import (
    liars_codecs,
    liars_json,
    liars_klt,
    liars_profile,
    liars_states,
    liars_tables,
    profiles,
    samples,
)
from tests.format_conformance.craft import (
    HEADER,
    KEPT,
    LABELS,
    MODEL,
    Craft,
    Piece,
    frame,
    join_table,
    raw_frame,
    spell,
    split_table,
)
from tests.format_conformance.liars import LIARS, MIB, Edit, Liar, with_checksum
from tests.format_conformance.liars_codecs import enormous_codes
from tests.format_conformance.second_reader import reader as second_reader
from tests.support.traces import growing_trace, octets, same_bits, same_snapshots

assert liars_codecs
assert liars_json
assert liars_klt
assert liars_profile
assert liars_states
assert liars_tables  # importing these adds their files to LIARS

by_name = pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.name)


def expected(liar: Liar) -> Any:
    """The liar as a parameter of a test that asks the product to refuse it."""
    marks = [pytest.mark.xfail(strict=True, reason=liar.accepted)] if liar.accepted else []
    return pytest.param(liar, marks=marks, id=liar.name)


def written(folder: Path, data: bytes, name: str = "crafted.tsc") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("liar", [expected(liar) for liar in LIARS])
def test_refused_cheaply_and_with_its_reason(liar: Liar, tmp_path: Path, tally: Any) -> None:
    path = written(tmp_path, liar.build())
    tracemalloc.start()
    with pytest.raises(TscError) as caught:
        file = check.check(path)
        for block in file.blocks[::-1] if liar.opens else ():  # predicted ones before what predicts them
            block.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert type(caught.value) is liar.error
    assert caught.value.exit_code == 3
    assert caught.value.path == str(path)
    assert liar.message in caught.value.message
    assert peak < 12 * MIB  # what one honest MiB of JSON takes; some of these declare TiBs
    with tally("crafted liars") as counts:
        counts["files refused with their own reason"] += 1


@by_name
def test_no_wrong_tensor_comes_out_of_it(liar: Liar, tmp_path: Path) -> None:
    """Opening reads no rows, so a lie in a row record may pass there; then it shows when the rows are read."""
    path = written(tmp_path, liar.build())
    try:
        trace = load(path)
    except (CorruptError, UnsupportedFileError):
        return
    honest = load(written(tmp_path, samples.sample(liar.sample), "honest.tsc"))
    for number in range(len(trace)):
        with suppress(CorruptError, UnsupportedFileError):
            found, want = trace.snapshot(number), honest.snapshot(number)
            assert all(map(same_bits, found.keys + found.values, want.keys + want.values))
            assert all(map(torch.equal, found.row_positions, want.row_positions))


def test_names_are_unique() -> None:
    names = [liar.name for liar in LIARS]
    assert len(names) == len(set(names)) >= 60


def stored(make: Callable[[bytes], bytes]) -> Edit:
    return lambda craft: setattr(craft[LABELS], "stored", make(craft[LABELS].raw))


def table_header(suffix: bytes) -> Edit:
    def edit(craft: Craft) -> None:
        entries, data = split_table(craft[LABELS].raw)
        craft[LABELS].raw = join_table(spell(entries) + suffix, data)

    return edit


def divided_layers(model: dict[str, list[dict[str, int]]]) -> None:
    """Two runs of one layer in place of a run of two."""
    run = model["layers"][0] | {"count": 1}
    model["layers"][:1] = [run, run]


def all_kept(craft: Craft) -> None:
    """A map of two rows of layer 2 that every head kept."""
    piece = craft.insert(Piece(KEPT, b"", first_layer=2, layer_count=1, first=10, count=2))
    piece.set_tensors({"kept": ("U8", [1, 1, 1], b"\3")})


def divided_bases(craft: Craft) -> None:
    """The keys of rows 0 to 6 of layers 0 and 1, which predict rows of both, in a record for each."""
    piece = craft.rows(0)
    second = copy.deepcopy(piece)
    dtype, (item, layers, *shape), octets = piece.tensors()["planes"]
    assert (piece.part, layers) == (1, 2)
    length = math.prod(shape)
    halves = [octets[at : at + length] for at in range(0, len(octets), length)]  # byte 0: layers 0, 1; byte 1: ...
    for layer, part in enumerate((piece, second)):
        part.set_tensors({"planes": (dtype, [item, 1, *shape], b"".join(halves[layer::2]))})
        part.first_layer, part.layer_count = layer, 1
    craft.insert(second)


def header(edit: Callable[[Any], object]) -> Edit:
    return lambda craft: craft[HEADER].edit_json(edit)


def rounded_up(craft: Craft) -> None:
    craft.ratios = False
    header(lambda value: value.update(ratio_trace=round(value["ratio_trace"] + 0.0005, 4)))(craft)


def reverse(craft: Craft) -> None:
    craft.records[1:-1] = craft.records[-2:0:-1]


def raw_bytes_left(craft: Craft) -> None:
    """HEADER counts the rows that were not evicted."""
    document = second_reader.read(samples.sample("h2o"))
    raw = [document.raw_bytes(number) for number in range(4)]
    craft[HEADER].edit_json(lambda value: value.update(raw_bytes_trace=sum(raw), raw_bytes_final=raw[-1]))


# What the specification allows although the writer here does not do it
HONEST: dict[str, Edit] = {
    "nothing changed": lambda _: None,
    "unused flag": lambda craft: setattr(craft, "flags", 0xFF00),
    "unknown ancillary type": lambda craft: craft.insert(Piece(0x90, b"anything")),
    "unknown ancillary type with all fields": lambda craft: craft.insert(Piece(0xFF, b"?", 9, 9, 9, 9, 9, 9)),
    "frame with checksum": lambda craft: craft.insert(Piece(0x90, b"x", stored=with_checksum(b"x"))),
    "frame with dictionary id 0": stored(lambda raw: raw_frame(raw, size=len(raw), dictionary=bytes(4))),
    "frame with a window of 8 MiB": stored(lambda raw: raw_frame(raw, size=len(raw), window=0x68)),
    "frame of uncompressed blocks": stored(lambda raw: raw_frame(raw, size=len(raw))),
    "records in reverse": reverse,
    "JSON with spaces": lambda craft: setattr(craft[MODEL], "raw", b" \n\t" + craft[MODEL].raw + b"\r\n"),
    "JSON of 1 MiB": lambda craft: setattr(craft[MODEL], "raw", craft[MODEL].raw.ljust(MIB)),
    "divided run of layers": lambda craft: craft[MODEL].edit_json(divided_layers),
    "empty fingerprint": lambda craft: craft[MODEL].edit_json(lambda model: model.update(fingerprint={})),
    "table header padded": table_header(b" " * 1_000),
    "wide token ids": lambda craft: craft[LABELS].set_integers(
        "token_ids", craft[LABELS].integers("token_ids"), dtype="I32"
    ),
    "ratio rounded up": rounded_up,
    "all kinds of parameters": header(lambda v: v.update(parameters={"a": None, "b": True, "c": 0.5, "d": "", "e": 1})),
}
HONEST_COMPRESSED: dict[str, tuple[str, Edit]] = {
    **{f"{sample} in reverse": (sample, reverse) for sample in ("h2o", "attention", "delta, edited", "vq", "klt")},
    "rows that all heads kept": ("h2o", all_kept),
    "raw bytes of what was not evicted": ("h2o", raw_bytes_left),
    "bases in two records": ("delta, chains", divided_bases),
}


@pytest.mark.parametrize(
    ("sample", "edit"),
    [
        *(pytest.param("valid", edit, id=name) for name, edit in HONEST.items()),
        *(pytest.param(*case, id=name) for name, case in HONEST_COMPRESSED.items()),
    ],
)
def test_unusual_but_valid(sample: str, edit: Edit, tmp_path: Path) -> None:
    craft = Craft.of(samples.sample(sample))
    edit(craft)
    data = craft.build()
    trace = check.check(written(tmp_path, data)).trace()
    honest = load(written(tmp_path, samples.sample(sample), "honest.tsc"))
    for number in range(len(trace)):
        assert same_snapshots(trace.snapshot(number), honest.snapshot(number))
    second_reader.read(data)


def test_as_many_records_are_followed_as_may_be(tmp_path: Path) -> None:
    data = samples.chained(65)
    found = load(written(tmp_path, data)).snapshot()
    assert found.keys[0].item() == found.values[0].item() == 64
    keys, values = second_reader.read(data).snapshot(0)[0]
    assert keys == values == octets(found.keys[0])


def test_a_chain_is_decoded_once_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, from its end, or with no room for what was decoded before: the same rows, the caller's own."""
    decoded: list[int] = []
    once = BlockDecoder._decode  # noqa: SLF001

    def counted(decoder: BlockDecoder, block: FileBlock, device: str) -> object:
        decoded.append(block.offset)
        return once(decoder, block, device)

    monkeypatch.setattr(BlockDecoder, "_decode", counted)
    path = written(tmp_path, samples.chained(65))
    expected = [block.read() for block in TraceFile(path).blocks]
    assert len(decoded) < 3 * len(expected)  # each for itself, and as what others are predicted from
    for keep in (64 << 20, 0):
        monkeypatch.setattr(block_decoding, "_KEPT_BYTES", keep)
        file = TraceFile(path)
        for number in (-1, 20, -1, 0, -2):
            rows = file.blocks[number].read()
            for part, want in expected[number].items():
                assert torch.equal(rows[part], want)
                rows[part].zero_()  # nobody else's
        decoded.clear()
        file.blocks[-1].read()
        assert (len(decoded) > 60) == (not keep)


def halves(craft: Craft) -> None:
    """Keys of 192 MiB and values of 192 MiB, each in a record of its own."""
    craft[MODEL].edit_json(lambda model: model["layers"][0].update(heads=8, key_size=2**20, value_size=2**20))
    row = 2 * 8 * 2**21
    craft[HEADER].edit_json(lambda value: value.update(raw_bytes_trace=36 * row, raw_bytes_final=12 * row))
    for part in (0, 1):
        enormous_codes(craft.rows(part), heads=8, blocks=4_096)


def test_the_bound_is_on_all_parts_together(tmp_path: Path) -> None:
    craft = Craft.of(samples.sample("one layer, vq"))
    halves(craft)
    data = craft.build()
    with pytest.raises(CorruptError, match="a block of more than"):
        check.check(written(tmp_path, data))
    with pytest.raises(second_reader.Refused, match=r"^corrupt: ROWS: \d+ bytes when decoded"):
        second_reader.read(data)


@pytest.mark.parametrize("liar", [pytest.param(liar, id=liar.name) for liar in LIARS if liar.opens])
def test_checking_reads_everything_when_it_decodes(liar: Liar, tmp_path: Path) -> None:
    """Predictions, statistics and symbols are looked at when rows are decoded; all else shows without."""
    path = written(tmp_path, liar.build())
    check.check(path)
    with pytest.raises(liar.error, match=re.escape(liar.message)):
        check.check(path, decode=True)


def keys_backwards(records: list[Piece]) -> list[Piece]:
    return [r for r in records if r.part != 1] + [r for r in records[::-1] if r.part == 1]


@pytest.mark.parametrize("reorder", [lambda records: records[::-1], keys_backwards], ids=["reverse", "keys backwards"])
def test_blocks_of_a_layer_in_any_order(reorder: Callable[[list[Piece]], list[Piece]], tmp_path: Path) -> None:
    """The cache grows so far that every layer lies in several blocks, and a span crosses from one to the next."""
    saved = growing_trace(lengths=(5, 300, 600, 601))
    craft = Craft.of(samples.file_bytes(saved))
    craft.records[1:-3] = reorder(craft.records[1:-3])
    assert same_snapshots(check.check(written(tmp_path, craft.build())).trace().snapshot(), saved.snapshot())


@pytest.mark.parametrize("name", ["valid", "vq", "delta, edited", "h2o", "attention", "klt, h2o"])
def test_crafting_without_edits_changes_nothing(name: str) -> None:
    assert Craft.of(samples.sample(name)).build() == samples.sample(name)
    assert len(frame(b"")) > 4


def test_spans_of_a_file_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, samples.valid())
    monkeypatch.setattr("formats.file.reader.MAX_SPANS", 3)
    with pytest.raises(CorruptError, match="more than 3 spans"):
        check.check(path)


def test_tables_keep_to_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, samples.valid())
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "1000")
    with pytest.raises(LimitError, match=r"the tables take [0-9]+ bytes, more than the budget of 1000"):
        check.check(path)


def test_tables_that_no_reader_takes_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = samples.trace()
    monkeypatch.setattr("formats.file.index.FREE_TABLES", -1_000_000)
    with pytest.raises(LimitError, match="no reader would take it"):
        save(trace, tmp_path / "t.tsc")
    assert not list(tmp_path.iterdir())


def test_predictions_keep_to_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = check.check(written(tmp_path, samples.sample("delta, chains")))
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "1")
    with pytest.raises(LimitError, match="predictions take more than the budget of 1 bytes"):
        for block in file.blocks:
            block.read()


def test_compressing_keeps_to_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = load(written(tmp_path, samples.valid()))
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "1")
    with pytest.raises(LimitError, match=r"the rows take [0-9]+ bytes, more than the budget of 1"):
        write(Source(trace), Recipe("lossless"), io.BytesIO())


def test_a_profile_that_no_record_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = samples.trace()
    writer = TraceWriter(io.BytesIO(), trace.geometry, trace.fingerprint)
    monkeypatch.setattr("formats.file.writer.MAX_RECORD_RAW", 10)
    with pytest.raises(LimitError, match="more than a file may hold in one record"):
        writer.add_profile(profiles.two_groups(), embed=True)
