"""Names, numbers and tables as text that a terminal, a log or a figure can show."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from .text_input import shown


def printable(text: str, *, keep: str = "") -> str:
    """`text` without anything that could steer a terminal: control characters appear as escapes, and so do bytes of a
    name that are no text."""
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
    """An aligned table: the first column to the left, columns of numbers to the right."""
    lines = [list(head)] if head else []
    lines += [[printable(cell) for cell in row] for row in rows]
    if not lines:
        return ""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    right = [at > 0 and all(_numeric(row[at]) for row in rows) for at in range(len(widths))]
    text = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    ]
    if head:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def _numeric(cell: str) -> bool:
    starts = cell[:1].isdigit() or cell[:1] in ("+", "-", ".")
    return not cell or (starts and cell.count(" ") <= 1) or cell in ("nan", "none")


def spelled(value: float) -> str:
    """A number in digits, all of them: nothing but the name of a promise says in the file what was promised."""
    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0")
