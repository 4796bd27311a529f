"""Models that this machine keeps under a name: GGUF files converted once, hub models and folders.

A converted model lies in a folder that is named by the SHA-256 of its file, so that two files of
one name are two models, one file under two paths is one, and a file that was replaced is never
taken for the old one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from formats.errors import CorruptError, UsageError
from tsc_cli.checkpoints import json_files
from tsc_cli.progress import Say, Stage, no_stage
from tsc_cli.text_format import size

from . import default_model, file_digest, folders
from . import names as model_names
from .disk_space import writing
from .gguf_parts import parts_of, stem_of
from .names import Named

_MARK = "tsc-model.json"  # in every converted folder, written last: of which bytes it was made


@dataclass(frozen=True)
class Kept:
    """A model under its name.

    Attributes:
        path: its folder; for a hub model in the hub cache, "" where it is not there.
        octets: what the folder takes.
        ours: whether removing the name can free these bytes.
        ready: whether it can be loaded now.
    """

    named: Named
    path: str
    octets: int
    ours: bool
    ready: bool


def find(name: str) -> Named | None:
    """The model of a name, or None."""
    return model_names.find(name)


def arguments(named: Named, say: Say) -> tuple[dict[str, Any], str]:
    """Return from_pretrained's arguments for a stored model, and its name for a `.tsc` file.

    Raises:
        UsageError: its files are gone.
    """
    if Path(named.name).is_dir() and Path(named.name).resolve() != folder_of(named).resolve():
        say(f"{named.name} is the model of that name (see tsc models); ./{named.name} would be the folder here")
    if named.kind == "hub":
        shown = named.source if "/" in named.source else named.name
        return {"pretrained_model_name_or_path": named.source, "local_files_only": True}, shown
    if named.sha256 == default_model.GGUF_SHA256:
        return {"pretrained_model_name_or_path": str(default_model.ensure(say)), "local_files_only": True}, named.name
    path = folder_of(named)
    if not _is_ready(named):
        raise UsageError(
            f"the files of {named.name} are gone",
            path=str(path),
            hint=f"tsc models remove {named.name}, then tsc models add {named.source}",
        )
    return {"pretrained_model_name_or_path": str(path), "local_files_only": True}, named.name


def folder_of(named: Named) -> Path:
    """Where a model's files lie: config.json and weights."""
    if named.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(named.source, "config.json")
        return Path(config).parent if isinstance(config, str) else Path()
    return Path(named.source) if named.kind == "folder" else _converted(named.sha256)


def is_at_hand(name: str) -> bool:
    """Whether the model of a name can be loaded without fetching or converting anything."""
    named = find(name)
    return named is not None and _is_ready(named)


def kept() -> list[Kept]:
    """All names, with what they stand for and what it takes."""
    models = []
    for named in model_names.all_named():
        path, ready = folder_of(named), _is_ready(named)
        octets = folders.size_of(path) if ready else 0
        models.append(Kept(named, str(path) if ready else "", octets, named.kind == "gguf", ready))
    return models


def of_gguf(path: Path, say: Say, stage: Stage = no_stage, name: str | None = None) -> Named:
    """The converted model of a GGUF file, which is converted first if it was not yet.

    Args:
        path: the file, or one of the parts of a model.
        name: what to call it; by default what it is called already, or after the file.
    Raises:
        UsageError: it is no model that can be loaded, or the name is taken.
        StorageError: it cannot be stored.
    """
    if name is not None:
        model_names.check(name)
    parts = parts_of(path)
    before = file_digest.state_of(parts)
    digest = file_digest.sha256_of(parts, root=folders.root() / "seen", stage=stage)
    if name is not None:
        model_names.require_free(Named(name, "gguf", str(path), digest))
    target = _converted(digest)
    ready = partial(_holds, target, digest)
    with writing(f"the converted {path.name}", target), folders.building(target, ready, say) as scratch:
        if scratch is not None:
            _convert(parts, digest, scratch / "built", say, stage)
            if file_digest.state_of(parts) != before:
                raise UsageError("was changed while it was read", path=str(path), hint="try again")
            folders.publish(scratch / "built", target)
        # under the lock of the folder, too: two processes would give one model two names, or one of
        # them none
        return _named_gguf(digest, parts[0], name, say)


def of_gguf_file(path: Path, say: Say, stage: Stage = no_stage, name: str | None = None) -> Named:
    """`of_gguf`, of what may not be a file, or no GGUF file.  Raises UsageError for those, too."""
    if not path.is_file():
        raise UsageError("no such model file", path=str(path))
    if path.suffix != ".gguf":
        raise UsageError("is not a model: a folder, a .gguf file or a hub id was expected", path=str(path))
    return of_gguf(path, say, stage, name)


def of_hub(name: str, say: Say, stage: Stage, called: str | None) -> Named:
    """A name for a hub model, which is fetched into the hub cache first."""
    from . import hub_models

    named = Named(_called(called, name.rpartition("/")[2]), "hub", name)
    model_names.require_free(named)
    hub_models.fetch(name, say, stage)
    return _give(named)


def of_folder(path: Path, called: str | None) -> Named:
    """Name a folder, which stays where it is: a copy would take disk space and become outdated."""
    whole = path.expanduser().resolve()
    config = whole / "config.json"
    if not config.is_file():
        raise UsageError(f"the folder holds no model: there is no {config.name} in it", path=str(path))
    try:
        json_files.read_object(config, "the config.json of a model was expected")
    except CorruptError as error:
        raise UsageError(f"cannot be loaded: {error.message}", path=error.path, hint=error.hint) from error
    if not any(whole.glob("*.safetensors")) and not any(whole.glob("*.bin")):
        raise UsageError("the folder holds no weights: there is no .safetensors file in it", path=str(path))
    return _give(Named(_called(called, whole.name), "folder", str(whole)))


def remove(name: str, say: Say) -> tuple[Named, int]:
    """Forget a name; what tsc converted for it goes, too, once no other name stands for it.

    Returns:
        What the name stood for, and the bytes that were freed.
    Raises:
        UsageError: there is no such name.
    """
    try:
        named = find(name)
    except UsageError:  # damaged
        model_names.forget(name)
        return Named(name, "folder", ""), 0
    if named is None:
        names = ", ".join(model.name for model in model_names.all_named()) or "none so far"
        raise UsageError(f"there is no model called {name}", hint=f"names on this machine: {names}")
    freed = 0
    with writing(name, folders.root()):
        model_names.forget(name)
        shared = any(model.sha256 == named.sha256 for model in model_names.all_named())
        if named.kind == "gguf" and not shared and named.sha256 != default_model.GGUF_SHA256:
            freed = folders.remove(_converted(named.sha256), say)
        folders.sweep()
    return named, freed


def _convert(parts: list[Path], digest: str, built: Path, say: Say, stage: Stage) -> None:
    from .gguf_conversion import convert

    say(f"converting {parts[0].name}, once: this takes a minute or two a billion weights")
    convert(parts, built, say, stage)
    (built / _MARK).write_text(json.dumps({"schema": "tsc.model/1", "sha256": digest}) + "\n", "utf-8")


def _named_gguf(digest: str, file: Path, name: str | None, say: Say) -> Named:
    """The model's name: the asked one, the one that it has, or a new one."""
    names = [model for model in model_names.all_named() if model.sha256 == digest]
    if digest == default_model.GGUF_SHA256 and name is None:
        return Named(default_model.NAME, "gguf", str(file.resolve()), digest)
    for model in names:
        if name is None or model.name == name:
            return model
    chosen = _called(name, stem_of(file))
    if name is None and (model_names.holder(chosen) is not None or chosen == default_model.NAME):
        chosen = _distinct(chosen, digest)  # another file of the same name
    named = Named(chosen, "gguf", str(file.resolve()), digest)
    try:
        model_names.give(named)
    except UsageError:
        if name is not None:
            raise
        # taken just now
        named = replace(named, name=_distinct(model_names.suggested(stem_of(file)), digest))
        model_names.give(named)
    taken = size(folders.size_of(_converted(digest)))
    say(f"kept as {named.name}, {taken}: -m {named.name} loads it, tsc models remove {named.name} frees the space")
    return named


def _distinct(name: str, digest: str) -> str:
    return f"{name[:70]}-{digest[:8]}"


def _converted(digest: str) -> Path:
    if digest == default_model.GGUF_SHA256:
        return default_model.folder()
    return folders.root() / f"gguf-{digest[:24]}"


def _holds(target: Path, digest: str) -> bool:
    """Whether a folder is the conversion of these bytes."""
    if digest == default_model.GGUF_SHA256:
        return default_model.is_ready()
    try:
        mark = json.loads((target / _MARK).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    whole = isinstance(mark, dict) and mark.get("sha256") == digest and (target / "config.json").is_file()
    return whole and any(target.glob("*.safetensors"))


def _is_ready(named: Named) -> bool:
    if named.kind == "gguf":
        return _holds(_converted(named.sha256), named.sha256)
    path = folder_of(named)
    return path != Path() and (path / "config.json").is_file()


def _called(asked: str | None, source: str) -> str:
    """The name that was asked for, whatever it is, or one made of the source's."""
    return asked if asked is not None else model_names.suggested(source)


def _give(named: Named) -> Named:
    with writing(named.name, folders.root()):
        model_names.give(named)
    return named
