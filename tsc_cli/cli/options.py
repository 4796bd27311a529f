"""Options that several commands share, and the bounds of all numbers.

A number that makes no sense is refused where the command line is read, before a file is opened or a
model loaded.
"""

from __future__ import annotations

import math
import re
from typing import Annotated

import typer

from formats.limits import MAX_INTEGER, MAX_ROWS, MAX_SNAPSHOTS

MOST_TOKENS = MAX_ROWS  # what a file can hold
MOST_STEPS = MAX_SNAPSHOTS - 1  # the prompt's snapshot is one, too
MOST_POSITIONS = 1 << 16  # logits of each of them are held for two caches
MOST_WINDOWS = 1 << 16
MOST_KL = 1e6  # nats
MOST_HEAT = 1e6  # a temperature: all tokens are equally likely long before


def number(value: float | None) -> float | None:
    """Refuse NaN, which lies within every range."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


def device_name(value: str) -> str:
    """Refuse what cannot be a device's name; whether there is such a device shows at loading."""
    if _DEVICE.fullmatch(value) is None:
        raise typer.BadParameter(f"{value!r} is not the name of a device, such as cpu, cuda or cuda:1")
    return value


_DEVICE = re.compile(r"[a-z]{1,20}(:[0-9]{1,3})?")

File = Annotated[str, typer.Argument(metavar="FILE", help="A .tsc file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the headline only, and no messages.")]
Overwrite = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        show_default=False,
        help="Hub id, local folder, GGUF file or name (tsc models). [default: SmolLM2-135M-Instruct, fetched once]",
    ),
]
FileModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        show_default=False,
        help="Hub id, local folder, GGUF file or name (tsc models). [default: the one that the file names]",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let the model given with -m run its own Python code. Use it only if you trust the author.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", callback=device_name, help="cpu, cuda, cuda:1, ...; auto takes a CUDA device if there is one."
    ),
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16; auto is the checkpoint's.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=MAX_INTEGER, help="Seed of everything that is sampled.")]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, max=MOST_HEAT, callback=number, help="0 is greedy.")
]
Snapshot = Annotated[
    int,
    typer.Option(
        "--snapshot", min=-MAX_SNAPSHOTS, max=MOST_STEPS, help="Which snapshot; negative numbers count from the last."
    ),
]
Sequence = Annotated[int, typer.Option("--sequence", min=0, max=MAX_ROWS, help="Which sequence of a batch, from 0.")]
KeyFile = Annotated[
    str | None,
    typer.Option(
        "--key-file",
        metavar="KEYFILE",
        show_default=False,
        help="The key of an encrypted file. [default: TSC_KEY or TSC_PASSPHRASE of the environment]",
    ),
]
Encrypt = Annotated[
    bool, typer.Option("--encrypt", help="Encrypt the file, with the key or a passphrase; see tsc encrypt.")
]
Positions = Annotated[int, typer.Option("--positions", min=1, max=MOST_POSITIONS, help="Teacher-forced positions.")]
Beyond = Annotated[
    bool,
    typer.Option(
        "--allow-beyond-positions",
        help="Allow positions beyond those that the model was made for, up to those that it has.",
    ),
]
AnyModel = Annotated[
    bool,
    typer.Option(
        "--force-model-mismatch",
        help="Continue although the file belongs to another model; the result is usually meaningless.",
    ),
]
ChatMessages = Annotated[
    str | None,
    typer.Option(
        "--messages",
        metavar="FILE",
        show_default=False,
        help="A chat as JSON, put through the model's chat template; - is stdin.",
    ),
]
NextMessages = Annotated[
    str | None,
    typer.Option(
        "--messages",
        metavar="FILE",
        show_default=False,
        help="The next messages as JSON: new turns, or the whole chat if its tokens begin with the session's.",
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system", metavar="TEXT", show_default=False, help="A system message in front of those of --messages."
    ),
]
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--enable-thinking/--no-enable-thinking",
        show_default=False,
        help="The template variable enable_thinking. [default: the template's]",
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="KEY=VALUE",
        show_default=False,
        help="A variable of the chat template, as JSON or text; may be repeated.",
    ),
]
