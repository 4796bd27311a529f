"""Model folders that are damaged, or that state what cannot be: a table of small changes to one that loads.

Each row: a name, what is done to the folder, and what the one line of the refusal has to name; nothing to name means
that the change is harmless.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Change = Callable[[Path], object]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Odd:
    name: str
    change: Change
    names: tuple[str, ...] = ()


def state(file: str, *drop: str, **fields: Any) -> Change:
    def change(folder: Path) -> None:
        facts = json.loads((folder / file).read_text())
        facts = {name: value for name, value in (facts | fields).items() if name not in drop}
        (folder / file).write_text(json.dumps(facts))

    return change


def write(file: str, data: bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(data)


def keep(file: str, share: float) -> Change:
    """Only the beginning of a file."""

    def change(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(len(data) * share)])

    return change


def replace(file: str, what: str) -> Change:
    """Something else under a file's name."""

    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        if what == "folder":
            (folder / file).mkdir()
        elif what == "pipe":
            os.mkfifo(folder / file)
        elif what == "loop":
            (folder / file).symlink_to(file)
        elif what == "dangling":
            (folder / file).symlink_to("nowhere")
        elif what == "device":
            (folder / file).symlink_to("/dev/zero")

    return change


def reweigh(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def changed(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def without(*parts: str) -> Change:
    return reweigh(lambda held: {name: one for name, one in held.items() if not any(part in name for part in parts)})


def filled(part: str, value: float) -> Change:
    def change(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {name: one.clone() for name, one in held.items()}
        for name, one in found.items():
            if part in name:
                one.view(-1)[0] = value
        return found

    return reweigh(change)


def sharded(**changes: Any) -> Change:
    """Two shards with an index; `changes` of the index, or of its map where they name a tensor."""

    def change(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(held)
        shards = {f"model-{n + 1:05d}-of-00002.safetensors": names[n::2] for n in range(2)}
        for shard, inside in shards.items():
            save_file({name: held[name] for name in inside}, folder / shard, metadata={"format": "pt"})
        weight_map = {name: shard for shard, inside in shards.items() for name in inside}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map} | changes
        index = {name: value for name, value in index.items() if value is not Ellipsis}
        (folder / INDEX).write_text(json.dumps(index))

    return change


def then(*changes: Change) -> Change:
    def all_of(folder: Path) -> None:
        for change in changes:
            change(folder)

    return all_of


def remap(old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        (folder / INDEX).write_text((folder / INDEX).read_text().replace(old, new))

    return change


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def pickled(payload: object | None) -> Change:
    def change(folder: Path) -> None:
        held: dict[str, Any] = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save(held if payload is None else held | {"x": payload}, folder / "pytorch_model.bin")

    return change


SHARD = "model-00001-of-00002.safetensors"
CONFIG, TOKENIZER, SETTINGS, GENERATION = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)
_LONG = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

ODD = (
    Odd("as it is", lambda folder: None),
    Odd("an empty folder", empty, ("config.json",)),
    *(
        Odd(f"{file} is {what}", replace(file, what), (file,))
        for file in (CONFIG, WEIGHTS, TOKENIZER, GENERATION)
        for what in ("folder", "pipe", "loop", "dangling", "device")
    ),
    *(
        Odd(f"{file}: {what}", write(file, data), (file,))
        for file in (CONFIG, SETTINGS, GENERATION, "special_tokens_map.json")
        for what, data in (
            ("empty", b""),
            ("a list", b"[1]"),
            ("cut", b'{"a": '),
            ("not UTF-8", b'{"a": "\xff\xfe"}'),
            ("a byte order mark", b"\xef\xbb\xbf{}"),
            ("nested", _LONG),
            ("a number", b"7"),
        )
    ),
    Odd("no weights", lambda folder: (folder / WEIGHTS).unlink(), (WEIGHTS,)),
    Odd("weights: empty", write(WEIGHTS, b""), (WEIGHTS,)),
    Odd("weights: half", keep(WEIGHTS, 0.5), (WEIGHTS,)),
    Odd("weights: header cut", keep(WEIGHTS, 0.001), (WEIGHTS,)),
    Odd("weights: text", write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), (WEIGHTS,)),
    Odd("weights: a header of 2^63 bytes", write(WEIGHTS, b"\xff" * 7 + b"\x7f" + b"{}"), (WEIGHTS,)),
    *(
        Odd(f"{field} = {value!r:.40}", state(CONFIG, **{field: value}), (CONFIG, field))
        for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        for value in ("48", -1, 0, 2**40, 10**30, None, [48], {}, 1.5, True)
    ),
    *(
        Odd(f"{field} = {value!r:.40}", state(CONFIG, **{field: value}), (CONFIG, field))
        for field, value in (
            ("num_key_value_heads", 3),
            ("num_key_value_heads", 0),
            ("num_key_value_heads", "2"),
            ("head_dim", -2),
            ("head_dim", 2**40),
            ("intermediate_size", "x"),
            ("intermediate_size", 2**50),
            ("vocab_size", 301),
            ("max_position_embeddings", -5),
            ("max_position_embeddings", "2048"),
            ("dtype", "nope"),
            ("dtype", 3),
            ("hidden_act", "nope"),
            ("model_type", 5),
            ("rope_parameters", 5),
            ("rope_scaling", "x"),
            ("rms_norm_eps", "small"),
            ("num_hidden_layers", 4096),
            ("attention_bias", "yes"),
        )
    ),
    *(
        Odd(f"rope: {value!r:.60}", state(CONFIG, rope_parameters=value), (CONFIG, "rope"))
        for value in (
            {"rope_type": "nope", "rope_theta": 1e4},
            {"rope_type": "default", "rope_theta": "x"},
            {"rope_type": 5, "rope_theta": 1e4},
            {"rope_type": "default", "rope_theta": 0},
            {"rope_type": "linear", "rope_theta": 1e4, "factor": "x"},
        )
    ),
    Odd("model_type unknown", state(CONFIG, model_type="nope"), (CONFIG, "model_type", "nope")),
    Odd("no model_type", state(CONFIG, "model_type"), ("model_type",)),
    Odd("an encoder's model_type", state(CONFIG, model_type="vit"), ("ViTConfig",)),
    Odd("a kernel of a hub", state(CONFIG, attn_implementation="someone/kernel"), (CONFIG, "attn_implementation")),
    Odd("a width of 2^20", state(CONFIG, intermediate_size=1 << 20), (CONFIG,)),
    Odd("heads of 2^20", state(CONFIG, head_dim=1 << 20), (CONFIG,)),
    Odd("another width", state(CONFIG, hidden_size=52), (CONFIG, "hidden_size")),
    Odd("another height", state(CONFIG, intermediate_size=48), ("mlp",)),
    Odd("one layer more", state(CONFIG, num_hidden_layers=4), ("layers.3",)),
    Odd("one layer less", state(CONFIG, num_hidden_layers=2)),
    Odd("no generation_config.json", lambda folder: (folder / GENERATION).unlink()),
    Odd("eos_token_id = 'x'", state(GENERATION, eos_token_id="x"), (GENERATION, "eos_token_id")),
    Odd("eos_token_id = [[1]]", state(GENERATION, eos_token_id=[[1]]), (GENERATION, "eos_token_id")),
    Odd("tokenizer cut", keep(TOKENIZER, 0.5), (TOKENIZER,)),
    Odd("tokenizer empty", write(TOKENIZER, b""), (TOKENIZER,)),
    Odd("tokenizer is a list", write(TOKENIZER, b"[]"), (TOKENIZER,)),
    Odd("tokenizer without a model", state(TOKENIZER, "model"), (TOKENIZER,)),
    Odd("tokenizer's model is text", state(TOKENIZER, model="BPE"), (TOKENIZER,)),
    Odd("tokenizer not UTF-8", write(TOKENIZER, b'{"version": "\xff"}'), (TOKENIZER,)),
    Odd("tokenizer_class = 5", state(SETTINGS, tokenizer_class=5), (SETTINGS, "tokenizer_class")),
    Odd("added_tokens_decoder = 'x'", state(SETTINGS, added_tokens_decoder="x"), (SETTINGS, "added_tokens_decoder")),
    Odd("auto_map = 5", state(SETTINGS, auto_map=5), (SETTINGS, "auto_map")),
    Odd("eos_token = 5", state(SETTINGS, eos_token=5), (SETTINGS, "eos_token")),
    Odd("no tokenizer.json", lambda folder: (folder / TOKENIZER).unlink(), ("token",)),
    Odd("chat template not UTF-8", write("chat_template.jinja", b"\xff\xfe"), ("chat_template.jinja",)),
    *(
        Odd(f"tokenizer's model: {name}", state(TOKENIZER, model=model), (TOKENIZER, "UNK"))
        for name, model in (
            ("words without the unknown one", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<u>"}),
            (
                "pieces without the unknown one",
                {
                    "type": "WordPiece",
                    "vocab": {"a": 0},
                    "unk_token": "z",
                    "continuing_subword_prefix": "",
                    "max_input_chars_per_word": 5,
                },
            ),
        )
    ),
    *(
        Odd(
            f"tokenizer's model: an id of {highest:,}",
            state(TOKENIZER, model={"type": "BPE", "vocab": {"h": 5, "e": highest}, "merges": []}),
            (TOKENIZER, str(highest)),
        )
        for highest in (2**31 - 1, 50_000_000)
    ),
    Odd(
        "tokenizer: an added id of 2^31",
        state(
            TOKENIZER,
            added_tokens=[
                {
                    "id": 2**31,
                    "content": "<x>",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            ],
        ),
        (TOKENIZER, str(2**31)),
    ),
    *(
        Odd(
            f"tokenizer's normalizer: charsmap {data!r}",
            state(TOKENIZER, normalizer={"type": "Precompiled", "precompiled_charsmap": data}),
            (TOKENIZER,),
        )
        for data in ("", "AAAA", "!")
    ),
    *(
        Odd(f"layer_types: {kinds}{rest or ''}", state(CONFIG, layer_types=kinds, **rest), (CONFIG, name))
        for kinds, rest, name in (
            (["sliding_attention"] * 3, {}, "sliding_window"),
            (["full_attention", "sliding_attention", "full_attention"], {}, "sliding_window"),
            (["chunked_attention"] * 3, {}, "attention_chunk_size"),
            (["compressed_sparse_attention"] * 3, {}, ""),
            (["window_attention"] * 3, {}, "window_attention"),
            (["sliding_attention"] * 3, {"sliding_window": None}, ""),
            (["sliding_attention"] * 3, {"sliding_window": "x"}, "sliding_window"),
            (["sliding_attention"] * 3, {"sliding_window": 0}, "sliding_window"),
            (["sliding_attention"] * 3, {"sliding_window": 1}, "sliding_window"),
            (["chunked_attention"] * 3, {"attention_chunk_size": 0}, "attention_chunk_size"),
            (["full_attention"] * 2, {}, ""),
            (5, {}, ""),
        )
    ),
    Odd("a window of -1", state(CONFIG, sliding_window=-1), (CONFIG, "sliding_window")),
    Odd("a window of -1 that no layer has", state(CONFIG, sliding_window=-1, layer_types=["full_attention"] * 3)),
    Odd("num_labels = 10^8", state(CONFIG, num_labels=10**8), (CONFIG, "num_labels")),
    Odd("sub_configs = 5", state(CONFIG, sub_configs=5), (CONFIG, "sub_configs")),
    *(
        Odd(f"{field} = 5", state(CONFIG, **{field: 5}), (CONFIG, field))
        for field in ("text_config", "quantization_config", "attribute_map", "id2label")
    ),
    Odd("pad_token_id = 10^9", state(CONFIG, pad_token_id=10**9), ("adding_idx",)),
    Odd(
        "rope: yarn without a factor",
        state(CONFIG, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        (CONFIG, "factor"),
    ),
    Odd("one tensor missing", without("layers.1.self_attn.k_proj"), ("model.layers.1.self_attn.k_proj.weight",)),
    Odd("all keys missing", without("k_proj"), ("model.layers.0.self_attn.k_proj.weight", "3 tensors")),
    Odd("no head", without("lm_head"), ("lm_head.weight",)),
    Odd("no norm", without("model.norm"), ("model.norm.weight",)),
    Odd("no tensors", without("."), (CONFIG,)),
    Odd(
        "another prefix",
        reweigh(lambda held: {name.replace("model.", "body."): one for name, one in held.items()}),
        ("model.embed_tokens.weight", "body."),
    ),
    Odd("a tensor more", reweigh(lambda held: held | {"vision.x": torch.zeros(2)})),
    Odd("a weight is NaN", filled("layers.2.self_attn.v_proj", float("nan")), ("layers.2.self_attn.v_proj.weight",)),
    Odd("a weight is infinite", filled("layers.0.mlp.up_proj", float("inf")), ("layers.0.mlp.up_proj.weight",)),
    Odd("sharded", sharded()),
    Odd("sharded: no metadata", sharded(metadata=...), (INDEX, "metadata")),
    Odd("sharded: no map", sharded(weight_map=...), (INDEX, "weight_map")),
    Odd("sharded: a map of numbers", sharded(weight_map={"a": 1}), (INDEX, "weight_map")),
    Odd("sharded: a shard is missing", then(sharded(), lambda folder: (folder / SHARD).unlink()), (SHARD,)),
    Odd("sharded: a shard is a folder", then(sharded(), replace(SHARD, "folder")), (SHARD,)),
    Odd("sharded: a shard is cut", then(sharded(), keep(SHARD, 0.6)), (SHARD,)),
    Odd("sharded: a path", then(sharded(), remap(SHARD, "../" + SHARD)), (INDEX, "outside")),
    Odd("sharded: a path from the root", then(sharded(), remap(SHARD, "/tmp/" + SHARD)), (INDEX, "outside")),
    Odd(
        "sharded: a shard lacks a tensor",
        then(sharded(), remap('"lm_head.weight"', '"lm_head.bias"')),
        (SHARD, "lm_head.bias"),
    ),
    Odd("sharded: the index is cut", then(sharded(), keep(INDEX, 0.5)), (INDEX,)),
    Odd("pickled", pickled(None)),
    Odd("pickle cut", then(pickled(None), keep("pytorch_model.bin", 0.5)), ("pickle",)),
    Odd("pickle empty", then(pickled(None), write("pytorch_model.bin", b"")), ("pytorch_model.bin",)),
)
