"""Find and read the config.json of a file, a folder, the default model or a hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from formats.errors import UsageError
from tsc_cli.checkpoints import json_files
from tsc_cli.model_store.hub import is_hub_id
from tsc_cli.progress import Say

from . import default_model, hub, store

NAME = "config.json"


@dataclass(frozen=True)
class Config:
    """A config as it was read.

    Attributes:
        name: what to call the model: as it was asked for.
        path: the file.
        values: the JSON object.
    """

    name: str
    path: str
    values: dict[str, Any]


def read(name: str, say: Say) -> Config:
    """The config of a model: a config.json, a folder that has one, a name of a model, or a hub id.

    Args:
        say: told when a hub is asked.
    Raises:
        UsageError: there is no such file, folder or model.
        StorageError: the file cannot be read.
        CorruptError: the file is not JSON, or not a JSON object.
        LimitError: reading it would take more memory than there is.
    """
    path = _locate(name, say)
    return Config(name, str(path), json_files.read_object(path, "the config.json of a model was expected"))


def _locate(name: str, say: Say) -> Path:
    path = Path(name).expanduser()
    if name == default_model.NAME and not path.exists():
        if not default_model.is_ready():
            raise UsageError("the default model is not on this machine", hint="tsc models --fetch")
        return default_model.folder() / NAME
    named = store.find(name)
    if named is not None:
        return store.folder_of(named) / NAME
    if path.suffix == ".gguf":
        raise UsageError(
            "a GGUF file has no config.json",
            path=name,
            hint=f"tsc models add {name} makes a folder of it, which has one",
        )
    if path.is_dir():
        if not (path / NAME).is_file():
            raise UsageError(f"the folder holds no model: there is no {NAME} in it", path=name)
        return path / NAME
    if path.is_file():
        return path
    if path.suffix == ".json" or not is_hub_id(name):
        raise UsageError(f"no such model: neither a {NAME}, nor a folder with one, nor a hub id", path=name)
    return _from_hub(name, say)


def _from_hub(name: str, say: Say) -> Path:
    """The file in the local hub cache, or fetched into it."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, NAME)
    if isinstance(cached, str):
        return Path(cached)
    say(f"looking for the {NAME} of {name} on the model hub")
    path = hub.file_of(name, NAME)
    if path is None:
        raise UsageError(f"{name} has no {NAME} on the hub", hint=f"a {NAME} or a folder with one will do, too")
    return path
