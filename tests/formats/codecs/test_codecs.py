"""One conformance suite for all codecs: what comes back, how far off, from which shapes and dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.codecs import Bases, BlockContext, Codec, codec_by_name
from formats.codecs.scalar import hadamard
from formats.codecs.uniform_quantizer import Grid, dequantize, quantize
from formats.container.records import Part
from formats.container.safetensors_buffer import pack, parse
from formats.errors import UsageError
from formats.trace.blocks import BlockShape
from formats.trace.geometry import DTYPE_BYTES, LayerSpec
from tests.support.codec_samples import BOUNDS, VARIANTS, rows_for
from tests.support.traces import same_bits

HEAD_SIZES = (64, 80, 96, 128, 256)
NAMES = [f"{name}-{'-'.join(f'{k}={v}' for k, v in values.items())}" for name, values in VARIANTS]


def there_and_back(codec: Codec, part: Part, rows: torch.Tensor, first_row: int = 0, bases: Any = None) -> torch.Tensor:
    """Through a payload's bytes, as a file would."""
    dtype = str(rows.dtype).removeprefix("torch.")
    layers, batch, heads, count, size = rows.shape
    spec = LayerSpec("full", heads, size, size, index_size=size)
    shape = BlockShape(dtype, DTYPE_BYTES[dtype], layers, batch, count, spec, first_row)
    tensors = parse(pack(codec.encode({part: rows}, BlockContext(bases=bases))), "test")
    type(codec)().check(tensors, part, shape, "test")

    def fetch(numbers: Sequence[int]) -> torch.Tensor:
        assert bases is not None
        found: torch.Tensor = bases.fetch(numbers)
        return found

    decoder = type(codec)()  # knows nothing of the encoder's settings
    ((found_part, decoded),) = decoder.decode(tensors, part, shape, "cpu", BlockContext(fetch=fetch)).items()
    assert found_part is part
    assert decoded.shape == rows.shape
    assert decoded.dtype == rows.dtype
    return decoded


def within_bound(codec: Codec, part: Part, rows: torch.Tensor, decoded: torch.Tensor) -> None:
    """Assert the bound that the codec states."""
    assert torch.isfinite(decoded.double()).all()
    if codec.exact:
        assert same_bits(rows, decoded)
    else:
        BOUNDS[codec.name](codec, part, rows, decoded)


@pytest.mark.parametrize(("name", "values"), VARIANTS, ids=NAMES)
@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_every_dtype_comes_back_within_the_bound(name: str, values: dict[str, Any], dtype: str) -> None:
    codec = codec_by_name(name, values)
    for part in codec.parts:
        rows = rows_for(part, (2, 1, 2, 19, 20), dtype)
        within_bound(codec, part, rows, there_and_back(codec, part, rows))


@pytest.mark.parametrize(("name", "values"), VARIANTS, ids=NAMES)
@pytest.mark.parametrize("size", HEAD_SIZES)
def test_every_head_size_comes_back_within_the_bound(name: str, values: dict[str, Any], size: int) -> None:
    codec = codec_by_name(name, values)
    for part in codec.parts:
        for heads, count in ((1, 1), (3, 70)):
            rows = rows_for(part, (1, 1, heads, count, size), "float32")
            within_bound(codec, part, rows, there_and_back(codec, part, rows))


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 3, 8, 20, 64])
)


@pytest.mark.parametrize("name", ["scalar", "delta"])
@settings(max_examples=120, deadline=None)
@given(
    shape=SHAPES,
    dtype=st.sampled_from(list(DTYPE_BYTES)),
    bits=st.integers(2, 8),
    group=st.integers(0, 70),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e4, 1e30]),
)
def test_any_shape_and_size_of_values(
    name: str, shape: tuple[int, ...], dtype: str, bits: int, group: int, symmetric: bool, seed: int, scale: float
) -> None:
    extra = {"symmetric": symmetric} if name == "scalar" else {}
    codec = codec_by_name(name, {"bits": bits, "group": group, **extra})
    for part in codec.parts:
        wide = scale if dtype in ("float32", "float64", "bfloat16") else 1.0
        rows = rows_for(part, shape, dtype, seed, wide)
        within_bound(codec, part, rows, there_and_back(codec, part, rows))


@settings(max_examples=25, deadline=None)
@given(
    shape=SHAPES,
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    block=st.sampled_from([2, 4, 8]),
    threshold=st.sampled_from([0.0, 0.05, 0.5]),
    seed=st.integers(0, 99),
    m=st.sampled_from([1, 2]),
    normalize=st.sampled_from(["head", "channel"]),
)
def test_any_shape_of_blocks(
    shape: tuple[int, ...], dtype: str, block: int, threshold: float, seed: int, m: int, normalize: str
) -> None:
    quick = {"samples": 64, "iterations": 2, "normalize": normalize, "threshold": threshold, "block": block}
    codec = codec_by_name("vq", quick) if m == 1 else codec_by_name("pq", {**quick, "m": m})
    for part in codec.parts:
        rows = rows_for(part, shape, dtype, seed)
        within_bound(codec, part, rows, there_and_back(codec, part, rows))


@pytest.mark.parametrize(("name", "values"), VARIANTS, ids=NAMES)
def test_constant_and_zero_rows(name: str, values: dict[str, Any]) -> None:
    codec = codec_by_name(name, values)
    for constant in (0.0, -2.5):
        for part in codec.parts:
            rows = torch.full((1, 1, 1 if part is Part.INDEXER else 2, 9, 16), constant)
            within_bound(codec, part, rows, there_and_back(codec, part, rows))


@pytest.mark.parametrize(("name", "values"), VARIANTS, ids=NAMES)
def test_encoding_twice_gives_the_same_bytes(name: str, values: dict[str, Any]) -> None:
    codec = codec_by_name(name, values)
    rows = rows_for(Part.KEYS, (2, 1, 2, 33, 16), "float32")
    once, again = (pack(codec.encode({Part.KEYS: rows})) for _ in range(2))
    assert once == again


def test_more_levels_are_better_and_the_seed_counts() -> None:
    rows = rows_for(Part.VALUES, (2, 1, 2, 64, 32), "float32")

    def error(name: str, **values: Any) -> float:
        return float((there_and_back(codec_by_name(name, values), Part.VALUES, rows) - rows).square().mean())

    errors = [error("scalar", bits=bits) for bits in (2, 3, 4, 6, 8, 12)]
    assert errors == sorted(errors, reverse=True)
    blocks = [error("vq", block=block, fallback=False) for block in (8, 4, 2)]
    assert blocks == sorted(blocks, reverse=True)
    assert error("pq", block=8, m=2, fallback=False) < error("vq", block=8, fallback=False)
    assert error("vq", fallback=False, samples=50, seed=1) != error("vq", fallback=False, samples=50, seed=2)


@pytest.mark.parametrize(("name", "quant"), [("q8_0", "Q8_0"), ("q4_0", "Q4_0")])
def test_ggml_formats_give_ggml_numbers(name: str, quant: str) -> None:
    rows = rows_for(Part.KEYS, (1, 1, 2, 50, 64), "float32")
    rows[0, 0, 0, 0] = 0.0
    kind = gguf.GGMLQuantizationType[quant]
    flat = rows.reshape(-1, 64).numpy()
    want = gguf.quants.dequantize(gguf.quants.quantize(flat, kind), kind).reshape(rows.shape)
    have = there_and_back(codec_by_name("scalar", {"format": name}), Part.KEYS, rows)
    # gguf rounds halves away from zero, ggml's C code and torch to even: equal but for exact ties
    assert np.count_nonzero(have.numpy() != want) <= want.size // 500
    assert np.allclose(have.numpy(), want, atol=float(np.abs(flat).max()) / (127 if name == "q8_0" else 8))


def test_the_rotation_is_its_own_inverse_and_spreads_an_outlier() -> None:
    for size in HEAD_SIZES:
        rows = torch.randn(2, 3, size, dtype=torch.float64)
        assert torch.allclose(hadamard(hadamard(rows)), rows, atol=1e-12)
    spike = torch.zeros(1, 64)
    spike[0, 5] = 8.0
    assert torch.allclose(hadamard(spike).abs(), torch.ones(1, 64))


def test_a_grid_covers_its_group() -> None:
    # a minimum between two float16 numbers: an offset rounded to the nearest would cut it off
    values = torch.tensor([[1000.26, 1000.9, 1003.0, 1001.1]])
    grid = Grid(256, 4, symmetric=False)
    found = quantize(values, grid)
    assert found.offsets is not None
    assert float(found.offsets) <= 1000.26
    assert (dequantize(found, grid, torch.float32) - values).abs().max() <= float(found.scales) / 2 + 1e-4


# delta: prediction


def bases_for(numbers: Sequence[int], first_row: int, known: dict[int, torch.Tensor]) -> Bases:
    return Bases(first_row, list(numbers), lambda rows: torch.cat([known[row] for row in rows], 3))


def test_a_residual_costs_less_than_the_row() -> None:
    old = rows_for(Part.KEYS, (2, 1, 2, 1, 32), "float32")
    new = old + 0.01 * torch.randn(old.shape, generator=torch.Generator().manual_seed(3))
    codec = codec_by_name("delta", {"bits": 4})
    alone = (there_and_back(codec, Part.KEYS, new) - new).norm()
    bases = bases_for([5], 9, {5: old})
    predicted = (there_and_back(codec, Part.KEYS, new, 9, bases) - new).norm()
    assert predicted < alone / 20


def test_errors_do_not_pile_up_along_a_chain() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [rows_for(Part.VALUES, (1, 1, 2, 1, 32), "float32")]
    for _ in range(63):
        steps.append(steps[-1] + 0.05 * torch.randn(steps[0].shape, generator=generator))
    rows = torch.cat(steps, 3)
    codec = codec_by_name("delta", {"bits": 4, "prefer_append_for_growing": False, "max_delta_error": 9.0})
    chain = Bases(0, [-1, *range(63)], lambda rows: pytest.fail("nothing lies outside"))
    error = (there_and_back(codec, Part.VALUES, rows, 0, chain) - rows).norm(dim=-1).mean((0, 1, 2))
    assert error[40:].mean() < 2 * error[1:20].mean()  # an open loop would have it grow with the square root


def test_a_row_over_the_limit_is_stored_exactly() -> None:
    rows = rows_for(Part.KEYS, (2, 1, 2, 12, 16), "float32")
    rows[1, 0, :, 7] = torch.linspace(-1, 1, 16) ** 9  # one large value ruins a grid of 4 levels
    codec = codec_by_name("delta", {"bits": 2, "max_delta_error": 0.2})
    decoded = there_and_back(codec, Part.KEYS, rows)
    relative = (decoded - rows).square().sum((1, 2, 4)).sqrt() / rows.square().sum((1, 2, 4)).sqrt()
    assert relative.max() <= 0.2
    assert torch.equal(decoded[1, 0, :, 7], rows[1, 0, :, 7])


def test_a_prediction_that_does_not_help_is_not_used() -> None:
    old = rows_for(Part.KEYS, (1, 1, 1, 1, 32), "float32", seed=5) * 50
    new = rows_for(Part.KEYS, (1, 1, 1, 1, 32), "float32", seed=6)
    codec = codec_by_name("delta", {"bits": 4})
    payload = codec.encode({Part.KEYS: new}, BlockContext(bases=bases_for([2], 3, {2: old})))
    assert payload["bases"].tolist() == [-1]


# settings


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("scaler", {}, "there is no codec 'scaler'"),
        ("scalar", {"bit": 4}, "codec scalar has no setting 'bit'"),
        ("scalar", {"bits": "four"}, "codec scalar: bits=four is not an integer"),
        ("scalar", {"bits": 17}, "bits=17 is not from 2 to 16"),
        ("scalar", {"symmetric": "maybe"}, "codec scalar: symmetric=maybe is not true or false"),
        ("scalar", {"keys": "row"}, "keys=row is neither token nor channel"),
        ("scalar", {"format": "q5_1"}, "format=q5_1 is neither q8_0 nor q4_0"),
        ("vq", {"threshold": "nan"}, "codec vq: threshold=nan is not a number"),
        ("vq", {"threshold": -0.1}, "threshold=-0.1 is negative"),
        ("vq", {"centroids": 257}, "centroids=257 is not from 2 to 256"),
        ("pq", {"block": 8, "m": 3}, "m=3 does not divide block=8"),
        ("delta", {"kf": 0}, "kf=0 is not from 1 to 64"),
        ("delta", {"keyframe_bits": 1}, "keyframe_bits is neither 0 nor 2 to 16"),
    ],
)
def test_a_wrong_setting_is_named(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        codec_by_name(name, values)
    assert message in str(caught.value)


def test_settings_are_read_from_text() -> None:
    codec = codec_by_name("vq", {"block": "4", "fallback": "no", "threshold": "0.25", "normalize": "channel"})
    assert (codec.settings.block, codec.settings.fallback, codec.settings.threshold) == (4, False, 0.25)
