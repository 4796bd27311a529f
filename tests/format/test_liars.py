"""Crafted files with right checksums and lying content are refused, with the reason, and cheaply."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from formats import TscError, integrity, load
from formats.errors import CorruptError, UnsupportedFileError
from tests.format import liars_json, liars_tables, samples
from tests.format.craft import LABELS, MODEL, Craft, Piece, frame, join_table, raw_frame, spell, split_table
from tests.format.liars import LIARS, MIB, Edit, Liar, with_checksum
from tests.traces import growing_trace, same_bits

assert liars_json
assert liars_tables  # importing these adds their files to LIARS

by_name = pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.name)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "crafted.tsc"
    path.write_bytes(data)
    return path


@by_name
def test_refused_cheaply_and_with_its_reason(liar: Liar, tmp_path: Path) -> None:
    path = written(tmp_path, liar.build())
    tracemalloc.start()
    with pytest.raises(TscError) as caught:
        integrity.check(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert type(caught.value) is liar.error
    assert caught.value.exit_code == 3
    assert caught.value.path == str(path)
    assert liar.message in caught.value.message
    assert peak < 12 * MIB  # what one honest MiB of JSON takes; some of these declare TiBs


@by_name
def test_no_wrong_tensor_comes_out_of_it(liar: Liar, tmp_path: Path) -> None:
    """Opening reads no rows, so a lie in a row record may pass there; then it shows when the rows are read."""
    path = written(tmp_path, liar.build())
    for number in range(len(samples.trace())):
        try:
            found = load(path).snapshot(number)
        except (CorruptError, UnsupportedFileError):
            continue
        want = samples.trace().snapshot(number)
        assert all(map(same_bits, found.keys + found.values, want.keys + want.values))


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


# What the specification allows although the writer here does not do it
HONEST: dict[str, Edit] = {
    "nothing changed": lambda _: None,
    "unused flag": lambda craft: setattr(craft, "flags", 0xFF00),
    "newer minor version": lambda craft: setattr(craft, "minor", 65_535),
    "unknown ancillary type": lambda craft: craft.insert(Piece(0x90, b"anything")),
    "unknown ancillary type with all fields": lambda craft: craft.insert(Piece(0xFF, b"?", 9, 9, 9, 9, 9, 9)),
    "frame with checksum": lambda craft: craft.insert(Piece(0x90, b"x", stored=with_checksum(b"x"))),
    "frame with dictionary id 0": stored(lambda raw: raw_frame(raw, size=len(raw), dictionary=bytes(4))),
    "frame with a window of 8 MiB": stored(lambda raw: raw_frame(raw, size=len(raw), window=0x68)),
    "frame of uncompressed blocks": stored(lambda raw: raw_frame(raw, size=len(raw))),
    "records in reverse": lambda craft: craft.records.__setitem__(slice(1, -1), craft.records[-2:0:-1]),
    "JSON with spaces": lambda craft: setattr(craft[MODEL], "raw", b" \n\t" + craft[MODEL].raw + b"\r\n"),
    "JSON of 1 MiB": lambda craft: setattr(craft[MODEL], "raw", craft[MODEL].raw.ljust(MIB)),
    "divided run of layers": lambda craft: craft[MODEL].edit_json(divided_layers),
    "empty fingerprint": lambda craft: craft[MODEL].edit_json(lambda model: model.update(fingerprint={})),
    "table header padded": table_header(b" " * 1_000),
    "wide token ids": lambda craft: craft[LABELS].set_integers(
        "token_ids", craft[LABELS].integers("token_ids"), dtype="I32"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_unusual_but_valid(name: str, tmp_path: Path) -> None:
    craft = Craft.of(samples.valid())
    HONEST[name](craft)
    trace = integrity.check(written(tmp_path, craft.build())).trace()
    want, found = samples.trace().snapshot(), trace.snapshot()
    assert all(map(same_bits, found.keys + found.values, want.keys + want.values))
    assert (found.token_ids, found.row_positions, found.next_token) == (
        want.token_ids, want.row_positions, want.next_token,
    )  # fmt: skip


def keys_backwards(records: list[Piece]) -> list[Piece]:
    return [r for r in records if r.part != 1] + [r for r in records[::-1] if r.part == 1]


@pytest.mark.parametrize("reorder", [lambda records: records[::-1], keys_backwards], ids=["reverse", "keys backwards"])
def test_blocks_of_a_layer_in_any_order(reorder: Callable[[list[Piece]], list[Piece]], tmp_path: Path) -> None:
    """The cache grows so far that every layer lies in several blocks, and a span crosses from one to the next."""
    saved = growing_trace(lengths=(5, 300, 600, 601))
    craft = Craft.of(samples.file_bytes(saved))
    craft.records[1:-3] = reorder(craft.records[1:-3])
    found, want = integrity.check(written(tmp_path, craft.build())).trace().snapshot(), saved.snapshot()
    assert all(map(same_bits, found.keys + found.values, want.keys + want.values))


def test_crafting_without_edits_changes_nothing() -> None:
    assert Craft.of(samples.valid()).build() == samples.valid()
    assert len(frame(b"")) > 4
