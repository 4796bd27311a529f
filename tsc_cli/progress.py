"""How a long job tells a person where it is; where no terminal shows a bar, a line now and then."""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

FIRST = 20.0  # seconds until a stage says that it is at work: what is done sooner says nothing
EVERY = 30.0  # seconds between lines

Progress = Callable[[int], None]  # called with the number of units done since the last call
Say = Callable[[str], None]  # takes a line for a person
# opens a stage: its name, its units if known
Stage = Callable[[str, int | None], AbstractContextManager[Progress]]


def nothing(units: int) -> None:
    """A `Progress` that nobody sees."""
    del units


def silent(text: str) -> None:
    """A `Say` that nobody hears."""
    del text


@contextlib.contextmanager
def no_stage(what: str, total: int | None) -> Iterator[Progress]:
    """A `Stage` that nobody sees."""
    del what, total
    yield nothing


@contextlib.contextmanager
def lines(what: str, total: int | None, say: Say) -> Iterator[Progress]:
    """A line after a while, one every half minute, and one at the end if there was any before it.

    A thread writes them, since a stage may be long at one unit of its work.

    Args:
        what: the stage.
        total: how many units it has, if that is known.
        say: takes a line.
    """
    started = time.monotonic()
    done, over = 0, threading.Event()
    speaking = threading.Lock()
    said = 0

    def advance(units: int) -> None:
        nonlocal done
        done += units

    def report() -> None:
        nonlocal said
        with contextlib.suppress(MemoryError):
            while not over.wait(EVERY if said else FIRST):
                with speaking:
                    if over.is_set():
                        return
                    said += 1
                    say(f"{what}: {state(done, total, time.monotonic() - started)}")

    # where there is no memory for it, the job goes on without lines; `Thread.start` would wait for
    # it for ever then
    with contextlib.suppress(RuntimeError, MemoryError):
        _thread.start_new_thread(report, ())
    try:
        yield advance
    except BaseException:
        said = 0
        raise
    finally:
        over.set()
        with speaking:  # a line that is being written comes before what follows
            pass
        if said:
            say(f"{what}: done in {duration(time.monotonic() - started)}")


def state(done: int, total: int | None, seconds: float) -> str:
    """How far a stage is: `37%, 1 min 30 s so far, about 2 min 33 s left`."""
    passed = f"{duration(seconds)} so far"
    if not total:
        return passed
    share = min(done / total, 1.0)
    left = f", about {duration(seconds / share - seconds)} left" if 0 < share < 1 else ""
    return f"{100 * share:.0f}%, {passed}{left}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
