"""The Typer app: it registers the commands in the order in which the help lists them."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from formats.errors import UsageError
from formats.limits import BUDGET, is_bytes
from formats.version import VERSION
from tsc_cli.cli.commands.files import (
    capture,
    compress,
    decode,
    doctor,
    encryption,
    inspect,
    recover,
    resume,
    test,
    verify,
)
from tsc_cli.cli.commands.measure import bench, demo, plot, probe_cache, tiers
from tsc_cli.cli.commands.models import calibrate, models, plan, probe_weights, profiles

from .output import message

# plain help: rich's costs a third of the start-up time that --help is allowed
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    """KV cache snapshots: capture a transformer's cache, store it small, restore it, measure what
    was lost.

    Also installed as tsc-kv, since TypeScript's compiler is called tsc, too.
    """
    del version
    if context.invoked_subcommand is None:
        message(context.get_help())
        raise typer.Exit(2)
    budget = os.environ.get(BUDGET, "")
    if budget and not is_bytes(budget):  # else a limit that somebody set would limit nothing
        raise UsageError(
            f"{BUDGET} is {budget!r}, which is not a number of bytes", hint=f"{BUDGET}=8000000000 for 8 GB"
        )


for _name, _command in (
    ("demo", demo.command),
    ("capture", capture.command),
    ("compress", compress.command),
    ("inspect", inspect.command),
    ("verify", verify.command),
    ("resume", resume.command),
    ("decode", decode.command),
    ("test", test.command),
    ("doctor", doctor.command),
    ("recover", recover.command),
    ("encrypt", encryption.encrypt),
    ("decrypt", encryption.decrypt),
    ("tiers", tiers.command),
    ("calibrate", calibrate.command),
    ("profiles", profiles.command),
    ("bench", bench.command),
    ("plot", plot.command),
    ("plan", plan.command),
    ("probe-weights", probe_weights.command),
    ("probe-cache", probe_cache.command),
):
    app.command(_name)(_command)
app.add_typer(models.app, name="models")
