"""The bytes of small valid files, for tests that read and damage them."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from formats import LayerSpec, Snapshot, Trace, deduplicate, save
from formats.codecs.klt import profile_store
from formats.codecs.klt.profile import Profile
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import Header, write
from formats.trace.recorder import Rows
from formats.trace.snapshot import MemoryReceived
from tests.format_conformance import profiles, samples_states
from tests.format_conformance.craft import HEADER, ROWS, VIEWS, Craft, Piece
from tests.support.codec_samples import RECIPES
from tests.support.traces import FULL, SLIDING, UNEVEN, finite_rows, growing_trace

WIDE = LayerSpec("full", heads=1, key_size=40, value_size=24)


def file_bytes(trace: Trace) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.tsc"
        save(trace, path, deterministic=True)
        return path.read_bytes()


def compressed(trace: Trace, codec: str, settings: dict[str, Any] | None = None, **recipe: Any) -> bytes:
    sink = io.BytesIO()
    write(Source(trace), Recipe(codec, settings or {}, **recipe), sink, file_id=bytes(16))
    return sink.getvalue()


def compressed_to(trace: Trace, recipe: Recipe, header: Header) -> bytes:
    """The file that a recipe gives, with a header that states a tier."""
    sink = io.BytesIO()
    write(Source(trace), recipe, sink, header=header, file_id=bytes(16))
    return sink.getvalue()


@cache
def trace() -> Trace:
    """Four layers (the first two alike, the last with a sliding window), four snapshots, a reference."""
    built = growing_trace()
    built.reference = [40, 43, 46]
    built.info = {"prompt": "test", "seconds": 0.5}
    built.quality = [{"snapshot": 0, "equal": True}]
    return built


@cache
def valid() -> bytes:
    """`trace()` as a file of about 3.5 KB; it holds neither KEPT nor ATTENTION.

    Records: 0 MODEL; 1, 2 ROWS of layers 0 and 1; 3, 4 of layer 2; 5, 6 of layer 3 (keys, values each);
    7 LABELS (12 rows); 8 VIEWS; 9 REFERENCE; 10 HEADER; 11 INDEX; 12 END.
    """
    return file_bytes(trace())


finite = partial(growing_trace, rows=finite_rows)


def drifting_rows(spec: LayerSpec, rows: int, dtype: str, batch: int = 1, seed: int = 0) -> Rows:
    """Each row is near the one before it, so that it is worth predicting."""
    keys, values = finite_rows(spec, rows, "float64", batch, seed)
    keys, values = ((side[:, :, :1] * 4 + 0.1 * side.cumsum(2)).to(getattr(torch, dtype)) for side in (keys, values))
    return keys, values


drifting = partial(growing_trace, rows=drifting_rows)


def scaled(trace: Trace, factor: float) -> Trace:
    """The same with larger rows: out of the range of smaller dtypes."""
    for block in trace.blocks:
        for rows in block.read().values():
            rows *= factor
    return trace


def attended(trace: Trace, seed: int = 0) -> Trace:
    """The same with attention that the first snapshot's rows received, for every run of full layers."""
    generator = torch.Generator().manual_seed(seed)
    trace.attention = [
        MemoryReceived(first, count, torch.rand(count, spec.heads, trace.views[0].rows(first), generator=generator))
        for first, count, spec in trace.geometry.runs()
        if spec.kind == "full"
    ]
    return trace


def edited(dtype: str = "float32") -> Trace:
    """Snapshots in which rows are replaced by ones that differ a little, in some layers only, and appended."""
    layers = (FULL, FULL, UNEVEN)
    whole = growing_trace(layers, dtype=dtype, lengths=(9, 10), rows=finite_rows)
    last = whole.snapshot()
    noise = torch.Generator().manual_seed(7)
    snapshots = []
    for rows, changed, touched in ((7, [], ()), (8, [1, 2, 5], (0, 1, 2)), (9, [2, 3], (1,)), (10, [2, 8], (0, 1, 2))):
        for layer in touched:
            for side in (last.keys, last.values):
                side[layer] = side[layer].clone()
                old = side[layer][:, :, changed].double()
                new = old + 0.1 * torch.randn(old.shape, dtype=torch.float64, generator=noise)
                side[layer][:, :, changed] = new.to(side[layer].dtype)
        keys, values = ([tensor[:, :, :rows].clone() for tensor in side] for side in (last.keys, last.values))
        positions = torch.arange(rows)
        snapshots.append(
            Snapshot(keys, values, [positions] * len(layers), last.token_ids[:rows], list(range(rows)), rows)
        )
    return deduplicate(snapshots, whole.geometry)


def every_dtype(kind: str, codec: str, settings: dict[str, Any]) -> dict[str, Callable[[], bytes]]:
    def make(dtype: str) -> bytes:
        rows = drifting_rows if codec == "delta" else finite_rows
        return compressed(growing_trace((FULL, UNEVEN), dtype=dtype, lengths=(5, 6), rows=rows), codec, settings)

    dtypes = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    return {f"{kind}, {dtype}": partial(make, dtype) for dtype in dtypes}


def chained(rows: int) -> bytes:
    """Keys and values 0, 1, 2, ...: row 0 as it is, each other one in a record of its own, one more than the last."""
    craft = Craft.of(file_bytes(growing_trace((LayerSpec("full", 1, 1, 1),), dtype="float16", lengths=(rows,))))
    one = struct.pack("<e", 1.0)
    pieces = []
    for row, part in product(range(rows), (1, 2)):
        piece = Piece(ROWS, b"", 5 if row else 1, part, layer_count=1, first=row, count=1)
        piece.set_tensors(
            {
                "layout": ("I32", [3], struct.pack("<3i", 3, 0, 2)),
                "bases": ("I64", [1], struct.pack("<q", row - 1)),
                "codes": ("U8", [1] * 5, b"\2"),
                "scales": ("U8", [2] + [1] * 5, one),
                "exact_rows": ("U8", [1], b"\0"),
                "exact": ("U8", [2, 0, 1, 1, 1], b""),
            }
            if row
            else {"planes": ("U8", [2, 1, 1, 1, 1, 1], bytes(2))}
        )
        pieces.append(piece)
    craft.records = [piece for piece in craft.records if piece.type != ROWS]
    craft.records[1:1] = pieces
    spans = [0, -1, 1, 0, rows, 0, 0, 1, rows - 1, 1]  # a history of all tokens, the last one's row
    craft[VIEWS].set_integers("spans", spans)
    craft[HEADER].edit_json(lambda value: value.update(raw_bytes_trace=4, raw_bytes_final=4))
    return craft.build()


def scalar(settings: dict[str, Any], layers: Sequence[LayerSpec] = (FULL, FULL, UNEVEN, SLIDING)) -> bytes:
    return compressed(finite(layers), "scalar", settings)


def klt(make: Callable[[], Profile], trace: Trace, embed: bool = True, **settings: Any) -> bytes:
    """Rows of codec klt, and the profile with them."""
    profile = profile_store.remember(make())
    return compressed(trace, "klt", {"profile": profile.digest, **settings}, embed_profile=embed)


def klt_in(dtype: str) -> bytes:
    return klt(profiles.two_groups, finite((FULL,) * 3, dtype=dtype), fineness=80, rest="yes")


def klt_kept() -> bytes:
    """Rows that heads kept: what a slot is turned by is its own label."""
    profile, trace = profile_store.remember(profiles.two_groups()), attended(finite((FULL,) * 3))
    settings = {"profile": profile.digest, "fineness": 100}
    evict = {"keep": 0.5, "sinks": 1}
    return compressed(trace, "klt", settings, evict="h2o", evict_settings=evict, embed_profile=True)


CODEBOOK = {"block": 2, "centroids": 8, "iterations": 3}
# What is read by both readers
COMPRESSED: dict[str, Callable[[], bytes]] = {
    **every_dtype("scalar", "scalar", {"bits": 4, "group": 4}),
    **every_dtype("rotated", "scalar", {"bits": 8, "hadamard": True}),
    **every_dtype("vq", "vq", CODEBOOK | {"threshold": 0.2}),
    **every_dtype("delta", "delta", {"bits": 3, "prefer_append_for_growing": False}),
    "scalar, other axes": lambda: scalar({"keys": "token", "values": "channel", "group": 3}),
    "scalar, one group": lambda: scalar({"group": 0}),
    "scalar, 2 levels": lambda: scalar({"levels": 2, "symmetric": True}),
    "scalar, 3 levels": lambda: scalar({"levels": 3, "symmetric": True}),
    "scalar, 5 levels": lambda: scalar({"levels": 5, "values_levels": 12}),
    "scalar, 6 levels": lambda: scalar({"levels": 6, "symmetric": True}),
    "scalar, 17 levels": lambda: scalar({"levels": 17}),
    "scalar, 256 levels": lambda: scalar({"levels": 256}),
    "scalar, 257 levels": lambda: scalar({"levels": 257, "symmetric": True}),
    "scalar, 1,000 levels": lambda: scalar({"levels": 1_000, "group": 2}),
    "scalar, 65,536 levels": lambda: scalar({"levels": 65_536}),
    "scalar, q8_0": lambda: scalar({"format": "q8_0"}, (WIDE, UNEVEN)),
    "scalar, q4_0": lambda: scalar({"format": "q4_0"}, (WIDE, UNEVEN)),
    "scalar, rotated": lambda: scalar({"bits": 8, "hadamard": True, "keys": "channel"}, (WIDE, UNEVEN)),
    "scalar, sinks": lambda: compressed(finite(), "scalar", {"bits": 3}, exact_sinks=2),
    "scalar, batch": lambda: compressed(finite(batch=3), "scalar", {"group": 3}),
    "scalar, large scales": lambda: compressed(scaled(finite(dtype="float32"), 1e37), "scalar", {}),
    "scalar, huge scales": lambda: compressed(scaled(finite(dtype="float64"), 1e200), "scalar", {}),
    "vq": lambda: compressed(finite(), "vq", CODEBOOK | {"threshold": 0.3}),
    "vq without fallback": lambda: compressed(finite(), "vq", CODEBOOK | {"fallback": False}),
    "vq, everything exact": lambda: compressed(finite(), "vq", CODEBOOK | {"threshold": 0.0}),
    "vq, nothing exact": lambda: compressed(finite(), "vq", CODEBOOK | {"threshold": 99.0}),
    "vq, blocks that do not fit": lambda: compressed(finite(), "vq", CODEBOOK | {"block": 5}),
    "vq, one codebook": lambda: compressed(finite(), "vq", CODEBOOK | {"shared": True, "normalize": "channel"}),
    "one layer, vq": lambda: compressed(finite((FULL,)), "vq", CODEBOOK | {"fallback": False}),
    "vq, exact in 32 bits": lambda: compressed(scaled(finite(dtype="float32"), 1e10), "vq", CODEBOOK),
    "vq, exact in 64 bits": lambda: compressed(scaled(finite(dtype="float64"), 1e10), "vq", CODEBOOK),
    "pq": lambda: compressed(finite(batch=2), "pq", CODEBOOK | {"block": 4, "m": 2, "threshold": 0.3}),
    "pq, one codebook": lambda: compressed(finite(), "pq", CODEBOOK | {"block": 6, "m": 3, "shared": True}),
    "delta": lambda: compressed(finite(), "delta"),
    "delta, chains": lambda: compressed(drifting(), "delta", {"prefer_append_for_growing": False, "kf": 3}),
    "delta, batch": lambda: compressed(drifting(batch=2), "delta", {"prefer_append_for_growing": False, "group": 3}),
    "delta, keyframe in 6 bits": lambda: compressed(finite(), "delta", {"bits": 8, "keyframe_bits": 6, "group": 3}),
    "delta, edited": lambda: compressed(edited(), "delta", {"bits": 5}),
    "delta, edited, exact rows": lambda: compressed(edited("bfloat16"), "delta", {"bits": 2, "max_delta_error": 0.05}),
    "lossless, edited": lambda: compressed(edited(), "lossless"),
    "h2o": lambda: compressed(attended(drifting()), "delta", evict="h2o", evict_settings={"keep": 0.5, "sinks": 1}),
    "h2o, scalar": lambda: compressed(
        attended(finite((FULL, FULL, UNEVEN), batch=2)), "scalar", evict="h2o", evict_settings={"keep": 0.3}
    ),
    "streaming": lambda: compressed(finite(), "scalar", evict="streaming", evict_settings={"sinks": 1, "window": 3}),
    **{f"klt, {dtype}": partial(klt_in, dtype) for dtype in ("float64", "float16", "bfloat16", "float8_e4m3fn")},
    "klt": lambda: klt(profiles.one_group, finite((FULL, FULL), dtype="float32"), fineness=100, rest="yes"),
    "klt, two groups": lambda: klt(profiles.two_groups, finite((FULL,) * 3, dtype="float32"), fineness=60, rest="yes"),
    "klt, coarse": lambda: klt(profiles.one_group, finite((FULL, FULL)), fineness=-150, rest="no"),
    "klt, nothing coded": lambda: klt(profiles.one_group, finite((FULL, FULL)), fineness=-1_000, rest="no"),
    "klt, fine": lambda: klt(profiles.one_group, finite((FULL, FULL), dtype="float32"), fineness=400),
    "klt, finest": lambda: klt(profiles.one_group, finite((FULL, FULL), dtype="float32"), fineness=750, importance=2.0),
    "klt, batch": lambda: klt(profiles.two_groups, finite((FULL,) * 3, batch=3), fineness=60, rest="no"),
    "klt, every layer": lambda: klt(profiles.every_layer, finite(), fineness=100),
    "klt, four groups": lambda: klt(profiles.chained, finite((FULL,) * 4, dtype="float32"), fineness=90, rest="no"),
    "klt, h2o": lambda: klt_kept(),
    "attention": lambda: file_bytes(attended(growing_trace((SLIDING, FULL, FULL, UNEVEN)))),
}

# A codec without files of its own has one by its first recipe
for _recipe in RECIPES:
    if not any(name.split(",")[0] == _recipe.codec for name in COMPRESSED):
        COMPRESSED[_recipe.codec] = partial(compressed, finite(), _recipe.codec, dict(_recipe.settings))


@cache
def sample(name: str) -> bytes:
    if name in samples_states.SAMPLES:
        return samples_states.file_bytes(name)
    return valid() if name == "valid" else COMPRESSED[name]()
