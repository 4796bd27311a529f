"""Files of codec klt: both readers decode the same integers, whatever the words are, and no number leaves its range."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
import pytest

from formats import Trace
from formats.codecs.klt import profile, profile_store, symbols
from formats.codecs.klt.ans import Decoder, Encoder, RawBits, Tables, quantized
from formats.errors import LimitError, TscError, UnsupportedFileError
from tests.format_conformance import profiles, samples
from tests.format_conformance.craft import PROFILE, Craft, Piece
from tests.format_conformance.second_reader import reader as second_reader
from tests.format_conformance.second_reader.klt import Stream
from tests.format_conformance.test_second_reader import assert_same_content, first_reader, other_reader
from tests.support.traces import FULL

KLT = [name for name in samples.COMPRESSED if name.startswith("klt")]
TEN_WORDS = struct.pack("<10I", *range(1, 11))


def decoded_integers(trace: Trace) -> list[int]:
    """What the product decodes, block by block."""
    found: list[int] = []
    take = symbols.take

    def noted(*arguments: object) -> object:
        integers = take(*arguments)  # type: ignore[arg-type]
        found.extend(integers.tolist())
        return integers

    with mock.patch.object(symbols, "take", noted):
        for block in trace.blocks:
            block.read()
    return found


@pytest.mark.parametrize("name", KLT)
def test_both_readers_decode_the_same_integers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sample.tsc"
    path.write_bytes(samples.sample(name))
    trace, document = first_reader(path), second_reader.read(samples.sample(name))
    assert isinstance(trace, Trace)
    wanted = [number for record in document.rows.stored for number in document.rows.integers.get(record.offset, [])]
    assert decoded_integers(trace) == wanted
    assert wanted or name == "klt, nothing coded"


def test_a_profile_that_is_only_named(tmp_path: Path) -> None:
    data = samples.klt(profiles.two_groups, samples.finite((FULL,) * 3), embed=False)
    path = tmp_path / "named.tsc"
    path.write_bytes(data)
    trace, named = first_reader(path), profiles.two_groups().data
    assert isinstance(trace, Trace)
    assert_same_content(trace, second_reader.read(data, named))
    for at_hand in (None, profiles.one_group().data):
        with pytest.raises(second_reader.Refused, match="not at hand"):
            second_reader.read(data, at_hand)
    with mock.patch.dict(profile_store.remembered, clear=True):
        assert isinstance(first_reader(path), UnsupportedFileError)


def agree(path: Path, data: bytes) -> bool:
    """Whether both readers take a file, which they must find the same, or both refuse it; nothing is warned of."""
    path.write_bytes(data)
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        first, second = first_reader(path), other_reader(data)
    if isinstance(first, TscError) or isinstance(second, second_reader.Refused):
        assert isinstance(first, TscError), second
        assert isinstance(second, second_reader.Refused), first
        return False
    assert_same_content(first, second)
    for number in range(len(first)):
        snapshot = first.snapshot(number)
        assert all(bool(rows.isfinite().all()) for rows in snapshot.keys + snapshot.values)
    return True


@pytest.mark.parametrize("scale", [-3_200, 0, 3_200])
@pytest.mark.parametrize("fineness", [-1_024, 0, 2_048])
@pytest.mark.parametrize("words", [b"", TEN_WORDS, b"\xff" * 400], ids=["no words", "ten words", "all ones"])
def test_the_ends_of_every_scale(scale: int, fineness: int, words: bytes, tmp_path: Path) -> None:
    """Symbols of words that nobody wrote; without words they are all 0."""
    craft = Craft.of(samples.sample("klt"))
    inner = Piece(0, craft[PROFILE].tensors()["data"][2])
    for name in ("0.scale", "0.residual_scale"):
        inner.set_integers(name, [scale] * len(inner.integers(name)))
    digest = struct.pack("<32B", *bytes.fromhex(profile.loads(inner.raw).digest))
    craft[PROFILE].set_tensors({"digest": ("U8", [32], digest), "data": ("U8", [len(inner.raw)], inner.raw)})
    rows = craft.rows(0)
    tensors = {"layout": ("I32", [4], struct.pack("<4i", fineness, 1, 8, 1)), "apart": ("I32", [0], b"")}
    rows.set_tensors(tensors | {"words": ("U32", [len(words) // 4], words)})
    accepted = agree(tmp_path / "ends.tsc", craft.build())
    assert accepted or scale < 0 or words


def farther(values: list[int]) -> list[int]:
    return [(-(2**31), 2**31 - 1)[number % 2] for number in range(len(values))]


def test_the_largest_integers_apart(tmp_path: Path) -> None:
    craft = Craft.of(samples.sample("klt"))
    rows = craft.rows(0)
    assert len(rows.integers("apart")) > 3
    rows.set_integers("apart", farther(rows.integers("apart")))
    assert agree(tmp_path / "apart.tsc", craft.build())


@pytest.mark.parametrize("name", ["klt", "klt, four groups"])
def test_other_words(name: str, tmp_path: Path) -> None:
    """A changed word gives other symbols and, almost always, another number of words."""
    taken = 0
    for seed in range(25):
        random, craft = Random(seed), Craft.of(samples.sample(name))
        rows = craft.rows(0)
        words = rows.integers("words")
        words[random.randrange(len(words))] ^= 1 << random.randrange(32)
        rows.set_integers("words", words)
        taken += agree(tmp_path / "words.tsc", craft.build())
    assert taken < 25


@pytest.mark.parametrize("seed", range(20))
def test_streams(seed: int) -> None:
    """One symbol after another with Python's integers, as many as the coder gives at once."""
    random = np.random.default_rng(seed)
    tables = Tables(quantized(random.random((7, 256)) ** 30 + 1e-12))
    classes, bits = (random.integers(0, high, 200).astype(np.uint8) for high in (7, 17))
    chosen = random.integers(0, 256, 200).astype(np.int32)
    low = np.array([int(random.integers(0, 1 << int(width))) for width in bits], dtype=np.int32)
    encoder = Encoder()
    encoder.put(tables, chosen, classes)
    encoder.put(RawBits(), low, bits)
    words: list[int] = encoder.words().tolist()
    stream, decoder = Stream(words), Decoder(np.array(words, dtype=np.uint32))
    assert stream.batch(tables.frequencies.astype(np.int64), classes.tolist()) == chosen.tolist()
    assert stream.raw_batch(bits.tolist()) == low.tolist()
    stream.finish()
    short = words[len(words) // 2 :]  # as far as they reach, and then as the state alone has it
    stream, decoder = Stream(short), Decoder(np.array(short, dtype=np.uint32))
    for _ in range(2):
        found = stream.batch(tables.frequencies.astype(np.int64), classes.tolist())
        assert found == decoder.take(tables, classes).tolist()


def test_a_profile_beyond_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "3071")
    found = profile.loads(profiles.one_group().data)
    with pytest.raises(LimitError, match="budget of 3071 bytes"):
        _ = found.groups
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "3072")  # 12 bytes for each of 8 x 32 values
    assert len(found.groups) == 1
