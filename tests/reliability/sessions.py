"""Jobs for processes that share a session: writers that append to it in turn, readers that look at it meanwhile.

What a session holds follows from the model alone: whoever appends to it, it is the beginning of the one in `whole`.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

PROMPT_TOKENS = 20


@cache
def model() -> Any:
    """Seconds to import and build: made before processes are forked."""
    from tests.support import models

    return models.llama()


def append_in_turn(session: str, each: int, times: int) -> int:
    """Append so many snapshots, or for ever; prints how many there are as each append is acknowledged.

    Args:
        session: a path with {}, for the number of the session: the next one after `each` snapshots.
    """
    from tsc_cli.session.append import append

    done = 0
    while done < times or not times:
        path = session.format(done // each if times else 0)
        print(append(model(), [], path, steps=1, timeout=100).snapshots, flush=True)
        done += 1
    return 0


def read_in_turn(session: str, length: int, times: int, whole: str) -> int:
    """Open and check a session until it has so many snapshots, then the next; prints how often.

    Fails where one is anything but the beginning of `whole`, or shorter than it was.
    """
    from formats import load
    from formats.file import check
    from tests.support.traces import same_snapshots

    expected, number, seen, reads = load(whole), 0, 0, 0
    tokens = expected.token_ids()
    while reads < times or Path(session.format(number)).exists():
        path = session.format(number)
        if not Path(path).exists():  # all are done: some more reads of the last one
            number, path = number - 1, session.format(number - 1)
        found = check.check(path).trace()
        count = len(found)
        same = same_snapshots(found.snapshot(), expected.snapshot(count - 1))
        if count < seen or not same or found.token_ids() != tokens[: PROMPT_TOKENS + count - 1]:
            print(f"read something else: {count} snapshots after {seen}")
            return 1
        reads += 1
        number, seen = (number + 1, 0) if count == length else (number, count)
        time.sleep(0.002)
    print(reads)
    return 0
