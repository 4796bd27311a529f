"""`tsc probe-weights`: measure whether differences between layers could replace weights."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import MOST_TOKENS, MOST_WINDOWS, Overwrite
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable


@with_groups
def command(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            show_default=False,
            help="Hub id, local folder, .safetensors or GGUF file. [default: SmolLM2-135M-Instruct, fetched once]",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="OTHER",
            show_default=False,
            help="Compare each layer with the same one of this model, such as the base of a fine-tune.",
        ),
    ] = None,
    verdict: Annotated[bool, typer.Option("--global", help="End with one line: yes or no, and the figures.")] = False,
    types: Annotated[
        str | None, typer.Option("--types", metavar="q,k,...", help="Only these types of matrices.", show_default=False)
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="N",
            min=2,
            max=MOST_TOKENS,
            show_default=False,
            help="N rows of each matrix, evenly spread, stand for all. [default: all]",
        ),
    ] = None,
    experts: Annotated[
        int,
        typer.Option("--experts", metavar="N", min=1, max=MOST_WINDOWS, help="How many experts of a layer are taken."),
    ] = 4,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Draw r by layer; FILE.png or FILE.svg.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    out: Output,
) -> None:
    """Measure whether differences between layers could compress weights.

    For every type of weight matrix: the largest difference of adjacent layers over the largest
    weight, the same for the best of all pairs of layers, other distances, and the bits that coding
    the difference saves or costs at equal error. Reads checkpoint files a few rows at a time and
    builds no model. The headline of -q is the bits saved a weight.
    """
    # threads are outside the linear algebra here; must be said before numpy is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from tsc_cli.cli.commands.measure.plot import figure_target
    from tsc_cli.probes.weights import report
    from tsc_cli.probes.weights.checkpoint import open_checkpoint
    from tsc_cli.probes.weights.probe import check_same, judged, probe
    from tsc_cli.probes.weights.stacks import stack_of

    target = figure_target(plot, overwrite=overwrite)
    asked = [] if types is None else [name.strip() for name in types.split(",") if name.strip()]
    with out.progress("reading what the files hold"):
        checkpoint = open_checkpoint(model, out.note)
        stack, other = stack_of(checkpoint, asked, experts), None
        if against is not None:
            base = open_checkpoint(against, out.note)
            if base.form != checkpoint.form:
                raise UsageError(
                    f"is {base.form}, {checkpoint.name} is {checkpoint.form}: they order rows in their own ways",
                    path=base.path,
                    hint="compare two checkpoints of one form",
                )
            other = stack_of(base, [one.name for one in stack.types], experts)
            check_same(stack, other, base.path)
    reports = probe(stack, other, sample, out.progress)
    answer = judged(reports)
    name = None if against is None else base.name
    if target is not None:
        from tsc_cli.probes.weights.figure import draw

        draw(reports, target, checkpoint.name, name)
    lines = report.text(reports, stack, checkpoint.name, name)
    if verdict:
        lines += "\n\n" + report.sentence(reports, answer)
    if target is not None:
        lines += f"\n\n{printable(str(target))}"
    facts = {
        "model": checkpoint.name,
        "form": checkpoint.form,
        "against": name,
        "sampled_rows": sample,
        **report.facts(reports, stack, answer),
        "figure": None if target is None else str(target),
    }
    out.report(report.SCHEMA, facts, lines, "none" if answer is None else f"{answer.saved:+.3f}")
