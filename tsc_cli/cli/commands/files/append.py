"""`tsc capture --append`: a captured session goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsc_cli.cli.chat_options import ChatOptions
from tsc_cli.cli.option_groups import ModelOfFile, ModelToLoad
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable, size

if TYPE_CHECKING:
    from tsc_cli.session.decode_loop import CaptureOptions


def append_to_file(
    path: str,
    prompt: str | None,
    prompt_file: str | None,
    chat: ChatOptions,
    model: ModelToLoad,
    options: CaptureOptions,
    key_file: str | None,
    out: Output,
) -> None:
    """Append to the session in a file, and report it."""
    from formats import load
    from tsc_cli.cli.keys import Keys
    from tsc_cli.huggingface.text.tokenizing import encode_prompt
    from tsc_cli.session.append import append
    from tsc_cli.text_input import read_prompt

    from .encryption import not_kept

    messages = chat.read(out, beside=prompt if prompt_file is None else prompt_file)
    text = read_prompt(prompt, prompt_file, out.note, hint="without one, only steps are decoded")
    trace = load(path, Keys(key_file).source)
    loaded = ModelOfFile(model.model, model.device, model.trust_remote_code).load(trace, out)
    if messages is not None:
        tokens = messages.tokens(loaded.tokenizer, out.note, trace=trace)
    else:
        tokens = [] if text is None else encode_prompt(text, loaded.tokenizer, out.note, special=False)
    with out.progress("appending", len(tokens) + options.steps) as advance:
        done = append(
            loaded.adapter,
            tokens,
            path,
            options=options,
            tokenizer=loaded.tokenizer,
            progress=advance,
            key=trace.secret,
        )
    facts = {
        "path": path,
        "file_bytes": done.file_bytes,
        "snapshots": done.snapshots,
        "new_snapshots": done.new_snapshots,
        "tokens": done.tokens,
        "new_tokens": done.new_tokens,
        "raw_bytes_trace": done.raw_bytes_trace,
        "tier": done.tier,
        "tier_not_kept": done.untrue or None,
    }
    if done.untrue:
        out.note(not_kept(done.untrue))
    report = (
        f"{printable(path)}: {done.new_tokens} tokens and {done.new_snapshots} snapshots more, {done.tokens} and "
        f"{done.snapshots} in all, {size(done.file_bytes)}"
    )
    out.report("tsc.append/1", facts, report, path)
