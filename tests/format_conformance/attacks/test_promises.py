"""Each limit of the code is enforced where README.md says, and crossed by the file of this folder that it names.

`tests/project/test_docs.py` compares the numbers with docs/format.md.
"""

from __future__ import annotations

import re

import pytest

from formats import limits
from tests import ROOT
from tests.format_conformance.attacks.corpus import FOLDER

TEXT = (FOLDER / "README.md").read_text("utf-8")
LINES = re.findall(r"^\| .+? \| (\S+), `(\w+)` \| *(\S*) *\|$", TEXT, re.MULTILINE)


def test_the_table_is_found() -> None:
    assert len(LINES) == 18
    assert len(LINES) == TEXT.count("| formats/")


@pytest.mark.parametrize(("module", "constant", "attack"), LINES, ids=[line[1] for line in LINES])
def test_a_limit_is_enforced_and_crossed(module: str, constant: str, attack: str) -> None:
    assert hasattr(limits, constant)
    uses = re.findall(rf"\b{constant}\b", (ROOT / module).read_text("utf-8"))
    assert uses, module
    assert not attack or (FOLDER / f"{attack}.tsc").exists()
