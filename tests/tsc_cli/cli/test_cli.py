"""The commands as a person or a script meets them: results, messages, exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors import safe_open

from formats import load, save
from formats.container.atomic_write import atomic_write
from tests.support import models
from tests.support.traces import growing_trace
from tsc_cli import capture
from tsc_cli.cli import main
from tsc_cli.cli.main import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_small_model(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def captured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "t.tsc"
    assert run(["capture", "Once upon a time there was", "-m", str(folder), "-o", str(path), "--steps", "4", "-q"]) == 0
    return path


def test_capture_reports(tsc: Any, folder: Path, tmp_path: Path) -> None:
    done = tsc("capture", "abc" * 9, "-m", folder, "-o", tmp_path / "t.tsc", "--steps", 2, "--json", "--context", 20)
    assert done.code == 0
    assert done.json["schema"] == "tsc.capture/1"
    assert done.json["prompt_tokens"] == 20
    assert done.json["snapshots"] == 3
    assert done.json["reference_tokens"] == 7
    assert done.json["file_bytes"] == (tmp_path / "t.tsc").stat().st_size
    assert done.json["ratio_trace"] == done.json["raw_bytes_trace"] / done.json["file_bytes"]
    quiet = tsc("capture", "abc", "-m", folder, "-o", tmp_path / "q.tsc", "--steps", 0, "-q")
    assert (quiet.out, quiet.err) == (f"{tmp_path / 'q.tsc'}\n", "")


@pytest.mark.parametrize("budget", ["8GB", "-1", "1e9", " 64"])
def test_a_budget_that_is_no_number_limits_nothing(
    budget: str, tsc: Any, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSC_MEMORY_BUDGET", budget)
    done = tsc("test", captured)
    assert (done.code, done.out) == (2, "")
    assert f"TSC_MEMORY_BUDGET is {budget!r}, which is not a number of bytes" in done.err
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "")
    assert tsc("test", captured).code == 0


def test_the_demo(tsc: Any, folder: Path, tmp_path: Path) -> None:
    done = tsc("demo", "-m", folder, "-o", tmp_path / "demo.tsc", "--json")
    assert (done.code, done.json["schema"]) == (0, "tsc.demo/1")
    assert (done.json["prompt_tokens"], done.json["snapshots"]) == (1024, 65)
    assert done.json["resumed_equal"]
    assert len(done.json["results"]) == 2
    for result in done.json["results"]:
        assert (result["kl_mean"], result["top1"], result["identical"]) == (0.0, 1.0, True)


def test_prompts_from_everywhere_are_the_same(
    tsc: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "héllo wörld\n"
    (tmp_path / "p.txt").write_text(text)
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert tsc("capture", "-", "-m", folder, "-o", tmp_path / "1.tsc", "--steps", 0).code == 0
    assert tsc("capture", text, "-m", folder, "-o", tmp_path / "2.tsc", "--steps", 0).code == 0
    assert (
        tsc("capture", "--prompt-file", tmp_path / "p.txt", "-m", folder, "-o", tmp_path / "3.tsc", "--steps", 0).code
        == 0
    )
    tokens = [load(tmp_path / f"{n}.tsc").token_ids() for n in (1, 2, 3)]
    assert tokens[0] == tokens[1] == tokens[2] == models.byte_tokenizer()(text).input_ids


def test_messages_go_through_the_chat_template(tsc: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text('[{"role": "user", "content": "Hi"}]')
    done = tsc("capture", "--messages", tmp_path / "chat.json", "-m", folder, "-o", tmp_path / "t.tsc", "--steps", 0)
    assert done.code == 0
    assert models.byte_tokenizer().decode(load(tmp_path / "t.tsc").token_ids()) == "<user>Hi\n<bot>"


def test_inspect(tsc: Any, captured: Path) -> None:
    done = tsc("inspect", captured, "--json", "--layers", "--records")
    facts = done.json
    assert facts["schema"] == "tsc.inspect/1"
    assert facts["snapshots"] == 5
    assert sum(facts["bytes_by_kind"].values()) == facts["file_bytes"] == captured.stat().st_size
    assert facts["ratio_final_fp16"] == facts["ratio_final_fp32"] / 2
    assert facts["keyframes"] == [0]
    assert [layer["kind"] for layer in facts["layers"]] == ["full"] * 3
    assert facts["records"][0]["type"] == "model"
    assert "raw_bytes_trace" in facts
    assert facts["raw_bytes_trace"] == load(captured).raw_bytes
    text = tsc("inspect", captured, "--layers", "--records").out
    assert "3 layers of full attention, 2 KV heads, size 12" in text
    assert tsc("inspect", captured, "-q").out == f"{facts['ratio_trace']:.2f}x\n"


def test_verify_passes_fails_and_records(tsc: Any, captured: Path, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "t.tsc"
    copy.write_bytes(captured.read_bytes())
    base = ("verify", copy, "-m", folder, "--positions", 100, "--greedy", 4)
    done = tsc(*base, "--json", "--max-kl", 0, "--min-top1", 1, "--snapshots", "all", "--record")
    assert done.code == 0
    assert done.json["schema"] == "tsc.verify/1"
    assert [result["kl_mean"] for result in done.json["results"]] == [0.0] * 5
    assert [q["top1"] for q in tsc("inspect", copy, "--json").json["quality"]] == [1.0] * 5
    assert tsc("test", copy).code == 0
    assert tsc(*base, "-q").out == "0\n"
    table = tsc(*base, "--snapshots", "0,2-3,-1").out
    assert len(re.findall(r"^ *\d+ ", table, re.MULTILINE)) == 4
    one = tsc(*base).out
    for line in ("mean KL", "99.9% KL", "RMS change of p", "same top-1", "perplexity", "all 4 equal", "bit-identical"):
        assert line in one


def test_verify_misses_a_threshold(tsc: Any, tmp_path: Path, captured: Path) -> None:
    other = tmp_path / "other"
    models.save_small_model(other, models.llama(rms_norm_eps=1e-2))
    base = ("verify", captured, "-m", other, "--positions", 100, "--greedy", 0)
    refused = tsc(*base)
    assert refused.code == 2
    assert "another model: config.rms_norm_eps is the default (1e-06) in the file and 0.01 here" in refused.err
    forced = tsc(*base, "--force-model-mismatch", "--max-kl", 1e-9)
    assert forced.code == 1
    assert "FAILED: snapshot 4: KL" in forced.out


def test_a_forced_model_is_named_with_what_it_risks(tsc: Any, tmp_path: Path, captured: Path) -> None:
    other = tmp_path / "other"
    models.save_small_model(other, models.llama(rms_norm_eps=1e-2))
    differs = "config.rms_norm_eps is the default (1e-06) in the file and 0.01 here"
    line = f"--force-model-mismatch: {differs}; the results may be meaningless"
    for base in (("resume", captured, "-m", other, "-n", 2), ("verify", captured, "-m", other, "--positions", 9)):
        forced = tsc(*base, "--force-model-mismatch", "--json")
        assert forced.code == 0
        assert forced.err.splitlines() == [line]
        assert forced.json
        assert line not in tsc(*base).err
    recorded = tsc("verify", captured, "-m", other, "--force-model-mismatch", "--record")
    assert recorded.code == 2
    assert "is not recorded" in recorded.err
    for command in ("resume", "verify"):
        assert "the result is usually meaningless" in " ".join(tsc(command, "--help").out.split())


def test_force_says_nothing_where_the_model_is_the_same(tsc: Any, captured: Path, folder: Path) -> None:
    forced = tsc("resume", captured, "-m", folder, "-n", 2, "--force-model-mismatch")
    assert forced.code == 0
    assert "force" not in forced.err


def test_another_kernel_than_at_capture_is_said(tsc: Any, tmp_path: Path, folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    path = tmp_path / "eager.tsc"
    save(capture(model, models.prompt(9), steps=1), path)
    for base in (("resume", path, "-m", folder, "-n", 2), ("verify", path, "-m", folder, "--positions", 9)):
        done = tsc(*base)
        assert done.code == 0
        assert "computed attention by eager at capture and by sdpa here" in done.err
        assert done.err.count("\n") == 1
        assert tsc(*base, "-q").err == ""


def test_resume_streams_what_the_run_would_have_said(tsc: Any, captured: Path, folder: Path) -> None:
    tokens = tsc("resume", captured, "-m", folder, "--snapshot", 0, "-n", 4, "--json", "--ignore-eos").json["tokens"]
    assert tokens == load(captured).token_ids()[-4:]
    text = tsc("resume", captured, "-m", folder, "--snapshot", 0, "-n", 4, "--ignore-eos").out
    assert text.endswith("\n")
    asked = tsc("resume", captured, " the end", "-m", folder, "-n", 3, "--json", "--ignore-eos").json
    assert asked["prompt_tokens"] == 8
    assert len(asked["tokens"]) == 3
    drawn = [
        tsc("resume", captured, "-m", folder, "-n", 8, "--temperature", 1, "--seed", seed, "--json").json["tokens"]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_decode_gives_tensors_that_others_read(tsc: Any, captured: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    assert tsc("decode", captured, "-o", out, "--snapshot", 1, "--layers", "0,2").code == 0
    want = load(captured).snapshot(1)
    with safe_open(out, "pt") as file:
        assert set(file.keys()) == {
            "token_ids",
            *(f"layers.{n}.{kind}" for n in (0, 2) for kind in ("keys", "values", "positions")),
        }
        assert file.get_tensor("layers.2.keys").equal(want.keys[2])
        assert file.get_tensor("token_ids").tolist() == want.token_ids
        assert file.metadata()["snapshot"] == "1"


def test_test_reports_every_file(tsc: Any, captured: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tsc"
    octets = bytearray(captured.read_bytes())
    octets[len(octets) // 2] ^= 1
    bad.write_bytes(octets)
    done = tsc("test", captured, bad, tmp_path / "none.tsc")
    assert done.code == 3
    assert f"{captured}: ok" in done.out
    assert re.search(r"bad\.tsc: FAILED: checksum of a record does not match \(record \d+, byte \d+\)", done.out)
    assert "none.tsc: FAILED: cannot be opened" in done.out
    facts = tsc("test", captured, bad, "--json").json
    assert [f["ok"] for f in facts["files"]] == [True, False]
    assert tsc("test", captured, bad, "-q").out == "1 of 2 ok\n"


def test_tiers_and_models(tsc: Any) -> None:
    assert "lossless" in tsc("tiers").out
    assert tsc("tiers", "--json").json["tiers"][0]["name"] == "lossless"
    listed = tsc("models", "--json").json["models"]
    assert listed[0]["name"] == "smollm2-135m-instruct"
    assert tsc("--version").out.startswith("tsc ")


WRONG: dict[str, tuple[list[str], int, str]] = {
    "no command": ([], 2, "Usage: tsc"),
    "typo": (["captre"], 2, "Did you mean 'capture'"),
    "unknown option": (["inspect", "FILE", "--jsn"], 2, "No such option: --jsn"),
    "no output": (["capture", "x"], 2, "Missing option '--output'"),
    "no prompt": (["capture", "-o", "NEW"], 2, "give one prompt"),
    "two prompts": (["capture", "x", "--prompt-file", "y", "-o", "NEW"], 2, "give one prompt"),
    "output exists": (["capture", "x", "-o", "FILE"], 2, "the file exists already"),
    "no folder": (["capture", "x", "-o", "NOWHERE/t.tsc"], 2, "the folder does not exist"),
    "no model": (["capture", "x", "-o", "NEW", "-m", "./nowhere"], 2, "no such model"),
    "no gguf": (["capture", "x", "-o", "NEW", "-m", "nowhere.gguf"], 2, "no such model file"),
    "empty prompt": (["capture", "", "-m", "MODEL", "-o", "NEW"], 2, "the prompt is empty"),
    "short prompt": (["capture", "x", "-m", "MODEL", "-o", "NEW", "--context", "9"], 2, "--context asks for 9"),
    "bad dtype": (["capture", "x", "-m", "MODEL", "-o", "NEW", "--dtype", "int4"], 2, "no dtype 'int4'"),
    "bad device": (["capture", "x", "-m", "MODEL", "-o", "NEW", "--device", "tpu9"], 2, "'tpu9' is not the name"),
    "bad messages": (["capture", "--messages", "FILE", "-m", "MODEL", "-o", "NEW"], 2, "is not UTF-8 text"),
    "missing file": (["inspect", "NEW"], 2, "cannot be opened: No such file"),
    "a folder": (["inspect", "MODEL"], 2, "is not a regular file"),
    "not a tsc file": (["inspect", "MODEL/config.json"], 3, "not a .tsc file"),
    "pickle": (["decode", "FILE", "-o", "x.pt"], 2, "only safetensors"),
    "no such layer": (["decode", "FILE", "-o", "NEW.safetensors", "--layers", "3"], 2, "no layer 3"),
    "bad range": (["decode", "FILE", "-o", "NEW.safetensors", "--layers", "a-b"], 2, "'a-b' is not a number"),
    "no such snapshot": (["resume", "FILE", "--snapshot", "5"], 2, "no snapshot 5"),
    "model not named": (["verify", "FILE"], 2, "does not name a model that can be found here"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_line_and_leaves_nothing(
    tsc: Any, case: str, captured: Path, folder: Path, tmp_path: Path
) -> None:
    words, code, message = WRONG[case]
    places = {"FILE": captured, "NEW": tmp_path / "new.tsc", "MODEL": folder, "NOWHERE": tmp_path / "nowhere"}
    for name, place in places.items():
        words = [re.sub(rf"\b{name}\b", str(place), word) for word in words]
    done = tsc(*words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    if case != "no command":
        lines = done.err.splitlines()
        assert lines[0].startswith("tsc: error: ")
        assert all(line.startswith("hint: ") for line in lines[1:])
    assert list(tmp_path.iterdir()) == []


def test_a_bug_says_so(tsc: Any, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsc_cli.cli.commands.files.inspect.facts_of", lambda file: 1 / 0)
    done = tsc("inspect", captured)
    assert (done.code, done.out) == (101, "")
    assert done.err.startswith("tsc: error: ZeroDivisionError")
    assert "bug in tsc" in done.err
    monkeypatch.setenv("TSC_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(["inspect", str(captured)])


def test_names_out_of_a_file_cannot_steer_the_terminal(tsc: Any, tmp_path: Path) -> None:
    trace = growing_trace(fingerprint={"architecture": "\x1b[2J\x1b]0;gone\x07", "weights": "\x9b31m\u202e"})
    trace.info = {"model": "a\rb\x00"}
    save(trace, tmp_path / "t.tsc")
    done = tsc("inspect", tmp_path / "t.tsc")
    assert done.code == 0
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.out)
    assert "\\x1b[2J" in done.out


def script(*words: object, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tsc_cli", *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, check=False, **settings)


def test_stdout_takes_the_file_and_a_terminal_does_not(captured: Path, folder: Path, tmp_path: Path) -> None:
    done = script("capture", "abc", "-m", folder, "-o", "-", "--steps", 1)
    assert done.returncode == 0
    (tmp_path / "t.tsc").write_bytes(done.stdout)
    assert len(load(tmp_path / "t.tsc")) == 2
    assert b"snapshots" in done.stderr
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "tsc_cli", "decode", str(captured), "-o", "-"]
    refused = subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, check=False)
    os.close(leader)
    os.close(follower)
    assert refused.returncode == 2
    assert b"not written to a terminal" in refused.stderr


def test_a_reader_that_goes_away_is_no_error(captured: Path) -> None:
    command = f"{sys.executable} -m tsc_cli inspect {captured} --records; echo $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | true"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.stderr == "0\n"


# quick: the signal that `tests/reliability` does not send
@pytest.mark.parametrize(
    ("sign", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.full), (signal.SIGTERM, 143)]
)
def test_a_stopped_capture_leaves_nothing(sign: signal.Signals, code: int, folder: Path, tmp_path: Path) -> None:
    words = ["capture", "abc", "-m", str(folder), "-o", str(tmp_path / "t.tsc"), "--steps", "2000"]
    process = subprocess.Popen([sys.executable, "-m", "tsc_cli", *words], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.iterdir()):  # until the output is being written
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(sign)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in said


def test_a_closed_pipe_under_a_file_is_an_error(captured: Path) -> None:
    command = f"{sys.executable} -m tsc_cli decode {captured} -o -; echo $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | true"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.stderr == "tsc: error: stdout was closed before everything was written\n2\n"


def test_recording_through_a_link_reaches_its_target_and_keeps_the_mode(
    tsc: Any, captured: Path, folder: Path, tmp_path: Path
) -> None:
    target, link = tmp_path / "t.tsc", tmp_path / "link.tsc"
    target.write_bytes(captured.read_bytes())
    target.chmod(0o640)
    link.symlink_to(target)
    assert tsc("verify", link, "-m", folder, "--positions", 4, "--greedy", 0, "--record").code == 0
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert len(load(target).quality) == 1


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_none_are_refused(tsc: Any, value: str, captured: Path, folder: Path, tmp_path: Path) -> None:
    for words in (
        ["capture", "x", "-o", tmp_path / "n.tsc", "-m", folder, "--temperature", value],
        ["resume", captured, "-m", folder, "--temperature", value],
    ):
        done = tsc(*words)
        assert (done.code, done.out) == (2, "")
        assert "--temperature" in done.err
        assert "is not" in done.err
    assert tsc("verify", captured, "-m", folder, "--max-kl", "nan").code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_name_cannot_forge_a_line(tsc: Any, tmp_path: Path) -> None:
    name = tmp_path / "a\nother.tsc: ok\x1b[1m"
    name.write_bytes(b"")
    done = tsc("test", name)
    assert done.code == 3
    assert done.out.count("\n") == 1
    assert "\x1b" not in done.out


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (MemoryError(), 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 192 bytes. Error code 12"), 2),
        (RuntimeError("can't start new thread"), 2),
        (OSError(12, "Cannot allocate memory"), 2),
        (ImportError("libgomp.so.1: failed to map segment from shared object"), 2),
        (RuntimeError("shapes do not fit"), 101),
    ],
)
def test_want_of_memory_is_said_in_a_line(
    problem: Exception, code: int, tsc: Any, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr("formats.file.check.check", fail)
    done = tsc("test", captured)
    assert done.code == code
    assert ("tsc: error: out of memory" in done.err.splitlines()) == (code == 2)


def test_ctrl_c_when_all_is_done() -> None:
    """While the interpreter is taken down: the exit code is that of what was done."""
    late = "import atexit, os; atexit.register(os.kill, os.getpid(), 2); from tsc_cli.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", late, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


# quick: all of them closed; each starts processes that import torch
@pytest.mark.parametrize(
    "closed", [*(pytest.param(one, marks=pytest.mark.full) for one in ("<&-", ">&-", "2>&-")), "<&- >&- 2>&-"]
)
def test_closed_streams(closed: str, captured: Path, tmp_path: Path) -> None:
    for words in (f"test {captured}", f"decode {captured} -o {tmp_path}/{len(closed)}.safetensors"):
        done = subprocess.run(["bash", "-c", f"{sys.executable} -m tsc_cli {words} {closed}"], capture_output=True)
        assert (done.returncode, b"bug" in done.stderr) == (0, False)
    if "<" in closed:
        done = subprocess.run(["bash", "-c", f"{sys.executable} -m tsc_cli capture - -o x {closed}"], cwd=tmp_path)
        assert done.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_under_stdout(captured: Path) -> None:
    command = f"{sys.executable} -m tsc_cli inspect {captured} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "tsc: error: stdout cannot be written: No space left on device\n")


def test_what_is_no_file_is_not_replaced(tsc: Any, captured: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for force in ((), ("--force",)):
        done = tsc("decode", captured, "-o", tmp_path / "pipe.safetensors", *force)
        assert (done.code, "pipe.safetensors: is not a regular file" in done.err) == (2, True)
    assert (tmp_path / "pipe.safetensors").is_fifo()


def test_want_of_budget_says_nothing_against_a_file(tsc: Any, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "100")
    for command in ("test", "doctor", "recover"):
        done = tsc(command, captured, *(("-o", captured.with_name("r.tsc")) if command == "recover" else ()))
        assert (done.code, "more than the budget of 100" in done.out + done.err) == (2, True)
        assert "damage" not in done.out + done.err


def test_a_second_ctrl_c_does_not_stop_the_cleaning_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = os.unlink

    def late(path: str) -> None:
        main.interrupt()
        unlink(path)

    monkeypatch.setattr(main, "interrupts", [])
    monkeypatch.setattr(os, "unlink", late)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "x"):
        main.interrupt()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(main, "CLEANING", -1.0)  # later
    with pytest.raises(KeyboardInterrupt):
        main.interrupt()


def test_ctrl_c_that_a_library_makes_an_error_of(tsc: Any, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers does with one that strikes an import."""

    def fail(*_: object, **__: object) -> None:
        try:
            main.interrupt(2, None)
        except KeyboardInterrupt as interrupt:
            raise ModuleNotFoundError("Could not import module 'LlamaConfig'") from interrupt

    monkeypatch.setattr(main, "interrupts", [])
    monkeypatch.setattr("formats.file.check.check", fail)
    done = tsc("test", captured)
    assert (done.code, done.err) == (130, "interrupted\n")
