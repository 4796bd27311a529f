"""`tsc plot`: draw what `tsc bench` measured."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import Overwrite
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable

KINDS = (".png", ".svg")


def figure_target(plot: str | None, *, overwrite: bool) -> Path | None:
    """Where a figure that was asked for with --plot goes.

    Raises:
        UsageError: it is no PNG or SVG, or it is there and may not be replaced.
    """
    if plot is None:
        return None
    from formats.container.atomic_write import refuse_existing

    target = Path(plot)
    if target.suffix.lower() not in KINDS:
        raise UsageError("only PNG and SVG are drawn", path=plot, hint="name it FILE.png or FILE.svg")
    refuse_existing(target, overwrite=overwrite)
    return target


@with_groups
def command(
    *,
    files: Annotated[
        list[str], typer.Argument(metavar="BENCH.json...", help="Files of tsc bench.", show_default=False)
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="OUT.png or OUT.svg; without a suffix both are written.",
            show_default=False,
        ),
    ],
    title: Annotated[str | None, typer.Option("--title", help="A line above the figure.", show_default=False)] = None,
    overwrite: Overwrite = False,
    out: Output,
) -> None:
    """Draw ratio against KL and against top-1 agreement."""
    from formats.container.atomic_write import refuse_existing

    suffix = Path(output).suffix.lower()
    if suffix and suffix not in KINDS:
        raise UsageError("only PNG and SVG are drawn", path=output, hint="name it OUT.png or OUT.svg")
    targets = [Path(output)] if suffix else [Path(output + kind) for kind in KINDS]
    for target in targets:
        refuse_existing(target, overwrite=overwrite)
    documents = [(os.path.basename(name).removesuffix(".json"), read(name)) for name in files]
    from tsc_cli.bench.plot import draw

    draw(documents, targets, title)
    names = [str(target) for target in targets]
    out.report("tsc.plot/1", {"paths": names}, printable("\n".join(names), keep="\n"), names[0])


def read(name: str) -> dict[str, Any]:
    """A `tsc.bench/1` document.  Raises UsageError if it is none."""
    from tsc_cli.bench.document import SCHEMA
    from tsc_cli.text_input import read_text

    try:
        facts = json.loads(read_text(name))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is not JSON: {error}", path=name) from error
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA or not isinstance(facts.get("rows"), list):
        raise UsageError(f"is not a {SCHEMA} document", path=name, hint="tsc bench -o OUT.json makes one")
    return facts
