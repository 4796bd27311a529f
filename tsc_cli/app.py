"""The Typer app: one command a file in `commands`, registered here in the order in which a person meets them."""

from __future__ import annotations

from typing import Annotated

import typer

from formats.version import VERSION

from .commands import (
    bench,
    calibrate,
    capture,
    compress,
    decode,
    demo,
    doctor,
    inspect,
    integrity,
    models,
    plan,
    plot,
    probe_cache,
    probe_weights,
    profiles,
    recover,
    resume,
    tiers,
    verify,
)
from .output import message

# plain help: rich's costs a third of the start-up time that --help is allowed
app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tsc {VERSION}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def tsc(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """KV cache snapshots: capture a transformer's cache, store it small, restore it, measure what was lost.

    Also installed as tsc-kv, since TypeScript's compiler is called tsc, too.
    """
    del version
    if context.invoked_subcommand is None:
        message(context.get_help())
        raise typer.Exit(2)


for _name, _module in (
    ("demo", demo), ("capture", capture), ("compress", compress), ("inspect", inspect), ("verify", verify),
    ("resume", resume), ("decode", decode), ("test", integrity), ("doctor", doctor),
    ("recover", recover), ("tiers", tiers), ("calibrate", calibrate),
    ("profiles", profiles), ("bench", bench), ("plot", plot), ("plan", plan),
    ("probe-weights", probe_weights), ("probe-cache", probe_cache), ("models", models),
):  # fmt: skip
    app.command(_name)(_module.command)
