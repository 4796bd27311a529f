"""`tsc capture`: a prompt, and what the model decodes after it, into a .tsc file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer

from formats.errors import UsageError
from tsc_cli.cli.chat_options import ChatOptions
from tsc_cli.cli.option_groups import DecodingOptions, EncryptionOptions, ModelToLoad, with_groups
from tsc_cli.cli.options import MOST_TOKENS, Overwrite
from tsc_cli.cli.output import Output
from tsc_cli.text_format import columns, printable, ratio, size

if TYPE_CHECKING:
    from tsc_cli.model_families.families import Family
    from tsc_cli.session.capture import Captured


@with_groups
def command(
    *,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The .tsc file to write; - is stdout. [required]", show_default=False
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="The prompt; - reads stdin.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompt-file", metavar="FILE", help="Read the prompt from a text file; - is stdin.", show_default=False
        ),
    ] = None,
    chat: ChatOptions,
    no_special_tokens: Annotated[
        bool,
        typer.Option(
            "--no-special-tokens", help="Do not add special tokens such as beginning-of-text; the text has its own."
        ),
    ] = False,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            min=1,
            max=MOST_TOKENS,
            metavar="N",
            help="Capture the first N tokens; the text that follows is kept for verify.",
            show_default=False,
        ),
    ] = None,
    decoding: DecodingOptions,
    keyframe_interval: Annotated[
        int | None,
        typer.Option(
            "--keyframe-interval",
            min=1,
            max=MOST_TOKENS,
            metavar="K",
            help="Store all rows again at every K-th snapshot.",
            show_default=False,
        ),
    ] = None,
    attention: Annotated[
        bool,
        typer.Option("--attention", help="Also record the attention that each row receives, for h2o eviction (84x)."),
    ] = False,
    model: ModelToLoad,
    append_to: Annotated[
        str | None,
        typer.Option(
            "--append",
            metavar="FILE",
            show_default=False,
            help="Continue this session: feed the prompt after its last snapshot, then decode.",
        ),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Derive the file's identity from its content: same capture, same bytes."),
    ] = False,
    list_supported: Annotated[
        bool, typer.Option("--list-supported", help="Show which model families can be captured, and exit.")
    ] = False,
    encryption: EncryptionOptions,
    overwrite: Overwrite = False,
    out: Output,
) -> None:
    """Capture a model's KV cache into a .tsc file.

    The cache is stored losslessly after the prompt and after each decode step. `--steps N` makes N
    + 1 snapshots: the prompt's, and one after each decoded token (decoding continues through an
    end-of-text token).

    `--append FILE` continues a session: it restores the last snapshot, feeds the prompt, and has
    the new snapshots on the disk when it returns. One process appends at a time; others read the
    session before or after. `--messages` feeds the new turns of a chat, or the rest of a whole one:
    see tsc resume.

    A KV cache reveals its prompt: treat the file as you treat the text.
    """
    if list_supported:
        _show_supported(out)
        return
    from tsc_cli.cli.files import check_output, open_output
    from tsc_cli.huggingface.models.loading import check_dtype
    from tsc_cli.huggingface.text.tokenizing import encode_prompt
    from tsc_cli.text_input import read_prompt

    options = decoding.for_capture(keyframe_interval, attention=attention)
    if append_to is not None:
        from .append import append_to_file

        given = {
            "--output": output is not None,
            "--context": context is not None,
            "--keyframe-interval": keyframe_interval is not None,
            "--deterministic": deterministic,
            "--attention": attention,
            "--encrypt": encryption.encrypt,
            "--force": overwrite,
            "--dtype": model.dtype != "auto",
            "--no-special-tokens": no_special_tokens,
        }
        if any(given.values()):
            wrong = next(name for name, is_given in given.items() if is_given)
            raise UsageError(f"{wrong} has no meaning with --append", hint="tsc capture --help")
        append_to_file(append_to, prompt, prompt_file, chat, model, options, encryption.key_file, out)
        return
    if output is None:  # not required by Typer, so that --list-supported can do without
        raise UsageError("Missing option '--output' / '-o'.", hint="tsc capture --help")
    if sum(source is not None for source in (prompt, prompt_file, chat.messages)) != 1:
        raise UsageError("give one prompt", hint="as an argument, with --prompt-file, with --messages, or - for stdin")
    check_output(output, overwrite=overwrite, read=(prompt_file, chat.messages, encryption.key_file))
    check_dtype(model.dtype)
    # what is wrong with a prompt shows before the model is loaded
    messages = chat.read(out, beside=prompt if prompt_file is None else prompt_file)
    text = read_prompt(prompt, prompt_file, out.note)
    secret = encryption.new_secret()
    from tsc_cli.session.capture import REFERENCE_TOKENS, capture_to_sink

    loaded = model.load(out)
    if messages is not None:
        tokens = messages.tokens(loaded.tokenizer, out.note)
    else:
        tokens = encode_prompt(text or "", loaded.tokenizer, out.note, special=not no_special_tokens)
    reference: list[int] = []
    if context is not None:
        if len(tokens) < context:
            raise UsageError(f"the prompt has {len(tokens)} tokens, --context asks for {context}")
        tokens, reference = tokens[:context], tokens[context : context + REFERENCE_TOKENS]
        # what follows in the source is not what the decoder goes on with
        if loaded.model.config.is_encoder_decoder:
            reference = []
    units = len(tokens) + options.steps
    with out.progress("capturing", units) as advance, open_output(output, overwrite=overwrite) as sink:
        captured = capture_to_sink(
            loaded.adapter,
            tokens,
            sink,
            tokenizer=loaded.tokenizer,
            reference=reference,
            options=options,
            info={"model": loaded.name},
            deterministic=deterministic,
            progress=advance,
            key=secret,
        )
    if output == "-":  # stdout holds the file
        out.note(summary(captured, len(reference)))
        return
    facts = {"path": output, **facts_of(captured), "reference_tokens": len(reference)}
    out.report("tsc.capture/1", facts, f"{printable(output)}\n{summary(captured, len(reference))}", output)


def facts_of(captured: Captured) -> dict[str, Any]:
    return {
        "prompt_tokens": captured.prompt_tokens,
        "snapshots": captured.snapshots,
        "raw_bytes_trace": captured.raw_bytes_trace,
        "raw_bytes_final": captured.raw_bytes_final,
        "file_bytes": captured.file_bytes,
        "ratio_trace": captured.raw_bytes_trace / captured.file_bytes,
        "ratio_final": captured.raw_bytes_final / captured.file_bytes,
        "ratio_final_fp32": captured.values_final * 4 / captured.file_bytes,
        "ratio_final_fp16": captured.values_final * 2 / captured.file_bytes,
        "prefill_seconds": captured.prefill_seconds,
    }


def final_ratios(captured: Captured) -> str:
    fp32 = captured.values_final * 4 / captured.file_bytes
    return f"{ratio(fp32)} of the final cache alone in fp32, {ratio(fp32 / 2)} in fp16"


def summary(captured: Captured, reference: int) -> str:
    return columns(
        [
            ["  prompt", f"{captured.prompt_tokens} tokens, prefilled in {captured.prefill_seconds:.2f} s"],
            ["  snapshots", str(captured.snapshots) + (f", reference text of {reference} tokens" if reference else "")],
            [
                "  raw",
                f"{size(captured.raw_bytes_trace)} all snapshots, {size(captured.raw_bytes_final)} the final cache",
            ],
            ["  file", size(captured.file_bytes)],
            [
                "  ratio",
                f"{ratio(captured.raw_bytes_trace / captured.file_bytes)} of the trace, {final_ratios(captured)}",
            ],
        ]
    )


def _show_supported(out: Output) -> None:
    from tsc_cli.model_families.families import TRIED

    yes, no = ([family for family in TRIED if family.status == status] for status in ("yes", "refused"))
    text = (
        f"{_table(yes)}\n\nRefused before anything runs, for the layer class or the reason in brackets:\n\n"
        f"{_table(no)}\n\nAny other model is captured if all layers of its cache are of classes that the\n"
        "models above have and a drill on a few tokens succeeds; otherwise it is refused\nby name."
    )
    facts = {
        "families": [
            {
                "name": family.name,
                "model_types": list(family.model_types),
                "holds": family.holds,
                "status": family.status,
                "refused": family.refused or None,
            }
            for family in TRIED
        ]
    }
    out.report("tsc.supported/1", facts, text, "\n".join(name for family in yes for name in family.model_types))


def _table(families: Sequence[Family]) -> str:
    """Within 80 columns: a cell that is too long takes several lines."""
    rows = []
    for family in families:
        contents = f"{family.holds} ({family.refused})" if family.refused else family.holds
        texts = ((family.name, 20), (", ".join(family.model_types), 18), (contents, 38))
        cells = (textwrap.wrap(*text, break_on_hyphens=False) for text in texts)
        rows += [list(line) for line in zip_longest(*cells, fillvalue="")]
    return columns(rows, ("family", "model types", "the cache holds"))
