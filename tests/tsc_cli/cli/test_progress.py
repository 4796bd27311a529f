"""Progress without a terminal: lines on stderr now and then, none from what is short, none with -q."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

import pytest

from tsc_cli import progress
from tsc_cli.cli.output import Output


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.05)
    monkeypatch.setattr(progress, "EVERY", 0.05)


def wait_for(capsys: Any, text: str) -> str:
    """What was said until `text` was."""
    found = ""
    for _ in range(200):
        found += capsys.readouterr().err
        if text in found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{text!r} was not said, but {found!r}")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_long_stage_says_how_far_it_is(hurried: None, capsys: Any, as_json: bool) -> None:
    with Output(as_json).progress("measuring", 4) as advance:
        advance(1)
        found = wait_for(capsys, "left\n")
        assert "measuring: 25%, 0 s so far, about " in found
        advance(1)
        wait_for(capsys, "measuring: 50%")  # while nothing is reported in between
    done = capsys.readouterr()
    assert "measuring: done in 0 s\n" in done.err or "measuring: done in 1" in done.err
    assert done.out == ""


def test_without_a_total_it_says_that_it_goes_on(hurried: None, capsys: Any) -> None:
    with Output().progress("loading\x1b the model"):
        assert "loading\\x1b the model: 0 s so far\n" in wait_for(capsys, "so far")


def test_what_is_short_says_nothing(capsys: Any) -> None:
    before = threading.active_count()
    with Output().progress("measuring", 2) as advance:
        advance(2)
    assert capsys.readouterr().err == ""
    assert threading.active_count() == before


def test_quiet_says_nothing(hurried: None, capsys: Any) -> None:
    with Output(quiet=True).progress("measuring", 2):
        time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_a_stage_that_fails_is_not_done(hurried: None, capsys: Any) -> None:
    with pytest.raises(ValueError, match="no"), Output().progress("measuring", 2):
        wait_for(capsys, "so far")
        raise ValueError("no")
    assert "done" not in capsys.readouterr().err


def test_a_terminal_has_a_bar(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", screen)
    with Output().progress("measuring", 2):
        time.sleep(0.3)
    assert "so far" not in screen.getvalue()


def test_durations() -> None:
    assert [progress.duration(seconds) for seconds in (0.4, 59.4, 185, 7805)] == [
        "0 s",
        "59 s",
        "3 min 5 s",
        "2 h 10 min",
    ]
    assert progress.state(0, 7, 3) == "0%, 3 s so far"
    assert progress.state(9, 7, 3) == "100%, 3 s so far"
    assert progress.state(1, 4, 30) == "25%, 30 s so far, about 1 min 30 s left"
