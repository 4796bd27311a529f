"""What each codec is tried with: the one table that a new codec is added to, beside the second
reader.

`tests/formats/codecs/test_codec_complete.py` holds it against the registry.  `python -m
tests.support.codec_samples` writes the golden payloads of codecs that have none and prints their
hashes; those that exist are never written anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from formats.codecs import CODECS, BlockContext, Codec, codec_by_name
from formats.codecs.scalar import hadamard
from formats.codecs.uniform_quantizer import quantize
from formats.container.records import Part
from formats.container.safetensors_buffer import pack, parse
from formats.encode.recipe import Recipe
from formats.trace.blocks import BlockShape
from formats.trace.geometry import DTYPE_BYTES, LayerSpec
from tests import ROOT

GOLDEN = ROOT / "tests" / "format_conformance" / "golden" / "codecs"
# Codecs whose rows need more than themselves have a suite of their own instead of VARIANTS, BOUNDS
# and RECIPES
OWN_SUITE = {"klt": "tests/formats/codecs/test_klt.py"}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("lossless", {}),
    *(("scalar", {"bits": bits}) for bits in (8, 6, 4, 3, 2)),
    *(("scalar", {"bits": bits, "symmetric": True}) for bits in (8, 4, 2)),
    ("scalar", {"levels": 255, "symmetric": True, "group": 0}),
    ("scalar", {"levels": 4096}),
    ("scalar", {"levels": 11, "values_levels": 5, "group": 5}),
    ("scalar", {"bits": 4, "keys": "token", "values": "channel", "group": 3}),
    ("scalar", {"bits": 4, "keys": "token", "symmetric": True, "hadamard": True}),
    ("scalar", {"format": "q8_0"}),
    ("scalar", {"format": "q4_0"}),
    *(("vq", {"block": block, "threshold": 0.1, "samples": 256, "iterations": 3}) for block in (2, 4, 8)),
    ("vq", {"block": 8, "threshold": 0.0, "samples": 64, "iterations": 1}),
    ("vq", {"block": 7, "threshold": 0.3, "centroids": 16, "normalize": "channel", "shared": True, "samples": 64}),
    ("pq", {"block": 8, "m": 2, "threshold": 0.08, "samples": 256, "iterations": 3}),
    ("pq", {"block": 6, "m": 3, "threshold": 0.5, "samples": 64, "iterations": 2, "centroids": 7}),
    *(("delta", {"bits": bits}) for bits in (2, 4, 8)),
    ("delta", {"bits": 4, "max_delta_error": 0.05, "group": 7}),
]
# Recipes that bring the relative error of every snapshot below 0.11; the first one of a codec also
# makes a sample file
RECIPES = [
    Recipe("lossless"),
    Recipe("scalar", {"bits": 8}),
    Recipe("scalar", {"bits": 6, "group": 32}, exact_sinks=4),
    Recipe("vq", {"block": 2, "threshold": 0.1, "samples": 512, "iterations": 4}),
    Recipe("pq", {"block": 4, "m": 2, "threshold": 0.1, "samples": 512, "iterations": 4}, exact_sinks=2),
    Recipe("delta", {"bits": 6}),
    Recipe("delta", {"bits": 6, "keyframe_bits": 8}, exact_sinks=4),
    Recipe("delta", {"bits": 8, "prefer_append_for_growing": False, "kf": 2}),
    Recipe("scalar", {"bits": 8}, evict="streaming", evict_settings={"sinks": 3, "window": 100}),
]
# Of codecs that are not exact: asserts how far decoded rows may be from the rows
Bound = Callable[[Any, Part, torch.Tensor, torch.Tensor], None]


def rows_for(part: Part, shape: Sequence[int], dtype: str, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Rows like a cache's: channels of different size and offset, a few of them large; indexer keys
    have one head.
    """
    if part is Part.INDEXER:
        shape = (*shape[:2], 1, *shape[3:])
    generator = torch.Generator().manual_seed(seed * 2 + part)
    size = shape[-1]
    channels = torch.rand(size, generator=generator) ** 4 * 8 + 0.05
    offsets = torch.randn(size, generator=generator) * (3 if part is Part.KEYS else 0.1)
    values = (torch.randn(*shape, generator=generator) * channels + offsets) * scale
    kind = getattr(torch, dtype)
    if kind.itemsize == 1:
        values = values.clamp(-100, 100)
    return values.to(kind)


def rounding(rows: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """How far rounding may move a value: that to the cache's dtype, and that of the arithmetic
    before it.
    """
    bits = {torch.float64: 50, torch.float32: 22, torch.float16: 10, torch.bfloat16: 7}.get(rows.dtype, 2)
    x, y = rows.double().abs(), decoded.double().abs()
    arithmetic = float(x.max()) * 2.0 ** (-50 if rows.dtype == torch.float64 else -20)
    return torch.maximum(x, y) * 2.0**-bits + 2.0**-9 * (rows.element_size() == 1) + arithmetic


def scalar_bound(codec: Any, part: Part, rows: torch.Tensor, decoded: torch.Tensor) -> None:
    """Half a step a value; of rotated values, in the norm."""
    settings, work = codec.settings, torch.float64 if rows.dtype == torch.float64 else torch.float32
    grid, values = settings.grid(part), rows.to(work)
    if settings.hadamard:
        values = hadamard(values)
    if settings.axis(part) == "channel":
        values = values.transpose(-1, -2)
    scales = quantize(values, grid, ggml=bool(settings.format)).scales.double().abs()
    step = scales.repeat_interleave(grid.group_of(values.shape[-1]), -1)[..., : values.shape[-1]]
    if settings.axis(part) == "channel":
        step = step.transpose(-1, -2)
    # ggml clips one side of q4_0, and rounds scales to the nearest
    half = {"": 0.5, "q8_0": 0.5 + 2.0**-11 * 255, "q4_0": 1.1}[settings.format]
    difference = rows.double() - decoded.double()
    if settings.hadamard:
        limit = half * step.square().sum(-1).sqrt() + rounding(rows, decoded).sum(-1)
        assert (difference.norm(dim=-1) <= limit).all()
    else:
        assert (difference.abs() <= half * step + rounding(rows, decoded)).all()


def codebook_bound(codec: Any, part: Part, rows: torch.Tensor, decoded: torch.Tensor) -> None:
    """The threshold of the relative error of a block."""
    block, x = codec.settings.block, rows.double()
    missing = -rows.shape[-1] % block
    source, difference, slack = (
        torch.nn.functional.pad(t, (0, missing)).unflatten(-1, (-1, block))
        for t in (x, x - decoded.double(), rounding(rows, decoded))
    )
    exact = source.norm(dim=-1) * 2.0**-10  # of float16
    limit = torch.maximum(codec.settings.threshold * source.norm(dim=-1), exact) + slack.norm(dim=-1)
    assert (difference.norm(dim=-1) <= limit).all()


def delta_bound(codec: Any, part: Part, rows: torch.Tensor, decoded: torch.Tensor) -> None:
    """The largest relative error of a row."""
    x = rows.double()
    difference, source = (t.square().sum((1, 2, 4)).sqrt() for t in (x - decoded.double(), x))
    limit = codec.settings.max_delta_error or 1.0
    assert (difference <= limit * source + rounding(rows, decoded).square().sum((1, 2, 4)).sqrt()).all()


BOUNDS: dict[str, Bound] = {"scalar": scalar_bound, "vq": codebook_bound, "pq": codebook_bound, "delta": delta_bound}

# Settings of golden payloads, where the defaults would keep nearly everything exactly
GOLDEN_SETTINGS: dict[str, dict[str, Any]] = {
    "vq": {"block": 2, "centroids": 8, "threshold": 0.2},
    "pq": {"block": 4, "m": 2, "centroids": 8, "threshold": 0.2},
}
# SHA-256 of what a golden payload decodes to
DECODED: dict[str, str] = {
    "lossless": "94f684cacecde15bebaa3ce72a52e8d7aa3b88fb1cc686e560d41e740dc71283",
    "scalar": "d3902618f86e3e4b23e1926f8ed148d913df5d98c70b626f595be7adbcf487d9",
    "vq": "43c79bf66344fc3aa1cf41e6f355dc3aa32e27e7ddecad8c72a9f504b0f86dc1",
    "pq": "978a96ebfbfa635535d7de0ce01818832c35cd09a8d58f5f271fb79808f4732b",
    "delta": "bd79b965757692d56278bf882eb14a13e4569edce1d926ff16612493ef5bdd70",
    "klt": "015cf8f80a9f2152b250d13eb1c80ea49543dce2a54d6996fce6c1053c26f9f4",
}


def golden_surroundings() -> BlockContext:
    """Of the rows of a golden payload."""
    from tests.format_conformance import profiles

    positions = range(GOLDEN_SHAPE.rows)
    return BlockContext(positions=positions, end=GOLDEN_SHAPE.rows, profile=profiles.one_group)


GOLDEN_SHAPE = BlockShape("float32", DTYPE_BYTES["float32"], 2, 1, 12, LayerSpec("full", 2, 4, 4), 0)


def golden_rows(codec: Codec) -> dict[Part, torch.Tensor]:
    """Values, or keys and values, (2 layers, 1, 2 heads, 12 rows, 4), that every machine makes
    alike.
    """
    parts = (Part.KEYS, Part.VALUES) if Part.JOINT in codec.parts else (Part.VALUES,)
    count = 2 * 2 * 12 * 4
    integers = torch.arange(count * len(parts)) * 37 % 101 - 50
    tensors = (integers.float() / 16).view(len(parts), 2, 1, 2, 12, 4).unbind()
    return dict(zip(parts, tensors, strict=True))


def golden_payload(name: str) -> bytes:
    """The payload of the golden rows, as today's encoder gives it."""
    codec = codec_by_name(name, GOLDEN_SETTINGS.get(name))
    return pack(codec.encode(golden_rows(codec), golden_surroundings()))


def decoded_golden(name: str) -> str:
    """SHA-256 of the rows that the golden payload of a codec stands for, part by part."""
    codec = codec_by_name(name)
    part = Part.JOINT if Part.JOINT in codec.parts else Part.VALUES
    tensors = parse((GOLDEN / f"{name}.safetensors").read_bytes(), name)
    codec.check(tensors, part, GOLDEN_SHAPE, name)
    rows = codec.decode(tensors, part, GOLDEN_SHAPE, "cpu", golden_surroundings())
    digest = hashlib.sha256()
    for _, tensor in sorted(rows.items()):
        # codecs that multiply matrices give the last bits in the order in which their sums are made
        digest.update((tensor.double() * 1024).round().long().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for kind in CODECS.values():
        path = GOLDEN / f"{kind.name}.safetensors"
        if not path.exists():
            path.write_bytes(golden_payload(kind.name))
            print(f'    "{kind.name}": "{decoded_golden(kind.name)}",')
