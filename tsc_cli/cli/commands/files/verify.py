"""`tsc verify`: is the restored cache as good as the exact one?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import AnyModelForFile, with_groups
from tsc_cli.cli.options import MOST_KL, MOST_POSITIONS, Beyond, File, KeyFile, Positions, Seed, Sequence, number
from tsc_cli.cli.output import Output
from tsc_cli.text_format import columns, printable

if TYPE_CHECKING:
    from tsc_cli.scoring.recall import Recall
    from tsc_cli.scoring.result import Verified


@with_groups
def command(
    *,
    file: File,
    model: AnyModelForFile,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="RAW.tsc",
            help="Take the exact rows from this file instead of recomputing them.",
            show_default=False,
        ),
    ] = None,
    snapshots: Annotated[
        str, typer.Option("--snapshots", metavar="LIST", help="last, all, or numbers such as 0,16-20,-1.")
    ] = "last",
    sequence: Sequence = 0,
    positions: Positions = 256,
    greedy: Annotated[
        int,
        typer.Option(
            "--greedy", min=0, max=MOST_POSITIONS, help="Tokens to generate greedily from both caches; 0 skips it."
        ),
    ] = 64,
    recall: Annotated[
        bool, typer.Option("--recall", help="Also measure passages of the context, fed again word for word.")
    ] = False,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute",
            help="Also compare the whole cache with a new prefill of the file's tokens; exit 1 if it differs.",
        ),
    ] = False,
    require_identical: Annotated[
        bool,
        typer.Option(
            "--require-identical", help="With --recompute, allow no rounding; for a file made on this machine."
        ),
    ] = False,
    seed: Seed = 0,
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            min=0.0,
            max=MOST_KL,
            callback=number,
            help="Exit 1 if the mean KL of a snapshot is higher.",
            show_default=False,
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            min=0.0,
            max=1.0,
            callback=number,
            help="Exit 1 if the same-top-1 share of a snapshot is lower.",
            show_default=False,
        ),
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the result into the file's header.")] = False,
    beyond: Beyond = False,
    key_file: KeyFile = None,
    out: Output,
) -> None:
    """Measure restored snapshots against the exact cache.

    The exact cache is recomputed from the tokens in the file. Both caches are fed the same
    continuation (the text that followed the prompt, or else tokens sampled from the exact model)
    and their predictions compared as llama-perplexity --kl-divergence does.

    With --recall, up to three passages of the context, each of at most --positions predictions, are
    fed again word for word, and the predictions of both caches compared in the same way; the
    thresholds do not apply to it.

    With --recompute, every row and state of every snapshot is compared with what the model computes
    from the file's tokens, within the tolerances of rounding and of the file's codec, and the
    header's claims with the results. A valid file can hold the cache of another text.
    """
    from formats import load
    from formats.file.reader import TraceFile
    from formats.file.rewrite import record_quality
    from tsc_cli.cli.files import numbers, one_sequence
    from tsc_cli.cli.keys import Keys
    from tsc_cli.verification.verify import VerifyOptions, passes, verify_snapshots

    from .encryption import say_tier
    from .recompute import compared

    if record and model.force_model_mismatch:
        raise UsageError("a measurement with another model is not recorded")
    if recompute and (against is not None or model.force_model_mismatch):
        given = "--force-model-mismatch" if against is None else "--against"
        raise UsageError(f"{given} has no meaning with --recompute")
    if require_identical and not recompute:
        raise UsageError("--require-identical is for --recompute")
    keys = Keys(key_file).source
    opened = TraceFile(file, keys)
    whole = opened.trace()
    if record and whole.geometry.batch > 1:
        raise UsageError("a measurement of one sequence is not recorded for its batch")
    trace = one_sequence(whole, sequence)
    raw = one_sequence(load(against, keys), sequence) if against is not None else None
    snapshot_numbers = numbers(snapshots, len(trace), "snapshot")
    loaded = model.load(trace, out)
    options = VerifyOptions(positions, greedy, seed, recall, beyond)
    recomputed = compared(whole, loaded, out, identical=require_identical) if recompute else None
    results: list[Verified] = []
    if recomputed is None or recomputed.labelled:
        with out.progress("verifying", passes(trace, snapshot_numbers, options, against=raw is not None)) as advance:
            results = verify_snapshots(
                trace,
                loaded.adapter,
                snapshot_numbers,
                tokenizer=loaded.tokenizer,
                against=raw,
                options=options,
                allow_model_mismatch=model.force_model_mismatch,
                progress=advance,
            )
    failures = missed(results, max_kl, min_top1)
    if recomputed is not None:
        failures += recomputed.against_quality(whole, results)
        record = record and not recomputed.lies
    if record:
        stated = record_quality(file, [result.record() for result in results], whole.secret, measured=opened)
        say_tier(opened, stated, out)
    facts: dict[str, Any] = {
        "path": file,
        "against": against,
        "seed": seed,
        "max_kl": max_kl,
        "min_top1": min_top1,
        "results": [
            result.to_dict() | {"recall": None if result.recall is None else result.recall.to_dict()}
            for result in results
        ],
        "failures": failures,
        "recorded": record,
        "recomputed": None if recomputed is None else recomputed.to_dict(),
    }
    worst = max((result.fidelity.kl_mean for result in results), default=math.nan)
    report = text(file, results, failures, record=record, more="" if recomputed is None else recomputed.text())
    out.report("tsc.verify/1", facts, report, f"{worst:.6g}")
    if failures:
        raise typer.Exit(1)


def missed(results: list[Verified], max_kl: float | None, min_top1: float | None) -> list[str]:
    """Return a line for each threshold that a snapshot misses; a KL of NaN misses all."""
    lines = []
    for result in results:
        kl, top1 = result.fidelity.kl_mean, result.fidelity.top1
        if max_kl is not None and not kl <= max_kl:
            lines.append(f"snapshot {result.snapshot}: KL {kl:.6g} is over {max_kl:g}")
        if min_top1 is not None and not top1 >= min_top1:
            lines.append(f"snapshot {result.snapshot}: top-1 {top1:.4f} is under {min_top1:g}")
    return lines


def text(file: str, results: list[Verified], failures: list[str], *, record: bool, more: str = "") -> str:
    parts = [_one(file, results[0])] if len(results) == 1 else [_many(file, results)] if results else [printable(file)]
    parts += [more] if more else []
    parts += [f"FAILED: {line}" for line in failures]
    if record:
        parts.append("recorded in the file's header")
    return "\n".join(parts)


def _one(file: str, result: Verified) -> str:
    f = result.fidelity
    few = "" if f.sufficient else "  (insufficient: fewer than 100 positions)"
    source = "text that followed" if result.reference == "text" else "tokens sampled from the exact model"
    return columns(
        [
            ["file", f"{file}, snapshot {result.snapshot}, {result.tokens} tokens"],
            ["exact cache", f"{result.exact}; restored tensors " + ("bit-identical" if result.identical else "differ")],
            ["reference", f"{f.positions} positions, {source}{few}"],
            ["mean KL", f"{f.kl_mean:.6g} +- {f.kl_mean_se:.2g}: {result.verdict}"],
            ["max KL", f"{f.kl_max:.6g}"],
            ["99.9% KL", f"{f.kl_p999:.6g}"],
            ["99% KL", f"{f.kl_p99:.6g}"],
            ["95% KL", f"{f.kl_p95:.6g}"],
            ["90% KL", f"{f.kl_p90:.6g}"],
            ["median KL", f"{f.kl_median:.6g}"],
            ["RMS change of p", f"{f.rms_delta_p:.6g}"],
            ["same top-1", f"{f.top1:.4f} +- {f.top1_se:.2g}"],
            [
                "perplexity",
                f"{f.perplexity_exact:.4f} exact, {f.perplexity_restored:.4f} restored, ratio {f.perplexity_ratio:.6f}",
            ],
            ["greedy tokens", divergence(result)],
            *([] if result.recall is None else [["recall", recalled(result.recall)]]),
        ]
    )


def divergence(result: Verified) -> str:
    if not result.greedy:
        return "not compared"
    return f"all {result.greedy} equal" if result.diverges_at is None else f"differ from token {result.diverges_at} on"


def recalled(recall: Recall) -> str:
    f = recall.fidelity
    starts = ", ".join(map(str, recall.starts))
    return (
        f"KL {f.kl_mean:.6g} +- {f.kl_mean_se:.2g}, same top-1 {f.top1:.4f}, "
        f"perplexity {f.perplexity_exact:.4f} exact, {f.perplexity_restored:.4f} restored; "
        f"{f.positions} positions, passages from tokens {starts} on"
    )


def _positions(result: Verified) -> str:
    return f"{result.fidelity.positions}{'' if result.fidelity.sufficient else ' (insufficient)'}"


def _many(file: str, results: list[Verified]) -> str:
    rows = [
        [
            str(r.snapshot),
            str(r.tokens),
            "yes" if r.identical else "no",
            _positions(r),
            r.reference,
            f"{r.fidelity.kl_mean:.3g}",
            f"{r.fidelity.kl_max:.3g}",
            f"{r.fidelity.top1:.4f}",
            f"{r.fidelity.perplexity_ratio:.6f}",
            "-" if r.diverges_at is None else str(r.diverges_at),
        ]
        for r in results
    ]
    head = [
        "snapshot",
        "tokens",
        "identical",
        "positions",
        "reference",
        "mean KL",
        "max KL",
        "top-1",
        "ppl ratio",
        "diverges at",
    ]
    recalls = [r.recall.fidelity for r in results if r.recall is not None]
    if recalls:  # asked for, then it is there for every snapshot
        head += ["recall KL", "recall top-1"]
        rows = [[*row, f"{f.kl_mean:.3g}", f"{f.top1:.4f}"] for row, f in zip(rows, recalls, strict=True)]
    return f"{printable(file)}\n{columns(rows, head)}"
