"""NaN, infinities, denormals and -0.0: kept to the last bit, or refused by the name of their layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from formats import LayerSpec, Trace, load, save
from formats.codecs import CODECS
from formats.container.atomic_write import atomic_write
from formats.container.records import Part
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import write
from formats.errors import UsageError
from formats.trace.geometry import DTYPE_BYTES
from tests.support.traces import finite_rows, growing_trace, same_bits, same_snapshots

LAYERS = (LayerSpec("full", 2, 4, 4), LayerSpec("full", 2, 8, 8), LayerSpec("sliding", 2, 4, 8, window=6))
LOSSY = tuple(kind.name for kind in CODECS.values() if not (kind.exact or kind.needs_profile))


def specials(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Values by name, each a tensor of one value of the dtype."""
    info = torch.finfo(dtype)
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[dtype.itemsize]
    smallest = torch.ones(1, dtype=bits).view(dtype)  # a denormal
    found = {
        "NaN": torch.full((1,), float("nan")).to(dtype),
        "-0.0": torch.tensor([-0.0]).to(dtype),
        "denormal": smallest,
        "largest": torch.tensor([info.max], dtype=torch.float64).to(dtype),
    }
    if dtype != torch.float8_e4m3fn:  # which has no infinity
        found |= {"Inf": torch.tensor([float("inf")]).to(dtype), "-Inf": torch.tensor([float("-inf")]).to(dtype)}
    if dtype.itemsize > 1:  # NaNs of other bits: the payload is kept
        found["NaN with a payload"] = (torch.full((1,), float("nan")).to(dtype).view(bits) ^ 1).view(dtype)
    return found


def with_value(dtype: str, layer: int, part: Part, value: torch.Tensor) -> Trace:
    trace = growing_trace(LAYERS, dtype=dtype, lengths=(7, 9), rows=finite_rows)
    block = next(
        block
        for block in trace.blocks
        if block.key.first_layer <= layer < block.key.first_layer + block.key.layer_count
    )
    rows = block.rows[part]  # type: ignore[attr-defined]
    rows[layer - block.key.first_layer, 0, 1, 0, 3] = value[0]  # (layer, batch, head, row, channel)
    return trace


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=[] if dtype in ("bfloat16", "float8_e4m3fn") else pytest.mark.full)
        for dtype in sorted(DTYPE_BYTES)
    ],
)
def test_special_values(dtype: str, tmp_path: Path, tally: Any) -> None:
    kind = getattr(torch, dtype)
    with tally("NaN, Inf, denormals, -0.0") as counts:
        for value in specials(kind).values():
            for layer in range(len(LAYERS)):
                for part in (Part.KEYS, Part.VALUES):
                    trace = with_value(dtype, layer, part, value)
                    save(trace, tmp_path / "t.tsc", overwrite=True)
                    assert_same(trace, tmp_path / "t.tsc")
                    counts["kept exactly by lossless"] += 1
                    finite = bool(value.double().isfinite().all())
                    for codec in LOSSY if not finite or (layer, part) == (0, Part.KEYS) else ():
                        try:
                            with atomic_write(tmp_path / "t.tsc", overwrite=True) as sink:
                                write(Source(trace), Recipe(codec, {}), sink)
                        except UsageError as error:
                            assert not finite
                            named = f"the {part.name.lower()} of layer {layer} hold a value that is not finite"
                            counts["refused by layer by a lossy codec"] += named in str(error)
                            counts["refused otherwise"] += named not in str(error)
                            continue
                        if not finite:
                            assert codec == "delta"  # rows that nothing predicts well are stored as they are
                            assert_same_specials(trace, tmp_path / "t.tsc")
                            counts["kept exactly by a lossy codec"] += 1
                        else:
                            counts["finite ones stored by a lossy codec"] += 1
    assert not counts["refused otherwise"]


def assert_same(trace: Trace, path: Path) -> None:
    back = load(path)
    for number in range(len(trace)):
        assert same_snapshots(back.snapshot(number), trace.snapshot(number))


def assert_same_specials(trace: Trace, path: Path) -> None:
    """What is not finite has the bits that it had, and nothing else has become so."""
    back = load(path)
    for number in range(len(trace)):
        have, want = back.snapshot(number), trace.snapshot(number)
        for found, old in zip(have.keys + have.values, want.keys + want.values, strict=True):
            special = ~old.double().isfinite()
            assert torch.equal(special, ~found.double().isfinite())
            assert same_bits(found[special], old[special])
