"""Each hostile file is refused with its own reason, cheaply, by every command; the files are what makes them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zstandard

from formats import load
from formats.errors import CorruptError, UnsupportedFileError
from formats.file import check
from formats.repair.scan import DamagedFile
from tests.format_conformance.attacks.__main__ import EXPECTED, expected
from tests.format_conformance.attacks.corpus import ATTACKS, BASES, FOLDER, VALID, Attack
from tests.format_conformance.second_reader import reader as second_reader
from tests.format_conformance.test_second_reader import Bounds, assert_same_content

MEMORY = 64 << 20  # more than before, at most, whatever a file declares
FOUND = json.loads(EXPECTED.read_text("utf-8"))["attacks"]
CONTROL = re.compile(r"[^\n -~]")  # nothing that these commands say of these files is beyond ASCII
by_name = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


@pytest.fixture(autouse=True)
def _built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands as typer builds them anew for every call, which takes longer than most refusals."""
    monkeypatch.setattr("tsc_cli.cli.app.app", built())


@cache
def built() -> Any:
    from typer.main import get_command

    from tsc_cli.cli.app import app

    return get_command(app)


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    assert not CONTROL.search(text), ascii(text)
    return text


def place(found: dict[str, Any]) -> str:
    """How the line ends, where a place is stated."""
    stated = [
        f"{what} {found[key]}" for what, key in (("record", "record"), ("byte", "offset")) if found[key] is not None
    ]
    return f" ({', '.join(stated)})" if stated else ""


@by_name
def test_refused_with_its_reason_cheaply(attack: Attack, tsc: Any, tmp_path: Path, tally: Any) -> None:
    found, bounds = FOUND[attack.path.name], Bounds()
    with bounds.measured():
        done = tsc("test", attack.path)
    assert (done.code, done.err) == (0 if found["met_by"] == "restore" else 3, "")
    said = one_line(done.out)
    if found["met_by"] == "restore":
        assert ": ok, " in said
        with bounds.measured():
            said = restored(attack, tsc, tmp_path / "out.safetensors")
    assert found["message"] in said
    assert place(found) in said
    assert bounds.seconds < 2
    assert bounds.bytes < MEMORY
    with tally("crafted liars") as counts:
        counts["named hostile files refused by the commands"] += 1


def restored(attack: Attack, tsc: Any, output: Path) -> str:
    """What `tsc decode` says of the first snapshot that it refuses."""
    for number in range(len(load(attack.path))):
        done = tsc("decode", attack.path, "-o", output, "--snapshot", number, "--force")
        if done.code:
            assert done.code == 3
            return one_line(re.sub(r"hint: .*\n", "", done.err))
    raise AssertionError(f"{attack.path} is restored")


@by_name
def test_every_command_refuses_or_survives(attack: Attack, tsc: Any, tmp_path: Path) -> None:
    """A lie that opening meets is refused by all; no command has an error that is not one of `tsc`."""
    found, saved = FOUND[attack.path.name], tmp_path / "saved.tsc"
    data = attack.path.read_bytes()
    for words in (
        ["inspect", attack.path, "--layers", "--records"],
        ["inspect", attack.path, "--json"],
        ["decode", attack.path, "-o", tmp_path / "out.safetensors"],
        ["verify", attack.path],
        ["doctor", attack.path],
        ["recover", attack.path, "-o", saved],
    ):
        done = tsc(*words)
        assert not CONTROL.search(done.out + done.err), (words[0], ascii(done.out + done.err))
        assert "Traceback" not in done.err
        if words[0] == "doctor":
            assert done.code in ((0, 3) if found["met_by"] == "restore" else (3,)), done.out
        elif words[0] == "recover":
            assert done.code in (0, 3), (done.code, done.err)
            assert saved.exists() == (done.code == 0)
        elif found["met_by"] == "open":
            assert done.code == 3, (words[0], done.code)
            assert found["message"] in one_line(re.sub(r"hint: .*\n", "", done.err))
        else:  # that the model is not here is said before the rows are looked at
            assert done.code in ((0, 3) if words[0] in ("inspect", "decode") else (2, 3)), (words[0], done.err)
    if saved.exists():
        check.check(saved)
    assert attack.path.read_bytes() == data


@by_name
def test_the_second_reader_refuses_it_too(attack: Attack) -> None:
    kind = FOUND[attack.path.name]["kind"]
    with pytest.raises(second_reader.Refused, match=rf"^{kind}: "):
        second_reader.read(attack.path.read_bytes())


@pytest.mark.parametrize("name", BASES)
def test_the_sound_files_are_read_by_both(name: str) -> None:
    path = VALID / f"{name}.tsc"
    assert_same_content(check.check(path).trace(), second_reader.read(path.read_bytes()))


@by_name
def test_the_file_is_what_it_is_made_of(attack: Attack) -> None:
    stated = json.loads(EXPECTED.read_text("utf-8"))["zstd"]
    if tuple(map(int, stated.split("."))) != zstandard.ZSTD_VERSION:
        pytest.skip(f"the files were compressed by zstd {stated}")
    assert attack.path.read_bytes() == attack.build(), "run python -m tests.format_conformance.attacks"


def test_what_is_expected_is_written_down() -> None:
    assert json.loads(EXPECTED.read_text("utf-8")) == expected(), "run python -m tests.format_conformance.attacks"


def test_every_file_is_listed_and_small() -> None:
    attacks, sound = ({path.name for path in folder.glob("*.tsc")} for folder in (FOLDER, VALID))
    assert attacks == {attack.path.name for attack in ATTACKS} == FOUND.keys()
    assert len(attacks) == len(ATTACKS) >= 60
    assert sound == {f"{name}.tsc" for name in BASES}
    lengths = [path.stat().st_size for path in (*FOLDER.glob("*.tsc"), *VALID.glob("*.tsc"))]
    assert sum(lengths) <= 650_000
    assert sorted(lengths)[-2] < 10_000  # all but the one with 65 records


def test_the_kinds_of_lies_are_all_there() -> None:
    found = {name.split("-")[0].removesuffix(".tsc") for name in FOUND}
    assert found >= {
        "polyglot",
        "bomb",
        "frame",
        "records",
        "index",
        "json",
        "escapes",
        "bidi",
        "markup",
        "model",
        "header",
        "table",
        "labels",
        "views",
        "rows",
        "scalar",
        "vq",
        "pq",
        "delta",
        "kept",
        "attention",
        "profile",
        "ans",
        "klt",
        "states",
        "indexer",
        "cross",
    }
    assert {one["met_by"] for one in FOUND.values()} == {"open", "test", "restore"}


def test_two_records_at_one_place_are_put_in_order() -> None:
    """What coverage-guided mutation found: headers that an index rebuilt, for two numbers out of the same bytes."""
    wreck = DamagedFile(VALID / "plain.tsc")
    wreck.records[4] = wreck.records[4]._replace(offset=wreck.records[3].offset)
    gap = 64 + wreck.records[4].header.stored
    assert [stop - start for start, stop in wreck.unread] in ([gap], [])


def test_a_sound_file_passes_where_hostile_ones_do_not(tsc: Any) -> None:
    """The tests above do not pass because everything is refused."""
    for name in BASES:
        assert tsc("test", VALID / f"{name}.tsc").code == 0
        assert tsc("doctor", VALID / f"{name}.tsc").code == 0
    for attack in ATTACKS:
        assert attack.error in (CorruptError, UnsupportedFileError)
