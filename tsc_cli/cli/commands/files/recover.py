"""`tsc recover`: what is left of a damaged file, as a valid one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import File, KeyFile, Overwrite
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable, size

if TYPE_CHECKING:
    from formats.repair.inventory import Inventory, Need
    from formats.repair.recover import Plan


@with_groups
def command(
    *,
    file: File,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT.tsc", help="The file to write.", show_default=False)
    ],
    key_file: KeyFile = None,
    overwrite: Overwrite = False,
    out: Output,
) -> None:
    """Save what is left of a truncated or damaged .tsc file as a valid one.

    It keeps every snapshot whose rows, states and labels are all intact, bit for bit, and says
    which snapshots, layers and rows are lost. Snapshots are numbered anew, and the input is not
    changed. The exit code is 3 if no snapshot can be saved, and 0 also if some are lost ("complete"
    of --json).
    """
    from formats.repair.recover import recover, refuse_input
    from tsc_cli.cli.files import check_output
    from tsc_cli.cli.keys import Keys

    if output == "-":
        raise UsageError(
            "a recovered file is checked before it takes its name, so it cannot go to stdout", hint="-o OUT.tsc"
        )
    refuse_input(file, output)
    check_output(output, overwrite=overwrite, read=(key_file,))
    keys = Keys(key_file).ready(file)
    with out.progress(f"recovering {file}"):
        plan, length = recover(file, output, overwrite=overwrite, key=keys)
    facts = {"path": file, "output": output, "file_bytes": length, **facts_of(plan)}
    out.report("tsc.recover/1", facts, _text(file, output, length, plan), output)


def facts_of(plan: Plan) -> dict[str, Any]:
    """What was kept and what was lost."""
    from formats.repair.diagnose import lost

    inventory = plan.inventory
    reasons = dict(lost(inventory))
    known = range(inventory.snapshots)
    return {
        "damaged": plan.damaged,
        "complete": plan.complete,
        "tier_not_kept": plan.untrue or None,
        "snapshots_known": inventory.snapshots,
        "all_snapshots_known": inventory.all_known,
        "snapshots": [
            {"old": old, "new": plan.numbers.get(old), "lost": _needs(inventory, old), "reason": reasons.get(old)}
            for old in known
        ],
        "unread_bytes": [{"start": start, "stop": stop} for start, stop in inventory.file.unread],
        "lost_records": [_record(one) for one in inventory.lost_records()],
        "dropped_records": [{"record": number, "reason": why} for number, why in sorted(plan.dropped.items())],
        "problems": [
            {"message": one.message, "offset": one.offset, "record": one.record}
            for one in [*inventory.file.problems, *inventory.problems]
        ],
    }


def _needs(inventory: Inventory, number: int) -> list[dict[str, Any]]:
    return [_need(one) for one in inventory.lacks.get(number, [])]


def _need(need: Need) -> dict[str, Any]:
    labels = need.first_layer < 0
    return {
        "what": "labels" if labels else "rows" if need.state is None else "state",
        "state": need.state,
        "first_layer": None if labels else need.first_layer,
        "layer_count": None if labels else need.layer_count,
        "rows": [{"first": one.first, "rows": one.rows} for one in need.spans],
    }


def _record(header: Any) -> dict[str, Any] | None:
    if header is None:
        return None
    return {
        "record": header.sequence,
        "type": header.name,
        "part": header.part,
        "first_layer": header.first_layer,
        "layer_count": header.layer_count,
        "first": header.first,
        "count": header.count,
    }


def _text(path: str, output: str, length: int, plan: Plan) -> str:
    from formats.repair.diagnose import lost_together, named

    inventory = plan.inventory
    of = f"{inventory.snapshots}" if inventory.all_known else f"at least {inventory.snapshots}"
    head = f"{printable(output)}: {len(plan.numbers)} of {of} snapshots, {size(length)}"
    untrue = f"  tier {printable(plan.untrue)} is not kept: the file promises no tier any more"
    if not plan.damaged:
        sound = f"{printable(path)} is not damaged\n{head}"
        return (
            f"{printable(path)}: its header was wrong, its rows are whole\n{head}\n{untrue}" if plan.untrue else sound
        )
    lines = [head, "no snapshot is lost: the damaged records can be rebuilt"] if plan.complete else [head]
    lines += [f"  lost: {named(numbers)}: {printable(why)}" for numbers, why in lost_together(inventory)]
    if any(old != new for old, new in plan.numbers.items()):
        lines.append(f"  snapshots are numbered anew: {renumbered(plan.numbers)}")
    lines += [f"  lost: {_in_words(one)}" for one in inventory.lost_records()]
    lines += [f"  not kept: record {number} {plan.dropped[number]}" for number in sorted(plan.dropped)]
    lines += [f"  not read: bytes {start} to {stop - 1}" for start, stop in inventory.file.unread]
    if plan.untrue:
        lines.append(untrue)
    if not plan.complete:
        lines.append("  the file promises no tier any more: tsc verify measures what it has")
    return "\n".join(lines)


def renumbered(numbers: Mapping[int, int]) -> str:
    """Old and new numbers, those together that move by the same."""
    parts = []
    for _, found in groupby(sorted(numbers.items()), key=lambda one: one[0] - one[1]):
        pairs = list(found)
        (first, new), (last, stop) = pairs[0], pairs[-1]
        parts.append(f"{first} -> {new}" if first == last else f"{first} to {last} -> {new} to {stop}")
    return ", ".join(parts)


def _in_words(header: Any) -> str:
    if header is None:
        return "an unknown record"
    layers = f" of layers {header.first_layer} to {header.first_layer + header.layer_count - 1}"
    span = f" {header.first} to {header.first + header.count - 1}"
    words = {
        "rows": f"rows{span}{layers}",
        "labels": f"labels of rows{span}",
        "views": f"snapshots{span}",
        "states": f"states{layers} at snapshots{span}",
        "kept": f"map of kept rows{span}{layers}",
    }
    part = {1: ", keys", 2: ", values", 3: ", indexer keys"}.get(header.part, "") if header.name == "rows" else ""
    return f"record {header.sequence} ({words.get(header.name, header.name)}{part})"
