"""`tsc bench`: codecs x prompts, measured and written down as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer

from formats.errors import UsageError

from ..output import Output, columns, printable, ratio
from .options import Device, Force, Json, Model, Quiet, Seed


def command(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...", show_default=False,
            help="Text files that prompts are cut from. [default: modules of Python's own library]",
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUT.json", help="The JSON file to write.", show_default=False),
    ] = "",
    suite: Annotated[
        str,
        typer.Option(
            "--suite", metavar="NAME",
            help="block-size (the reports' Table 1), threshold (Table 2, Figure 1) or hierarchy (every tier).",
        ),
    ] = "hierarchy",
    codec: Annotated[
        list[str] | None,
        typer.Option(
            "--codec", metavar="NAME[:KEY=VALUE,...]", show_default=False,
            help="Measure this codec instead of a suite; may be repeated.",
        ),
    ] = None,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Windows of the texts.")] = 4,
    context: Annotated[int, typer.Option("--context", min=1, help="Tokens of a prompt.")] = 1024,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Decode steps of each trace.")] = 64,
    positions: Annotated[int, typer.Option("--positions", min=1, help="Teacher-forced positions.")] = 256,
    model: Model = None,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Measure codecs on prompts, with standard errors.

    Each prompt is captured with its decode steps; ratios are those of the whole trace, and quality is scored on the
    text that followed the prompt. A suite takes minutes, hierarchy up to an hour. Draw the result with tsc plot.
    """
    from ..benching import SUITES, Bench, Protocol, Row, default_texts, document
    from ..files import check_output, encode, open_output, read_text
    from ..models import check_dtype, load

    if suite not in SUITES:
        raise UsageError(f"there is no suite {suite!r}", hint=f"suites: {', '.join(SUITES)}")
    if not output.endswith(".json") or output == "-":
        raise UsageError("name the JSON file to write", hint="-o OUT.json")
    check_output(output, force=force)
    check_dtype(dtype)
    rows = [Row(name, "hand", recipe_from(name)) for name in codec] if codec else SUITES[suite]()
    names = texts or default_texts()
    read = [read_text(name) for name in names]
    out = Output(as_json, quiet)
    with out.progress("loading the model"):
        loaded = load(model, dtype=dtype, device=device, say=out.note)
    bench = Bench(loaded, Protocol(prompts, context, steps, positions, seed))
    with out.progress("capturing prompts", prompts) as advance:
        bench.capture([encode(text, loaded.tokenizer) for text in read], advance)
    with out.progress("measuring", len(rows) * prompts) as advance:
        measured = bench.run(rows, advance)
    hashed = [(os.path.basename(name), text.encode()) for name, text in zip(names, read, strict=True)]
    facts = document("codecs" if codec else suite, bench, measured, hashed, ["tsc", *_arguments(output, texts)])
    with open_output(output, force=force) as sink:
        sink.write((json.dumps(finite(facts), indent=1) + "\n").encode())
    shown = {key: value for key, value in finite(facts).items() if key != "schema"}
    out.report(facts["schema"], {"path": output, **shown}, f"{table(facts)}\n\n{printable(output)}", output)


def recipe_from(text: str) -> Any:
    """A recipe out of NAME or [FILTER+]NAME:KEY=VALUE,..."""
    from formats.compression import recipe_of

    from .compress import pairs

    name, _, settings = text.partition(":")
    evict, plus, codec = name.partition("+")
    return recipe_of(codec if plus else name, evict if plus else "", pairs(settings.split(",") if settings else []))


def _arguments(output: str, texts: list[str] | None) -> list[str]:
    """The command line without folders, which are nobody's business but the user's."""
    paths = {output, *(texts or [])}
    return [os.path.basename(one) if one in paths else one for one in sys.argv[1:]]


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def table(facts: dict[str, Any]) -> str:
    """The rows for a person, the reports' figures beside ours."""
    lines = []
    for row in facts["rows"]:
        report = row["report"] or {}
        stated = (
            f"{report['ratio']:g}x" + (f", {report['kl']:g}" if report.get("kl") is not None else "") if report else ""
        )
        if "kl_mean" not in row:
            lines.append([row["label"], row["kind"], "not met", "", "", "", "", stated])
            continue
        share = "" if row["coded_share"] is None else f"{100 * row['coded_share']:.1f}%"
        error = row["kl_mean_se_prompts"] or row["kl_mean_se"]
        lines.append([
            row["label"], row["kind"], ratio(row["ratio_trace"]), ratio(row["ratio_final_fp32"]),
            f"{row['kl_mean']:.2g} +- {error:.1g}", f"{row['top1']:.3f}", share, stated,
        ])  # fmt: skip
    return columns(lines, ("row", "kind", "ratio", "of fp32", "mean KL", "top-1", "coded", "report"))
