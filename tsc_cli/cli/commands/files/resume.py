"""`tsc resume`: continue generating from a file."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from tsc_cli.cli.chat_options import NextChatOptions
from tsc_cli.cli.option_groups import AnyModelForFile, with_groups
from tsc_cli.cli.options import MOST_STEPS, Beyond, File, KeyFile, Seed, Sequence, Snapshot, Temperature
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable


@with_groups
def command(
    *,
    file: File,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Text to feed first; - reads stdin.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompt-file", metavar="FILE", help="Read that text from a file; - is stdin.", show_default=False
        ),
    ] = None,
    chat: NextChatOptions,
    snapshot: Snapshot = -1,
    sequence: Sequence = 0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, max=MOST_STEPS, help="Stop after this many tokens.")
    ] = 64,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Continue through an end-of-text token.")] = False,
    model: AnyModelForFile,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    beyond: Beyond = False,
    key_file: KeyFile = None,
    out: Output,
) -> None:
    """Continue generating from a snapshot.

    The text streams to stdout. `--snapshot K` resumes from an earlier moment. Without PROMPT a
    greedy continuation gives the same tokens as the run that was captured.

    With `--messages` a chat goes on. If the tokens or the text of the messages begin with the
    session's, they are the whole conversation, and the rest of them is fed. Otherwise they are new
    turns: what the template writes behind an assistant's answer is fed, its end-of-turn token
    included unless the session ends with it. A template that would write earlier turns anew is
    refused.
    """
    from formats import load
    from tsc_cli.cli.files import one_sequence
    from tsc_cli.cli.keys import Keys
    from tsc_cli.cli.streaming import TextStream
    from tsc_cli.huggingface.sampling import Sampler
    from tsc_cli.huggingface.text.tokenizing import encode_prompt
    from tsc_cli.session.resume import resume
    from tsc_cli.text_input import read_prompt

    messages = chat.read(out, beside=prompt if prompt_file is None else prompt_file)
    text = read_prompt(prompt, prompt_file, out.note, hint="without one, the session's own next token is the first")
    trace = one_sequence(load(file, Keys(key_file).source), sequence)
    snapshot_number = trace.index(snapshot)
    loaded = model.load(trace, out)
    if messages is not None:
        fed = messages.tokens(loaded.tokenizer, out.note, trace=trace, snapshot=snapshot_number)
    else:
        fed = [] if text is None else encode_prompt(text, loaded.tokenizer, out.note, special=False)
    tokens = resume(
        trace,
        loaded.adapter,
        snapshot=snapshot_number,
        prompt=fed,
        sampler=Sampler(temperature, seed, sequence),
        tokenizer=loaded.tokenizer,
        allow_model_mismatch=model.force_model_mismatch,
        allow_beyond_positions=beyond,
        most=max_tokens,
    )
    stops = set() if ignore_eos else _end_tokens(loaded.model)
    made: list[int] = []
    stream = TextStream(
        loaded.tokenizer, lambda piece: None if out.as_json else out.data(printable(piece, keep="\n\t"))
    )
    for token in islice(tokens, max_tokens):
        if token in stops:
            break
        made.append(token)
        stream.add(token)
    stream.end()
    if out.as_json:
        facts = {
            "path": file,
            "snapshot": snapshot_number,
            "prompt_tokens": len(fed),
            "tokens": made,
            "text": stream.text,
        }
        out.report("tsc.resume/1", facts, "", "")
    else:
        out.data("\n")


def _end_tokens(model: object) -> set[int]:
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set(ids) if isinstance(ids, list) else set() if ids is None else {ids}
