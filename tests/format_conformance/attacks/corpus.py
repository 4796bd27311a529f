"""What the files of this folder are made of: a sound file of `valid/`, and an edit that lies under right checksums."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from formats.errors import CorruptError, TscError, UnsupportedFileError
from tests.format_conformance import liars_codecs, liars_json, liars_klt, liars_profile, liars_states, liars_tables
from tests.format_conformance.craft import HEADER, LABELS, MODEL, STATES, Craft, join_table, spell, split_table
from tests.format_conformance.liars import LIARS, Edit

assert all((liars_codecs, liars_json, liars_klt, liars_profile, liars_states, liars_tables))  # they fill LIARS

FOLDER = Path(__file__).parent
VALID = FOLDER / "valid"
# The sound files that the others were: name here -> name in tests/format_conformance/samples*.py
BASES = {
    "plain": "valid",
    "scalar": "scalar, 5 levels",
    "vq": "vq",
    "pq": "pq",
    "delta": "delta, chains",
    "h2o": "h2o",
    "attention": "attention",
    "klt": "klt",
    "vq-one-layer": "one layer, vq",
    "states": "by hand, pure",
    "hybrid": "by hand, hybrid",
    "padded": "by hand, padded",
    "indexed": "by hand, indexed",
    "cross": "by hand, encoder and decoder",
}


@dataclass(frozen=True)
class Attack:
    """One file.

    Attributes:
        name: of the file, without its suffix.
        tries: what it tries, for a person.
        message: a part of what `tsc` says when it refuses it, before it is escaped for a terminal.
        base: the sound file that was edited.
    """

    name: str
    tries: str
    message: str
    base: str
    edit: Edit
    error: type[TscError] = CorruptError

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.tsc"

    def build(self) -> bytes:
        craft = Craft.of(base(self.base))
        result = self.edit(craft)
        return result if isinstance(result, bytes) else craft.build()


ATTACKS: list[Attack] = []


@cache
def base(name: str) -> bytes:
    return (VALID / f"{name}.tsc").read_bytes()


def attack(
    name: str, tries: str, message: str, edit: Edit, error: type[TscError] = CorruptError, *, base: str = "plain"
) -> None:
    ATTACKS.append(Attack(name, tries, message, base, edit, error))


_LIARS = {one.name: one for one in LIARS}
_BASE_OF = {sample: name for name, sample in BASES.items()}


def of_liar(name: str, liar: str, tries: str, message: str = "") -> None:
    """One of the variants of tests/format_conformance, with a `message` where its own fits several attacks."""
    one = _LIARS[liar]
    assert not one.accepted
    attack(name, tries, message or one.message, one.edit, one.error, base=_BASE_OF[one.sample])


# The bytes of the file: polyglots, other formats, text mode

SHEBANG = b"#!/bin/sh\necho owned; exit\n"
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
ELF = bytes.fromhex("7f454c46020101000000000000000000 02003e0001000000").ljust(64, b"\0")


def archive() -> bytes:
    """A zip file of one member, the same at any time."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as opened:
        opened.writestr(zipfile.ZipInfo("owned.txt", (1980, 1, 1, 0, 0, 0)), b"owned\n")
    return sink.getvalue()


def ahead(octets: Callable[[], bytes]) -> Edit:
    return lambda craft: octets() + craft.build()


def behind(octets: Callable[[], bytes]) -> Edit:
    return lambda craft: setattr(craft, "tail", octets())


NOT_TSC, NO_END = "not a .tsc file", "the end mark is missing"
attack("polyglot-zip-ahead", "a zip archive with a .tsc file behind it", NOT_TSC, ahead(archive))
attack("polyglot-zip-behind", "a .tsc file that unzip opens, too: the archive is behind it", NO_END, behind(archive))
attack("polyglot-pdf-ahead", "a PDF with a .tsc file behind it", NOT_TSC, ahead(lambda: PDF))
attack("polyglot-elf-ahead", "an ELF header with a .tsc file behind it", NOT_TSC, ahead(lambda: ELF))
attack("polyglot-script-ahead", "a shell script with a .tsc file behind it", NOT_TSC, ahead(lambda: SHEBANG))
attack(
    "two-files-in-one",
    "a whole .tsc file with another whole one behind it",
    "does not point to the index",
    lambda craft: craft.build() + craft.build(),
)
attack(
    "text-mode",
    "a file whose CR LF became LF on its way",
    "converted as text",
    lambda craft: craft.build().replace(b"\r\n", b"\n", 1),
)
attack(
    "major-version-2",
    "a file of a major version that nobody knows",
    "format version 2 is not supported",
    lambda craft: craft.build()[:4] + b"\2" + craft.build()[5:],
    UnsupportedFileError,
)
of_liar("minor-version-1", "newer minor version", "a file that needs a minor version that nobody knows")
of_liar("superblock-reserved", "reserved byte 59", "a reserved byte of the superblock, under a right checksum")
of_liar("end-behind-the-file", "end: points behind the file", "an end mark that points to byte 2^40 for the index")
of_liar("end-into-the-first-record", "end: points to the first record", "an end mark that calls MODEL the index")
of_liar("end-of-2-to-the-64-records", "end: 2^64 - 1 records", "an end mark that counts 2^64 - 1 records")

# Frames

of_liar("bomb-of-1-tib", "frame: bomb that declares 1 TiB", "a zstd frame of a few bytes that declares 1 TiB")
of_liar(
    "bomb-that-declares-little",
    "frame: bomb of 64 MiB that declares little",
    "a zstd frame that declares 264 bytes and holds 64 MiB",
)
of_liar(
    "bomb-in-an-empty-frame", "empty frame: 64 MiB of content", "a zstd frame that declares 0 bytes and holds 64 MiB"
)
of_liar("bomb-of-256-mib-and-1", "raw length over 256 MiB", "a record that declares a byte more than 256 MiB")
of_liar("bomb-by-ratio", "raw length over 1,024 times the stored", "a record of 16 MiB out of 200 bytes")
of_liar("raw-length-2-to-the-64", "raw length 2^64 - 1", "a record that declares 2^64 - 1 bytes")
of_liar("stored-length-2-to-the-64", "stored length 2^64 - 1", "a record that is said to be 2^64 - 1 bytes long")
of_liar("frame-second", "frame: second frame", "bytes in a second zstd frame, which some libraries append")
of_liar("frame-skippable", "frame: skippable frame ahead", "a skippable zstd frame ahead of the payload")
of_liar(
    "frame-of-empty-blocks",
    "frame: 5,000 bytes of empty blocks",
    "a record that is far longer than what it holds: a sparse file could make it as long as it likes",
)
of_liar("frame-window-16-mib", "frame: window of 16 MiB", "a window larger than a reader has to keep")
of_liar("frame-dictionary", "frame: dictionary", "a frame that asks for a dictionary")
of_liar("frame-without-size", "frame: no content size", "a frame that does not say how long its content is")
of_liar(
    "basis-of-256-mib",
    "profile: a basis of 256 MiB out of 140 KiB",
    "a matrix of 256 MiB of zeros in the profile that the file brings with it",
)

# Records and their index

of_liar("records-swapped", "two records swapped", "two records that changed places with right checksums each")
of_liar("record-of-another-file", "record of another file", "a record taken from a file of another identity")
of_liar("record-unknown", "unknown type that is needed", "a record of a type that a reader must know, and does not")
of_liar("record-field-of-another-type", "MODEL with codec", "a record header with a field that its type does not have")
of_liar("record-reserved", "reserved bytes 36", "a reserved bit of a record header")
of_liar("index-lies-about-type", "index: type of ROWS", "an index that calls a record of rows something else")
of_liar("index-lies-about-rows", "index: first of ROWS", "an index that moves rows to where no labels are")
of_liar("index-overlaps", "index: stored of ROWS", "an index in which one record reaches into the next")
of_liar("index-hole", "index: the last record ends too early", "an index that leaves a byte to no record")
of_liar("index-negative-layer", "index: negative layer", "an index that counts layers from the end")
attack(
    "index-of-2-to-the-40-snapshots",
    "an index that speaks of 2^40 snapshots, against tools that list lost ones",
    "the index describes this record wrongly",
    lambda craft: setattr(craft, "edit_index", lambda lines: lines[8].__setitem__(9, 1 << 40)),
)
of_liar("model-twice", "two MODEL", "two descriptions of the model, for readers that take the last")
of_liar("labels-missing", "no LABELS", "snapshots of rows that nothing labels")
of_liar("records-missing", "no records", "a file of no records but its end")

# JSON

of_liar("json-duplicate-key", "json: duplicate key", "a key twice, of which parsers take the first or the last")
of_liar("json-nested-100000", "json: nested 100,000 deep", "JSON nested 100,000 deep, against the parser's stack")
of_liar("json-nested-17", "json: nested 17 deep", "JSON nested one deeper than allowed")
of_liar("json-integer-of-5000-digits", "json: integer of 5,000 digits", "an integer whose conversion takes long")
of_liar("json-float-of-100000-digits", "json: float of 100,000 digits", "a number of 100,000 digits and a fraction")
of_liar("json-1e999", "json: 1e999", "a number that is infinite as a float")
of_liar("json-nan", "json: NaN", "NaN, which is not JSON")
of_liar("json-lone-surrogate", "json: lone surrogate", "half of a surrogate pair in a string")
of_liar("json-surrogate-in-utf-8", "json: surrogate in UTF-8", "half of a surrogate pair as bytes")
of_liar("json-string-of-65537", "json: string of 65,537", "a string one longer than allowed")
of_liar("json-over-1-mib", "json: more than 1 MiB", "JSON of 1 MiB and a byte, of which all but a little is spaces")
of_liar("json-true-as-integer", "json: true as integer", "a batch of true, which is 1 in some languages")

# Strings against terminals: what a refusal quotes

ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\b\x9b31m"
BIDI = "\u202egnp.exe\u2066\u200f"
MARKUP = "[bold red]owned[/] [link=file:///etc/passwd]here[/link]"


def field(name: str) -> Edit:
    return lambda craft: craft[MODEL].edit_json(lambda model: model.update({name: 1}))


def raw_key(craft: Craft) -> None:
    """Twice the same key with escapes in it, spelled as UTF-8 where JSON allows that."""
    key = spell(ESCAPES + BIDI)
    craft[HEADER].raw = craft[HEADER].raw[:-1] + b"," + key + b":1," + key + b":1}"


def named_tensor(craft: Craft) -> None:
    entries, data = split_table(craft[LABELS].raw)
    entries["ids\n\x1b[31mtsc: ok"] = entries.pop("token_ids")
    craft[LABELS].raw = join_table(spell(entries), data)


def missing_state(craft: Craft) -> None:
    """A state with a hostile name that is missing, which the refusal names."""

    def edit(model: Any) -> None:
        model["layers"][0]["states"][0]["name"] = "conv" + ESCAPES + BIDI + "\nok"

    craft[MODEL].edit_json(edit)
    craft.records.remove(next(piece for piece in craft.records if piece.type == STATES))


attack(
    "escapes-in-a-field",
    "a field named by escape sequences that clear the screen and retitle it",
    r"unknown field '\x1b[2J\x1b]0;owned",
    field(ESCAPES),
)
attack("bidi-in-a-field", "a field whose name reads backwards", r"unknown field '\u202egnp", field(BIDI))
attack("markup-in-a-field", "a field named in a terminal library's markup", "[bold red]owned", field(MARKUP))
attack(
    "newline-in-a-field", "a field with a line of its own: a forged message", r"'x\ntsc: ok\n'", field("x\ntsc: ok\n")
)
attack("escapes-in-a-duplicate-key", "a duplicate key of escape sequences", "duplicate key", raw_key)
attack("escapes-in-a-tensor", "a tensor named by escape sequences", "were expected", named_tensor)
attack(
    "escapes-in-a-state",
    "a state named by escape sequences, which is missing",
    "is missing at snapshot",
    missing_state,
    base="states",
)

# MODEL and HEADER

of_liar("model-2-to-the-21-heads", "model: 2^21 heads", "more heads than a model may have")
of_liar("model-of-5000-layers", "model: run of 5,000", "more layers than a model may have")
of_liar("model-negative-size", "model: negative size", "heads of a negative size")
of_liar("model-other-sizes", "model: sizes that the rows do not have", "keys of other sizes than the rows have")
of_liar("model-padding-of-nothing", "by hand: model, padding of nothing", "a list of padding that pads nothing")
of_liar(
    "model-padding-of-two-in-three", "by hand: model, padding of two sequences", "padding of two sequences of three"
)
of_liar("header-ratio-too-large", "header: ratio of the trace 1% too large", "a ratio 1% better than the file has")
of_liar("header-ratio-of-1e308", "header: ratio 1e308", "a ratio of 10^308")
of_liar("header-raw-bytes", "header: raw bytes of the trace lie", "raw bytes one more than the snapshots have")

# Tables

of_liar("table-overlap", "table: overlap", "two tensors that share bytes", "overlap or leave a hole")
of_liar("table-hole", "table: hole", "bytes between two tensors that belong to none")
of_liar("table-bytes-behind", "table: bytes behind", "bytes behind the last tensor")
of_liar("table-huge-shape", "table: huge shape", "a shape whose product wraps around")
of_liar("table-header-2-to-the-63", "table: header length 2^63", "a table whose header is said to be 2^63 bytes long")
of_liar("table-of-4097-tensors", "table: 4,097 tensors", "more tensors than a table may have")

# Labels, views, rows

of_liar("labels-2-to-the-26-rows", "labels: 2^26 + 1 rows", "2^26 + 1 labelled rows in 120 bytes")
of_liar(
    "labels-far-more-than-the-file-could-hold",
    "labels: far more rows than the file could hold",
    "3 million labelled rows that nothing stores, in a few kB of zstd",
)
of_liar(
    "rows-of-all-layers-again-and-again",
    "rows: of all layers again and again",
    "70 records of rows, of nothing but a header, each of 4,096 layers: thousands would fill a memory",
)
of_liar("labels-negative-token", "labels: negative token", "a negative token id, against an embedding's lookup")
of_liar("labels-position-overflow", "labels: position 2^63", "a position that wraps around")
of_liar("labels-of-two-in-a-batch-of-three", "by hand: labels, of two sequences", "token ids of two sequences of three")
of_liar("views-row-outside", "views: first row 2^63 - 1", "a snapshot of rows beyond the last one")
of_liar("views-row-twice", "views: row named twice", "a snapshot that goes around: it names rows again")
of_liar("views-layer-missing", "views: missing layer", "a snapshot that lacks a layer")
of_liar("views-2-to-the-63-layers", "views: 2^63 - 1 layers", "a group of 2^63 - 1 layers")
of_liar("views-unstored-keyframe", "rows: missing", "a snapshot whose rows are in no record")
of_liar("rows-overlap", "rows: one row stored twice", "two records that hold the same row")
of_liar("rows-keys-without-values", "rows: keys without values", "rows of which only the keys are stored")
of_liar("rows-2-to-the-32-layers", "rows: 2^32 - 1 layers", "a record of rows of 2^32 - 1 layers")
of_liar("rows-of-384-mib", "rows: 384 MiB out of 800 KiB", "codes that decode to 384 MiB")

# Codecs

of_liar("scalar-levels-0", "scalar: levels 0", "a grid of no levels, against a division")
of_liar("scalar-head-of-2-to-the-40", "rows: heads of 2^40 values, scalar", "codes of heads of 2^40 values")
of_liar("vq-codebook-of-the-wrong-shape", "vq: codebooks longer along axis 0", "a codebook with a dimension too long")
of_liar("vq-centroid-beyond", "vq: a centroid that is not there", "a code that names a centroid beyond the codebook")
of_liar("vq-fallback-map-lies", "vq: a block marked too little", "a map of exact blocks that names one too few")
of_liar("vq-fallback-map-overflows", "vq: a bit behind the last block", "a map of exact blocks with a block too many")
of_liar("pq-fallback-map-all", "pq: all blocks marked", "a map that calls every block exact, of which few are stored")
of_liar("delta-cycle", "delta: two rows predicted from each other", "two rows, each predicted from the other")
of_liar("delta-itself", "delta: row 7 predicted from itself", "a row predicted from itself")
of_liar("delta-keyframe-missing", "delta: a base that was never stored", "rows predicted from a row that is nowhere")
of_liar("delta-chain-of-65", "delta: 65 records followed", "65 records, each predicted from the next")
of_liar("kept-bit-beyond", "kept: a bit behind the last row", "a map of kept rows that keeps a row beyond the last")
of_liar("kept-uneven", "kept: a head with a row more", "a head that kept more rows than the others")
of_liar("attention-of-more-rows", "attention: more rows than there are", "attention to rows that there are not")
of_liar("attention-of-another-shape", "attention: one head less", "attention of a head too few")

# Profiles and entropy-coded rows


def words(change: Callable[[list[int]], list[int]]) -> Edit:
    def edit(craft: Craft) -> None:
        piece = craft.rows(0)
        piece.set_integers("words", change(piece.integers("words")))

    return edit


of_liar("profile-other-digest", "PROFILE: wrong digest", "a profile under the digest of another one")
of_liar("profile-elsewhere", "PROFILE: on another machine", "a digest of a profile that nobody has, and no data")
of_liar("profile-frequencies-lie", "profile: a sum that is right modulo 2^32", "frequencies whose sum wraps around")
of_liar("profile-infinite", "profile: infinity in mean", "an infinite mean, which would spread to all rows")
of_liar("profile-without-inverse", "profile: metric_keys of zeros", "a metric that has no inverse")
attack(
    "ans-runs-dry",
    "a stream whose last word is missing",
    "entropy-coded words are left over",
    words(lambda old: old[1:]),
    base="klt",
)
attack(
    "ans-without-words",
    "a stream that is dry from the beginning",
    "integers that are written apart are left over",
    words(lambda _: []),
    base="klt",
)
attack(
    "ans-never-ends",
    "a stream of 65,536 words more than any symbol takes",
    "entropy-coded words are left over",
    words(lambda old: [0xFFFFFFFF] * 65_536 + old),
    base="klt",
)
of_liar("ans-ends-in-zero", "klt: words that end in zero", "a stream with a word that says nothing")
of_liar("klt-integers-missing", "klt: none apart", "symbols that send for integers that are not there")
of_liar("klt-beyond-float32", "klt: coefficients beyond float32", "coefficients that are infinite in float32")

# States, layers without rows, indexer keys

of_liar("states-of-2-to-the-120", "by hand: limits, 2^20 six times", "a state of 2^120 values")
of_liar("states-missing", "by hand: states, missing at a snapshot", "a snapshot that lacks a state")
of_liar("states-twice", "by hand: states, stored twice", "a state in two records")
of_liar("states-of-2-to-the-62-snapshots", "by hand: states, count 2^62", "a record of states of 2^62 snapshots")
of_liar("states-of-the-wrong-layers", "by hand: states, dummy layer", "states of a layer that has none")
of_liar("views-of-a-layer-without-rows", "by hand: views, rows of a dummy layer", "rows of a layer that keeps none")
of_liar("indexer-keys-missing", "by hand: rows, indexer keys missing for a row", "a row without its indexer keys")
of_liar(
    "indexer-keys-of-another-width", "by hand: rows, indexer keys of the width of keys", "indexer keys as wide as keys"
)
of_liar(
    "cross-rows-missing", "by hand: views, rows that cross-attention does not store", "encoder's rows that are nowhere"
)
