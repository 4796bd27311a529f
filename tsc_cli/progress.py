"""Progress where no terminal shows a bar: a line now and then, so that a log says what a job is at."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

FIRST = 20.0  # seconds until a stage says that it is at work: what is done sooner says nothing
EVERY = 30.0  # seconds between lines

Advance = Callable[[int], None]


@contextlib.contextmanager
def lines(what: str, total: int | None, say: Callable[[str], None]) -> Iterator[Advance]:
    """A line after a while, one every half minute, and one at the end if there was any before it.

    A thread writes them, since a stage may be long at one unit of its work.

    Args:
        what: the stage.
        total: how many units it has, if that is known.
        say: takes a line.
    """
    started = time.monotonic()
    done, over = 0, threading.Event()
    said = 0

    def advance(units: int) -> None:
        nonlocal done
        done += units

    def report() -> None:
        nonlocal said
        while not over.wait(EVERY if said else FIRST):
            said += 1
            say(f"{what}: {state(done, total, time.monotonic() - started)}")

    thread = threading.Thread(target=report, name="progress", daemon=True)
    with contextlib.suppress(RuntimeError):  # where there is no memory for it, the job goes on without lines
        thread.start()
    try:
        yield advance
    except BaseException:
        said = 0
        raise
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()
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
