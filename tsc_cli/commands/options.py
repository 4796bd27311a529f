"""Options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

from typing import Annotated

import typer

File = Annotated[str, typer.Argument(metavar="FILE", help="A .tsc file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the headline only, and no messages.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", show_default=False,
        help="Hub id, local folder or GGUF file. [default: SmolLM2-135M-Instruct, fetched once]",
    ),
]  # fmt: skip
FileModel = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", show_default=False,
        help="Hub id, local folder or GGUF file. [default: the one that the file names]",
    ),
]  # fmt: skip
Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1, ...; auto takes a CUDA device if there is one.")
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16; auto is the checkpoint's.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of whatever is sampled.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
Snapshot = Annotated[int, typer.Option("--snapshot", help="Which snapshot; negative numbers count from the last.")]
Sequence = Annotated[int, typer.Option("--sequence", min=0, help="Which sequence of a batch, from 0.")]
KeyFile = Annotated[
    str | None,
    typer.Option(
        "--key-file", metavar="KEYFILE", show_default=False,
        help="The key of an encrypted file. [default: TSC_KEY or TSC_PASSPHRASE of the environment]",
    ),
]  # fmt: skip
Encrypt = Annotated[
    bool, typer.Option("--encrypt", help="Encrypt the file, with the key or a passphrase; see tsc encrypt.")
]
Beyond = Annotated[
    bool,
    typer.Option(
        "--allow-beyond-positions",
        help="Go on beyond the positions that the model was made for; never beyond those that it has.",
    ),
]
AnyModel = Annotated[
    bool,
    typer.Option(
        "--force-model-mismatch",
        help="Go on although the file belongs to another model: the result is meaningless unless you know why.",
    ),
]
