"""`tsc models`: which models are on this machine, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..output import Output, columns, size
from .options import Json, Quiet


def command(
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch and convert the default model now.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the models on this machine.

    The default model and those in the local hub cache, with size and place.
    """
    from .. import default_model

    out = Output(as_json, quiet)
    if fetch:
        with out.progress("preparing the default model"):
            default_model.ensure(out.note)
    folder = default_model.folder()
    ready = default_model.is_ready()
    found: list[dict[str, Any]] = [{
        "name": default_model.NAME, "default": True, "ready": ready, "path": str(folder),
        "size_bytes": _folder_size(folder) if ready else 0, "source": f"{default_model.WHEEL}, {default_model.GGUF}",
    }]  # fmt: skip
    found += _hub_models()
    rows = [
        [
            m["name"] + (" (default)" if m["default"] else ""),
            size(m["size_bytes"]) if m["ready"] else f"not fetched yet ({default_model.DOWNLOAD_SIZE})", m["path"],
        ]
        for m in found
    ]  # fmt: skip
    ready_names = "\n".join(m["name"] for m in found if m["ready"])
    out.report("tsc.models/1", {"models": found}, columns(rows, ("model", "size", "path")), ready_names)


def _hub_models() -> list[dict[str, Any]]:
    """Models in huggingface_hub's cache; asks no network."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        {
            "name": repo.repo_id, "default": False, "ready": True, "path": str(repo.repo_path),
            "size_bytes": repo.size_on_disk, "source": "hub cache",
        }
        for repo in sorted(repositories, key=lambda repo: repo.repo_id)
        if repo.repo_type == "model"
    ]  # fmt: skip


def _folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
