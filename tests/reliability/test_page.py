"""docs/reliability.md has every row, and each of them passed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.reliability.__main__ import FOUND, PAGE, ROOT, TESTS, Collector, page
from tests.reliability.rows import PROPERTY, ROWS, tallying


def test_the_page_is_what_was_found() -> None:
    assert page(json.loads(FOUND.read_text("utf-8"))) == PAGE.read_text("utf-8")


def test_all_that_counts_is_run() -> None:
    counting = [path for path in ROOT.glob("tests/**/test_*.py") if "with tally(" in path.read_text("utf-8")]
    assert len(counting) > 10
    for path in counting:
        assert any(path.is_relative_to(ROOT / one) for one in TESTS), path


@pytest.mark.parametrize("row", ROWS)
def test_every_row_was_run_and_passed(row: str) -> None:
    one = json.loads(FOUND.read_text("utf-8"))[row]
    assert one["counts"]
    assert not one["failed"]


def test_counts_are_added_up_and_failures_shown() -> None:
    recorded: list[tuple[str, object]] = []
    with pytest.raises(AssertionError), tallying("Ctrl-C", lambda *what: recorded.append(what)) as counts:
        counts["moments"] += 3
        raise AssertionError
    collected = Collector()
    for failed in (False, True):
        report: Any = type(
            "Report", (), {"when": "call", "user_properties": recorded, "failed": failed, "keywords": {"full": 1}}
        )
        collected.pytest_runtest_logreport(report)
    assert recorded == [(PROPERTY, ("Ctrl-C", {"moments": 3}))]
    assert collected.counts["Ctrl-C"] == {"moments": 6}
    assert collected.failed["Ctrl-C"] == 1
    assert collected.full["Ctrl-C"]
    text = page({"Ctrl-C": {"counts": {"moments": 6}, "failed": 1, "share": "full"}})
    assert "| full | 6 moments | FAILED (1 tests) |" in text
    assert "| not run |  |" in text
