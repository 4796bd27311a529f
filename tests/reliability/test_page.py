"""docs/reliability.md has every row, and each of them passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.reliability.__main__ import TAIL, Collector, table
from tests.reliability.rows import PROPERTY, ROWS, tallying

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text("utf-8")


@pytest.mark.parametrize("row", ROWS)
def test_the_page_has_the_row(row: str) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row} | {ROWS[row]} |")]
    assert line.endswith("| passed |")
    assert PAGE.endswith(TAIL)


def test_counts_are_added_up_and_failures_shown() -> None:
    recorded: list[tuple[str, object]] = []
    with pytest.raises(AssertionError), tallying("Ctrl-C", lambda *what: recorded.append(what)) as counts:
        counts["moments"] += 3
        raise AssertionError
    collected = Collector()
    for failed in (False, True):
        report: Any = type("Report", (), {"when": "call", "user_properties": recorded, "failed": failed})
        collected.pytest_runtest_logreport(report)
    assert recorded == [(PROPERTY, ("Ctrl-C", {"moments": 3}))]
    assert "| 6 moments | FAILED (1 tests) |" in table(collected)
    assert "| not run |  |" in table(collected)
