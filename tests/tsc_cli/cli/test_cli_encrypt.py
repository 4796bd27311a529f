"""Encrypted files at the command line: where the key comes from, what is made of them, what goes wrong in one line."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from formats import load
from formats.container import encryption
from formats.container import writer as record_writer
from formats.container.encryption import Secret
from formats.container.reader import ZSTD_MAGIC
from formats.container.writer import RecordWriter
from formats.file.check import check
from formats.file.reader import TraceFile
from tests.format_conformance import samples_encrypted
from tests.format_conformance.slices import sliced
from tests.support import models
from tests.support.traces import same_snapshots
from tsc_cli.cli.main import run

KEY, OTHER = bytes(range(3, 35)), bytes(range(4, 36))
SECRET = Secret.of_key(KEY)
TEXT = "a text that nobody else is to read, " * 4
PASSPHRASE = "a secret that is typed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_small_model(tmp_path_factory.mktemp("model") / "small", models.llama(initializer_range=0.1))


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "plain.tsc"
    assert run(["capture", TEXT, "-m", str(folder), "-o", str(path), "--steps", "4", "-q"]) == 0
    return path


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key from outside, scratch files where the test sees them, and a scrypt that takes no time."""
    for name in ("TSC_KEY", "TSC_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(encryption, "SCRYPT_N", 16)


def key_file(folder: Path, key: bytes = KEY, name: str = "k", mode: int = 0o600) -> Path:
    path = folder / name
    path.write_bytes(key)
    path.chmod(mode)
    return path


@pytest.fixture
def key(tmp_path: Path) -> list[object]:
    return ["--key-file", key_file(tmp_path)]


@pytest.fixture
def locked(tsc: Any, plain: Path, tmp_path: Path, key: list[object]) -> Path:
    assert tsc("encrypt", plain, "-o", tmp_path / "locked.tsc", *key).code == 0
    return tmp_path / "locked.tsc"


def assert_says(done: Any, code: int, text: str) -> None:
    """An exit code and one line of error, a hint at most beside it, and nothing on stdout."""
    assert (done.code, done.out) == (code, ""), done.err
    lines = done.err.splitlines()
    assert text in lines[0], done.err
    assert [line[:11] for line in lines[1:]] in ([], [line[:11] for line in lines[1:2] if line.startswith("hint: ")])


def typed(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """A terminal at which somebody gives these answers; returns the questions."""
    left, questions = list(answers), []

    def ask(prompt: str) -> str:
        questions.append(prompt)
        if not left:
            raise EOFError
        return left.pop(0)

    monkeypatch.setattr("getpass.getpass", ask)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    return questions


def load_id(path: Path) -> bytes:
    return path.read_bytes()[16:32]


# Ways to give a key

Way = Callable[[pytest.MonkeyPatch, Path], list[object]]


def by_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[object]:
    return ["--key-file", key_file(folder)]


def by_hexadecimal_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[object]:
    return ["--key-file", key_file(folder, f"  {KEY.hex().upper()}\r\n".encode())]


def by_variable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[object]:
    monkeypatch.setenv("TSC_KEY", KEY.hex())
    return []


def by_passphrase(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[object]:
    monkeypatch.setenv("TSC_PASSPHRASE", PASSPHRASE)
    return []


def by_typing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[object]:
    typed(monkeypatch, *[PASSPHRASE] * 20)
    return []


READING = {
    "inspect": lambda file, folder: ["inspect", file],
    "test": lambda file, folder: ["test", file],
    "doctor": lambda file, folder: ["doctor", file],
    "decode": lambda file, folder: ["decode", file, "-o", folder / "t.safetensors", "--force"],
    "recover": lambda file, folder: ["recover", file, "-o", folder / "recovered.tsc", "--force"],
    "compress": lambda file, folder: [
        "compress",
        file,
        "-o",
        folder / "small.tsc",
        "--codec",
        "scalar",
        "--no-verify",
        "--force",
    ],
    "decrypt": lambda file, folder: ["decrypt", file, "-o", folder / "open.tsc", "--force"],
}


@pytest.mark.parametrize("way", [by_file, by_hexadecimal_file, by_variable, by_passphrase, by_typing])
def test_each_way_to_give_a_key(
    way: Way, tsc: Any, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, want = tmp_path / "locked.tsc", load(plain)
    with monkeypatch.context() as given:
        words = way(given, tmp_path)
        done = tsc("encrypt", plain, "-o", file, *words, "--json")
        assert done.code == 0, done.err
        scheme = "key" if way in (by_file, by_hexadecimal_file, by_variable) else "passphrase"
        assert (done.json["schema"], done.json["scheme"]) == ("tsc.encrypt/1", scheme)
        assert done.json["file_bytes"] == file.stat().st_size
        assert file.stat().st_mode & 0o777 == 0o600
        assert plain.exists()
        secret = SECRET if scheme == "key" else Secret.of_passphrase(PASSPHRASE)
        assert tsc("inspect", file, *words, "--json").json["encrypted"] == scheme
        for name, command in READING.items():
            done = tsc(*command(file, tmp_path), *words, "-q")
            assert done.code == 0, (name, done.err)
        for name in ("recovered.tsc", "small.tsc"):
            assert check(tmp_path / name, secret).reader.file_id != load_id(file)
        assert same_snapshots(load(tmp_path / "open.tsc").snapshot(), want.snapshot())
        assert same_snapshots(load(file, secret).snapshot(), want.snapshot())
    for name, command in READING.items():
        done = tsc(*command(file, tmp_path))
        if name == "test":  # its checksums need no key
            assert done.code == 0
            assert "ok as far as shows without the key" in done.out
        else:
            assert_says(done, 2, f"locked.tsc: is encrypted with a {scheme}")


def test_a_key_on_the_command_line_goes_before_the_environment(
    tsc: Any, locked: Path, key: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSC_KEY", OTHER.hex())
    assert_says(tsc("inspect", locked), 2, "is encrypted with another key than the one given")
    assert tsc("inspect", locked, *key).code == 0


def test_another_key_and_a_passphrase_for_a_key(
    tsc: Any, locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ["--key-file", key_file(tmp_path, OTHER, "other")]
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, command in READING.items():
        done = tsc(*command(locked, tmp_path), *wrong)
        if name == "test":
            assert done.code == 2
            assert "FAILED: is encrypted with another key than the one given" in done.out
        else:
            assert_says(done, 2, "locked.tsc: is encrypted with another key than the one given")
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # nothing was written
    monkeypatch.setenv("TSC_PASSPHRASE", PASSPHRASE)
    assert_says(tsc("inspect", locked), 2, "is encrypted with a key")


def test_a_key_for_a_file_that_is_not_encrypted(
    tsc: Any, plain: Path, key: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on the command line is insisted on; the environment's is for those that need it."""
    for name, command in READING.items():
        done = tsc(*command(plain, tmp_path), *key)
        if name == "test":
            assert (done.code, "FAILED: is not encrypted, and a key was given" in done.out) == (2, True)
        else:
            assert_says(done, 2, "plain.tsc: is not encrypted, and a key was given")
    monkeypatch.setenv("TSC_KEY", KEY.hex())
    assert tsc("inspect", plain).code == 0
    assert_says(tsc("decrypt", plain, "-o", tmp_path / "x.tsc"), 2, "plain.tsc: is not encrypted")
    assert not (tmp_path / "x.tsc").exists()


# Mistakes with keys


def test_nothing_is_written_over_a_key(tsc: Any, plain: Path, locked: Path, folder: Path, tmp_path: Path) -> None:
    key = key_file(tmp_path)
    words = ("-o", key, "--key-file", key, "--force")
    for command in (
        ("encrypt", plain),
        ("decrypt", locked),
        ("compress", plain, "--codec", "scalar", "--no-verify", "--encrypt"),
        ("capture", "abc", "-m", folder, "--encrypt"),
        ("decode", locked),
        ("recover", locked),
    ):
        done = tsc(*command, *(words if command[0] != "decode" else ("-o", hard_link(key), *words[2:])))
        assert_says(done, 2, "is an input of this command, and is not overwritten")
        assert key.read_bytes() == KEY


def hard_link(key: Path) -> Path:
    """A name that `tsc decode` takes."""
    other = key.with_suffix(".safetensors")
    other.hardlink_to(key)
    return other


def test_the_environment_of_other_files(tsc: Any, plain: Path, locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may hold files with keys and with passphrases."""
    monkeypatch.setenv("TSC_PASSPHRASE", "")
    assert "ok as far as shows without the key" in tsc("test", locked).out
    monkeypatch.setenv("TSC_KEY", "abc")
    done = tsc("inspect", locked)
    assert_says(done, 2, f"{locked}: TSC_KEY is not a valid key: 64 hexadecimal digits were expected")
    assert "byte" not in done.err
    monkeypatch.delenv("TSC_KEY")
    assert_says(tsc("encrypt", plain, "-o", locked.with_name("x")), 2, "TSC_PASSPHRASE: ")


def test_key_files_that_are_none(tsc: Any, plain: Path, tmp_path: Path) -> None:
    for number, data in enumerate((b"", KEY[:31], KEY + b"\0", KEY.hex().encode()[:-2], b"g" * 64, bytes(8192))):
        path = key_file(tmp_path, data, f"k{number}")
        done = tsc("encrypt", plain, "-o", tmp_path / "x.tsc", "--key-file", path)
        assert_says(done, 2, f"k{number}: is not a valid key: 32 bytes or 64 hexadecimal digits were expected")
    for path, text in ((tmp_path / "missing", "No such file"), (tmp_path, "Is a directory")):
        done = tsc("encrypt", plain, "-o", tmp_path / "x.tsc", "--key-file", path)
        assert_says(done, 2, f"cannot be read: {text}")
    assert not (tmp_path / "x.tsc").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_key_file_that_may_not_be_read(tsc: Any, plain: Path, tmp_path: Path) -> None:
    done = tsc("encrypt", plain, "-o", tmp_path / "x.tsc", "--key-file", key_file(tmp_path, mode=0))
    assert_says(done, 2, "cannot be read: Permission denied")


def test_a_key_file_that_others_may_read(tsc: Any, locked: Path, tmp_path: Path) -> None:
    for mode, told in ((0o600, False), (0o640, True), (0o604, True), (0o400, False)):
        done = tsc("inspect", locked, "--key-file", key_file(tmp_path, name=f"mode{mode:o}", mode=mode))
        assert done.code == 0
        assert ("can be read by others: run chmod 600 on it" in done.err) is told


def test_variables_that_hold_no_key(
    tsc: Any, plain: Path, locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake is not taken for a passphrase, and what was meant to be secret is not shown."""
    for text in ("", "abc", KEY.hex()[:-1], KEY.hex() + "0", "zz" * 32):
        monkeypatch.setenv("TSC_KEY", text)
        for words in (["inspect", locked], ["encrypt", plain, "-o", tmp_path / "x.tsc"]):
            done = tsc(*words)
            assert_says(done, 2, "TSC_KEY is not a valid key: 64 hexadecimal digits were expected")
            assert not text or text not in done.err
    monkeypatch.delenv("TSC_KEY")
    monkeypatch.setenv("TSC_PASSPHRASE", "")
    assert_says(tsc("encrypt", plain, "-o", tmp_path / "x.tsc"), 2, "the passphrase is empty")


def test_a_passphrase_that_is_typed(tsc: Any, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.tsc"
    words = ["encrypt", plain, "-o", target, "-q"]
    assert_says(tsc(*words), 2, "no key or passphrase to encrypt with")  # nobody is there
    for answers, message in (
        ((PASSPHRASE, PASSPHRASE + "x"), "the two passphrases differ"),
        (("", ""), "the passphrase is empty"),
        ((PASSPHRASE,), "no passphrase was typed"),
    ):
        with monkeypatch.context() as given:
            typed(given, *answers)
            assert_says(tsc(*words), 2, message)
        assert not target.exists()
    with monkeypatch.context() as given:
        assert_asked(typed(given, PASSPHRASE, PASSPHRASE), tsc(*words), ["new passphrase: ", "the same again: "])
    with monkeypatch.context() as given:
        questions = typed(given, PASSPHRASE)
        assert_asked(questions, tsc("inspect", target, "-q"), [f"passphrase of {target}: "])  # once
    with monkeypatch.context() as given:
        questions = typed(given, "another")
        assert_says(tsc("inspect", target, "-q"), 2, "is encrypted with another passphrase than the one given")
        assert len(questions) == 1


@pytest.mark.parametrize("command", ["inspect", "doctor", "recover", "decode", "compress", "decrypt"])
def test_the_question_comes_before_the_progress_bar(
    command: str, tsc: Any, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    @contextlib.contextmanager
    def progress(*_: object) -> Iterator[Callable[[int], None]]:
        events.append("progress")
        yield lambda units: None

    file = tmp_path / "x.tsc"
    monkeypatch.setattr("tsc_cli.cli.output.Output.progress", progress)
    monkeypatch.setenv("TSC_PASSPHRASE", PASSPHRASE)
    assert tsc("encrypt", plain, "-o", file).code == 0
    monkeypatch.delenv("TSC_PASSPHRASE")
    typed(monkeypatch, PASSPHRASE)
    monkeypatch.setattr("getpass.getpass", lambda _: events.append("question") or PASSPHRASE)
    events.clear()
    assert tsc(*READING[command](file, tmp_path)).code == 0
    assert events[0] == "question"
    assert events.count("question") == 1


def assert_asked(questions: list[str], done: Any, want: list[str]) -> None:
    assert done.code == 0, done.err
    assert questions == want
    assert PASSPHRASE not in done.out + done.err


# What is made of encrypted files


class Watch:
    """Looks at every file of a folder after each record that is written, as somebody else on the machine might."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looked, self.frames, self.words = 0, 0, 0
        write = RecordWriter._write  # noqa: SLF001

        def spy(writer: RecordWriter, data: bytes) -> None:
            write(writer, data)
            sink = writer._sink  # noqa: SLF001
            if hasattr(sink, "flush"):
                sink.flush()
                self.look(folder)

        monkeypatch.setattr(record_writer.RecordWriter, "_write", spy)

    def look(self, folder: Path) -> None:
        for path in (path for path in folder.rglob("*") if path.is_file() and "plain" not in path.name):
            data = path.read_bytes()
            self.looked += len(data) > 1_000
            self.frames += ZSTD_MAGIC in data
            self.words += any(word in data for word in (b"tsc.model", b"token_ids", b"tsc.header", TEXT.encode()[:16]))


def test_capture_writes_nothing_in_the_clear(
    tsc: Any, folder: Path, key: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(tmp_path, monkeypatch)
    words = ["capture", TEXT, "-m", folder, "--steps", 3, "-q", "-o"]
    assert tsc(*words, tmp_path / "t.tsc", "--encrypt", *key).code == 0
    assert watch.looked > 3
    assert (watch.frames, watch.words) == (0, 0)
    assert len(load(tmp_path / "t.tsc", SECRET)) == 4
    assert (tmp_path / "t.tsc").stat().st_mode & 0o777 == 0o600
    assert tsc(*words, tmp_path / "open.tsc").code == 0
    assert watch.frames > 3  # it sees them where they are


def test_capture_and_its_options(tsc: Any, folder: Path, key: list[object], tmp_path: Path) -> None:
    words = ["capture", TEXT, "-m", folder, "--steps", 1, "-o", tmp_path / "t.tsc"]
    assert_says(tsc(*words, *key), 2, "--key-file needs --encrypt")
    assert_says(tsc(*words, "--encrypt"), 2, "no key or passphrase to encrypt with")
    assert_says(tsc(*words, "--encrypt", *key, "--deterministic"), 2, "an encrypted file is never the same twice")
    assert not (tmp_path / "t.tsc").exists()


def test_appending_keeps_it_encrypted(
    tsc: Any, folder: Path, locked: Path, key: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, count = locked.read_bytes(), len(load(locked, SECRET))
    words = ["capture", "more", "--append", locked, "-m", folder, "--steps", 2, "-q"]
    assert_says(tsc(*words), 2, "is encrypted with a key")
    assert_says(tsc(*words, "--key-file", key_file(tmp_path, OTHER, "other")), 2, "with another key")
    assert locked.read_bytes() == before
    watch = Watch(tmp_path, monkeypatch)
    done = tsc(*words, *key)
    assert done.code == 0, done.err
    assert watch.looked > 3
    assert (watch.frames, watch.words) == (0, 0)
    after = locked.read_bytes()
    assert after[16:32] == before[16:32]
    assert after[36:52] != before[36:52]
    assert before[400:432] not in after  # the ciphertext is another one, too
    assert len(check(locked, SECRET).views) > count


def test_verify_records_into_an_encrypted_file(
    tsc: Any, folder: Path, plain: Path, locked: Path, key: list[object]
) -> None:
    words = ["verify", locked, "-m", folder, "--positions", 4, "--greedy", 0, "-q"]
    assert_says(tsc(*words, "--record"), 2, "is encrypted with a key")
    before = locked.read_bytes()
    done = tsc(*words, "--record", *key)
    assert done.code == 0, done.err
    after = locked.read_bytes()
    assert (after[16:32], after[36:52] == before[36:52]) == (before[16:32], False)
    (record,) = load(locked, SECRET).quality
    assert record["kl_mean"] == 0
    # a key that is named is insisted on, of both files
    assert_says(tsc(*words, "--against", plain, *key), 2, "plain.tsc: is not encrypted, and a key was given")


def test_compressing_keeps_it_encrypted_and_the_promise_kept(
    tsc: Any,
    folder: Path,
    plain: Path,
    locked: Path,
    key: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Watch(tmp_path, monkeypatch)
    target = tmp_path / "small.tsc"
    words = ["-t", "6x", "-m", folder, "--positions", 4, "--json"]
    done = tsc("compress", locked, "-o", target, *words, *key)
    assert done.code == 0, done.err
    assert watch.looked > 10
    assert (watch.frames, watch.words) == (0, 0)
    header = TraceFile(target, SECRET).header
    assert done.json["ratio_trace"] == header.raw_bytes_trace / target.stat().st_size >= 6
    assert check(target, SECRET).header.tier == "6x"
    other = tmp_path / "other.tsc"
    assert tsc("compress", plain, "-o", other, *words[:2], "--no-verify", "--encrypt", *key).code == 0
    assert check(other, SECRET).size <= header.raw_bytes_trace / 6
    assert not list((tmp_path / "scratch").iterdir())


def test_a_tag_on_each_record_counts(tsc: Any, plain: Path, locked: Path, key: list[object], tmp_path: Path) -> None:
    words = ["--codec", "scalar", "--set", "bits=4", "--no-verify", "-q", "-o"]
    assert tsc("compress", plain, *words, tmp_path / "a.tsc").code == 0
    assert tsc("compress", locked, *words, tmp_path / "b.tsc", *key).code == 0
    first, second = TraceFile(tmp_path / "a.tsc"), TraceFile(tmp_path / "b.tsc", SECRET)
    assert len(first.entries) == len(second.entries)
    assert abs(second.size - first.size - 16 * (len(first.entries) + 1)) < 40  # HEADER and INDEX spell other numbers
    assert second.header.ratios is not None
    assert second.header.ratios[0] == pytest.approx(second.header.raw_bytes_trace / second.size, rel=2e-3)


def test_what_is_damaged_is_found_and_the_rest_saved(tsc: Any, key: list[object], tmp_path: Path) -> None:
    locked = tmp_path / "locked.tsc"
    locked.write_bytes(samples_encrypted.encrypted(sliced("valid"), KEY))
    file = TraceFile(locked, SECRET)
    offset = next(offset for offset, entry in file.entries if entry.name == "rows" and entry.first > 0)
    data = bytearray(locked.read_bytes())
    data[offset + 80] ^= 1
    locked.write_bytes(data)
    for words, code in ((["test", locked], 3), (["test", locked, *key], 3), (["doctor", locked, *key], 3)):
        done = tsc(*words)
        assert done.code == code
        assert f"byte {offset}" in done.out
    assert_says(tsc("doctor", locked), 2, "is encrypted with a key")
    assert_says(tsc("recover", locked, "-o", tmp_path / "new.tsc"), 2, "is encrypted with a key")
    done = tsc("recover", locked, "-o", tmp_path / "new.tsc", *key)
    assert done.code == 0, done.err
    saved = check(tmp_path / "new.tsc", SECRET)
    assert 1 <= len(saved.views) < len(file.views)
    assert saved.reader.file_id != file.reader.file_id


@pytest.mark.parametrize("damaged", [[8], [32], [40], [61], [36, 50], [*range(64)]], ids=str)
def test_a_damaged_superblock(damaged: list[int], tsc: Any, locked: Path, key: list[object], tmp_path: Path) -> None:
    """One byte follows from the checksum; where more are damaged, nothing tells the salt."""
    data = bytearray(locked.read_bytes())
    for byte in damaged:
        data[byte] ^= 2
    locked.write_bytes(data)
    assert tsc("test", locked).code == 3
    assert tsc("doctor", locked, *key).code == 3
    done = tsc("recover", locked, "-o", tmp_path / "new.tsc", *key)
    if len(damaged) == 1:
        assert done.code == 0, done.err
        check(tmp_path / "new.tsc", SECRET)
    else:
        assert done.code == 3
        assert len(done.err.splitlines()) <= 2
        assert not (tmp_path / "new.tsc").exists()


def test_decoding_warns(tsc: Any, locked: Path, key: list[object], tmp_path: Path) -> None:
    done = tsc("decode", locked, "-o", tmp_path / "t.safetensors", *key)
    assert done.code == 0
    assert "the tensors are not encrypted" in done.err


def test_decrypting_a_file_that_was_changed_writes_nothing(
    tsc: Any, locked: Path, key: list[object], tmp_path: Path
) -> None:
    data = bytearray(locked.read_bytes())
    offset = TraceFile(locked, SECRET).entries[1][0]
    data[offset + 70] ^= 1
    locked.write_bytes(data)
    done = tsc("decrypt", locked, "-o", tmp_path / "open.tsc", *key)
    assert_says(done, 3, "checksum of a record does not match")
    assert not [path for path in tmp_path.iterdir() if "open" in path.name]
