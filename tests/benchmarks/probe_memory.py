"""Peak memory of `tsc probe-weights` on shards of a 70B model's shape: `python -m tests.benchmarks.probe_memory`.

Matrices of 8192 x 28672 in bfloat16, a shard a layer, in sparse files, so that the disk holds the real ones only: k and
v of every layer and down of the first two.  The probe is a process of its own; the operating system's figure for its
largest resident set is read.  `--layers N` (default 4) sets how many, `--sample N` is passed on, and `--mapped` has the
same matrices read by safetensors' own reader, a block of rows of every layer at a time, for comparison.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HIDDEN, INNER, HEADS = 8192, 28672, 1024
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HEADS, HIDDEN),
    "self_attn.v_proj": (HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
PROBE = """
import resource, sys
from tsc_cli.cli.main import run
code = run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
sys.exit(code)
"""
MAPPED = """
import json, resource, sys
from pathlib import Path
from safetensors import safe_open
folder = Path(sys.argv[1])
names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
files = {shard: safe_open(folder / shard, "pt") for shard in sorted(set(names.values()))}
for kind in ("gate_proj", "down_proj"):
    slices = [files[shard].get_slice(name) for name, shard in names.items() if kind in name]
    for start in range(0, slices[0].get_shape()[0], 256):
        block = [one[start : start + 256].float() for one in slices]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
"""


def build(folder: Path, layers: int) -> None:
    """A checkpoint of `layers` layers: one shard each, and an index."""
    weight_map = {}
    for layer in range(layers):
        shard = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        header, at = {}, 0
        for name, shape in SHAPES.items():
            size = shape[0] * shape[1] * 2
            full = f"model.layers.{layer}.{name}.weight"
            header[full] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            weight_map[full] = shard
            at += size
        text = json.dumps(header).encode()
        with (folder / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
            for name in SHAPES:
                if name.endswith(("k_proj", "v_proj")) or (name.endswith("down_proj") and layer < 2):
                    start, stop = header[f"model.layers.{layer}.{name}.weight"]["data_offsets"]
                    file.seek(8 + len(text) + start)
                    _random(file, (stop - start) // 2, seed=8 * layer + list(SHAPES).index(name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _random(file: object, count: int, seed: int) -> None:
    """`count` normal values in bfloat16, standard deviation 0.02."""
    draw = np.random.default_rng(seed)
    for start in range(0, count, 1 << 22):
        values = draw.standard_normal(min(1 << 22, count - start), np.float32) * np.float32(0.02)
        file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())  # type: ignore[attr-defined]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--mapped", action="store_true")
    asked = parser.parse_args()
    matrix = HIDDEN * INNER * 2
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), asked.layers)
        words = ["probe-weights", folder, "--global", *(["--sample", str(asked.sample)] if asked.sample else [])]
        started = time.perf_counter()
        command = [sys.executable, "-c", MAPPED, folder] if asked.mapped else [sys.executable, "-c", PROBE, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
    if done.returncode:
        print(done.stderr)
        return 1
    peak = int(done.stderr.split()[-1])
    print(done.stdout)
    print(f"{asked.layers} layers of 70B shape in {seconds:.0f} s; peak {peak / 1e6:.0f} MB")
    print(f"one {HIDDEN} x {INNER} matrix in bfloat16 is {matrix / 1e6:.0f} MB: {peak / matrix:.2f} of them, limit 4")
    return 0 if asked.mapped or peak < 4 * matrix else 1


if __name__ == "__main__":
    sys.exit(main())
