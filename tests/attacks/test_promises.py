"""SECURITY.md promises the limits that the code has, and each is crossed by a file of this folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from formats import limits
from tests.attacks.corpus import FOLDER

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text("utf-8")
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
LINES = re.findall(r"^\| (.+?) \| (.+?) \| (\S+), `(\w+)` \| *(\S*) *\|$", TEXT, re.MULTILINE)


def number(text: str) -> int:
    """1,024 times, 2^20, 256 MiB or ±(2^63 - 1)."""
    if power := re.fullmatch(r"(?:±\()?2\^(\d+)( - 1\))?", text):
        return (1 << int(power[1])) - (power[2] is not None)
    figure, _, unit = text.replace(",", "").partition(" ")
    return int(figure) * UNITS.get(unit, 1)


def test_the_table_is_found() -> None:
    assert len(LINES) == 18
    assert len(LINES) == TEXT.count("| formats/")


@pytest.mark.parametrize(("what", "most", "module", "constant", "attack"), LINES, ids=[line[3] for line in LINES])
def test_a_limit(what: str, most: str, module: str, constant: str, attack: str) -> None:
    assert number(most) == getattr(limits, constant), what
    uses = re.findall(rf"\b{constant}\b", (ROOT / module).read_text("utf-8"))
    assert uses, module
    assert not attack or (FOLDER / f"{attack}.tsc").exists()


def test_a_number_in_between() -> None:
    assert f"if over {limits.FREE_RAW >> 20} MiB" in TEXT
    assert "`TSC_MEMORY_BUDGET`" in TEXT
    with pytest.raises(ValueError, match="invalid literal"):
        number("many")
