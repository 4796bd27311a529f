"""`tsc recover` and `tsc doctor`: what they say, how they end, what they leave alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from formats import load
from formats.repair import diagnose
from tests.format_conformance import profiles, samples
from tests.format_conformance.craft import HEADER, MODEL, Craft, Piece
from tests.format_conformance.slices import Model, sliced
from tests.support.traces import FULL
from tsc_cli.cli.commands.files import recover


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Four snapshots, the values of the second one's rows in layer 2 damaged."""
    data = bytearray(sliced("valid"))
    record = next(one for one in Model(bytes(data)).records if (one.first_layer, one.part, one.first) == (2, 2, 7))
    data[record.offset + 70] ^= 1
    (tmp_path / "broken.tsc").write_bytes(data)
    return tmp_path / "broken.tsc"


def test_recover_says_what_is_lost(tsc: Any, broken: Path, tmp_path: Path) -> None:
    before = broken.read_bytes()
    done = tsc("recover", broken, "-o", tmp_path / "new.tsc")
    assert done.code == 0
    assert "new.tsc: 1 of 4 snapshots" in done.out
    assert "  lost: snapshots 1 to 3: row 7 of layer 2\n" in done.out
    assert "(rows 7 to 7 of layers 2 to 2, values)" in done.out
    assert "not read: bytes " in done.out
    assert broken.read_bytes() == before
    assert len(load(tmp_path / "new.tsc")) == 1
    assert (tmp_path / "new.tsc").stat().st_mode & 0o777 == 0o600


def test_neighbours_that_share_a_fate_share_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "lost", lambda _: iter([(0, "a"), (1, "a"), (3, "a"), (4, "b"), (5, "b")]))
    nothing: Any = None
    found = [(diagnose.named(numbers), why) for numbers, why in diagnose.lost_together(nothing)]
    assert found == [("snapshots 0 to 1", "a"), ("snapshot 3", "a"), ("snapshots 4 to 5", "b")]
    assert recover.renumbered({9: 4, 0: 0, 1: 1, 4: 2, 5: 3}) == "0 to 1 -> 0 to 1, 4 to 5 -> 2 to 3, 9 -> 4"


def test_recover_in_json(tsc: Any, broken: Path, tmp_path: Path) -> None:
    found = tsc("recover", broken, "-o", tmp_path / "new.tsc", "--json").json
    assert found["schema"] == "tsc.recover/1"
    assert (found["damaged"], found["complete"], found["snapshots_known"]) == (True, False, 4)
    assert [one["new"] for one in found["snapshots"]] == [0, None, None, None]
    assert found["snapshots"][1]["lost"] == [
        {"what": "rows", "state": None, "first_layer": 2, "layer_count": 1, "rows": [{"first": 7, "rows": 1}]}
    ]
    (record,) = found["lost_records"]
    assert (record["type"], record["part"], record["first_layer"], record["first"]) == ("rows", 2, 2, 7)
    (unread,) = found["unread_bytes"]
    assert unread["stop"] - unread["start"] > 64
    assert found["file_bytes"] == (tmp_path / "new.tsc").stat().st_size


def test_recover_of_a_sound_file_says_so(tsc: Any, tmp_path: Path) -> None:
    (tmp_path / "sound.tsc").write_bytes(samples.valid())
    done = tsc("recover", tmp_path / "sound.tsc", "-o", tmp_path / "new.tsc")
    assert done.code == 0
    assert "is not damaged" in done.out
    assert "new.tsc: 4 of 4 snapshots" in done.out
    assert tsc("recover", tmp_path / "sound.tsc", "-o", tmp_path / "q.tsc", "-q").out == f"{tmp_path / 'q.tsc'}\n"
    assert load(tmp_path / "new.tsc").tier == "lossless"


def test_a_truncated_file_may_have_had_more(tsc: Any, tmp_path: Path) -> None:
    data = sliced("valid")
    (tmp_path / "cut.tsc").write_bytes(data[: len(data) * 2 // 3])
    done = tsc("recover", tmp_path / "cut.tsc", "-o", tmp_path / "new.tsc")
    assert done.code == 0
    assert "of at least " in done.out
    assert "promises no tier any more" in done.out


def test_an_output_is_not_overwritten(tsc: Any, broken: Path, tmp_path: Path) -> None:
    (tmp_path / "new.tsc").write_bytes(b"mine")
    done = tsc("recover", broken, "-o", tmp_path / "new.tsc")
    assert (done.code, (tmp_path / "new.tsc").read_bytes()) == (2, b"mine")
    assert "exists already" in done.err
    assert "--force replaces it" in done.err
    assert tsc("recover", broken, "-o", tmp_path / "new.tsc", "--force").code == 0
    assert len(load(tmp_path / "new.tsc")) == 1


def test_the_input_is_never_the_output(tsc: Any, broken: Path, tmp_path: Path) -> None:
    before = broken.read_bytes()
    (tmp_path / "link.tsc").symlink_to(broken)
    os.link(broken, tmp_path / "hard.tsc")
    for output in (broken, tmp_path / "link.tsc", tmp_path / "hard.tsc"):
        for force in ((), ("--force",)):
            done = tsc("recover", broken, "-o", output, *force)
            assert done.code == 2
            assert "the output is the input" in done.err
    assert broken.read_bytes() == before
    assert (tmp_path / "link.tsc").is_symlink()


def refused(tsc: Any, path: Path, code: int, text: str) -> None:
    """Both tools end with this code and line; nothing is written."""
    new = path.parent / "new.tsc"
    done = tsc("recover", path, "-o", new)
    assert done.code == code
    assert text in done.err
    assert not new.exists()
    assert not list(path.parent.glob(".*.tmp"))
    assert tsc("doctor", path).code == code


def test_what_cannot_be_recovered(tsc: Any, tmp_path: Path) -> None:
    refused(tsc, tmp_path / "missing.tsc", 2, "cannot be opened: No such file or directory")
    refused(tsc, tmp_path, 2, "is not a regular file")
    path = tmp_path / "damaged.tsc"
    path.write_bytes(b"")
    refused(tsc, path, 3, "not a .tsc file")
    path.write_bytes(b"PK\x03\x04" * 1000)
    refused(tsc, path, 3, "not a .tsc file")
    data = samples.valid()
    path.write_bytes(data[:64] + bytes([data[64] ^ 1]) + data[65:300])
    refused(tsc, path, 3, "the model record is damaged")
    path.write_bytes(data[:1000])
    refused(tsc, path, 3, "no snapshot can be recovered")
    assert tsc("recover", path, "-o", "-").code == 2


def test_what_needs_a_newer_reader(tsc: Any, tmp_path: Path) -> None:
    craft = Craft.of(samples.valid())
    craft.insert(Piece(0x40, b"{}"))
    path = tmp_path / "newer.tsc"
    path.write_bytes(craft.build())
    refused(tsc, path, 3, "record type 0x40 is not known")


def test_doctor_of_a_healthy_file(tsc: Any, tmp_path: Path) -> None:
    (tmp_path / "sound.tsc").write_bytes(samples.valid())
    done = tsc("doctor", tmp_path / "sound.tsc")
    assert (done.code, done.out.splitlines()[0].split(": ")[1][:7]) == (0, "healthy")
    assert tsc("doctor", tmp_path / "sound.tsc", "-q").out == "healthy\n"


def test_doctor_lists_all_damage(tsc: Any, broken: Path) -> None:
    data = bytearray(broken.read_bytes())
    data[20] ^= 1  # the identity
    broken.write_bytes(bytes(data) + b"tail")
    done = tsc("doctor", broken)
    assert done.code == 3
    for text in (
        "checksum of the superblock does not match (byte 0)",
        "checksum of a record does not match (record ",
        f"4 bytes behind the end mark (byte {len(data)})",
        "snapshots 1 to 3 are lost: row 7 of layer 2",
        "tsc recover can save 1 of 4 snapshots",
    ):
        assert text in done.out
    found = tsc("doctor", broken, "--json").json
    assert found["schema"] == "tsc.doctor/1"
    assert (found["ok"], found["recoverable_snapshots"], found["snapshots"]) == (False, [0], 4)
    assert len([one for one in found["problems"] if one["damage"]]) >= 6
    assert tsc("doctor", broken, "-q").out.startswith("damaged, ")


def test_doctor_notes_what_is_unusual(tsc: Any, tmp_path: Path) -> None:
    craft = Craft.of(samples.valid())
    craft.insert(Piece(0x91, b"?"))
    craft.flags = 0x0100
    craft[HEADER].edit_json(lambda value: value.update(tier="", quality=[]))
    (tmp_path / "odd.tsc").write_bytes(craft.build())
    done = tsc("doctor", tmp_path / "odd.tsc")
    assert done.code == 0
    for text in (
        "unknown type 0x91",
        "unused flags of the superblock are set: 0x0100",
        "promises no tier",
        "quality was not measured",
        "a ratio of 0.",
    ):
        assert text in done.out
    assert "damage:" not in done.out


def test_doctor_notes_idle_rows_and_a_missing_profile(tsc: Any, tmp_path: Path) -> None:
    craft = Craft.of(sliced("valid"))
    views = [piece for piece in craft.records if piece.type == 4]
    craft.records.remove(views[-1])
    raw = dict.fromkeys(("raw_bytes_trace", "raw_bytes_final"), 1)
    model = Model(sliced("valid"))
    sizes = [model.document.raw_bytes(number) for number in range(3)]
    raw.update(raw_bytes_trace=sum(sizes), raw_bytes_final=sizes[-1])
    craft[HEADER].edit_json(lambda value: value.update(raw))
    (tmp_path / "idle.tsc").write_bytes(craft.build())
    done = tsc("doctor", tmp_path / "idle.tsc")
    assert done.code == 0
    assert "3 of 3 rows are stored that no snapshot names" in done.out
    (tmp_path / "klt.tsc").write_bytes(samples.klt(profiles.one_group, samples.finite((FULL, FULL)), embed=False))
    done = tsc("doctor", tmp_path / "klt.tsc")
    assert done.code == 0
    assert "is not on this machine" in done.out


def test_names_out_of_a_file_are_escaped(tsc: Any, tmp_path: Path) -> None:
    craft = Craft.of(sliced("by hand, pure"))
    craft[MODEL].edit_json(lambda value: value["layers"][0]["states"][0].update(name="\x1b[31mred"))
    data = craft.build()
    record = next(one for one in Model(data).records if one.type == 0x0A and one.part == 0 and one.first_layer == 2)
    (tmp_path / "red.tsc").write_bytes(data[: record.offset + 70] + b"\0\0" + data[record.offset + 72 :])
    for words in (["doctor"], ["recover", "-o", tmp_path / "new.tsc"]):
        done = tsc(words[0], tmp_path / "red.tsc", *words[1:])
        assert "x1b[31mred" in done.out
        assert "\x1b" not in done.out + done.err
