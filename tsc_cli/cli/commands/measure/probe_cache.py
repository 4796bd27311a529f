"""`tsc probe-cache`: where a cache is redundant, and where it is not."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import MOST_TOKENS, File, FileModel, KeyFile, Overwrite, Snapshot, TrustRemoteCode
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable

if TYPE_CHECKING:
    from formats.trace.trace import Trace
    from tsc_cli.probes.cache.turning import Turning


@with_groups
def command(
    *,
    file: File,
    snapshot: Snapshot = -1,
    model: FileModel = None,
    trust_remote_code: TrustRemoteCode = False,
    rope: Annotated[
        bool, typer.Option("--rope/--no-rope", help="Also take keys with RoPE undone, where it is known how.")
    ] = True,
    skip: Annotated[
        int,
        typer.Option(
            "--skip", metavar="N", min=0, max=MOST_TOKENS, help="Leave out the first N tokens, attention sinks."
        ),
    ] = 4,
    layers: Annotated[bool, typer.Option("--layers", help="Also list the layers.")] = False,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw bits by layer and head; FILE.png or FILE.svg.", show_default=False
        ),
    ] = None,
    key_file: KeyFile = None,
    overwrite: Overwrite = False,
    out: Output,
) -> None:
    """Show where a cache is redundant, and where it is not.

    Compares a snapshot's rows with those of the token before, the layer before, the other heads,
    the other part (keys or values) and the snapshot before: energy of the differences, what linear
    predictions explain of tokens that they were not fitted on, and the bits a value that coding the
    rest saves or costs.

    How keys turn is known from a profile of the model or, at the cost of loading it, from the
    model. The headline of -q is the most bits a value that a direction saves.
    """
    from formats.file.reader import TraceFile
    from tsc_cli.cli.keys import Keys

    from .plot import figure_target

    target = figure_target(plot, overwrite=overwrite)
    if model is not None and not rope:
        raise UsageError("-m MODEL says how keys are rotated, and --no-rope leaves that out")
    opened = TraceFile(file, Keys(key_file).source)
    trace = opened.trace()
    snapshot_number = trace.index(snapshot)

    from tsc_cli.probes.cache import report
    from tsc_cli.probes.cache.job import probe
    from tsc_cli.probes.cache.turning import turning_of

    turning = (
        turning_of(opened, trace, model, out.progress, out.note, trust_remote_code=trust_remote_code) if rope else None
    )
    rotaries = turning.layers if turning is not None and turning.turns else None
    with out.progress("comparing rows", len(trace.geometry.layers)) as advance:
        result = probe(trace, snapshot_number, skip, rotaries, advance)
    result.notes[:0] = _notes(trace, turning, rope=rope)
    verdict = report.verdict_of(result)
    if target is not None:
        from tsc_cli.probes.cache.figure import draw

        draw(result, target, f"{Path(file).name}, snapshot {snapshot_number}: {result.tokens} tokens")
    facts: dict[str, Any] = {
        "path": file,
        "codec": _codec(trace),
        "lost_by": opened.lost_by or None,
        "dtype": trace.geometry.dtype,
        "rope": None if turning is None else turning.source,
        **report.facts(result, verdict),
        "figure": None if target is None else str(target),
    }
    head = textwrap.fill(
        f"{printable(file)}, snapshot {snapshot_number} of {len(trace)}: {result.tokens} tokens, "
        f"the first {skip} left out; {result.layers} layers, {trace.geometry.dtype}",
        80,
    )
    text = report.text(result, head, verdict, layers=layers)
    if target is not None:
        text += f"\n\n{printable(str(target))}"
    out.report(report.SCHEMA, facts, text, "none" if verdict.most is None else f"{verdict.most.bits:+.3f}")


def _codec(trace: Trace) -> str:
    """As the header states it; a trace that is in no file yet holds exact rows."""
    return trace.codec or "lossless"


def _notes(trace: Trace, turning: Turning | None, *, rope: bool) -> list[str]:
    notes = []
    if trace.lost_by:
        notes.append(
            f"rows as codec {printable(trace.lost_by)} restores them; what it lost hides redundancy, or makes some: a "
            "file of the captured rows shows the model's"
        )
    if turning is None and rope:
        notes.append("keys as cached only: neither a profile nor the model says how they turn; -m MODEL does")
    elif turning is not None and not turning.turns:
        notes.append("the model's keys do not turn")
    return notes
