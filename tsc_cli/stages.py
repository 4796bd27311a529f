"""How a long job tells a person where it is: lines, and bars over so many units."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from .output import Advance

Say = Callable[[str], None]
Stage = Callable[[str, int | None], AbstractContextManager[Advance]]


@contextlib.contextmanager
def no_bar(what: str, total: int | None) -> Iterator[Advance]:
    """A stage that nobody watches."""
    del what, total
    yield _nothing


def _nothing(units: int) -> None:
    del units
