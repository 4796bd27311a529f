"""Write a plan as text: tables of at most 80 columns, and the notes that qualify them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tsc_cli.text_format import columns, printable, size

ACROSS = 4  # contexts side by side
WIDTH = 79

Facts = Mapping[str, Any]
Cell = Callable[[Facts], str]


def text(facts: Facts) -> str:
    """The report of `tsc plan`."""
    parts = [_head(facts), _layers(facts)]
    users, contexts = facts["users"], facts["contexts"]
    what = "one cache" if users == 1 else f"{users:,} caches"
    parts += _tables(
        f"Bytes of {what}, by tokens of context", contexts, lambda stored: size(stored["bytes_all_users"]), rates=True
    )
    if facts["memory_bytes"] is not None:
        left = f" after {size(facts['weights_bytes'])} of weights" if facts["weights_bytes"] else ""
        parts += _tables(
            f"Caches that fit into {size(facts['memory_bytes'])}{left}, by tokens of context",
            contexts,
            lambda stored: f"{stored['users_that_fit']:,}",
        )
        if users > 1:
            parts.append("\n".join(_fitting(context, users) for context in contexts))
    parts += _prefill(facts)
    if facts["bandwidth_bytes_per_second"] is not None:
        parts += _tables(
            f"Seconds to move one cache at {size(facts['bandwidth_bytes_per_second'])} a second, by tokens of context",
            contexts,
            lambda stored: seconds(stored["transfer_seconds"]),
            last=_recomputing(contexts),
        )
    elif facts["compute_flop_per_second"] is not None:
        parts += _tables(
            "Bytes a second above which moving beats recomputing, by tokens of context",
            contexts,
            lambda stored: size(stored["break_even_bytes_per_second"]),
        )
    parts.append("\n".join(textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in _bullets(facts["notes"])))
    return "\n\n".join(parts)


def seconds(value: float) -> str:
    """Seconds to three digits, without powers of ten that nobody reads aloud."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else "under 0.001"


def operations(value: float) -> str:
    """Floating-point operations in decimal units."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if value < 1000:
            return f"{value:.3g} {unit}FLOP"
        value /= 1000
    return f"{value:,.3g} ZFLOP"


def count(value: float) -> str:
    """Parameters: 8.03 B."""
    for unit in ("", "k", "M", "B"):
        if value < 1000:
            return f"{value:.3g}{' ' if unit else ''}{unit}"
        value /= 1000
    return f"{value:,.3g} T"


def _head(facts: Facts) -> str:
    parameters = facts["parameters"]
    lines = [f"{printable(facts['model'])}: {facts['model_type']}, cache in {facts['dtype']}"]
    if parameters is not None:
        lines.append(
            f"{count(parameters['total'])} parameters ({size(parameters['bytes'])} in {facts['dtype']}), "
            f"{count(parameters['layers_active'])} in the layers for each token"
        )
    return "\n".join(lines)


def _layers(facts: Facts) -> str:
    rows = []
    for layer in facts["layers"]:
        heads = f"{layer['query_heads']} / {layer['kv_heads'] or 'latent'}" if layer["query_heads"] else "none"
        kept = "none" if not layer["bytes_per_token"] else _kept(layer["rows_at_most"])
        rows.append(
            [
                str(layer["count"]),
                layer["kind"],
                heads,
                kept,
                f"{layer['bytes_per_token']:,}",
                f"{layer['state_bytes']:,}",
            ]
        )
    states = any(layer["state_bytes"] for layer in facts["layers"])
    head = ("layers", "kind", "query / KV heads", "rows kept", "bytes a token", *(("state, bytes",) if states else ()))
    table = columns([row[: len(head)] for row in rows], head)
    return f"{table}\nA token adds {facts['bytes_per_token']:,} bytes{_later(facts)}."


def _kept(rows: int | None) -> str:
    return "all" if rows is None else f"{rows:,}"


def _later(facts: Facts) -> str:
    """What a token adds once every window is full, where that is something else."""
    if facts["bytes_per_token_windows_full"] == facts["bytes_per_token"]:
        return ""
    return f", and {facts['bytes_per_token_windows_full']:,} once every window is full"


def _tables(
    title: str, contexts: Sequence[Facts], cell: Cell, *, rates: bool = False, last: Sequence[str] = ()
) -> list[str]:
    """Tables of one title: a row a way of storing, a column a context."""

    def rows(start: int, stop: int) -> list[list[str]]:
        shown = contexts[start:stop]
        cells = []
        for way, stored in enumerate(shown[0]["storage"]):
            of_rate = [f"{stored['bits_per_value']:.3g}", f"{stored['kl']:.2g}"] if rates else []
            cells.append([stored["name"], *of_rate, *(cell(context["storage"][way]) for context in shown)])
        if last:
            cells.append(["recomputing", *last[start:stop]])
        return cells

    return _across(title, ("stored", "bits", "KL") if rates else ("stored",), contexts, rows)


def _across(
    title: str, head: Sequence[str], contexts: Sequence[Facts], rows: Callable[[int, int], list[list[str]]]
) -> list[str]:
    """Lay out as many contexts side by side as fit, and the others in further tables.

    Args:
        rows: of the contexts from the first number to before the second.
    """
    made, start = [], 0
    while start < len(contexts):
        for stop in range(min(start + ACROSS, len(contexts)), start, -1):
            names = [f"{context['tokens']:,}" for context in contexts[start:stop]]
            table = columns(rows(start, stop), (*head, *names))
            if max(map(len, table.splitlines())) <= WIDTH:
                break
        made.append(f"{title}\n\n{table}")
        start = stop
    return made


def _recomputing(contexts: Sequence[Facts]) -> list[str]:
    if contexts[0]["recompute_seconds"] is None:
        return []
    return [seconds(context["recompute_seconds"]) for context in contexts]


def _prefill(facts: Facts) -> list[str]:
    contexts, compute = facts["contexts"], facts["compute_flop_per_second"]
    if contexts[0]["prefill_flop"] is None:
        return []

    def rows(start: int, stop: int) -> list[list[str]]:
        operation_rows = [
            [name, *(operations(context["prefill_flop"][key]) for context in contexts[start:stop])]
            for name, key in (("weights", "weights"), ("attention", "attention"), ("in all", "total"))
        ]
        return (
            operation_rows if compute is None else [*operation_rows, ["seconds", *_recomputing(contexts[start:stop])]]
        )

    speed = "" if compute is None else f", at {operations(compute)} a second"
    return _across(f"Prefill that a stored cache saves{speed}, by tokens of context", ("prefill",), contexts, rows)


def _fitting(context: Facts, users: int) -> str:
    """From which way of storing on that many caches fit."""
    fits = next((stored["name"] for stored in context["storage"] if stored["all_users_fit"]), None)
    how = (
        "in no way that was measured"
        if fits is None
        else f"stored {fits}" + ("" if fits == context["storage"][0]["name"] else " or smaller")
    )
    return f"{users:,} caches of {context['tokens']:,} tokens fit {how}."


def _bullets(notes: Sequence[str]) -> list[str]:
    return [f"- {printable(note)}" for note in notes]
