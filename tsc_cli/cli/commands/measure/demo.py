"""`tsc demo`: the main job, from a prompt to a verified file and back into the model."""

from __future__ import annotations

import time
from importlib.resources import files
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import Device, Model, TrustRemoteCode
from tsc_cli.cli.output import Output
from tsc_cli.text_format import columns, ratio, size

if TYPE_CHECKING:
    from tsc_cli.scoring.result import Verified

CONTEXT, STEPS, BRANCH, RESUMED = 1024, 64, 8, 32


@with_groups
def command(
    *,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Keep the file here. [default: in the cache folder]",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    trust_remote_code: TrustRemoteCode = False,
    device: Device = "auto",
    out: Output,
) -> None:
    """Show the main job: capture, store, restore, verify, resume.

    On a 1,024-token passage and 64 decode steps of the default model, with the figures as they are
    measured here.
    """
    from formats import load as open_file
    from formats.paths import cache_folder
    from tsc_cli.huggingface.fingerprint.fingerprint import of as fingerprint_of
    from tsc_cli.huggingface.models.loading import load
    from tsc_cli.huggingface.restore import to_cache
    from tsc_cli.huggingface.text.tokenizing import encode
    from tsc_cli.session.capture import REFERENCE_TOKENS, capture_to_file
    from tsc_cli.session.decode_loop import CaptureOptions
    from tsc_cli.session.resume import resume
    from tsc_cli.verification.verify import VerifyOptions, passes, verify_snapshots

    if output is None:
        cache_folder().mkdir(parents=True, exist_ok=True)
    path = output or str(cache_folder() / "demo.tsc")
    with out.progress("loading the model"):
        loaded = load(model, device=device, trust_remote_code=trust_remote_code, say=out.note)
        # once a loaded model; not part of a restore
        fingerprint_of(loaded.adapter, loaded.tokenizer)
    tokens = encode(files("tsc_cli").joinpath("demo.txt").read_text("utf-8"), loaded.tokenizer)
    prompt, reference = tokens[:CONTEXT], tokens[CONTEXT : CONTEXT + REFERENCE_TOKENS]

    out.note(f"capturing {len(prompt)} tokens and {STEPS} decode steps")
    with out.progress("capturing", len(prompt) + STEPS) as advance:
        captured = capture_to_file(
            loaded.adapter,
            prompt,
            path,
            tokenizer=loaded.tokenizer,
            reference=reference,
            options=CaptureOptions(steps=STEPS),
            info={"model": loaded.name},
            overwrite=True,
            progress=advance,
        )

    trace = open_file(path)
    started = time.perf_counter()
    to_cache(open_file(path), loaded.adapter, 0, tokenizer=loaded.tokenizer)
    restore_seconds = time.perf_counter() - started

    out.note("verifying the first and the last snapshot against the exact cache")
    snapshots, options = (0, -1), VerifyOptions(greedy=RESUMED)
    with out.progress("verifying", passes(trace, snapshots, options, against=False)) as advance:
        results = verify_snapshots(
            trace, loaded.adapter, snapshots, tokenizer=loaded.tokenizer, options=options, progress=advance
        )

    # the capturing run itself is the uninterrupted one: its tokens are in the file's later
    # snapshots
    uninterrupted = trace.token_ids(-1)[len(trace.token_ids(BRANCH)) :][:RESUMED]
    resumed = list(islice(resume(trace, loaded.adapter, snapshot=BRANCH), RESUMED))
    facts = _facts(path, captured, results, restore_seconds, uninterrupted, resumed)
    facts["text_uninterrupted"] = loaded.tokenizer.decode(uninterrupted)
    facts["text_resumed"] = loaded.tokenizer.decode(resumed)
    out.report("tsc.demo/1", facts, _text(facts, results), ratio(facts["ratio_trace"]))


def _facts(
    path: str,
    captured: Any,
    results: list[Verified],
    restore_seconds: float,
    uninterrupted: list[int],
    resumed: list[int],
) -> dict[str, Any]:
    from tsc_cli.cli.commands.files.capture import facts_of

    return {
        "path": path,
        **facts_of(captured),
        "restore_seconds": restore_seconds,
        "results": [result.to_dict() for result in results],
        "resumed_from_snapshot": BRANCH,
        "resumed_tokens": len(resumed),
        "resumed_equal": resumed == uninterrupted,
    }


def _text(facts: dict[str, Any], results: list[Verified]) -> str:
    def over(values: list[float], form: str) -> str:
        return ", ".join(
            f"{form.format(value)} (snapshot {r.snapshot})" for value, r in zip(values, results, strict=True)
        )

    table = columns(
        [
            [
                "raw bytes",
                f"{facts['raw_bytes_trace']:,} ({facts['snapshots']} snapshots), "
                f"{facts['raw_bytes_final']:,} (final cache)",
            ],
            ["file bytes", f"{facts['file_bytes']:,} ({size(facts['file_bytes'])})"],
            [
                "ratio",
                f"{ratio(facts['ratio_trace'])} of the whole trace, "
                f"{ratio(facts['ratio_final_fp32'])} of the final cache alone in fp32, "
                f"{ratio(facts['ratio_final_fp16'])} in fp16",
            ],
            ["tensors", "bit-identical" if all(r.identical for r in results) else "DIFFERENT"],
            ["KL", over([r.fidelity.kl_mean for r in results], "{:g}")],
            ["same top-1", over([r.fidelity.top1 for r in results], "{:g}")],
            ["prefill", f"{facts['prefill_seconds']:.3f} s"],
            [
                "restore",
                f"{facts['restore_seconds']:.3f} s "
                f"({facts['prefill_seconds'] / facts['restore_seconds']:.1f} times faster)",
            ],
            [
                "resumed",
                f"{facts['resumed_tokens']} tokens from snapshot {facts['resumed_from_snapshot']}: "
                + ("the same as the uninterrupted run" if facts["resumed_equal"] else "DIFFERENT"),
            ],
        ]
    )
    return (
        f"uninterrupted: {' '.join(facts['text_uninterrupted'].split())}\n"
        f"resumed:       {' '.join(facts['text_resumed'].split())}\n\n{table}\n\n"
        f'The file: {facts["path"]}\nNext: tsc inspect FILE, tsc resume FILE "And then", tsc capture --help'
    )
