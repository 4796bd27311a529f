"""Checkpoint files as the probes read them: the same weights as other readers give, and damaged or hostile files."""

from __future__ import annotations

import json
import math
import os
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from formats.errors import CorruptError, LimitError, TscError, UnsupportedFileError, UsageError
from tests.support import checkpoints
from tsc_cli.checkpoints import gguf_file, safetensors_files
from tsc_cli.checkpoints.matrices import Band, Matrix
from tsc_cli.probes.weights.checkpoint import open_checkpoint
from tsc_cli.probes.weights.layouts import one as one_band
from tsc_cli.probes.weights.stacks import stack_of

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shard_count", [1, 3])
def test_weights_are_what_the_safetensors_library_reads(dtype: torch.dtype, shard_count: int, tmp_path: Path) -> None:
    made = {name: tensor.to(dtype) for name, tensor in checkpoints.tensors(3).items()}
    folder = checkpoints.write(tmp_path / "m", made, shard_count)
    found = checkpoints.opened(folder).tensors
    seen = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                want, tensor = file.get_tensor(name), found[name]
                assert tensor.shape == tuple(want.shape)
                if want.ndim == 2:
                    rows = want.shape[0]
                    matrix = Matrix(tensor, one_band(rows, {})[0], (rows, want.shape[1]))
                    np.testing.assert_array_equal(matrix.rows(np.arange(rows)), want.float().numpy())
                seen.add(name)
    assert seen == set(found) == set(made)


def test_some_rows_of_parts_turned_round_or_not(tmp_path: Path) -> None:
    stored = torch.arange(20 * 6, dtype=torch.float32).view(20, 6)
    folder = checkpoints.write(tmp_path / "m", {"w": torch.cat([stored, stored + 1000])})
    tensor = checkpoints.opened(folder).tensors["w"]
    banded = Matrix(tensor, Band(2, 3, 5, 4), (20, 6), first=20)
    want = [2, 3, 4, 7, 8, 9, 12, 13, 14, 17, 18, 19]
    assert banded.shape == (12, 6)
    np.testing.assert_array_equal(banded.rows(np.arange(12)), (stored + 1000).numpy()[want])
    np.testing.assert_array_equal(banded.rows(np.array([1, 2, 9])), (stored + 1000).numpy()[[3, 4, 17]])
    turned = Matrix(tensor, Band(1, 1, 2, 3), (20, 6), transposed=True)
    assert turned.shape == (3, 20)
    np.testing.assert_array_equal(turned.rows(np.array([0, 2])), stored.numpy().T[[1, 5]])


def test_a_file_by_name_and_a_folder_of_one_file(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "m", checkpoints.tensors(2))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    by_folder, by_file = checkpoints.opened(folder), checkpoints.opened(folder / "other.safetensors")
    assert by_folder.tensors == by_file.tensors
    assert (by_folder.name, by_folder.complete) == ("m", True)
    assert (by_file.name, by_file.complete, by_file.config) == ("other.safetensors", False, {"model_type": "llama"})


def test_gguf_is_dequantized_as_its_package_does(tmp_path: Path) -> None:
    want = checkpoints.write_gguf(tmp_path / "m.gguf", head_count=2, head_count_kv=1, embedding_length=64)
    checkpoint = checkpoints.opened(tmp_path / "m.gguf")
    assert checkpoint.form == "gguf"
    assert checkpoint.config == {
        "model_type": "llama",
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_size": 64,
        "num_hidden_layers": 2,
    }
    _, found = checkpoints.read(tmp_path / "m.gguf")
    np.testing.assert_array_equal(found["q.1"], want["blk.1.attn_q.weight"])
    np.testing.assert_array_equal(found["k.0"], want["blk.0.attn_k.weight"])
    np.testing.assert_array_equal(found["up.1"], want["blk.1.ffn_up.weight"])
    np.testing.assert_array_equal(found["down.1"], want["blk.1.ffn_down.weight"])
    np.testing.assert_array_equal(found["expert.gate.1.2"], want["blk.1.ffn_gate_exps.weight"][2])
    # and the package's own reader finds the tensors in the same places
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        ours = checkpoint.tensors[tensor.name]
        assert (ours.offset, ours.encoding.name) == (tensor.data_offset, tensor.tensor_type.name)
        assert list(ours.shape) == [int(n) for n in reversed(tensor.shape)]


def test_a_gguf_type_that_cannot_be_dequantized_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    checkpoints.write_gguf(path)
    data = bytearray(path.read_bytes())
    for number in range(2):  # the type follows the name, the rank and two extents
        at = data.index(f"blk.{number}.attn_q.weight".encode()) + len("blk.0.attn_q.weight") + 4 + 16
        assert data[at : at + 4] == struct.pack("<I", gguf.GGMLQuantizationType.Q4_1)
        data[at : at + 4] = struct.pack("<I", gguf.GGMLQuantizationType.I8)
    path.write_bytes(data)
    with pytest.raises(UnsupportedFileError, match=r"blk\.0\.attn_q\.weight' is stored as I8, which is not read"):
        checkpoints.read(path)


@pytest.mark.parametrize("form", ["gguf", "safetensors"])
def test_no_damage_gives_anything_but_a_named_error(form: str, tmp_path: Path) -> None:
    """Headers with flipped bits, and files of every length: read, or refused by name; never another exception."""
    path = tmp_path / f"m.{form}"
    if form == "gguf":
        checkpoints.write_gguf(path)
    else:
        save_file(checkpoints.tensors(2), path)
    whole = path.read_bytes()
    draw = random.Random(0)
    start = min(tensor.offset for tensor in checkpoints.opened(path).tensors.values())
    outcomes = {"read": 0, "refused": 0}
    for number in range(600):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: draw.randrange(len(data))]
        else:
            for _ in range(draw.randrange(1, 4)):
                data[draw.randrange(start)] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        problem: TscError | None = None
        try:
            checkpoints.read(path)
        except TscError as error:
            problem = error
        outcomes["read" if problem is None else "refused"] += 1
        if problem is not None:
            assert problem.exit_code in (2, 3)
            assert str(path) in str(problem)
            assert len(str(problem).splitlines()) == 1
    assert min(outcomes.values()) > 0
    for octets in range(64):
        path.write_bytes(whole[:octets])
        with pytest.raises(CorruptError):
            checkpoints.read(path)


def header(path: Path, entries: Any, data: bytes = b"") -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HEADERS: dict[str, tuple[Any, str]] = {
    "a tensor beyond the end": ({"a": entry([1 << 40], 0, 1 << 42)}, "it is cut short"),
    "more than the file": ({"a": entry([4], 0, 16), "b": entry([4], 16, 32)}, "it is cut short"),
    "shape and bytes": ({"a": entry([3], 0, 16)}, "shape and dtype do not give 16 bytes"),
    "overlap": ({"a": entry([4], 0, 16), "b": entry([2], 4, 12)}, "overlap or leave a hole"),
    "a rest": ({"a": entry([2], 0, 8)}, "8 bytes after the last tensor"),
    "backwards": ({"a": entry([4], 16, 0)}, "two ascending data offsets"),
    "negative": ({"a": entry([-4], 0, 16)}, "an integer from 0"),
    "no object": ([1, 2], "an object of tensors was expected"),
    "no field": ({"a": {"dtype": "F32"}}, "field 'data_offsets' is missing"),
    "not JSON": (b"{" + b"x" * 40, "not JSON"),
    "twice": (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":1}', "duplicate key"),
    "deep": (b"[" * 5000, "nested deeper"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(case: str, tmp_path: Path) -> None:
    entries, message = HEADERS[case]
    path = header(tmp_path / "m.safetensors", entries, bytes(16))
    with pytest.raises(CorruptError, match=message) as caught:
        checkpoints.opened(path)
    assert caught.value.path == str(path)
    assert caught.value.hint


def experts(layers: int, count: int) -> dict[str, list[int]]:
    """Names and shapes of a mixture of experts, each with matrices and a scale for each."""
    held = {}
    for layer in range(layers):
        held |= {f"model.layers.{layer}.self_attn.{kind}_proj.weight": [2, 2] for kind in "qkvo"}
        for expert in range(count):
            for kind in ("gate", "up", "down"):
                matrix = f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight"
                held |= {matrix: [2, 2], f"{matrix}_scale": [1]}
    return held


def sharded(folder: Path, held: dict[str, list[int]], shard_count: int) -> Path:
    """A checkpoint of bfloat16 zeros, sparse."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "deepseek_v3", "num_hidden_layers": 2}')
    names, weight_map = list(held), {}
    for number in range(shard_count):
        entries, at = {}, 0
        for name in names[number::shard_count]:
            octets = 2 * math.prod(held[name])
            entries[name] = entry(held[name], at, at + octets, "BF16")
            at += octets
        shard = f"model-{number + 1:05d}-of-{shard_count:05d}.safetensors"
        header(folder / shard, entries)
        os.truncate(folder / shard, (folder / shard).stat().st_size + at)
        weight_map |= dict.fromkeys(entries, shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    ("layers", "count", "shard_count"), [pytest.param(2, 11_000, 3, marks=pytest.mark.full), (2, 20, 248)]
)
def test_a_checkpoint_of_as_many_tensors_or_shards_as_there_are(
    layers: int, count: int, shard_count: int, tmp_path: Path
) -> None:
    """132,008 tensors in few shards; and a shard for each of 248."""
    held = experts(layers, count)
    folder = sharded(tmp_path / "m", held, shard_count)
    checkpoint = checkpoints.opened(folder)
    assert {name: list(tensor.shape) for name, tensor in checkpoint.tensors.items()} == held
    assert len({tensor.path for tensor in checkpoint.tensors.values()}) == shard_count
    stack = stack_of(checkpoint)
    assert [(one.name, one.experts, len(one.series)) for one in stack.types] == [
        *((kind, 0, 1) for kind in "qkvo"),
        *((f"expert.{kind}", count, 4) for kind in ("gate", "up", "down")),
    ]


def test_the_index_is_held_against_the_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", experts(2, 20), 248)
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace("layers.1.mlp.experts.7.up_proj.weight_scale", "layers.1.mlp.no", 1))
    with pytest.raises(CorruptError, match=r"does not hold tensor 'model.layers.1.mlp.no', which the index places"):
        checkpoints.opened(folder)


def test_memory_for_names_is_bounded_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sharded(tmp_path / "m", experts(2, 100), 2)
    monkeypatch.setenv("TSC_MEMORY_BUDGET", str(7 * (folder / INDEX).stat().st_size))
    with pytest.raises(LimitError, match=r"what it says may take [0-9]+ bytes of memory, more than the") as caught:
        checkpoints.opened(folder)
    assert (caught.value.path, caught.value.exit_code) == (str(folder / INDEX), 2)
    assert "TSC_MEMORY_BUDGET" in str(caught.value.hint)
    with pytest.raises(LimitError, match="what it says may take"):
        checkpoints.opened(folder / "model-00001-of-00002.safetensors")


def test_long_metadata_and_open_bounds_are_read(tmp_path: Path) -> None:
    """Trainers put whole tables into the header's metadata, and Python's writer Infinity into config.json."""
    folder = checkpoints.write(tmp_path / "m", {})
    (folder / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "left_out": "%s"}' % ("x" * (2 << 20)))
    save_file(checkpoints.tensors(2), folder / "model.safetensors", {"tags": "y" * 300_000})
    checkpoint = checkpoints.opened(folder)
    assert checkpoint.config["time_step_limit"] == [0.0, float("inf")]
    assert set(checkpoint.tensors) == set(checkpoints.tensors(2))


def test_experts_of_a_name_that_no_line_has_are_one_type(tmp_path: Path) -> None:
    names = [f"layers.{layer}.moe.experts.{n}.mix.weight" for layer in range(2) for n in range(9)]
    folder = checkpoints.write(tmp_path / "m", {name: torch.ones(4, 4) for name in names})
    (one,) = stack_of(checkpoints.opened(folder)).types
    assert (one.name, one.known, one.experts, len(one.series)) == ("moe.experts.*.mix", False, 9, 4)


def test_a_header_as_long_as_it_says_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for length in (1 << 62, safetensors_files.MAX_HEADER + 1):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        os.truncate(path, 1 << 35)  # sparse: long enough for the second
        with pytest.raises(CorruptError, match="is not a safetensors file"):
            checkpoints.opened(path)


def test_a_gguf_of_many_tensors_and_a_large_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, count = tmp_path / "m.gguf", 140_000
    text = struct.pack("<Q1000000s", 1_000_000, b"t" * 1_000_000)
    facts = [b"\1\0\0\0\0\0\0\0a" + struct.pack("<IIQ", 9, 6, 17 << 20) + bytes(4 * (17 << 20))]  # of float32
    facts += [struct.pack("<Q5sI", 5, b"%05d" % number, 8) + text for number in range(18)]
    facts += [struct.pack("<Q5sII", 5, b"%05d" % number, 4, number) for number in range(18, 70_000)]
    infos = b"".join(
        struct.pack("<Q17sIQIQ", 17, b"blk.%05d.q.weight" % number, 1, 4, 0, 16 * number) for number in range(count)
    )
    head = struct.pack("<4sIQQ", b"GGUF", 3, count, len(facts)) + b"".join(facts) + infos
    path.write_bytes(head + bytes(16 * count + 32))
    tensors, _ = gguf_file.read_gguf(path)
    assert len(tensors) == count
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "200000000")
    with pytest.raises(LimitError, match="its metadata may take"):
        gguf_file.read_gguf(path)


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("strings", struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1)),
        ("entries", struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 60)),
        ("a name", struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 1 << 60)),
        ("an array", struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 0, 1 << 60)),
        ("an array of arrays", struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 9, 1)),
        ("a rank", struct.pack("<4sIQQQ1sI", b"GGUF", 3, 1, 0, 1, b"a", 1 << 30)),
        ("a tensor", struct.pack("<4sIQQQ1sIQQIQ", b"GGUF", 3, 1, 0, 1, b"a", 2, 1 << 30, 1 << 30, 0, 0)),
    ],
)
def test_gguf_counts_that_lie(what: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data + bytes(64))
    with pytest.raises(CorruptError, match=r"states|ends"):
        gguf_file.read_gguf(path)


def test_a_gguf_version_of_the_future(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 4, 0, 0))
    with pytest.raises(UnsupportedFileError, match="GGUF version 4"):
        checkpoints.opened(tmp_path / "m.gguf")


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "m", checkpoints.tensors(2), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model-00002-of-00003.safetensors is missing, one of 3 shards"):
        checkpoints.opened(folder)


def test_a_shard_that_is_cut_short_or_lacks_what_the_index_says(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "m", checkpoints.tensors(2), shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(CorruptError, match="cut short"):
        checkpoints.opened(folder)
    save_file({"other": torch.zeros(2)}, shard)
    with pytest.raises(CorruptError, match="which the index places there"):
        checkpoints.opened(folder)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "m", checkpoints.tensors(2))
    tensor = checkpoints.opened(folder).tensors["model.layers.1.mlp.down_proj.weight"]
    os.truncate(tensor.path, tensor.offset + 10)
    with pytest.raises(CorruptError, match="ends within tensor"):
        Matrix(tensor, Band(0, 16, 16), (16, 40)).rows(np.arange(16))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\b", "C:b", ""])
def test_an_index_that_names_a_file_outside_its_folder(name: str, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "m", checkpoints.tensors(2))
    save_file(checkpoints.tensors(2), tmp_path / "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": name}}))
    with pytest.raises(CorruptError, match="names a file outside the folder"):
        checkpoints.opened(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "has no weight_map"),
        ("\xff", "not UTF-8"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "has no weight_map"),
        ("[" * 99999, "nested deeper"),
    ],
)
def test_an_index_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "m", checkpoints.tensors(2))
    (folder / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptError, match=message) as caught:
        checkpoints.opened(folder)
    assert INDEX in str(caught.value)


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "m", checkpoints.tensors(2))
    (folder / "config.json").write_text("{'a': 1}")
    with pytest.raises(CorruptError, match=r"config\.json: not JSON"):
        checkpoints.opened(folder)


class Bomb:
    """An object whose unpickling would be seen."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(os.environ["BOMB"]),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_a_pickle_is_never_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    folder = tmp_path / "m"
    folder.mkdir()
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    for path in (folder, folder / name):
        with pytest.raises(UnsupportedFileError, match="is a pickle") as caught:
            checkpoints.opened(path)
        assert "save_pretrained" in str(caught.value.hint)
    os.rename(folder / name, folder / "model.safetensors")
    with pytest.raises(CorruptError, match="is not a safetensors file"):
        checkpoints.opened(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such model"),
        (lambda path: path.mkdir(), "holds no safetensors checkpoint"),
        (lambda path: path.write_text("x"), "is not a model"),
        (lambda path: (path.mkdir(), (path / "a.gguf").touch()), "holds no safetensors checkpoint"),
        (
            lambda path: (path.mkdir(), [(path / f"{n}.safetensors").touch() for n in "ab"]),
            "2 .safetensors files and no",
        ),
    ],
)
def test_what_is_no_checkpoint(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "m")
    with pytest.raises(UsageError, match=message):
        checkpoints.opened(tmp_path / "m")


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "m.bin"])
def test_a_file_that_is_not_there_is_not_looked_for_on_a_hub(name: str) -> None:
    with pytest.raises(UsageError, match="no such model file"):
        open_checkpoint(name, checkpoints.silent)


class Hub:
    """Stands for a model hub: files of a folder, and what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []  # type: Path, list[str]

    def __call__(self, name: str, file: str) -> str:
        from huggingface_hub.errors import EntryNotFoundError

        self.asked.append(file)
        if not (self.folder / file).is_file():
            raise EntryNotFoundError(f"no {file} in {name}")
        return str(self.folder / file)


def test_a_hub_model_is_fetched_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.write(tmp_path / "m", checkpoints.tensors(2), shards=2)
    hub, said = Hub(folder), []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    checkpoint = open_checkpoint("somebody/model", said.append)
    assert hub.asked == ["config.json", INDEX, *(f"model-0000{n}-of-00002.safetensors" for n in (1, 2))]
    assert (checkpoint.name, checkpoint.path) == ("somebody/model", str(folder))
    assert said == ["looking for somebody/model in the local hub cache and on the model hub"]
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../../x"}}))
    hub.asked.clear()
    with pytest.raises(CorruptError, match="outside the folder"):
        open_checkpoint("somebody/model", checkpoints.silent)
    assert hub.asked == ["config.json", INDEX]
    (folder / INDEX).unlink()
    with pytest.raises(UsageError, match="somebody/model has no safetensors files"):
        open_checkpoint("somebody/model", checkpoints.silent)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="somebody/nothing is not in the local hub cache, and the hub cannot be"):
        open_checkpoint("somebody/nothing", checkpoints.silent)
