"""Whole GGUF models with random weights, as llama.cpp's converters write them: header, tokenizer, every tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import pre_tokenizers

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCABULARY = 64, 96, 2, 4, 2, 258
HEAD = HIDDEN // HEADS


def write(
    path: Path,
    *,
    kind: str = "Q8_0",
    seed: int = 0,
    arch: str = "llama",
    without: tuple[str, ...] = (),
    tokenizer: bool = True,
    part: tuple[int, int] | None = None,
    bad: float | None = None,
) -> Path:
    """A Llama of two layers.

    Args:
        kind: how matrices are stored; norms are F32, as always.
        without: tensors to leave out.
        part: (number, count) of a split file: the head of the first has everything, and tensors are dealt out.
        bad: a value that the final norm holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    if part is None or part[0] == 0:
        _head(writer, tokenizer)
    if part is not None:
        writer.add_uint16("split.no", part[0])
        writer.add_uint16("split.count", part[1])
        writer.add_int32("split.tensors.count", len(_shapes()))
    generator = np.random.default_rng(seed)
    for number, (name, shape) in enumerate(_shapes().items()):
        values = generator.standard_normal(shape, np.float32) * 0.1
        if len(shape) == 1:
            values = np.float32(1) + values.astype(np.float16).astype(np.float32)
        if bad is not None and name == "output_norm.weight":
            values[3] = bad
        if name in without or (part is not None and number % part[1] != part[0]):
            continue
        stored = gguf.GGMLQuantizationType["F32" if len(shape) == 1 else kind]
        data = gguf.quantize(values, stored)
        if stored == gguf.GGMLQuantizationType.F16:
            data = data.view(np.float16)
        writer.add_tensor(name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_parts(folder: Path, name: str, count: int, **settings: Any) -> list[Path]:
    """The same model as `write` gives, in parts as gguf-split names them."""
    paths = [folder / f"{name}-{number + 1:05d}-of-{count:05d}.gguf" for number in range(count)]
    return [write(path, part=(number, count), **settings) for number, path in enumerate(paths)]


def _head(writer: Any, tokenizer: bool) -> None:
    writer.add_name("a test")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    if tokenizer:
        tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<end>"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * 257 + [3])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(257)
        writer.add_eos_token_id(257)


def _shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (KV_HEADS * HEAD, HIDDEN),
            "attn_v": (KV_HEADS * HEAD, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    return found
