"""Files of states and the like, put together by hand: what they hold is found, and each lie has its own reason."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from formats import Trace
from formats.errors import CorruptError, UnsupportedFileError
from tests.format_conformance import samples
from tests.format_conformance.craft import LABELS, MODEL, ROWS, STATES, VIEWS, Craft, Piece
from tests.format_conformance.liars import LIARS, Edit, Liar
from tests.format_conformance.liars_states import REASONS, nth
from tests.format_conformance.mutate import mutant
from tests.format_conformance.samples_states import SAMPLES, file_bytes
from tests.format_conformance.second_reader import reader as second_reader
from tests.format_conformance.second_reader.codecs import rotate
from tests.format_conformance.test_second_reader import first_reader
from tests.support.traces import octets

every_sample = pytest.mark.parametrize("name", SAMPLES)


@every_sample
def test_the_second_reader_finds_what_was_written(name: str) -> None:
    written, document = SAMPLES[name](), second_reader.read(file_bytes(name))
    assert len(document.snapshots) == len(written.moments)
    for number in range(len(written.moments)):
        keys, values = (written.tensors(number, part) for part in ("keys", "values"))
        assert document.snapshot(number) == list(zip(keys, values, strict=True))
        assert document.indexer_keys(number) == written.tensors(number, "indexer")
        assert document.states(number) == written.states(number)
        assert document.raw_bytes(number) == written.raw_bytes(number)
        for sequence in range(written.batch):
            assert document.history(number, sequence) == written.history(number, sequence)
    assert document.geometry.padding == (written.padding or [0] * written.batch)


@every_sample
def test_the_product_finds_what_was_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sample.tsc"
    path.write_bytes(file_bytes(name))
    written, trace = SAMPLES[name](), first_reader(path)
    assert isinstance(trace, Trace)
    for number in range(len(written.moments)):
        snapshot = trace.snapshot(number)
        for part, found in (("keys", snapshot.keys), ("values", snapshot.values)):
            for layer, data in enumerate(written.tensors(number, part)):
                assert not data or octets(found[layer]) == data
        for layer, data in enumerate(written.tensors(number, "indexer")):
            assert not data or octets(snapshot.indexer_keys[layer]) == data
        for layer, states in enumerate(written.states(number)):
            assert not states or [*map(octets, snapshot.states[layer].values())] == states
        assert snapshot.token_ids == written.history(number)
    assert (trace.raw_bytes, trace.raw_bytes_final) == (
        sum(map(written.raw_bytes, range(len(written.moments)))),
        written.raw_bytes(-1 % len(written.moments)),
    )


def test_the_samples_have_what_the_format_has() -> None:
    kinds, codecs, dimensions, shapes = set(), set[tuple[int, ...]](), set(), set()
    for name in SAMPLES:
        document = second_reader.read(file_bytes(name))
        for layer in document.geometry.layers:
            kinds.add((layer.kind, len(layer.states) > 0, layer.index_size > 0))
            dimensions |= {len(state.shape) for state in layer.states}
        codecs |= {(record.type, record.part, record.codec) for record in document.rows.stored if record.part == 3}
        codecs |= {(record.type, record.codec) for record in document.states_stored}
        shapes.add((document.geometry.batch > 1, document.labels.shape[1] > 1, any(document.geometry.padding)))
    assert kinds == {
        ("none", True, False),
        ("none", False, False),
        ("full", False, False),
        ("full", True, False),
        ("full", False, True),
        ("sliding", False, False),
        ("sliding", False, True),
        ("cross", False, False),
    }
    assert codecs == {(ROWS, 3, 1), (ROWS, 3, 2), (STATES, 1), (STATES, 2)}
    assert dimensions == {1, 2, 3, 6}
    assert shapes == {(False, False, False), (True, True, True)}


@pytest.mark.parametrize("liar", [liar for liar in LIARS if liar.name in REASONS], ids=lambda liar: liar.name)
def test_each_lie_is_refused_for_its_own_reason(liar: Liar) -> None:
    with pytest.raises(second_reader.Refused) as refused:
        second_reader.read(liar.build())
    kind, _, reason = str(refused.value).partition(": ")
    assert REASONS[liar.name] in reason
    assert kind == {CorruptError: "corrupt", UnsupportedFileError: "unsupported"}[liar.error]


def model(edit: Callable[[Any], object]) -> Edit:
    return lambda craft: craft[MODEL].edit_json(edit)


def divided_states(value: Any) -> None:
    """One layer a run; STATES records go over the layers of several."""
    value["layers"] = [value["layers"][0] | {"count": 1}] * 3


def other_shapes(value: Any) -> None:
    """Shapes of which the tensors are the same."""
    conv, recurrent = value["layers"][0]["states"]
    conv["shape"], recurrent["shape"] = [12], [2, 1, 2, 1, 2, 3]


def labels_of_one(craft: Craft) -> None:
    """Of all sequences the tokens of the first one."""
    for piece in [piece for piece in craft.records if piece.type == LABELS]:
        dtype, (count, batch), _ = piece.tensors()["token_ids"]
        first = piece.integers("token_ids")[::batch]
        ids = (dtype, [count], struct.pack(f"<{count}H", *first))
        piece.set_tensors(piece.tensors() | {"token_ids": ids})
    tokens = craft[VIEWS].integers("next_tokens")[::batch]
    chosen = ("I64", [len(tokens)], struct.pack(f"<{len(tokens)}q", *tokens))
    craft[VIEWS].set_tensors(craft[VIEWS].tensors() | {"next_tokens": chosen})


def predicted_indexer_keys(craft: Craft) -> None:
    """The indexer keys of layers 0 and 1: rows 0 to 2 as they were, rows 3 to 5 equal to them, in codec 5."""
    piece = nth(craft, ROWS, 2)
    later = craft.insert(Piece(ROWS, b"", 5, 3, 0, 2, 3, 3))
    dtype, shape, data = piece.tensors()["planes"]  # [item, layers, batch, heads, size, rows]
    earlier = b"".join(data[at : at + 3] for at in range(0, len(data), 6))
    piece.set_tensors({"planes": (dtype, [*shape[:-1], 3], earlier)})
    piece.count = 3
    later.set_tensors(
        {
            "layout": ("I32", [3], struct.pack("<3i", 3, 0, 2)),
            "bases": ("I64", [3], struct.pack("<3q", 0, 1, 2)),
            "codes": ("U8", [2, 1, 1, 3, 1], bytes([1 + 3 + 9 + 27 + 81]) * 6),
            "scales": ("U8", [2, 2, 1, 1, 3, 1], bytes(12)),
            "exact_rows": ("U8", [1], b"\0"),
            "exact": ("U8", [2, 0, 1, 1, 5], b""),
        }
    )


HONEST: dict[str, tuple[str, Edit]] = {
    "in reverse": ("hybrid", lambda craft: craft.records.__setitem__(slice(1, -1), craft.records[-2:0:-1])),
    "divided run of layers": ("pure", model(divided_states)),
    "other shapes of the same tensors": ("pure", model(other_shapes)),
    "a state without a name": ("pure", model(lambda value: value["layers"][0]["states"][0].update(name=""))),
    "padding of a batch of 1": ("pure", model(lambda value: value.update(padding=[2]))),
    "padding of all sequences": ("padded", model(lambda value: value.update(padding=[1, 2**20, 1]))),
    "padding of none": ("padded", model(lambda value: value.pop("padding"))),
    "labels of all sequences": ("padded", labels_of_one),
}


@pytest.mark.parametrize("reader", ["second", "product"])
@pytest.mark.parametrize("name", HONEST)
def test_unusual_but_valid(name: str, reader: str, tmp_path: Path) -> None:
    sample, edit = HONEST[name]
    written, craft = SAMPLES[f"by hand, {sample}"](), Craft.of(file_bytes(f"by hand, {sample}"))
    edit(craft)
    data = craft.build()
    assert data != file_bytes(f"by hand, {sample}")
    if reader == "second":
        document = second_reader.read(data)
        assert document.states(1) == written.states(1)
        assert document.history(1) == written.history(1)
    else:
        path = tmp_path / "honest.tsc"
        path.write_bytes(data)
        assert isinstance(first_reader(path), Trace)


def test_indexer_keys_predict_indexer_keys() -> None:
    craft = Craft.of(file_bytes("by hand, indexed"))
    _, shape, data = nth(craft, ROWS, 2).tensors()["planes"]
    high = bytes(octet & 0x3F for octet in data[len(data) // 2 :])  # no NaN: which one comes of a sum nothing says
    nth(craft, ROWS, 2).set_tensors({"planes": ("U8", shape, data[: len(data) // 2] + high)})
    before = second_reader.read(craft.build()).indexer_keys(1)[0]
    predicted_indexer_keys(craft)
    after = second_reader.read(craft.build()).indexer_keys(1)[0]
    half = len(before) // 2
    assert after[:half] == after[half:] == before[:half] != before[half:]


@pytest.mark.parametrize("size", [1, 3, 6, 1_536, 2_048, 3 * 2_048])
def test_long_heads_are_rotated(size: int) -> None:
    """As if each run were multiplied by the one matrix, whose signs are the parities of common bits."""
    length = size & -size
    values = np.random.default_rng(size).standard_normal((2, size))
    at = np.arange(length)
    common, odd = at[:, None] & at, np.zeros((length, length), bool)
    for bit in range(length.bit_length()):
        odd ^= (common >> bit & 1).astype(bool)
    want = values.reshape(2, -1, length) @ np.where(odd, -1.0, 1.0) / math.sqrt(length)
    assert np.allclose(rotate(values), want.reshape(2, size))


@every_sample
def test_flipped_bits(name: str) -> None:
    data = file_bytes(name)
    for at in range(0, len(data), 17):
        damaged = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        with pytest.raises(second_reader.Refused):
            second_reader.read(damaged)


@pytest.mark.parametrize(
    "numbers",
    [pytest.param(range(500), id="500"), pytest.param(range(500, 2_500), id="2000 more", marks=pytest.mark.full)],
)
def test_mutants_are_read_or_refused(numbers: range) -> None:
    """Any other exception fails the test; both readers are compared in `test_second_reader`."""
    outcomes: Counter[str] = Counter()
    for number in numbers:
        random = Random(number)
        data = mutant(samples.sample(random.choice(list(SAMPLES))), random)
        try:
            document = second_reader.read(data)
        except second_reader.Refused as refused:
            outcomes[str(refused).partition(":")[0]] += 1
        else:
            outcomes["accepted"] += 1
            document.states(number % len(document.snapshots))
            document.snapshot(number % len(document.snapshots))
    print(dict(outcomes))
    assert outcomes["accepted"] > len(numbers) / 50
    assert outcomes["budget"] < len(numbers) / 100
