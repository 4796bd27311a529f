"""Safetensors buffers: read as the safetensors library reads them, refused where it is lenient."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as library_load
from safetensors.torch import save as library_save

from formats.container.safetensors_buffer import expect, pack, parse, to_torch
from formats.errors import CorruptError
from tests.format_conformance.craft import join_table, spell, split_table
from tests.support.traces import octets

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__")


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    count = torch.Size(shape).numel() * dtype.itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    return torch.tensor(list(data), dtype=torch.uint8).view(dtype).view(shape)


BUFFERS = st.dictionaries(NAMES, tensors(), max_size=4)
ONE = {"a": {"dtype": "U16", "shape": [2], "data_offsets": [0, 4]}}


@given(BUFFERS)
def test_agrees_with_the_library(wanted: dict[str, torch.Tensor]) -> None:
    buffer = pack(wanted)
    assert buffer == library_save({name: tensor.clone() for name, tensor in wanted.items()})
    found, library = parse(buffer, "x"), library_load(buffer)
    assert found.keys() == library.keys() == wanted.keys()
    for name, tensor in wanted.items():
        view = found[name]
        assert (DTYPES[view.dtype], view.shape) == (tensor.dtype, tuple(tensor.shape))
        assert bytes(view.data) == octets(library[name]) == octets(tensor)


@given(BUFFERS, st.randoms())
def test_order_does_not_change_the_bytes(wanted: dict[str, torch.Tensor], chance: random.Random) -> None:
    names = list(wanted)
    chance.shuffle(names)
    assert pack({name: wanted[name] for name in names}) == pack(wanted)


def test_tensors_of_a_run_with_gradients_are_packed() -> None:
    assert pack({"a": torch.ones(3, requires_grad=True) * 2}) == pack({"a": torch.full((3,), 2.0)})


def test_strided_tensors_are_packed_as_they_read() -> None:
    tensor = torch.arange(12, dtype=torch.int32).view(3, 4).t()
    assert list(parse(pack({"a": tensor}), "x")["a"].integers()) == tensor.flatten().tolist()


@pytest.mark.parametrize("dtype", ["U8", "U16", "I32", "I64"])
def test_integers(dtype: str) -> None:
    limits = torch.iinfo(DTYPES[dtype])
    values = [limits.min, limits.max, 0, 1]
    view = parse(pack({"a": torch.tensor(values, dtype=DTYPES[dtype])}), "x")["a"]
    assert list(view.integers()) == values


@pytest.mark.parametrize("shape", [(0,), (0, 3), (5,)])
def test_to_torch_is_a_writable_copy(shape: tuple[int, ...]) -> None:
    buffer = pack({"a": torch.ones(shape, dtype=torch.uint8)})
    tensor = to_torch(parse(buffer, "x")["a"])
    tensor.fill_(7)
    assert bytes(parse(buffer, "x")["a"].data) == b"\1" * tensor.numel()


def entry(**changes: object) -> dict[str, object]:
    return {"a": ONE["a"] | changes}


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "seven bytes": (bytes(7), "too short"),
    "no header": (bytes(8), "not a JSON object"),
    "header longer than the buffer": (b"\3" + bytes(7) + b"{}", "header of 3 bytes does not fit"),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", "does not fit"),
    "header over 1 MiB": (join_table(b"{}".ljust((1 << 20) + 1), b""), "does not fit"),
    "header not an object": (join_table(b"[]", b""), "not a JSON object"),
    "space ahead": (join_table(b" {}", b""), "not a JSON object"),
    "zeros behind": (join_table(b"{}" + bytes(6), b""), "followed by spaces"),
    "newline behind": (join_table(b"{}\n", b""), "followed by spaces"),
    "two objects": (join_table(b"{}{}", b""), "not JSON"),
    "duplicate name": (join_table(spell(ONE)[:-1] + b"," + spell(ONE)[1:], bytes(4)), "duplicate key"),
    "metadata": (join_table(spell({"__metadata__": {"a": "b"}}), b""), "is missing"),
    "metadata beside a tensor": (join_table(spell({"__metadata__": {}, **ONE}), bytes(4)), "is missing"),
    "unknown dtype": (join_table(spell(entry(dtype="F4")), bytes(4)), "dtype: one of"),
    "shape too small": (join_table(spell(entry(shape=[1])), bytes(4)), "do not give 4 bytes"),
    "shape too large": (join_table(spell(entry(shape=[3])), bytes(4)), "do not give 4 bytes"),
    "negative shape": (join_table(spell(entry(shape=[-1, -2])), bytes(4)), "an integer from 0"),
    "overflowing shape": (join_table(spell(entry(shape=[2**62, 4, 2])), bytes(4)), "do not give 4 bytes"),
    "nine dimensions": (join_table(spell(entry(shape=[2] + [1] * 8)), bytes(4)), "at most 8"),
    "offset behind the data": (join_table(spell(entry()), bytes(3)), "from 0 to 3"),
    "bytes behind": (join_table(spell(entry()), bytes(5)), "1 bytes after the last tensor"),
    "bytes without tensors": (join_table(b"{}", bytes(4)), "4 bytes after the last tensor"),
    "hole ahead": (join_table(spell(entry(data_offsets=[2, 6])), bytes(6)), "leave a hole"),
    "overlap": (join_table(spell({**ONE, "b": ONE["a"] | {"data_offsets": [2, 6]}}), bytes(6)), "overlap"),
    "same bytes twice": (join_table(spell({**ONE, "b": ONE["a"]}), bytes(4)), "overlap"),
    "empty tensor inside another": (
        join_table(spell({**ONE, "b": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}}), bytes(4)),
        "overlap",
    ),
    "4,097 tensors": (
        join_table(spell({str(n): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(4_097)}), b""),
        "at most 4096 tensors",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    buffer, message = REFUSED[name]
    with pytest.raises(CorruptError, match=f"^the buffer: .*{message}"):
        parse(buffer, "the buffer")


@given(st.binary(max_size=40).map(lambda tail: len(tail).to_bytes(8, "little") + tail) | st.binary(max_size=40))
def test_nothing_but_corrupt_error_escapes(buffer: bytes) -> None:
    with pytest.raises(CorruptError):  # `{}` alone would be valid; 8 chosen bytes do not come about by chance
        parse(buffer + b"\0", "x")


SMALL = st.integers(-1, 6)
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["U8", "U16", "I32"]),
            "shape": st.lists(SMALL, max_size=3),
            "data_offsets": st.lists(SMALL, min_size=2, max_size=2),
        }
    ),
)


@settings(max_examples=400)
@given(HEADERS, st.integers(0, 6))
def test_the_library_accepts_what_is_accepted_here(header: dict[str, Any], length: int) -> None:
    buffer = join_table(spell(header), bytes(range(length)))
    try:
        found = parse(buffer, "x")
    except CorruptError:
        return
    library = dict(safetensors.deserialize(buffer))  # type: ignore[no-untyped-call]
    assert {name: (list(view.shape), bytes(view.data)) for name, view in found.items()} == {
        name: (value["shape"], bytes(value["data"])) for name, value in library.items()
    }


@pytest.mark.parametrize(
    "shapes", [pytest.param({"a": ("U16", (2,))}, id="exact"), pytest.param({"a": ("U16", (None,))}, id="any extent")]
)
def test_expected(shapes: dict[str, tuple[str, tuple[int | None, ...]]]) -> None:
    expect(parse(join_table(spell(ONE), bytes(4)), "x"), shapes, "x")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        pytest.param({}, r"tensors \[\] were expected", id="too many"),
        pytest.param({"a": ("U16", (2,)), "b": ("U8", ())}, r"\['a', 'b'\] were expected", id="too few"),
        pytest.param({"b": ("U16", (2,))}, r"\['b'\] were expected", id="another name"),
        pytest.param({"a": ("I32", (2,))}, r"is U16 \[2\], not I32", id="another dtype"),
        pytest.param({"a": ("U16", (3,))}, r"is U16 \[2\], not U16", id="another extent"),
        pytest.param({"a": ("U16", (2, None))}, r"is U16 \[2\], not U16", id="another rank"),
    ],
)
def test_unexpected(shapes: dict[str, tuple[str, tuple[int | None, ...]]], message: str) -> None:
    with pytest.raises(CorruptError, match=message):
        expect(parse(join_table(spell(ONE), bytes(4)), "x"), shapes, "x")


def test_padding_of_any_length() -> None:
    header, data = split_table(pack({"a": torch.arange(3)}))
    pad: Callable[[int], bytes] = lambda spaces: join_table(spell(header) + b" " * spaces, data)  # noqa: E731
    assert all(list(parse(pad(spaces), "x")["a"].integers()) == [0, 1, 2] for spaces in (0, 1, 8, 4_096))
