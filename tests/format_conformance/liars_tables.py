"""Files whose checksums are right and whose tables lie: safetensors, labels, views, rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from formats.errors import CorruptError, TscError, UnsupportedFileError
from tests.format_conformance.craft import (
    LABELS,
    MODEL,
    REFERENCE,
    ROWS,
    VIEWS,
    Craft,
    Piece,
    join_table,
    spell,
    split_table,
)
from tests.format_conformance.liars import MIB, liar

Json = Any

# Tables.  LABELS: `position_offsets` I64 [12] at 0 to 96, `token_ids` U16 [12] at 96 to 120


def table(name: str, message: str, edit: Callable[[Json], object], data: Callable[[bytes], bytes] = bytes) -> None:
    """LABELS with an edited safetensors header, and other data behind it."""

    def both(craft: Craft) -> None:
        entries, octets = split_table(craft[LABELS].raw)
        edit(entries)
        craft[LABELS].raw = join_table(spell(entries), data(octets))

    liar(f"table: {name}", message, both)


def tokens(name: str, message: str, data: Callable[[bytes], bytes] = bytes, **fields: Json) -> None:
    table(name, message, lambda entries: entries["token_ids"].update(fields), data)


def table_text(name: str, message: str, make: Callable[[bytes, bytes], bytes]) -> None:
    """LABELS made of the text of its safetensors header and of its data."""

    def edit(craft: Craft) -> None:
        entries, data = split_table(craft[LABELS].raw)
        craft[LABELS].raw = make(spell(entries), data)

    liar(f"table: {name}", message, edit)


NONE = {"dtype": "U8", "shape": [0], "data_offsets": [120, 120]}
tokens("overlap", "overlap or leave a hole", data_offsets=[90, 114])
tokens("hole", "overlap or leave a hole", lambda data: data + bytes(8), data_offsets=[104, 128])
tokens("two names for the same bytes", "overlap or leave a hole", dtype="I64", data_offsets=[0, 96])
tokens("bytes behind", "8 bytes after the last tensor", lambda data: data + bytes(8))
tokens("data cut short", "an integer from 96 to 119", lambda data: data[:-1])
tokens("shape of other length", "do not give 24 bytes", shape=[11])
tokens("shape of the same length", "is U16 [2, 6]", shape=[2, 6])
tokens("scalar", "do not give 24 bytes", shape=[])
tokens("unknown dtype", "dtype: one of", dtype="U128")
tokens("dtype of the same width", "is I16 [12]", dtype="I16")
tokens("wider dtype", "do not give 24 bytes", dtype="I32")
tokens("negative shape", "shape: an integer from 0", shape=[-12])
tokens("two negative shapes", "shape: an integer from 0", shape=[-3, -4])
tokens("huge shape", "do not give 24 bytes", shape=[2**63 - 1] * 8)
tokens("huge empty shape", "do not give 24 bytes", shape=[2**63 - 1, 0])
tokens("true as shape", "shape: an integer from 0", shape=[12, True])
tokens("12.0 as shape", "shape: an integer from 0", shape=[12.0])
tokens("9 dimensions", "a list of at most 8", shape=[12] + [1] * 8)
tokens("three offsets", "a list of at most 2", data_offsets=[96, 120, 120])
tokens("one offset", "two data offsets", data_offsets=[96])
tokens("offsets backwards", "an integer from 120", data_offsets=[120, 96])
tokens("negative offset", "an integer from 0", data_offsets=[-24, 0])
tokens("offset 2^62", "an integer from 0 to 120", data_offsets=[2**62, 2**62 + 24])
tokens("unknown field", "unknown field 'stride'", stride=[1])
table("field missing", "field 'shape' is missing", lambda entries: entries["token_ids"].pop("shape"))
table("entry not an object", "an object was expected", lambda entries: entries.update(token_ids=[]))
table("metadata", "'data_offsets' is missing", lambda entries: entries.update(__metadata__={"a": "b"}))
table("extra tensor", "were expected", lambda entries: entries.update(more=NONE))
table("4,097 tensors", "at most 4096 tensors", lambda entries: entries.update({str(n): NONE for n in range(4_095)}))
table("tensor missing", "were expected", lambda entries: entries.pop("token_ids"), lambda data: data[:96])
table("other name", "were expected", lambda entries: entries.update(token_id=entries.pop("token_ids")))
table_text("duplicate names", "duplicate key", lambda text, data: join_table(text[:-1] + b"," + text[1:], data))
table_text("header not an object", "not a JSON object", lambda _, data: join_table(b"[]", data))
table_text("header after a space", "not a JSON object", lambda text, data: join_table(b" " + text, data))
table_text("header padded with newlines", "followed by spaces", lambda text, data: join_table(text + b" \n" * 99, data))
table_text("header padded with zeros", "followed by spaces", lambda text, data: join_table(text + bytes(16), data))
table_text("header over 1 MiB", "1048584 bytes does not fit", lambda text, data: join_table(text.ljust(MIB + 8), data))
table_text("header length too small", "not a JSON object", lambda text, data: b"\x40" + bytes(7) + text + data)
table_text("header length too large", "does not fit", lambda text, data: b"\0\4" + bytes(6) + text + data)
table_text("header length 2^63", "does not fit", lambda text, data: bytes(7) + b"\x80" + text + data)
table_text("seven bytes", "too short", lambda text, _: text[:7])

# LABELS, VIEWS, REFERENCE


def labels(name: str, message: str, edit: Callable[[Craft], object]) -> None:
    liar(f"labels: {name}", message, edit)


def numbers(type_: int, tensor: str, at: int, value: int, dtype: str | None = None) -> Callable[[Craft], None]:
    def edit(craft: Craft) -> None:
        values = craft[type_].integers(tensor)
        values[at] = value
        craft[type_].set_integers(tensor, values, dtype=dtype)

    return edit


labels("gap", "do not follow", lambda c: setattr(c[LABELS], "first", 1))
labels("no rows", "do not follow", lambda c: setattr(c[LABELS], "count", 0))
labels("2^20 + 1 rows", "too many rows", lambda c: setattr(c[LABELS], "count", 2**20 + 1))
labels("2^26 + 1 rows", "do not follow", lambda c: setattr(c[LABELS], "count", 2**26 + 1))
labels("another count", "is U16 [12]", lambda c: setattr(c[LABELS], "count", 13))
labels("twice", "do not follow", lambda c: c.insert(copy.deepcopy(c[LABELS])))
labels("negative token", "negative token id", numbers(LABELS, "token_ids", 3, -1, "I32"))
labels("negative position", "position is out of range", numbers(LABELS, "position_offsets", 3, -4))
labels("position 2^63", "position is out of range", numbers(LABELS, "position_offsets", 1, 2**63 - 1))
liar("reference: negative token", "negative token id", numbers(REFERENCE, "token_ids", 0, -1, "I32"))


def reference_of_many(craft: Craft) -> None:
    craft.insert(Piece(REFERENCE, b"", count=1)).set_tensors({"token_ids": ("U16", [1], b"\1\0")})


liar(
    "reference: beside sequences of their own",
    "sequences that hold different tokens",
    reference_of_many,
    sample="by hand, padded",
)
liar("reference: another count", "is U16 [3]", lambda c: setattr(c[REFERENCE], "count", 2))


def views(name: str, message: str, edit: Callable[[list[list[int]]], object]) -> None:
    """VIEWS with edited lines; 0 to 2 are the first snapshot's: history, layers 0 to 2, layer 3."""

    def change(craft: Craft) -> None:
        flat = craft[VIEWS].integers("spans")
        lines = [flat[at : at + 5] for at in range(0, len(flat), 5)]
        edit(lines)
        craft[VIEWS].set_integers("spans", [value for line in lines for value in line])

    liar(f"views: {name}", message, change)


def cell(line: int, column: int, value: int) -> Callable[[list[list[int]]], object]:
    return lambda lines: lines[line].__setitem__(column, value)


views("lines out of order", "not in order", lambda lines: lines.reverse())
views("history behind a layer", "not in order", lambda lines: lines.insert(1, lines.pop(0)))
views("snapshot out of range", "not in order", cell(-1, 0, 4))
views("negative snapshot", "not in order", cell(0, 0, -1))
views("rows outside", "outside the 12 rows", cell(1, 4, 13))
views("first row outside", "outside the 12 rows", cell(1, 3, 12))
views("first row 2^63 - 1", "outside the 12 rows", cell(1, 3, 2**63 - 1))
views("negative first row", "outside the 12 rows", cell(1, 3, -1))
views("no rows", "outside the 12 rows", cell(1, 4, 0))
views("negative count of rows", "outside the 12 rows", cell(1, 4, -1))
views("negative count of layers", "layers that the model does not have", cell(1, 2, -1))
views("no layers", "layers that the model does not have", cell(1, 2, 0))
views("layers beyond the model", "layers that the model does not have", cell(2, 2, 2))
views("2^63 - 1 layers", "layers that the model does not have", cell(2, 2, 2**63 - 1))
views("layer beyond the model", "not in order", cell(2, 1, 4))
views("layer -2", "not in order", cell(0, 1, -2))
views("missing layer", "lacks or repeats layer 2", cell(1, 2, 2))
views("missing last layer", "lacks layer 3", lambda lines: lines.pop(2))
views("repeated layer", "lacks or repeats layer", cell(1, 2, 4))
views("group that ends late", "lacks or repeats layer", lambda lines: lines.insert(2, [0, 0, 2, 7, 1]))
views("row named twice", "names a row twice", lambda lines: lines.insert(2, [0, 0, 3, 6, 1]))
views("history names a row twice", "names a row twice", lambda lines: lines.insert(1, [0, -1, 1, 0, 1]))
views("history of two columns", "history span covers one", cell(0, 2, 2))
views("no lines", "lacks layer 0", lambda lines: lines.clear())
views("snapshot without lines", "lacks layer 0", lambda lines: [lines.pop() for _ in range(3)])
views("row that is not stored", "needs rows of layer 3", cell(2, 3, 2))
liar("views: next token missing", "wrong number of snapshots", lambda c: c[VIEWS].set_integers("next_tokens", [1]))
liar("views: another count", "wrong number of snapshots", lambda c: setattr(c[VIEWS], "count", 5))
liar("views: count 2^20 + 1", "do not follow", lambda c: setattr(c[VIEWS], "count", 2**20 + 1))


def many_columns(craft: Craft) -> None:
    craft[MODEL].edit_json(lambda model: model["layers"][0].update(count=4094))
    craft[VIEWS].count = 1025


liar("views: 1,025 snapshots of 4,096 layers", "do not follow", many_columns)
liar("views: not from 0", "do not follow", lambda c: setattr(c[VIEWS], "first", 1))

# ROWS: 0, 1 of layers 0 and 1; 2, 3 of layer 2; 4, 5 of layer 3, rows 3 to 11; keys and values each


def rows(name: str, message: str, edit: Callable[[Craft], object], error: type[TscError] = CorruptError) -> None:
    liar(f"rows: {name}", message, edit, error)


def field_of(number: int, **fields: int) -> Callable[[Craft], None]:
    def edit(craft: Craft) -> None:
        for name, value in fields.items():
            setattr(craft.rows(number), name, value)

    return edit


def remove(*numbers: int) -> Callable[[Craft], None]:
    def edit(craft: Craft) -> None:
        for piece in [craft.rows(number) for number in numbers]:
            craft.records = [other for other in craft.records if other is not piece]

    return edit


def joint(craft: Craft) -> None:
    remove(5)(craft)
    craft.rows(4).part = 0


rows("without labels", "rows without labels", field_of(4, count=10))
rows("first row 2^62", "rows without labels", field_of(4, first=2**62))
rows("no rows", "rows without labels", field_of(4, count=0))
rows("layers beyond the model", "cannot be stored together", field_of(4, layer_count=2))
rows("first layer beyond the model", "cannot be stored together", field_of(4, first_layer=4))
rows("2^32 - 1 layers", "cannot be stored together", field_of(4, layer_count=2**32 - 1))
rows("no layers", "cannot be stored together", field_of(4, layer_count=0))
rows("layers not alike", "cannot be stored together", field_of(0, first_layer=1))
rows("part 3", "a block of indexer keys that its layers do not have", field_of(4, part=3))
rows("part 0 with codec 1", "does not write records of part 0", joint)
rows("codec 0", "codec 0 is never valid", field_of(4, codec=0))
rows("codec 99", "codec 99 is not known", field_of(4, codec=99), UnsupportedFileError)
rows("stored twice", "stored twice", lambda c: [c.insert(copy.deepcopy(c.rows(n))) for n in (4, 5)])
rows("one row stored twice", "stored twice", lambda c: c.insert(copy.deepcopy(c.rows(4))).__setattr__("count", 1))
rows("keys without values", "keys without values", remove(5))
rows("values without keys", "keys without values", remove(0))
rows("other rows of keys than of values", "keys without values", field_of(5, count=8))
rows("missing", "needs rows of layer 3", remove(4, 5))
rows("planes of values for keys", "tensor 'planes' is U8", lambda c: setattr(c.rows(0), "raw", c.rows(1).raw))
rows(
    "planes of another dtype",
    "tensor 'planes' is I8",
    lambda c: c.rows(0).edit_table(lambda t: t["planes"].update(dtype="I8")),
)
rows("another tensor", "were expected", lambda c: setattr(c.rows(0), "raw", c[LABELS].raw))
rows("not a table", "too short", lambda c: setattr(c.rows(0), "raw", b"{}"))


def labels_of_nobody(craft: Craft) -> None:
    """3 million rows that nothing stores, in a few kB of zstd."""
    first, count = craft[LABELS].count, 1 << 20
    for number in range(3):
        labels = copy.copy(craft[LABELS])
        labels.first, labels.count = first + number * count, count
        labels.set_tensors(
            {"position_offsets": ("I64", [count], bytes(8 * count)), "token_ids": ("U16", [count], bytes(2 * count))}
        )
        craft.insert(labels)


def rows_of_all_layers(craft: Craft) -> None:
    """64 bytes each, and most of a line of the index is zeros."""
    for number in range(70):
        craft.insert(Piece(ROWS, b"", codec=1, layer_count=4_096, first=number, count=1, stored=b"", lies={"raw": 1}))


liar("rows: of all layers again and again", "records of 2867", rows_of_all_layers)


liar("labels: far more rows than the file could hold", "tables of 31458", labels_of_nobody)
