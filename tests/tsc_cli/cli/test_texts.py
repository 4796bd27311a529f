"""Texts and names that are not what one expects: each is taken, or refused by name, and none is called a bug."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from formats import load, save
from formats.errors import UsageError
from tests import ROOT
from tests.support import models
from tsc_cli import capture, text_input
from tsc_cli.text_format import printable

BROKEN = "h\udce9llo"  # what Python makes of the byte E9 on the command line
HALF = "h\ud800llo"
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def session(tsc: Any, folder: Path, tmp_path: Path) -> Path:
    assert tsc("capture", "hello", "-m", folder, "-o", tmp_path / "s.tsc", "--steps", 2).code == 0
    return tmp_path / "s.tsc"


def tokens_of(path: Path) -> str:
    return str(models.byte_tokenizer().decode(load(path).token_ids(0)))


@pytest.mark.parametrize("text", [BROKEN, HALF])
def test_a_prompt_that_is_no_text(text: str, tsc: Any, folder: Path, session: Path, tmp_path: Path) -> None:
    for words in (
        ("capture", text, "-m", folder, "-o", tmp_path / "t.tsc"),
        ("capture", text, "-m", folder, "--append", session),
        ("resume", session, text, "-m", folder),
    ):
        done = tsc(*words)
        assert (done.code, "the prompt " in done.err) == (2, True), done.err
    assert not (tmp_path / "t.tsc").exists()


def test_an_argument_of_another_locale_is_utf8() -> None:
    assert text_input.argument("h\udcc3\udca9") == "hé"  # as the C locale gives it
    assert text_input.argument("hé") == "hé"
    with pytest.raises(UsageError, match=r"the prompt is not UTF-8 text \(byte 1\)"):
        text_input.argument(BROKEN)
    with pytest.raises(UsageError, match="half of a surrogate pair at character 1"):
        text_input.argument(HALF)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"h\xe9llo", r"t: is not UTF-8 text \(byte 1\)"),
        ("héllo".encode("utf-16"), "t: is UTF-16 text"),
        (b"\xfe\xff" + "héllo".encode("utf-16-be"), "t: is UTF-16 text"),
        ("héllo".encode("utf-32"), "t: is UTF-32 text"),
        ("hello".encode("utf-16-le"), "t: is UTF-16LE text"),
        ("hello".encode("utf-16-be"), "t: is UTF-16BE text"),
        (b"\xed\xa0\x80", "t: is not UTF-8 text"),
    ],
)
def test_files_of_other_encodings(data: bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        text_input.decode(data, "t")
    assert "iconv" in str(caught.value.hint)


def test_texts_that_are_taken() -> None:
    said: list[str] = []
    assert text_input.decode("\ufeffhé".encode(), "t", said.append) == "hé"
    assert said == ["t begins with a byte order mark, which is taken off"]
    for text in ("hé", "a\0b", "\0\0\0\0", "  \n", "a\ufeffb", ""):
        assert text_input.decode(text.encode(), "t", said.append) == text
    assert len(said) == 1


def test_a_byte_order_mark_is_no_token(
    tsc: Any, folder: Path, session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = tmp_path / "marked.txt"
    marked.write_bytes(b"\xef\xbb\xbfhey")
    chat = tmp_path / "marked.json"
    chat.write_bytes(b'\xef\xbb\xbf[{"role": "user", "content": "hey"}]')
    made = tmp_path / "t.tsc"
    expected = {
        ("--prompt-file", marked): "hey",
        ("\ufeffhey",): "hey",
        ("--messages", chat): "<user>hey\n<bot>",
        ("-",): "hey",
    }
    for words, text in expected.items():
        with marked.open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            done = tsc("capture", *words, "-m", folder, "-o", made, "--steps", 0, "-f")
        assert (done.code, tokens_of(made)) == (0, text), done.err
        assert "begins with a byte order mark, which is taken off" in done.err
    asked = [tsc("resume", session, text, "-m", folder, "-n", 2, "--json").json for text in ("hey", "\ufeffhey")]
    assert asked[0] == asked[1]
    again = tsc("resume", session, "--prompt-file", marked, "-m", folder, "-n", 2, "--json").json
    assert again == asked[0]
    assert tsc("capture", "--prompt-file", marked, "-m", folder, "--append", session, "--steps", 0).code == 0
    assert str(models.byte_tokenizer().decode(load(session).token_ids(-1))).endswith("hey")


def test_bench_says_that_a_mark_was_taken_off(tsc: Any, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_bytes(b"\xef\xbb\xbf" + b"some text of a few words. " * 20)
    words = ("--codec", "lossless", "--prompts", 1, "--context", 16, "--steps", 1, "--positions", 4)
    done = tsc("bench", text, "-m", folder, "-o", tmp_path / "b.json", *words)
    assert done.code == 0
    assert "byte order mark" in done.err
    assert json.loads((tmp_path / "b.json").read_text())["texts"][0]["bytes"] == len(text.read_bytes()) - 3


@pytest.mark.parametrize("words", [("capture", ""), ("capture", "\ufeff"), ("resume", "FILE", ""), ("append", "")])
def test_an_empty_prompt(words: tuple[str, ...], tsc: Any, folder: Path, session: Path, tmp_path: Path) -> None:
    if words[0] == "append":
        words = ("capture", "--append", "FILE", *words[1:])
    elif words[0] == "capture":
        words = (*words, "-o", str(tmp_path / "t.tsc"))
    done = tsc(*(session if word == "FILE" else word for word in words), "-m", folder)
    assert (done.code, "the prompt is empty" in done.err) == (2, True)


@pytest.mark.parametrize("text", [" ", "\n\n", "a\0b", "\u200b"])
def test_prompts_of_odd_characters(text: str, tsc: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(text)
    done = tsc("capture", "--prompt-file", tmp_path / "t.txt", "-m", folder, "-o", tmp_path / "t.tsc", "--steps", 1)
    assert done.code == 0
    assert tokens_of(tmp_path / "t.tsc") == text


def test_file_names_that_are_no_text(tsc: Any, folder: Path, tmp_path: Path) -> None:
    """They are bytes to the operating system, and work."""
    base = os.fsdecode(os.fsencode(tmp_path) + b"/o\xe9")
    try:
        Path(base).write_bytes(b"hello")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    odd, model = f"{base}.tsc", f"{base}.model"
    os.symlink(folder, model)
    done = tsc("capture", "--prompt-file", base, "-m", model, "-o", odd, "--steps", 1)
    assert done.code == 0, done.err
    assert "o\\xe9.tsc\n" in done.out
    assert load(odd).info["model"] == folder.name
    for words in (
        ("inspect", odd),
        ("test", odd),
        ("doctor", odd),
        ("resume", odd, "-m", folder, "-n", 2),
        ("verify", odd, "-m", folder, "--positions", 2),
        ("compress", odd, "-o", f"{base}.c.tsc", "--codec", "scalar"),
        ("decode", odd, "-o", f"{base}.safetensors"),
        ("recover", odd, "-o", f"{base}.r.tsc"),
        ("capture", "more", "-m", folder, "--append", odd, "--steps", 1),
        ("plan", model),
        ("plot", base, "-o", f"{base}.svg"),
        ("probe-weights", model),
    ):
        for form in ((), ("--json",)):
            done = tsc(*words, *form, *(("-f",) if "-o" in words else ()))
            assert done.code in (0, 1, 2), (words, form, done.err)
            assert "bug" not in done.err
    assert tsc("inspect", odd, "--json").json["path"] == odd


def test_a_model_in_a_folder_whose_name_is_no_text(tsc: Any, folder: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/m\xe9")
    try:
        os.mkdir(odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for one in folder.iterdir():
        os.link(one, os.path.join(odd, one.name))
    done = tsc("capture", "hello", "-m", odd, "-o", tmp_path / "t.tsc", "--steps", 1)
    assert done.code == 0, done.err
    assert load(tmp_path / "t.tsc").info["model"] == "m\\xe9"
    assert tsc("inspect", tmp_path / "t.tsc").code == 0
    assert tsc("resume", tmp_path / "t.tsc", "-m", odd, "-n", 2).code == 0


def test_a_header_takes_no_half_characters(tmp_path: Path) -> None:
    trace = capture(models.llama(), models.prompt(5), steps=1)
    trace.info["note"] = HALF
    with pytest.raises(UsageError, match="half of a surrogate pair"):
        save(trace, tmp_path / "t.tsc")
    assert list(tmp_path.iterdir()) == []


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tsc_cli", *(word if isinstance(word, bytes) else str(word) for word in words)]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, check=False)


@pytest.mark.full  # ten processes
def test_an_ascii_locale(folder: Path, tmp_path: Path) -> None:
    """A text is written with escapes, a name as it is, and a prompt is UTF-8 whatever the locale says."""
    path = tmp_path / "ö.tsc"
    made = run("capture", "hé".encode(), "-m", folder, "-o", os.fsencode(path), "--steps", "9", "-q", **ASCII)
    assert (made.returncode, made.stdout) == (0, os.fsencode(path) + b"\n"), made.stderr
    assert tokens_of(path) == "hé"
    assert run("capture", "hello", "-m", folder, "-o", tmp_path / "h.tsc", "--steps", 4).returncode == 0
    resume = ("resume", tmp_path / "h.tsc", "-m", folder, "-n", 12, "--ignore-eos")
    told = run(*resume, **ASCII)
    assert told.returncode == 0, told.stderr
    plain = run(*resume, PYTHONIOENCODING="utf-8")
    assert told.stdout == plain.stdout.decode().encode("ascii", "backslashreplace")
    assert any(char > "~" for char in plain.stdout.decode())  # else there was nothing to escape
    missing = run("inspect", "nö.tsc".encode(), **ASCII)
    assert (missing.returncode, missing.stderr) == (
        2,
        b"tsc: error: n\\xf6.tsc: cannot be opened: No such file or directory\n",
    )
    odd = os.fsencode(tmp_path) + b"/o\xe9.tsc"  # a script that asks for the path gets the name's own bytes
    copied = run("compress", path, "-o", odd, "--codec", "scalar", "-q", PYTHONIOENCODING="utf-8")
    assert (copied.returncode, copied.stdout) == (0, odd + b"\n"), copied.stderr
    refused = run("capture", b"h\xe9", "-m", folder, "-o", "t.tsc", **ASCII)
    assert refused.returncode == 2
    assert b"the prompt is not UTF-8 text (byte 1)" in refused.stderr


def test_shown() -> None:
    assert text_input.shown("n\udcc3\udcb6") == "nö"
    assert text_input.shown("n\udce9") == "n\\xe9"
    assert text_input.shown(HALF) == "h\\xed\\xa0\\x80llo"
    assert printable("a\udcc2\udc9bb") == "a\\x9bb"  # the bytes of a control character of terminals


def at_a_terminal(width: int, *words: str) -> str:
    """What a command writes to a terminal of so many columns."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "COLUMNS": str(width)}
    command = [sys.executable, "-m", "tsc_cli", *words]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.STDOUT, cwd=ROOT, env=environment) as running:
        os.close(theirs)
        parts = []
        with contextlib.suppress(OSError):  # Linux reports the end of a terminal as an error
            while part := os.read(ours, 1 << 16):
                parts.append(part)
        assert running.wait() == 0
    os.close(ours)
    return b"".join(parts).decode().replace("\r\n", "\n")


def test_tables_of_a_narrow_terminal_are_not_broken() -> None:
    wide, narrow = at_a_terminal(200, "tiers"), at_a_terminal(40, "tiers")
    assert max(map(len, wide.splitlines())) > 40
    assert max(map(len, narrow.splitlines())) <= 40
    # every cell is there, each word in one piece; rules and the names of the first columns are not
    lost = {word for word in wide.split() if set(word) != {"-"}} - set(narrow.split())
    assert lost == {"tier", "verdict"}
