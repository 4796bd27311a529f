"""Names, numbers and tables as text that a terminal, a log or a figure can show."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from decimal import Decimal

from .text_input import shown


def printable(text: str, *, keep: str = "") -> str:
    """Escape control characters, which could steer a terminal, and bytes that are not text."""
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii")
        for char in shown(text)
    )


def plain(name: str) -> str:
    """A name out of a file for a figure: as it is, not as a formula."""
    return printable(name).replace("$", r"\$")


def size(count: float) -> str:
    """Bytes for a person, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def ratio(value: float) -> str:
    return f"{value:.2f}x" if value < 100 else f"{value:.0f}x"


def columns(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Lay out a table: the first column to the left, columns of numbers to the right.

    A table that is wider than the terminal gets a block of lines for each row. This is not
    `rich.table`: that folds the cells of a narrow table within numbers, and importing it takes
    longer than `tsc inspect` may.
    """
    lines = [list(head)] if head else []
    lines += [[printable(cell) for cell in row] for row in rows]
    if not lines:
        return ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = _terminal_width()
    if room is not None and sum(widths) + 2 * (len(widths) - 1) > room:
        return _blocks(lines[1:] if head else lines, head, room)
    right = [at > 0 and all(_numeric(row[at]) for row in rows) for at in range(len(widths))]
    text = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    ]
    if head:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def _terminal_width() -> int | None:
    """The columns of the terminal that stdout is; None for a file or a pipe."""
    if sys.stdout is None or sys.stdout.closed or not sys.stdout.isatty():
        return None
    return max(shutil.get_terminal_size().columns, 20)


def _blocks(rows: Sequence[Sequence[str]], head: Sequence[str], room: int) -> str:
    """Lay out each row as its first cell and a line for each other cell that is not empty."""
    name_width = max(map(len, head[1:]), default=0)
    lines: list[str] = []
    for row in rows:
        names = head or [""] * len(row)
        cells = [row[0]]
        cells += [f"  {name:{name_width}}  {cell}" for name, cell in zip(names[1:], row[1:], strict=True) if cell]
        for cell in filter(None, cells):
            lines += textwrap.wrap(cell, room, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _numeric(cell: str) -> bool:
    starts = cell[:1].isdigit() or cell[:1] in ("+", "-", ".")
    return not cell or (starts and cell.count(" ") <= 1) or cell in ("nan", "none")


def spelled(value: float) -> str:
    """Write a number in full, since its name is all that a file says of what was promised."""
    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0")
