"""`tsc models`: which models are on this machine, and where; bring one in, take one out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.output import Output
from tsc_cli.text_format import columns, printable, size

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
@with_groups
def command(
    *,
    context: typer.Context,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch and convert the default model now.")] = False,
    out: Output,
) -> None:
    """List the models on this machine, add one, or remove one.

    Without a command, it lists the default model, named models and those in the local hub cache,
    with size, source and place.
    """
    if context.invoked_subcommand is not None:
        if fetch:
            raise UsageError(f"--fetch cannot be used with {context.invoked_subcommand}")
        return
    from tsc_cli.model_store import default_model

    if fetch:
        default_model.ensure(out.note, out.progress)
    models = [_default(), *_named(), *_of_hub_cache()]
    total = sum(model["size_bytes"] for model in models if model["counted"])
    rows = [
        [
            model["name"] + (" (default)" if model["default"] else ""),
            size(model["size_bytes"]) if model["ready"] else _not_there(model),
            model["source"],
            model["path"],
        ]
        for model in models
    ]
    text = f"{columns(rows, ('model', 'size', 'source', 'path'))}\n\n{size(total)} in all"
    facts = {"models": [{k: v for k, v in model.items() if k != "counted"} for model in models], "total_bytes": total}
    out.report("tsc.models/1", facts, text, "\n".join(model["name"] for model in models if model["ready"]))


@app.command("add")
@with_groups
def add(
    *,
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="A GGUF file, a hub id, a folder, or default.", show_default=False)
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="The name that -m takes. [default: derived from the source]",
            show_default=False,
        ),
    ] = None,
    out: Output,
) -> None:
    """Give a model a name that -m takes in every command.

    A GGUF file is converted once, and kept in tsc's cache folder at its full precision: 4 bytes a
    weight for what was quantized, 2 for what was not. Any part of a split file stands for all of
    them. A hub model is fetched into the hub cache. A folder stays where it is.

    A name comes before a folder of that name and a hub id; ./NAME is always the folder.
    """
    from tsc_cli.model_store import default_model, store
    from tsc_cli.model_store.hub import is_hub_id

    path = Path(source).expanduser()
    if source in ("default", default_model.NAME):
        if name is not None:
            raise UsageError("the default model has its name already", hint="leave out --name")
        default_model.ensure(out.note, out.progress)
        out.report("tsc.model/1", _facts(_default()), _line(_default()), default_model.NAME)
        return
    if path.is_dir():
        named = store.of_folder(path, name)
    elif path.suffix == ".gguf" or path.is_file():
        named = store.of_gguf_file(path, out.note, out.progress, name)
    elif is_hub_id(source):
        named = store.of_hub(source, out.note, out.progress, name)
    else:
        raise UsageError("no such model: neither a folder, nor a .gguf file, nor a hub id", path=source)
    facts = _default() if named.name == default_model.NAME else next(m for m in _named() if m["name"] == named.name)
    out.report("tsc.model/1", _facts(facts), _line(facts), named.name)


@app.command("remove")
@with_groups
def remove(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of tsc models.", show_default=False)],
    out: Output,
) -> None:
    """Forget a name, and delete what tsc converted for it.

    Folders and the hub cache, which other programs share, are left as they are.
    """
    from tsc_cli.model_store import default_model, folders, store
    from tsc_cli.model_store.disk_space import writing

    if name == default_model.NAME:
        with writing(name, folders.root()):
            freed, left = folders.remove(default_model.folder(), out.note), ""
    else:
        named, freed = store.remove(name, out.note)
        left = (
            ""
            if named.kind == "gguf"
            else {"hub": f"; {named.source} stays in the hub cache"}.get(
                named.kind, f"; {named.source} stays where it is" if named.source else ""
            )
        )
    facts = {"name": name, "freed_bytes": freed}
    out.report("tsc.model-removed/1", facts, f"removed {name}: {size(freed)} freed{left}", str(freed))


def _default() -> dict[str, Any]:
    from tsc_cli.model_store import default_model, folders

    folder, ready = default_model.folder(), default_model.is_ready()
    return {
        "name": default_model.NAME,
        "default": True,
        "ready": ready,
        "path": str(folder),
        "kind": "gguf",
        "size_bytes": folders.size_of(folder) if ready else 0,
        "counted": True,
        "source": f"{default_model.WHEEL}, {default_model.GGUF}",
    }


def _named() -> list[dict[str, Any]]:
    """Models with names; what two names stand for, or the hub cache lists, too, is counted once."""
    from tsc_cli.model_store import default_model, store

    models, counted = [], {str(default_model.folder())}
    for stored in store.kept():
        models.append(
            {
                "name": stored.named.name,
                "default": False,
                "ready": stored.ready,
                "path": stored.path,
                "kind": stored.named.kind,
                "size_bytes": stored.octets,
                "source": stored.named.source,
                "counted": stored.named.kind != "hub" and stored.path not in counted,
            }
        )
        counted.add(stored.path)
    return models


def _of_hub_cache() -> list[dict[str, Any]]:
    """Models in huggingface_hub's cache; asks no network."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        {
            "name": repo.repo_id,
            "default": False,
            "ready": True,
            "path": str(repo.repo_path),
            "kind": "hub cache",
            "size_bytes": repo.size_on_disk,
            "source": "hub cache",
            "counted": True,
        }
        for repo in sorted(repositories, key=lambda repo: repo.repo_id)
        if repo.repo_type == "model"
    ]


def _not_there(model: dict[str, Any]) -> str:
    from tsc_cli.model_store import default_model

    return f"not fetched yet ({default_model.DOWNLOAD_SIZE})" if model["default"] else "gone"


def _facts(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "counted"}


def _line(model: dict[str, Any]) -> str:
    where = os.fspath(model["path"])
    return f"{printable(model['name'])}: {size(model['size_bytes'])} in {printable(where)}"
