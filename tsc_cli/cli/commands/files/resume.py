"""`tsc resume`: continue generating from a file."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from tsc_cli.cli.chat_options import Chat
from tsc_cli.cli.options import (
    MOST_STEPS,
    AnyModel,
    Beyond,
    Device,
    File,
    FileModel,
    Json,
    KeyFile,
    NextMessages,
    Quiet,
    Seed,
    Sequence,
    Snapshot,
    System,
    Temperature,
    Template,
    Thinking,
    TrustRemoteCode,
)
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable


def command(
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
    messages: NextMessages = None,
    system: System = None,
    enable_thinking: Thinking = None,
    template: Template = None,
    snapshot: Snapshot = -1,
    sequence: Sequence = 0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, max=MOST_STEPS, help="Stop after this many tokens.")
    ] = 64,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Continue through an end-of-text token.")] = False,
    model: FileModel = None,
    trust_remote_code: TrustRemoteCode = False,
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

    The text streams to stdout. `--snapshot K` resumes from an earlier moment. Without PROMPT a greedy continuation
    gives the same tokens as the run that was captured.

    With `--messages` a chat goes on. If the tokens or the text of the messages begin with the session's, they are the
    whole conversation, and the rest of them is fed. Otherwise they are new turns: what the template writes behind an
    assistant's answer is fed, its end-of-turn token included unless the session ends with it. A template that would
    write earlier turns anew is refused.
    """
    from formats import load
    from tsc_cli.cli.files import one_sequence, say_differences
    from tsc_cli.cli.keys import Keys
    from tsc_cli.cli.streaming import TextStream
    from tsc_cli.huggingface.models.of_trace import model_for
    from tsc_cli.huggingface.sampling import Sampler
    from tsc_cli.huggingface.tokenizing import encode_prompt
    from tsc_cli.session.resume import resume
    from tsc_cli.text_input import read_prompt

    out = Output(as_json, quiet)
    chat = Chat.of(
        messages, system, enable_thinking, template, out, beside=prompt if prompt_file is None else prompt_file
    )
    text = read_prompt(prompt, prompt_file, out.note, hint="without one, the session's own next token is the first")
    trace = one_sequence(load(file, Keys(key_file).source), sequence)
    number = trace.index(snapshot)
    loaded = model_for(
        trace,
        model,
        device,
        out.progress,
        out.note,
        any_model=force_model_mismatch,
        trust_remote_code=trust_remote_code,
    )
    say_differences(trace, loaded, out, forced=force_model_mismatch)
    if chat is not None:
        fed = chat.tokens(loaded.tokenizer, out.note, trace=trace, snapshot=number)
    else:
        fed = [] if text is None else encode_prompt(text, loaded.tokenizer, out.note, special=False)
    tokens = resume(
        trace,
        loaded.adapter,
        snapshot=number,
        prompt=fed,
        sampler=Sampler(temperature, seed, sequence),
        tokenizer=loaded.tokenizer,
        allow_model_mismatch=force_model_mismatch,
        allow_beyond_positions=beyond,
        most=max_tokens,
    )
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
