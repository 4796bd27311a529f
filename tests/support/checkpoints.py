"""Checkpoints for the tests of the probes: tensors into a folder, as one file or as shards with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from tsc_cli.probes.weights.checkpoint import Checkpoint, open_checkpoint
from tsc_cli.probes.weights.probe import TypeReport, probe
from tsc_cli.probes.weights.stacks import Stack, stack_of

SHAPES = {
    "self_attn.q_proj": (24, 16),
    "self_attn.k_proj": (8, 16),
    "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 24),
    "mlp.gate_proj": (40, 16),
    "mlp.up_proj": (40, 16),
    "mlp.down_proj": (16, 40),
}


def tensors(layers: int = 4, seed: int = 0, near: float | None = None, wide: int = 1) -> dict[str, torch.Tensor]:
    """Weights of `layers` layers under Llama's names.

    Args:
        near: layers are the first one plus noise of this size; None for layers that have nothing to do with each other.
        wide: factor of all extents.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(shape: tuple[int, int]) -> torch.Tensor:
        return 0.02 * torch.randn(shape[0] * wide, shape[1] * wide, generator=generator)

    first = {name: noise(shape) for name, shape in SHAPES.items()}
    made = {"model.embed_tokens.weight": torch.zeros(4, 4), "model.norm.weight": torch.ones(4)}
    for layer in range(layers):
        for name, shape in SHAPES.items():
            weight = noise(shape) if near is None else first[name] + near * noise(shape)
            made[f"model.layers.{layer}.{name}.weight"] = weight
        made[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(16)
    return made


def write(
    folder: Path, held: Mapping[str, torch.Tensor], shards: int = 1, config: Mapping[str, Any] | None = None
) -> Path:
    """A folder with these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config if config is not None else {"model_type": "llama"}))
    contiguous = {name: tensor.contiguous() for name, tensor in held.items()}
    if shards == 1:
        save_file(contiguous, folder / "model.safetensors")
        return folder
    weight_map = {}
    for number in range(shards):
        shard = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        names = list(contiguous)[number::shards]
        save_file({name: contiguous[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def silent(text: str) -> None:
    del text


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(str(path), silent)


def read(path: Path, experts: int = 4) -> tuple[Stack, dict[str, np.ndarray[Any, Any]]]:
    """The stack of a checkpoint, and each of its matrices whole: `type.layer` or `type.layer.expert` to float32."""
    stack = stack_of(opened(path), experts=experts)
    found = {}
    for one in stack.types:
        for series in one.series:
            for layer, matrix in series.layers.items():
                name = f"{one.name}.{layer}" + ("" if series.expert is None else f".{series.expert}")
                found[name] = matrix.rows(np.arange(matrix.shape[0]))
    return stack, found


class Bar:
    """What `probe` takes for its progress: remembers each total and what was reported against it."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.done: list[int] = []

    def __call__(self, what: str, total: int) -> Bar:
        self.totals.append(total)
        self.done.append(0)
        return self

    def __enter__(self) -> Any:
        return self.advance

    def __exit__(self, *problem: object) -> None:
        return None

    def advance(self, units: int) -> None:
        self.done[-1] += units


def probed(path: Path, against: Path | None = None, **settings: Any) -> list[TypeReport]:
    other = stack_of(opened(against)) if against is not None else None
    return probe(stack_of(opened(path)), other, settings.pop("sample", None), Bar(), **settings)


def write_gguf(path: Path, arch: str = "llama", **settings: int) -> dict[str, np.ndarray[Any, Any]]:
    """A GGUF file of two layers; returns what its tensors are when dequantized."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(2)
    for name, value in settings.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "ü"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    found = {}
    kinds = {"attn_q": "Q4_1", "attn_k": "F16", "ffn_up": "Q8_0", "ffn_down": "BF16", "ffn_gate_exps": "Q4_0"}
    for layer in range(2):
        for name, kind in kinds.items():
            shape = (3, 8, 64) if "exps" in name else (8, 64)
            quantized = gguf.quantize(generator.standard_normal(shape, np.float32), gguf.GGMLQuantizationType[kind])
            full = f"blk.{layer}.{name}.weight"
            raw = quantized if kind != "F16" else quantized.view(np.float16)
            writer.add_tensor(full, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
            found[full] = gguf.dequantize(quantized, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found
