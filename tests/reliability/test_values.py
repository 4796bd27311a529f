"""NaN, infinities, denormals and -0.0: kept to the last bit, or refused by the name of their layer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from formats import LayerSpec, Trace, load, save
from formats.compression import Recipe, Source, write
from formats.errors import UsageError
from formats.geometry import DTYPE_BYTES
from formats.records import Part
from tests.traces import finite_rows, growing_trace, same_snapshots

LAYERS = (LayerSpec("full", 2, 4, 4), LayerSpec("full", 2, 8, 8), LayerSpec("sliding", 2, 4, 8, window=6))
LOSSY: dict[str, dict[str, Any]] = {"scalar": {}, "vq": {}, "pq": {}, "delta": {}}


def specials(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Values by name, each a tensor of one value of the dtype."""
    info = torch.finfo(dtype)
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[dtype.itemsize]
    smallest = torch.ones(1, dtype=bits).view(dtype)  # a denormal
    found = {
        "NaN": torch.full((1,), float("nan")).to(dtype), "-0.0": torch.tensor([-0.0]).to(dtype), "denormal": smallest,
        "largest": torch.tensor([info.max], dtype=torch.float64).to(dtype),
    }  # fmt: skip
    if dtype != torch.float8_e4m3fn:  # which has no infinity
        found |= {"Inf": torch.tensor([float("inf")]).to(dtype), "-Inf": torch.tensor([float("-inf")]).to(dtype)}
    if dtype.itemsize > 1:  # NaNs of other bits: the payload is kept
        found["NaN with a payload"] = (torch.full((1,), float("nan")).to(dtype).view(bits) + 1).view(dtype)
    return found


def with_value(dtype: str, layer: int, part: Part, value: torch.Tensor) -> Trace:
    trace = growing_trace(LAYERS, dtype=dtype, lengths=(7, 9), rows=finite_rows)
    block = next(
        block for block in trace.blocks
        if block.key.first_layer <= layer < block.key.first_layer + block.key.layer_count
    )  # fmt: skip
    rows = block.rows[part]  # type: ignore[attr-defined]
    rows[layer - block.key.first_layer].reshape(-1)[5] = value[0]
    return trace


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_special_values(dtype: str, tmp_path: Path, tally: Any) -> None:
    kind = getattr(torch, dtype)
    with tally("NaN, Inf, denormals, -0.0") as counts:
        for name, value in specials(kind).items():
            for layer in range(len(LAYERS)):
                for part in (Part.KEYS, Part.VALUES):
                    trace = with_value(dtype, layer, part, value)
                    save(trace, tmp_path / "t.tsc", force=True)
                    assert same_snapshots(load(tmp_path / "t.tsc").snapshot(), trace.snapshot())
                    counts["kept exactly by lossless"] += 1
                    for codec, settings in LOSSY.items():
                        if not bool(value.double().isfinite().all()):
                            side = part.name.lower()
                            with pytest.raises(UsageError, match=f"the {side} of layer {layer} hold a value that is not"):
                                write(Source(trace), Recipe(codec, settings), io.BytesIO())
                            counts["refused by layer by a lossy codec"] += 1
                        elif name != "largest":  # what a coarse grid makes of it is its own affair
                            write(Source(trace), Recipe(codec, settings), io.BytesIO())
                            counts["stored by a lossy codec"] += 1
