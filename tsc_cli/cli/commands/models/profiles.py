"""`tsc profiles`: which profiles are on this machine; bring one in, take one out."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import Overwrite
from tsc_cli.cli.output import Output
from tsc_cli.text_format import columns, printable, size


@with_groups
def command(
    *,
    import_from: Annotated[
        str | None,
        typer.Option("--import", metavar="FILE", help="Keep this profile on this machine.", show_default=False),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option("--export", metavar="DIGEST", help="Write this profile to -o FILE.", show_default=False),
    ] = None,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="DIGEST", help="Forget this profile.", show_default=False)
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="For --export.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    out: Output,
) -> None:
    """List the profiles on this machine, or import, export or remove one.

    A file that was made with a profile names it by its digest, of which the first digits will do.
    """
    from formats.codecs.klt import profile_store
    from tsc_cli.cli.files import check_output, open_output

    from .calibrate import described, facts

    if sum(one is not None for one in (import_from, export, remove)) > 1:
        raise UsageError("give one of --import, --export and --remove")
    if (export is None) != (output is None):
        raise UsageError("--export DIGEST and -o FILE go together")
    if import_from is not None:
        profile = profile_store.read(import_from)
        path = os.fspath(profile_store.install(profile))
        out.report("tsc.profile/1", facts(profile, path), f"{printable(path)}\n{described(profile)}", path)
        return
    if export is not None and output is not None:
        check_output(output, overwrite=overwrite)
        _, profile = profile_store.find(export)
        with open_output(output, overwrite=overwrite) as file:
            file.write(profile.data)
        if output != "-":
            out.report("tsc.profile/1", facts(profile, output), f"{printable(output)}\n{described(profile)}", output)
        return
    if remove is not None:
        found_at, profile = profile_store.find(remove)
        path = os.fspath(found_at)
        os.unlink(path)
        out.report("tsc.profile/1", facts(profile, path), f"removed {printable(path)}", path)
        return
    installed = list(profile_store.installed())
    rows = [
        [
            p.digest[: profile_store.SHORT],
            p.name,
            size(p.size),
            str(p.info.get("tokens", "")),
            str(p.info.get("created", "")),
        ]
        for _, p in installed
    ]
    text = (
        columns(rows, ("digest", "model", "size", "tokens", "made"))
        if installed
        else (f"no profiles in {printable(os.fspath(profile_store.folder()))}: tsc calibrate makes one")
    )
    listed = {
        "folder": os.fspath(profile_store.folder()),
        "profiles": [facts(p, os.fspath(path)) for path, p in installed],
    }
    out.report("tsc.profiles/1", listed, text, "\n".join(p.digest for _, p in installed))
