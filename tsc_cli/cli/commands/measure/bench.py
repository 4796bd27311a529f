"""`tsc bench`: codecs x prompts, measured and written down as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import ModelToLoad, with_groups
from tsc_cli.cli.options import MOST_STEPS, MOST_TOKENS, MOST_WINDOWS, Beyond, Overwrite, Positions, Seed
from tsc_cli.cli.output import Output
from tsc_cli.text_format import columns, printable, ratio

if TYPE_CHECKING:
    from tsc_cli.huggingface.models.loading import Loaded


@with_groups
def command(
    *,
    ctx: typer.Context,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            show_default=False,
            help="Text files that prompts are cut from. [default: modules of Python's own library]",
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT.json", help="The JSON file to write.", show_default=False)
    ] = "",
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            metavar="NAME",
            help="block-size, threshold, hierarchy (every tier), ladder (codec klt on one cache beside other "
            "projects) or needle (codes stated early, asked for at the end).",
        ),
    ] = "hierarchy",
    codec: Annotated[
        list[str] | None,
        typer.Option(
            "--codec",
            metavar="NAME[:KEY=VALUE,...]",
            show_default=False,
            help="Measure this codec instead of a suite; may be repeated.",
        ),
    ] = None,
    prompts: Annotated[int, typer.Option("--prompts", min=1, max=MOST_WINDOWS, help="Windows of the texts.")] = 4,
    context: Annotated[int, typer.Option("--context", min=1, max=MOST_TOKENS, help="Tokens of a prompt.")] = 1024,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=0,
            max=MOST_STEPS,
            show_default=False,
            help="Decode steps of each trace. [default: 64, ladder 0]",
        ),
    ] = None,
    positions: Positions = 256,
    model: ModelToLoad,
    seed: Seed = 0,
    beyond: Beyond = False,
    overwrite: Overwrite = False,
    out: Output,
) -> None:
    """Measure codecs on prompts, with standard errors.

    Each prompt is captured with its decode steps; ratios are those of the whole trace, and quality
    is scored on the text that followed the prompt. A suite takes minutes, hierarchy up to an hour.
    Draw the result with tsc plot.
    """
    from tsc_cli.bench.codecs import Bench, Protocol, default_texts
    from tsc_cli.bench.document import document
    from tsc_cli.bench.suites import SUITES, Row
    from tsc_cli.cli.files import check_output
    from tsc_cli.huggingface.models.loading import check_dtype
    from tsc_cli.huggingface.text.tokenizing import encode
    from tsc_cli.text_input import read_text

    if suite not in SUITES and suite != "needle":
        raise UsageError(f"there is no suite {suite!r}", hint=f"suites: {', '.join(SUITES)}, needle")
    if not output.endswith(".json") or output == "-":
        raise UsageError("name the JSON file to write", hint="-o OUT.json")
    check_output(output, overwrite=overwrite)
    check_dtype(model.dtype)
    needle = suite == "needle" and not codec
    for name in ("context", "steps", "positions") if needle else ():
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name} cannot be used with the needle suite", hint="--prompts says how many needles")
    rows = [Row(name, "hand", recipe_from(name)) for name in codec] if codec else []
    names = texts or default_texts()
    read = [read_text(name, out.note) for name in names]
    loaded = model.load(out)
    hashed = [(os.path.basename(name), text.encode()) for name, text in zip(names, read, strict=True)]
    if needle:
        _needles(loaded, read, hashed, prompts, seed, output, overwrite, texts, out)
        return
    rows = rows or SUITES[suite]()
    ladder = suite == "ladder" and not codec
    steps = (0 if ladder else 64) if steps is None else steps
    bench = Bench(loaded, Protocol(prompts, context, steps, positions, seed, beyond))
    with out.progress("capturing prompts", prompts) as advance:
        bench.capture([encode(text, loaded.tokenizer) for text in read], advance, attention=not ladder)
    with out.progress("measuring", len(rows) * prompts) as advance:
        results = bench.run(rows, advance)
    facts = document("codecs" if codec else suite, bench, rows, results, hashed, ["tsc", *_arguments(output, texts)])
    _deliver(facts, table(facts), output, overwrite, out)


def _needles(
    loaded: Loaded,
    read: list[str],
    hashed: list[tuple[str, bytes]],
    prompts: int,
    seed: int,
    output: str,
    overwrite: bool,
    texts: list[str] | None,
    out: Output,
) -> None:
    from formats.codecs.klt import profile_store
    from tsc_cli.bench.document import described, profile_facts
    from tsc_cli.bench.needle import APART, DEPTH, LENGTH
    from tsc_cli.bench.needle_suite import run
    from tsc_cli.huggingface.fingerprint import fingerprint
    from tsc_cli.huggingface.text.tokenizing import encode

    with out.progress("asking", prompts) as advance:
        tokens = [encode(text, loaded.tokenizer, special=False) for text in read]
        rows = run(loaded, tokens, prompts, seed, advance)
    facts = described("needle", hashed, ["tsc", *_arguments(output, texts)], loaded) | {
        "protocol": {"needles": prompts, "length": LENGTH, "depth": DEPTH, "apart": APART, "seed": seed},
        "profile": profile_facts(profile_store.for_model(fingerprint.of(loaded.adapter))),
        "rows": rows,
    }
    lines = [
        [
            r["label"],
            "" if r["ratio_final_fp32"] is None else ratio(r["ratio_final_fp32"]),
            f"{r['kept']} of {r['answerable']}",
        ]
        for r in rows
    ]
    _deliver(facts, columns(lines, ("row", "of fp32", f"kept ({prompts} asked)")), output, overwrite, out)


def _deliver(facts: dict[str, Any], text: str, output: str, overwrite: bool, out: Output) -> None:
    """Write the document, and say what is in it."""
    from formats.container.strict_json import writable
    from tsc_cli.cli.files import open_output

    shown = writable(facts)
    with open_output(output, overwrite=overwrite) as sink:
        sink.write((json.dumps(shown, indent=1) + "\n").encode())
    schema = shown.pop("schema")
    out.report(schema, {"path": output, **shown}, f"{text}\n\n{printable(output)}", output)


def recipe_from(text: str) -> Any:
    """A recipe out of NAME or [FILTER+]NAME:KEY=VALUE,..."""
    from formats.encode.recipe import recipe_of
    from tsc_cli.cli.commands.files.compress import pairs

    name, _, settings = text.partition(":")
    evict, plus, codec = name.partition("+")
    return recipe_of(codec if plus else name, evict if plus else "", pairs(settings.split(",") if settings else []))


def _arguments(output: str, texts: list[str] | None) -> list[str]:
    """The command line without folders, which are nobody's business but the user's."""
    paths = {output, *(texts or [])}
    return [os.path.basename(argument) if argument in paths else argument for argument in sys.argv[1:]]


def table(facts: dict[str, Any]) -> str:
    """The rows for a person, with published figures beside measured ones."""
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
        lines.append(
            [
                row["label"],
                row["kind"],
                ratio(row["ratio_trace"]),
                ratio(row["ratio_final_fp32"]),
                f"{row['kl_mean']:.2g} +- {error:.1g}",
                f"{row['top1']:.3f}",
                share,
                stated,
            ]
        )
    shown = columns(lines, ("row", "kind", "ratio", "of fp32", "mean KL", "top-1", "coded", "report"))
    if facts["suite"] != "ladder":
        return shown
    from tsc_cli.bench.comparison import comparison

    fewer = [
        [
            f"{point['kl']:g}",
            f"{point['bits']:.3f}",
            f"{point['best_other_bits']:.2f}",
            point["best_other"],
            f"{point['times']:.1f}x",
        ]
        for point in comparison(facts["rows"])
    ]
    return f"{shown}\n\n{columns(fewer, ('at KL', 'klt bits', 'best other', 'which', 'fewer'))}" if fewer else shown
