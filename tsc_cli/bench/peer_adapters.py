"""What other projects' KV-cache quantizers make of a cache, and how many bytes that takes.

Rows are what a model would read back from the peer after prefill, through the peer's own classes.
Bytes are counted alike for all: codes at their real width and not in the uint8 in which most peers
hold them, every scale, norm and offset in the dtype that the rows were made with.  What does not
depend on the cache is not counted: Hadamard matrices, rotations out of a seed, codebooks out of a
distribution.  No peer keeps a window of exact rows here, because any codec could have one in front
of it.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import torch

from formats.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Tensors = list[tuple[torch.Tensor, torch.Tensor]]
Settings = ParamSpec("Settings")

_E8 = 8  # dimensions of the lattice
_GROUP = 64  # values that share a scale in transformers' QuantizedCache, its default
_ZSTD_LEVEL = 15  # nexusquant's own accounting uses 22: 1 or 2% smaller, in twice the time


@dataclass(frozen=True)
class PeerResult:
    """What a peer keeps of a cache.

    Attributes:
        rows: per layer keys and values as a model would read them back; shapes and dtypes of the
            input.
        stored_bytes: what these numbers take, tightly packed.
    """

    rows: Tensors
    stored_bytes: int


def packed_bytes(count: int, bits: int) -> int:
    """The bytes of `count` codes of `bits` bits each."""
    return -(-count * bits // 8)


def lattice_bits(q_range: int) -> int:
    """The bits that name one of the blocks that KakeyaLattice's E8 codec can give at this range.

    Blocks of integers with an even sum, from -q to q; and blocks of halves with an even sum, where
    those that lie beyond the range are clamped to it, so that there are 2q + 2 numbers a dimension.
    The package counts (2q + 1) ** 8 blocks, as if a clamped block were a lattice point; at q = 5
    that is one bit too few.
    """
    integers: int = ((2 * q_range + 1) ** _E8 + 1) // 2
    halves: int = (2 * q_range + 2) ** _E8 // 2
    return (integers + halves - 1).bit_length()


def coded_bytes(blocks: torch.Tensor) -> int:
    """The bytes of E8 blocks after entropy coding: the smaller one of two ways.

    zstd over doubled coordinates, which finds repeated rows; and the entropy of coordinates given
    whether their block is of integers or of halves, as an arithmetic coder with two tables of
    16-bit frequencies would come to.

    Args:
        blocks: doubled coordinates, (blocks, 8), int8; a block with an odd one is of halves.
    """
    import zstandard

    halves = (blocks % 2 != 0).any(-1)
    bits = float(len(blocks))
    for coset in (blocks[halves], blocks[~halves]):
        counts = coset.unique(return_counts=True)[1].double()  # type: ignore[no-untyped-call]
        bits += float(-(counts * (counts / counts.sum()).log2()).sum()) + 16 * len(counts)
    zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(blocks.contiguous().numpy().tobytes())
    return min(len(zstd), math.ceil(bits / 8))


def adapter(
    run: Callable[Concatenate[Tensors, Settings], PeerResult],
) -> Callable[Concatenate[Tensors, Settings], PeerResult]:
    """Checks of what every peer gives, and one kind of error for what a peer cannot take."""

    @functools.wraps(run)
    @torch.no_grad()
    def checked(layers: Tensors, /, *args: Settings.args, **kwargs: Settings.kwargs) -> PeerResult:
        try:
            found = run(layers, *args, **kwargs)
        except (AssertionError, ValueError, RuntimeError, OSError, ImportError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UsageError(f"{run.__name__} cannot quantize this cache: {reason}") from error
        rows = [
            (read_keys.to(keys.dtype), read_values.to(values.dtype))
            for (read_keys, read_values), (keys, values) in zip(found.rows, layers, strict=True)
        ]
        for given, read in zip(layers, rows, strict=True):
            for before, after in zip(given, read, strict=True):
                if before.shape != after.shape or not after.isfinite().all():
                    raise UsageError(f"{run.__name__} gave back rows of another shape, or some that are not finite")
        return PeerResult(rows, found.stored_bytes)

    return checked


@adapter
def quantized_cache(
    layers: Tensors, config: PreTrainedConfig | None = None, *, backend: str, bits: int, keys_by_channel: bool = False
) -> PeerResult:
    """The layers of transformers' QuantizedCache, right after prefill: all rows are quantized by
    then.

    The cache is handed over in float16, the dtype of a model for which one would do this: scales
    and offsets are kept in the cache's dtype, so that float32 would cost half a bit a value more
    and change nothing else.

    Args:
        layers: per layer keys and values, (1, heads, tokens, head size).
        config: not needed.
        backend: "quanto" or "hqq".
        keys_by_channel: keys in groups of one channel's tokens, as in KIVI (quanto takes
            neighbours, hqq tokens far apart).  Otherwise in groups of one token's neighbouring
            channels, as values always are: that is what transformers' documentation recommends for
            either backend.
    """
    from transformers import HQQQuantizedLayer, QuantoQuantizedLayer

    del config
    rows, stored = [], 0
    for pair in layers:
        keys, values = (tensor.half() for tensor in pair)
        layer: HQQQuantizedLayer | QuantoQuantizedLayer
        if backend == "hqq":
            layer = HQQQuantizedLayer(
                nbits=bits, axis_key=0 if keys_by_channel else 1, axis_value=1, q_group_size=_GROUP
            )
        else:
            layer = QuantoQuantizedLayer(
                nbits=bits, axis_key=-1 if keys_by_channel else 0, axis_value=0, q_group_size=_GROUP
            )
        layer.update(keys, values)  # the first update returns what it was given
        rows.append(layer.update(keys[:, :, :0], values[:, :, :0]))
        for kept, count in ((layer._quantized_keys, keys.numel()), (layer._quantized_values, values.numel())):
            stored += packed_bytes(count, bits) + sum(numbers.nbytes for numbers in _scales(kept))
    return PeerResult(rows, stored)


def _scales(kept: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets of a quantized tensor: hqq's (codes, facts) or quanto's tensor
    subclass.
    """
    if isinstance(kept, tuple):
        return kept[1]["scale"], kept[1]["zero"]
    return kept._scale, kept._shift  # type: ignore[attr-defined]


@adapter
def kakeyalattice(layers: Tensors, config: PreTrainedConfig | None = None, *, q_range: int) -> PeerResult:
    """KakeyaLatticeCache with E8, all layers.  It holds what it read back; the codec says what
    would be stored.

    Beside the blocks that are a norm and a maximum a row, which the codec does round to float16.

    Args:
        layers: per layer keys and values, (1, heads, tokens, head size); the head size a power of
            two from 8 on.
        config: not needed; keys are taken as they are in the cache.
    """
    from kakeyalattice.hf import KakeyaLatticeCache

    del config
    cache = KakeyaLatticeCache(
        variant="e8",
        q_range=q_range,
        num_hidden_layers=len(layers),
        head_dim=layers[0][0].shape[-1],
        device=layers[0][0].device,
    )
    rows, stored = [], 0
    for number, (keys, values) in enumerate(layers):
        rows.append(cache.update(keys, values, number))
        for tensor in (keys, values):
            stored += packed_bytes(tensor.numel() // _E8, lattice_bits(q_range))
            stored += 2 * 2 * (tensor.numel() // tensor.shape[-1])
    return PeerResult(rows, stored)


@adapter
def nexusquant(
    layers: Tensors, config: PreTrainedConfig | None = None, *, key_bits: int, value_bits: int
) -> PeerResult:
    """E8QuantizedCache, quantization only, no eviction and no protected layers.

    The package gives bits + 16 / head size a value, as if a block of 8 took 8 * bits.  A block has
    more values than that (both ends of a coordinate's range are used, and blocks of halves have no
    parity), but as these are not equally likely, its blocks do take less than that once they are
    entropy-coded.  So that is what is counted; the package's own measure (`compression_accounting`)
    leaves out the Hadamard rotation that the cache applies.

    Args:
        layers: per layer keys and values, (1, heads, tokens, head size); row r at position r.
        config: the model's: keys are quantized without RoPE, so that its base and scaling must be
            known.
    Raises:
        UsageError: no config, or a cache that the package cannot take.
    """
    from nexusquant.core.rope_utils import inverse_rope
    from nexusquant.integrations.quantized_cache import E8QuantizedCache

    if config is None:
        raise UsageError("nexusquant needs the model's config: it takes RoPE off the keys")
    cache = E8QuantizedCache.from_model(
        SimpleNamespace(config=config), key_bits=key_bits, value_bits=value_bits, min_seq_for_quant=1
    )
    rows, stored = [], 0
    for number, (keys, values) in enumerate(layers):
        read_keys, read_values = cache.update(keys, values, number)
        unrotated = inverse_rope(keys.float(), base=cache.rope_base, rope_scaling=cache.rope_scaling)
        key_blocks, key_scales = e8_blocks(unrotated, key_bits)
        value_blocks, value_scales = e8_blocks(values, value_bits)
        # The cache computes with float32 scales, where the package counts float16.  All that is
        # done after the scale is linear, so that the rows of float16 scales are had by correcting
        # each row.
        rows.append((read_keys * (key_scales.half() / key_scales), read_values * (value_scales.half() / value_scales)))
        stored += coded_bytes(key_blocks) + coded_bytes(value_blocks)
        stored += 2 * (key_scales.numel() + value_scales.numel())
    return PeerResult(rows, stored)


def e8_blocks(rows: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """nexusquant's codes of rows (1, heads, tokens, head size), keys without RoPE.

    Returns:
        doubled coordinates, (blocks, 8), int8, and a scale a row, (1, heads, tokens, 1), float32.
    """
    from nexusquant.core.e8_lattice import E8Lattice
    from nexusquant.core.hadamard import hadamard_matrix

    size, end = rows.shape[-1], 2 ** (bits - 1)
    rotated = rows.float() @ hadamard_matrix(size).to(rows.device)
    scales = rotated.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / end
    points = E8Lattice.nearest_point((rotated / scales).reshape(-1, _E8)).clamp(-end, end)
    return (2 * points).round().to(torch.int8).cpu(), scales


@adapter
def turboquant(layers: Tensors, config: PreTrainedConfig | None = None, *, bits: int) -> PeerResult:
    """TurboQuantCache's layers without their window of 128 exact rows; a float32 norm a row, as the
    package counts.

    The package's `memory_usage_bytes` counts a byte a code, which is how it holds them.

    Args:
        layers: per layer keys and values, (1, heads, tokens, head size).
        config: not needed; keys are taken as they are in the cache.
    """
    from turboquant.cache import TurboQuantLayer

    del config
    rows, stored = [], 0
    with numpy_with_trapz():
        for keys, values in layers:
            rows.append(TurboQuantLayer(bits=bits, residual_len=0).update(keys, values))
            for tensor in (keys, values):
                stored += packed_bytes(tensor.numel(), bits) + 4 * (tensor.numel() // tensor.shape[-1])
    return PeerResult(rows, stored)


@contextlib.contextmanager
def numpy_with_trapz() -> Iterator[None]:
    """turboquant 0.2.0 integrates by `numpy.trapz`, which NumPy 2.4 no longer has; there for as
    long as this lasts.
    """
    import numpy

    name = "trapz"
    if hasattr(numpy, name):
        yield
        return
    setattr(numpy, name, numpy.trapezoid)
    try:
        yield
    finally:
        delattr(numpy, name)
