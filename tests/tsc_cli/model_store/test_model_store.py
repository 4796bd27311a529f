"""`tsc models add` and `remove`, GGUF files converted once, and what a `.tsc` file finds by its own name again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from formats import load
from formats.container.atomic_write import atomic_write
from formats.errors import UsageError
from tests import ROOT
from tests.reliability.test_disk import at_most_bytes
from tests.support import gguf_models, models
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.models import loading
from tsc_cli.model_store import folders, gguf_conversion, store
from tsc_cli.model_store import names as model_names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "models"


def of_file(path: Path) -> Any:
    said: list[str] = []
    return loading.load(str(path), device="cpu", say=said.append), said


def capture(tsc: Any, model: object, path: Path, *more: object) -> Any:
    return tsc("capture", "abc abc", "-m", model, "-o", path, "--steps", 2, "-q", *more)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16", "F32"])
def test_the_converted_model_is_the_file(kind: str, tmp_path: Path) -> None:
    path = gguf_models.write(tmp_path / "m.gguf", kind=kind)
    auto: Any = transformers.AutoModelForCausalLM
    direct = auto.from_pretrained(str(tmp_path), gguf_file="m.gguf", dtype="auto").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="m.gguf")
    loaded, said = of_file(path)
    assert dict(fingerprint.of(loaded.model, loaded.tokenizer)) == dict(fingerprint.of(direct, tokenizer))
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(loaded.model(ids).logits, direct(ids).logits)
    assert any("once" in line for line in said)
    values = sum(parameter.numel() for parameter in direct.parameters())
    stored = next(store.folder_of(store.find("m")).glob("*.safetensors")).stat().st_size
    assert (stored > values * 4) is (kind in ("Q8_0", "Q4_1", "F32"))  # halves are stored as halves


def test_the_second_start_converts_and_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_models.write(tmp_path / "m.gguf")
    os.utime(path)
    time.sleep(2.1)  # a file that was changed just now is read again next time
    of_file(path)

    def never(*arguments: Any, **named: Any) -> None:
        raise AssertionError("it was converted again")

    monkeypatch.setattr(gguf_conversion, "convert", never)
    monkeypatch.setattr("tsc_cli.model_store.file_digest._read", never)
    loaded, said = of_file(path)
    assert (loaded.name, said) == ("m", [])


def test_a_file_that_was_replaced_is_another_model(tmp_path: Path) -> None:
    path = gguf_models.write(tmp_path / "m.gguf", seed=1)
    time.sleep(2.1)
    first, _ = of_file(path)
    before = path.stat()
    path.write_bytes(gguf_models.write(tmp_path / "other.gguf", seed=2).read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second, _ = of_file(path)
    assert fingerprint.of(first.model)["weights"] != fingerprint.of(second.model)["weights"]
    assert first.name == "m"
    assert second.name.startswith("m-")


def test_one_model_under_two_paths_is_kept_once(tsc: Any, tmp_path: Path, cache: Path) -> None:
    path = gguf_models.write(tmp_path / "m.gguf")
    shutil.copy(path, tmp_path / "n.gguf")
    assert tsc("models", "add", path, "-q").out == "m\n"
    assert tsc("models", "add", tmp_path / "n.gguf", "-q").out == "m\n"
    assert tsc("models", "add", tmp_path / "n.gguf", "--name", "n", "-q").out == "n\n"
    assert len(list(cache.glob("gguf-*[!k]"))) == 1
    assert tsc("models", "remove", "m", "-q").out == "0\n"  # n stands for it, too
    assert int(tsc("models", "remove", "n", "-q").out) > 300_000
    assert not [one for one in cache.iterdir() if one.is_dir() and one.name.startswith(("gguf-", "."))]


def test_a_file_finds_its_model_by_its_own_name(tsc: Any, tmp_path: Path) -> None:
    path = gguf_models.write(tmp_path / "some model.gguf")
    assert capture(tsc, path, tmp_path / "t.tsc").code == 0
    assert load(tmp_path / "t.tsc").info["model"] == "some-model"
    path.unlink()
    assert tsc("resume", tmp_path / "t.tsc", "-n", 2).code == 0
    done = tsc("verify", tmp_path / "t.tsc", "--positions", 3, "--greedy", 2, "--json")
    assert (done.code, done.json["results"][0]["identical"]) == (0, True)
    assert tsc("models", "remove", "some-model").code == 0
    done = tsc("resume", tmp_path / "t.tsc", "-n", 2)
    assert (done.code, done.out) == (2, "")
    assert "does not name a model that can be found here" in done.err


def test_a_name_that_stands_for_another_model_now_is_refused_by_the_fingerprint(tsc: Any, tmp_path: Path) -> None:
    path = gguf_models.write(tmp_path / "m.gguf", seed=1)
    assert capture(tsc, path, tmp_path / "t.tsc").code == 0
    assert tsc("models", "remove", "m").code == 0
    gguf_models.write(path, seed=2)
    assert tsc("models", "add", path).code == 0
    done = tsc("resume", tmp_path / "t.tsc", "-n", 2)
    assert done.code == 2
    assert "belongs to another model: weights is" in done.err


def test_names_come_before_folders_and_say_so(tsc: Any, tmp_path: Path) -> None:
    path = gguf_models.write(tmp_path / "m.gguf")
    assert tsc("models", "add", path, "--name", "both").code == 0
    models.save_small_model(tmp_path / "both")
    done = tsc("capture", "abc", "-m", "both", "-o", tmp_path / "t.tsc", "--steps", 0)
    assert "./both would be the folder here" in done.err
    assert len(load(tmp_path / "t.tsc").geometry.layers) == gguf_models.LAYERS
    assert tsc("capture", "abc", "-m", "./both", "-o", tmp_path / "u.tsc", "--steps", 0).code == 0
    assert len(load(tmp_path / "u.tsc").geometry.layers) == 3


def test_every_command_that_takes_a_model_takes_a_name(tsc: Any, tmp_path: Path) -> None:
    folder = models.save_small_model(tmp_path / "elsewhere" / "small")
    added = tsc("models", "add", folder, "--name", "here", "--json")
    assert (added.json["schema"], added.json["path"], added.json["kind"]) == ("tsc.model/1", str(folder), "folder")
    assert tsc("plan", "here", "--json").code == 0
    assert tsc("probe-weights", "here", "--types", "q").code == 0
    assert capture(tsc, "here", tmp_path / "t.tsc").code == 0
    assert tsc("resume", tmp_path / "t.tsc", "-n", 1).code == 0
    listed = {model["name"]: model for model in tsc("models", "--json").json["models"]}
    assert listed["here"]["source"] == str(folder)
    assert listed["here"]["size_bytes"] == folders.size_of(folder)
    assert "stays where it is" in tsc("models", "remove", "here").out
    assert (folder / "model.safetensors").is_file()


def test_a_folder_that_went_away_is_said(tsc: Any, tmp_path: Path) -> None:
    folder = models.save_small_model(tmp_path / "small")
    assert tsc("models", "add", folder, "--name", "here").code == 0
    folder.rename(tmp_path / "moved")
    done = capture(tsc, "here", tmp_path / "t.tsc")
    assert done.code == 2
    assert "the files of here are gone" in done.err
    assert "gone" in tsc("models").out
    assert tsc("plan", "here").code == 2


BAD_NAMES = [
    "../x",
    "a/b",
    "",
    ".",
    "..",
    ".hidden",
    "-x",
    "a b",
    "a\n",
    "x.gguf",
    "x.JSON",
    "default",
    "a" * 81,
    "é",
    "smollm2-135m-instruct",
    "SmolLM2-135M-Instruct",
    "x.",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_name_is_refused(name: str, tsc: Any, tmp_path: Path, cache: Path) -> None:
    path = gguf_models.write(tmp_path / "m.gguf")
    for source in (path, models.save_small_model(tmp_path / "small")):
        done = tsc("models", "add", source, f"--name={name}")
        assert (done.code, done.out) == (2, "")
        assert "name" in done.err
    assert not list(model_names.all_named())
    assert not list(cache.glob("gguf-*"))


def test_a_name_is_given_once(tsc: Any, tmp_path: Path) -> None:
    one, two = gguf_models.write(tmp_path / "m.gguf"), gguf_models.write(tmp_path / "two" / "m.gguf", seed=5)
    assert tsc("models", "add", one).code == 0
    for name in ("m", "M"):
        done = tsc("models", "add", two, "--name", name)
        assert done.code == 2
        assert f"there is a model called m already, made of {one}" in done.err
    assert tsc("models", "add", two, "-q").out.startswith("m-")
    missing = tsc("models", "remove", "nobody")
    assert missing.code == 2
    assert "there is no model called nobody" in missing.err


def test_a_damaged_note_is_said_and_can_be_removed(tsc: Any, tmp_path: Path, cache: Path) -> None:
    folder = models.save_small_model(tmp_path / "small")
    assert tsc("models", "add", folder, "--name", "here").code == 0
    for text in ("{", "[]", '{"name": 3}', "", '{"name": "here", "kind": "x", "source": "", "sha256": ""}'):
        (cache / "names" / "here.json").write_text(text)
        done = capture(tsc, "here", tmp_path / "t.tsc")
        assert done.code == 2
        assert "what here stands for is damaged" in done.err
        assert tsc("models").code == 0
    assert tsc("models", "remove", "here").code == 0
    assert not (cache / "names" / "here.json").exists()


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def not_gguf(path: Path) -> None:
    path.write_bytes(b"not a model" * 40)


WRONG: dict[str, tuple[dict[str, Any], Any, str]] = {
    "cut": ({}, lambda path: cut(path, path.stat().st_size - 2000), "ends at byte"),
    "cut in its head": ({}, lambda path: cut(path, 900), "ends beyond the file"),
    "empty": ({}, lambda path: cut(path, 0), "is not a GGUF file"),
    "no GGUF": ({}, not_gguf, "is not a GGUF file"),
    "unknown architecture": ({"arch": "nobodyknows"}, None, "nobodyknows"),
    "a tensor is missing": ({"without": ("blk.1.attn_k.weight",)}, None, "k_proj.weight first"),
    "a value is no number": ({"bad": float("nan")}, None, "model.norm.weight holds values that are no numbers"),
    "a value is infinite": ({"bad": float("inf")}, None, "model.norm.weight holds values that are no numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_no_model_is_refused_and_leaves_nothing(
    case: str, tsc: Any, tmp_path: Path, cache: Path
) -> None:
    settings, spoil, said = WRONG[case]
    path = gguf_models.write(tmp_path / "m.gguf", **settings)
    if spoil is not None:
        spoil(path)
    for words in (["models", "add", path], ["capture", "abc", "-m", path, "-o", tmp_path / "t.tsc"]):
        done = tsc(*words)
        errors = [line for line in done.err.splitlines() if line.startswith("tsc: error: ")]
        assert (done.code, done.out, len(errors)) == (2, "", 1), done.err
        assert "m.gguf" in errors[0]
        assert said in errors[0]
    assert not list(cache.glob("gguf-*[!k]"))
    assert not list(cache.glob(".new-*"))
    assert not list(model_names.all_named())


def test_a_file_without_a_tokenizer_is_kept_and_says_so(tsc: Any, tmp_path: Path) -> None:
    path = gguf_models.write(tmp_path / "m.gguf", tokenizer=False)
    done = tsc("models", "add", path)
    assert done.code == 0
    assert "tokenizer cannot be read" in done.err


def test_parts_are_one_model(tsc: Any, tmp_path: Path, cache: Path) -> None:
    whole = gguf_models.write(tmp_path / "whole.gguf")
    parts = gguf_models.write_parts(tmp_path, "split", 3)
    done = tsc("models", "add", parts[1], "-q")
    assert (done.code, done.out) == (0, "split\n")
    one, other = of_file(whole)[0], loading.load("split", device="cpu", say=print)
    assert dict(fingerprint.of(one.model, one.tokenizer)) == dict(fingerprint.of(other.model, other.tokenizer))
    assert of_file(parts[0])[0].name == "split"
    parts[2].unlink()
    done = tsc("models", "add", parts[0])
    assert done.code == 2
    assert "of which split-00003-of-00003.gguf is missing" in done.err
    lonely = gguf_models.write(tmp_path / "renamed.gguf", part=(0, 3))
    done = tsc("models", "add", lonely)
    assert done.code == 2
    assert "is one of 3 parts" in done.err


def test_a_full_disk_leaves_nothing_and_is_called_so(tsc: Any, tmp_path: Path, cache: Path) -> None:
    path = gguf_models.write(tmp_path / "m.gguf")
    tsc("models")  # what is imported is written as bytecode
    with at_most_bytes(100_000):
        done = tsc("models", "add", path)
    assert done.code == 2
    assert "the converted m.gguf cannot be stored: no file may grow so large here" in done.err
    assert not list(cache.glob(".new-*"))
    assert not list(cache.glob("gguf-*[!k]"))
    assert tsc("models", "add", path).code == 0


def test_room_is_asked_for_before(tsc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_models.write(tmp_path / "m.gguf")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    done = tsc("models", "add", path)
    assert done.code == 2
    assert "the converted m.gguf takes" in done.err
    assert "1.00 kB are free" in done.err


def test_a_cache_folder_that_cannot_be_written(tsc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_models.write(tmp_path / "m.gguf")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "file" / "cache"))
    done = tsc("models", "add", path)
    assert done.code == 2
    assert "Not a directory" in done.err
    assert os.strerror(errno.ENOTDIR) in done.err


SLOW = """
import sys, time
from tsc_cli.model_store import gguf_conversion
from tsc_cli.cli.main import main
real = gguf_conversion._compare
def slow(*words):
    print("converting", flush=True)
    time.sleep(float(sys.argv[2]))
    real(*words)
gguf_conversion._compare = slow
main(["models", "add", sys.argv[1]])
"""


def start(path: Path, seconds: float) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(path), str(seconds)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.full),
        pytest.param(signal.SIGTERM, marks=pytest.mark.full),
        signal.SIGKILL,
    ],
)
def test_a_conversion_that_is_stopped_leaves_nothing_that_is_taken(
    how: signal.Signals, tsc: Any, tmp_path: Path, cache: Path
) -> None:
    path = gguf_models.write(tmp_path / "m.gguf")
    process = start(path, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "converting\n"
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    assert bool(list(cache.glob(".new-*"))) is (how == signal.SIGKILL)
    assert not list(cache.glob("gguf-*[!k]"))
    other = gguf_models.write(tmp_path / "other.gguf", seed=9)
    assert tsc("models", "add", other).code == 0  # sweeps up what the killed one left
    assert not list(cache.glob(".new-*"))
    assert tsc("models", "add", path).code == 0


def test_two_processes_convert_once(tmp_path: Path, cache: Path) -> None:
    path = gguf_models.write(tmp_path / "m.gguf")
    first = start(path, 3)
    assert first.stdout is not None
    assert first.stdout.readline() == "converting\n"
    second = start(path, 0)
    out, err = second.communicate(timeout=120)
    first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), err
    assert "converting" not in out
    assert "waiting for it" in err


def test_notes_of_one_name_by_two_processes_are_not_mixed(cache: Path) -> None:
    one = model_names.Named("x", "folder", "/a")
    model_names.give(one)
    with pytest.raises(UsageError, match="there is a model called x already"):
        model_names.give(model_names.Named("x", "folder", "/b"))
    with pytest.raises(UsageError), atomic_write(cache / "names" / "x.json") as file:
        file.write(b"")
    assert json.loads((cache / "names" / "x.json").read_text())["source"] == "/a"


@pytest.mark.full  # processes with a start of their own
def test_two_files_of_one_name_at_once_get_two_names(tmp_path: Path, cache: Path) -> None:
    paths = [gguf_models.write(tmp_path / str(seed) / "m.gguf", seed=seed) for seed in (1, 2)]
    processes = [start(path, 0) for path in paths]
    ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for _, _, code in ends] == [0, 0], ends
    names = sorted(named.name for named in model_names.all_named())
    assert names[0] == "m"
    assert names[1].startswith("m-")
