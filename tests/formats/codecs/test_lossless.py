"""The lossless codec gives back every bit, for every dtype and shape, and is as small as documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import Geometry, LayerSpec, load, save
from formats.codecs import codec_by_id, codec_by_name
from formats.container.records import Part
from formats.container.safetensors_buffer import pack, parse
from formats.errors import CorruptError, UnsupportedFileError, UsageError
from formats.trace.blocks import BlockShape
from formats.trace.geometry import DTYPE_BYTES
from formats.trace.views import BlockKey
from tests.support.traces import growing_trace, random_rows, same_bits

sizes = st.sampled_from([1, 2, 3, 64, 80, 96, 128, 256])


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(DTYPE_BYTES)),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 9),
    sizes,
    sizes,
    st.integers(0, 10**6),
)
def test_round_trip(
    dtype: str, layers: int, batch: int, heads: int, rows: int, key_size: int, value_size: int, seed: int
) -> None:
    spec = LayerSpec("full", heads, key_size, value_size)
    geometry = Geometry(dtype, (spec,) * layers, batch)
    stacked = random_rows(spec, rows * layers, dtype, batch, seed)
    codec = codec_by_id(1, "file")
    shape = BlockShape.of(BlockKey(Part.JOINT, 0, layers, 0, rows), geometry)
    for part, tensor in zip((Part.KEYS, Part.VALUES), stacked, strict=True):
        block = (
            tensor.view(layers, batch, heads, rows, -1)
            if batch == 1
            else tensor.reshape(layers, batch, heads, rows, -1)
        )
        tensors = parse(pack(codec.encode({part: block})), "test")
        codec.check(tensors, part, shape, "test")
        assert same_bits(codec.decode(tensors, part, shape, "cpu")[part], block)


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_files_of_every_dtype(dtype: str, tmp_path: Path) -> None:
    trace = growing_trace(dtype=dtype)
    save(trace, tmp_path / "t.tsc")
    back = load(tmp_path / "t.tsc")
    for number in range(len(trace)):
        have, want = back.snapshot(number), trace.snapshot(number)
        assert all(same_bits(a, b) for a, b in zip([*have.keys, *have.values], [*want.keys, *want.values], strict=True))


def test_unknown_codecs_are_refused() -> None:
    with pytest.raises(UnsupportedFileError, match="codec 99 is not known"):
        codec_by_id(99, "file")
    with pytest.raises(UsageError, match="no codec 'zip'"):
        codec_by_name("zip")


def test_planes_of_another_shape_are_refused() -> None:
    geometry = Geometry("float16", (LayerSpec("full", 2, 4, 4),))
    keys, _ = random_rows(geometry.layers[0], 3, "float16")
    codec = codec_by_id(1, "file")
    tensors = parse(pack(codec.encode({Part.KEYS: keys[None]})), "test")
    with pytest.raises(CorruptError, match="planes"):
        codec.check(tensors, Part.KEYS, BlockShape.of(BlockKey(Part.KEYS, 0, 1, 0, 4), geometry), "test")
    with pytest.raises(CorruptError, match="planes"):
        codec.check(tensors, Part.VALUES, BlockShape.of(BlockKey(Part.VALUES, 0, 1, 0, 3), geometry), "test")
