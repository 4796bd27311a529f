"""What loading a model from a folder does: damaged and odd folders, code that they bring, tensors that they lack."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from tests.support.odd_folders import CONFIG, ODD, SETTINGS, TOKENIZER, Odd, filled, pickled, state, then, without
from tsc_cli.cli import main
from tsc_cli.session.decode_loop import CaptureOptions

CODE = "open({mark!r}, 'w').close()\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_small_model(tmp_path_factory.mktemp("models") / "sound")


def changed(sound: Path, tmp_path: Path, change: Any) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in sound.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder)
    return folder


# a quick run takes every fourth folder
@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(odd, marks=pytest.mark.full if number % 4 and "NaN" not in odd.name else ())
        for number, odd in enumerate(ODD)
    ],
    ids=lambda odd: odd.name,
)
def test_an_odd_folder_is_refused_in_a_line_that_names_the_file(
    odd: Odd, sound: Path, tmp_path: Path, tsc: Any
) -> None:
    folder, file = changed(sound, tmp_path, odd.change), tmp_path / "x.tsc"
    done = tsc("capture", "hello", "-m", folder, "-o", file, "--steps", 1, "-q")
    if not odd.names:
        assert (done.code, done.err) == (0, "")
        return
    assert done.code == 2
    error, *rest = done.err.splitlines()
    assert error.startswith("tsc: error: ")
    assert len(rest) <= 1
    assert all(line.startswith("hint: ") for line in rest)
    assert all(name in error for name in odd.names), error
    assert done.out == ""
    assert not file.exists()


def test_a_panic_inside_a_tokenizer_prints_nothing_of_its_own(
    sound: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The thread in Rust that gives up writes to the file descriptor, which `sys.stderr` does not see."""
    broken = state(TOKENIZER, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    assert main.run(["capture", "hi", "-m", str(changed(sound, tmp_path, broken)), "-o", str(tmp_path / "x.tsc")]) == 2
    error, hint = capfd.readouterr().err.splitlines()
    assert error.startswith(f"tsc: error: {tmp_path}/model/tokenizer.json: is not a tokenizer: ")
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("capture", "hi", "-m", "", "-o", "x.tsc"), "-m is empty"),
        (("capture", "hi", "-m", "{model}", "-o", ""), "the name of the output is empty"),
        (("capture", "-m", "{model}", "-o", "x.tsc", "--messages", ""), "the name of the file to read is empty"),
    ],
)
def test_empty_names(
    words: tuple[str, ...], said: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tsc: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tsc(*(word.format(model=sound) for word in words))
    assert done.code == 2
    assert done.err.startswith(f"tsc: error: {said}\nhint: ")
    assert list(tmp_path.iterdir()) == []


# programs of their own: what they would have run leaves a mark


def remote_model(mark: Path) -> Any:
    code = CODE.format(mark=str(mark))
    return then(
        state(CONFIG, model_type="odd", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}),
        lambda folder: (folder / "code.py").write_text(code),
    )


def remote_tokenizer(mark: Path) -> Any:
    code = f"open({str(mark)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast as T\n"
    return then(
        state(SETTINGS, tokenizer_class="Odd", auto_map={"AutoTokenizer": ["code.T", "code.T"]}),
        lambda folder: (folder / "code.py").write_text(code),
    )


def remote_generate(mark: Path) -> Any:
    def change(folder: Path) -> None:
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(f"open({str(mark)!r}, 'w').close()\n")

    return change


def in_a_process(*words: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`tsc`, with an answer to each question that it may ask."""
    return subprocess.run(
        [sys.executable, "-m", "tsc_cli", *map(str, words)],
        input="y\n" * 100,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
        timeout=300,
    )


@pytest.mark.parametrize("remote", [remote_model, pytest.param(remote_tokenizer, marks=pytest.mark.full)])
def test_code_of_a_folder_is_refused_at_once_and_not_asked_about(remote: Any, sound: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = changed(sound, tmp_path, remote(mark))
    done = in_a_process("capture", "hello", "-m", folder, "-o", tmp_path / "x.tsc", "--steps", 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs Python code that comes with it" in done.stderr
    assert "--trust-remote-code" in done.stderr
    assert not mark.exists()


@pytest.mark.full  # two processes that load a model
@pytest.mark.parametrize("remote", [remote_model, remote_tokenizer])
def test_code_of_a_folder_runs_for_those_who_mean_it(remote: Any, sound: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = changed(sound, tmp_path, remote(mark))
    where = {"HF_HOME": str(tmp_path / "hub"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    words = ("capture", "hello", "-m", folder, "-o", tmp_path / "x.tsc", "--steps", 1, "--trust-remote-code")
    done = in_a_process(*words, environment=where)
    assert done.returncode == 0, done.stderr
    assert mark.exists()


def test_a_folder_of_a_known_type_is_loaded_without_the_code_beside_it(sound: Path, tmp_path: Path, tsc: Any) -> None:
    mark = tmp_path / "ran"
    change = then(
        state(CONFIG, auto_map={"AutoModelForCausalLM": "code.M"}),
        remote_generate(mark),
        lambda folder: (folder / "code.py").write_text(CODE.format(mark=str(mark))),
    )
    assert tsc("capture", "hello", "-m", changed(sound, tmp_path, change), "-o", tmp_path / "x.tsc").code == 0
    assert not mark.exists()


def test_trust_is_for_a_model_that_somebody_named(sound: Path, tmp_path: Path, tsc: Any) -> None:
    file = tmp_path / "x.tsc"
    assert tsc("capture", "hello", "-m", sound, "-o", file, "--steps", 1).code == 0
    for words in (
        ("capture", "hello", "-o", tmp_path / "y.tsc"),
        ("capture", "hello", "--append", file),
        ("resume", file),
        ("verify", file),
        ("compress", file, "--tier", "lossless", "-o", tmp_path / "y.tsc"),
        ("probe-cache", file),
        ("demo",),
        ("calibrate",),
        ("bench", "-o", tmp_path / "y.json"),
    ):
        done = tsc(*words, "--trust-remote-code")
        assert done.code == 2, words
        assert "for a model that you name yourself" in done.err, words


def test_a_file_that_names_a_model_with_code_runs_none_of_it(sound: Path, tmp_path: Path) -> None:
    from tsc_cli.session.capture import capture_to_file

    mark, file = tmp_path / "ran", tmp_path / "x.tsc"
    capture_to_file(
        models.loaded(sound),
        models.prompt(12),
        file,
        tokenizer=models.byte_tokenizer(),
        options=CaptureOptions(steps=1),
        info={"model": "someone/odd"},
    )
    kept = tmp_path / "hub" / "hub" / "models--someone--odd"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("1" * 40)
    (kept / "snapshots").mkdir()
    changed(sound, tmp_path, remote_model(mark)).rename(kept / "snapshots" / ("1" * 40))
    done = in_a_process("resume", file, environment={"HF_HOME": str(tmp_path / "hub")})
    assert (done.returncode, done.stdout) == (2, "")
    assert "someone/odd needs Python code that comes with it" in done.stderr
    assert not mark.exists()


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return open, (self.mark, "w")


def test_a_pickle_that_runs_a_program_is_refused(sound: Path, tmp_path: Path, tsc: Any) -> None:
    mark = tmp_path / "ran"
    folder = changed(sound, tmp_path, pickled(Payload(mark)))
    done = tsc("capture", "hello", "-m", folder, "-o", tmp_path / "x.tsc")
    assert done.code == 2
    assert "holds more than tensors" in done.err
    assert not mark.exists()


# tensors that are missing or no numbers, wherever a model is loaded


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("layers.1.self_attn.k_proj"), "lack tensor 'model.layers.1.self_attn.k_proj.weight'"),
        pytest.param(
            filled("layers.1.self_attn.k_proj", float("nan")),
            "'model.layers.1.self_attn.k_proj.weight' holds NaN",
            marks=pytest.mark.full,  # the same places; a quick run has a folder with such a weight
        ),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        ("capture", "hello", "--steps", "1", "-o", "OUT.tsc"),
        ("verify", "FILE", "--force-model-mismatch"),
        ("resume", "FILE", "--force-model-mismatch"),
        ("verify", "FILE", "--recompute"),
        ("compress", "FILE", "--tier", "15x", "-o", "OUT.tsc"),
        ("calibrate", "--quick", "-o", "OUT.safetensors"),
        ("bench", "-o", "OUT.json", "--prompts", "1", "--context", "16", "--codec", "lossless"),
        ("demo",),
    ],
    ids=lambda words: " ".join(words[:1] + words[2:3]),
)
def test_no_command_goes_on_with_weights_that_are_none(
    words: tuple[str, ...],
    change: Any,
    said: str,
    sound: Path,
    tmp_path: Path,
    tsc: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "x.tsc"
    assert tsc("capture", "hello, hello, hello", "-m", sound, "-o", file, "--steps", 1).code == 0
    folder = changed(sound, tmp_path, change)
    words = tuple(word.replace("FILE", str(file)).replace("OUT", str(tmp_path / "out")) for word in words)
    done = tsc(*words, "-m", folder)
    assert done.code == 2
    if "NaN" in said and words[0] in ("verify", "compress") and "--force-model-mismatch" not in words:
        return  # the weights' hash differs, which is said first
    assert said in done.err, done.err
    assert not list(tmp_path.glob("out*"))


def test_logits_that_rule_tokens_out_are_numbers_enough() -> None:
    import torch

    from tsc_cli.huggingface.adapter import ModelAdapter, NotFiniteError

    model, logits = models.llama(), torch.zeros(2, 300)
    logits[0, 7] = -torch.inf
    ModelAdapter(model).require_finite(logits)
    for bad in (
        torch.full((1, 300), -torch.inf),
        logits.index_fill(1, torch.tensor([3]), torch.inf),
        logits.index_fill(1, torch.tensor([3]), torch.nan),
    ):
        with pytest.raises(NotFiniteError, match="all of its weights are"):
            ModelAdapter(model).require_finite(bad)
    with torch.no_grad():
        model.lm_head.weight[7, 0] = -torch.inf
    with pytest.raises(NotFiniteError, match=r"lm_head\.weight"):
        ModelAdapter(model).require_finite(logits.index_fill(1, torch.tensor([9]), torch.nan))


def test_a_folder_without_tokenizer_files_has_no_tokenizer(sound: Path, tmp_path: Path, tsc: Any) -> None:
    def change(folder: Path) -> None:
        for name in ("tokenizer.json", SETTINGS, "chat_template.jinja"):
            (folder / name).unlink()

    done = tsc("capture", "hello", "-m", changed(sound, tmp_path, change), "-o", tmp_path / "x.tsc")
    assert done.code == 2
    assert "the model has no tokenizer" in done.err


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_a_cut_gguf_file_is_refused(share: float, tmp_path: Path, tsc: Any) -> None:
    from tests.support.checkpoints import write_gguf

    path = tmp_path / "m.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    done = tsc("capture", "hello", "-m", path, "-o", tmp_path / "x.tsc", "-q")
    assert done.code == 2
    assert "m.gguf" in done.err.splitlines()[0]
