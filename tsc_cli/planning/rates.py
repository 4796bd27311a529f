"""In how many bits a cache can be stored, as measured on the default model.

All figures are of SmolLM2-135M-Instruct and one cache of 1,024 tokens, everything in the file
counted but the profile. For any other model they are an assumption. Tests compare them with the
documents named below, which a package does not carry.
"""

from __future__ import annotations

from dataclasses import dataclass

from tsc_cli.scoring.interpolation import bits_at_kl
from tsc_cli.scoring.published import QUALITIES

MEASURED_ON = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Rate:
    """A way of storing a cache.

    Attributes:
        name: codec, and the tier or quality that was asked for.
        bits: a stored value, on average.
        kl: mean KL in nats, or for a quality the KL that it allows.
        top1: share of equal top-1 tokens; None where it was not measured.
        basis: exact, measured, interpolated (between measured ones, on a line in logarithms of
            both), or bound (no coarser file was measured: fewer bits would do).
        source: where the figure stands.
    """

    name: str
    bits: float
    kl: float
    top1: float | None
    basis: str
    source: str


_LADDER = "docs/benchmarks/ladder.json"
# float32; bits are 32 / ratio_final_fp32, tiers are ratios to one float32 cache
SCALAR: tuple[Rate, ...] = (
    Rate("scalar int8", 7.2007, 6.522e-05, 0.9935, "measured", _LADDER),
    Rate("scalar KIVI-4", 4.6781, 3.642e-03, 0.9694, "measured", _LADDER),
)
KLT: tuple[Rate, ...] = (
    Rate("klt 16x of fp32", 1.9733, 2.142e-04, 0.9915, "measured", _LADDER),
    Rate("klt 63x of fp32", 0.5027, 2.555e-03, 0.9766, "measured", _LADDER),
    Rate("klt 125x of fp32", 0.2528, 7.446e-03, 0.9564, "measured", _LADDER),
    Rate("klt 219x of fp32", 0.1436, 1.495e-02, 0.9388, "measured", _LADDER),
    Rate("klt 429x of fp32", 0.0734, 3.705e-02, 0.9043, "measured", _LADDER),
)
# docs/measurements.md, "Size of one lossless cache", the encyclopedia: ratio to a cache of that
# dtype
LOSSLESS: dict[str, float] = {"float32": 1.204, "bfloat16": 1.499, "float16": 1.182}


def rates(dtype: str, dtype_bytes: int) -> list[Rate]:
    """Every way of storing a cache of this dtype whose bits are known, the largest first."""
    raw = 8.0 * dtype_bytes
    stored = [Rate("as it is", raw, 0.0, 1.0, "exact", "the dtype")]
    if dtype in LOSSLESS:
        stored.append(Rate("lossless", raw / LOSSLESS[dtype], 0.0, 1.0, "measured", "docs/measurements.md"))
    stored += [rate for rate in (*SCALAR, *KLT, *_qualities()) if rate.bits < raw]
    return sorted(stored, key=lambda rate: -rate.bits)


def _qualities() -> list[Rate]:
    """Interpolate the qualities of `tsc compress` on the ladder, and bound the first beyond it."""
    points = [(rate.kl, rate.bits) for rate in KLT]
    coarsest = KLT[-1]
    qualities = []
    for name, kl in sorted(QUALITIES.items(), key=lambda quality: quality[1]):
        bits = bits_at_kl(points, kl)
        if bits is not None:
            qualities.append(Rate(f"klt {name}", bits, kl, None, "interpolated", _LADDER))
        elif kl > coarsest.kl:
            # how much smaller a file of a KL still higher may be is not known, so no further
            # quality is listed
            qualities.append(Rate(f"klt {name}", coarsest.bits, kl, None, "bound", _LADDER))
            break
    return qualities
