"""Markdown tables that stand between `<!-- table NAME -->` and `<!-- end -->` in a page."""

from __future__ import annotations

import re
from collections.abc import Callable

_TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def lines(rows: list[list[str]]) -> str:
    """A table of its head and its rows."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def filled(page: str, table: Callable[[str], str]) -> str:
    """The page with every table as `table` gives it by its name."""
    return _TABLE.sub(lambda match: match[1] + table(match[2]) + match[3], page)
