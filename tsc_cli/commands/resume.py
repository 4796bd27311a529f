"""`tsc resume`: continue generating from a file."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from ..output import Output, printable
from .options import (
    MOST_STEPS,
    AnyModel,
    Beyond,
    Device,
    File,
    FileModel,
    Json,
    KeyFile,
    Quiet,
    Seed,
    Sequence,
    Snapshot,
    Temperature,
)


def command(
    file: File,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Text to feed first; - reads stdin.", show_default=False)
    ] = None,
    snapshot: Snapshot = -1,
    sequence: Sequence = 0,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens",
            "-n",
            min=1,
            max=MOST_STEPS,
            help="Stop after so many tokens.",
        ),
    ] = 64,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on through an end-of-text token.")] = False,
    model: FileModel = None,
    device: Device = "auto",
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    beyond: Beyond = False,
    force_model_mismatch: AnyModel = False,
    key_file: KeyFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Continue generating from a snapshot.

    The text streams to stdout. `--snapshot K` goes back to an earlier moment. Without PROMPT a greedy continuation
    gives the same tokens as the run that was captured.
    """
    from formats import load

    from ..files import encode, model_for, one_sequence, read_text, say_differences
    from ..keys import Keys
    from ..resuming import resume
    from ..sampling import Sampler
    from ..streaming import TextStream

    out = Output(as_json, quiet)
    trace = one_sequence(load(file, Keys(key_file).source), sequence)
    number = trace.index(snapshot)
    text = read_text("-") if prompt == "-" else prompt
    loaded = model_for(trace, model, device, out, any_model=force_model_mismatch)
    say_differences(trace, loaded, out, forced=force_model_mismatch)
    fed = encode(text, loaded.tokenizer, special=False) if text else []
    tokens = resume(
        trace, loaded.model, snapshot=number, prompt=fed, choose=Sampler(temperature, seed, sequence),
        tokenizer=loaded.tokenizer, force=force_model_mismatch, allow_beyond_positions=beyond,
        most=max_tokens,
    )  # fmt: skip
    stops = set() if ignore_eos else _end_tokens(loaded.model)
    made: list[int] = []
    stream = TextStream(loaded.tokenizer, lambda piece: None if as_json else out.data(printable(piece, keep="\n\t")))
    for token in islice(tokens, max_tokens):
        if token in stops:
            break
        made.append(token)
        stream.add(token)
    stream.end()
    if as_json:
        facts = {"path": file, "snapshot": number, "prompt_tokens": len(fed), "tokens": made, "text": stream.text}
        out.report("tsc.resume/1", facts, "", "")
    else:
        out.data("\n")


def _end_tokens(model: object) -> set[int]:
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set(found) if isinstance(found, list) else set() if found is None else {found}
