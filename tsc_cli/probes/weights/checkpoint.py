"""Open a model's tensors and configuration by name, without building the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from formats.errors import UnsupportedFileError, UsageError
from tsc_cli.checkpoints import json_files, safetensors_files
from tsc_cli.checkpoints.gguf_file import read_gguf
from tsc_cli.checkpoints.matrices import Tensor
from tsc_cli.model_store import default_model, hub, store
from tsc_cli.model_store.hub import is_hub_id
from tsc_cli.progress import Say

from .layouts import guessed

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT = "convert it where you trust it: load it with transformers, then save_pretrained() writes safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors and configuration of a model.

    Attributes:
        name: what a report may say: the default model's name, a hub id, or a base name.
        path: the file or folder, for messages.
        form: "safetensors" or "gguf".
        config: the language model's fields of config.json, or those of a GGUF file under the same
            names.
        complete: whether all layers of the configuration are expected; not where one file was
            named.
    """

    name: str
    path: str
    form: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    complete: bool


def open_checkpoint(name: str | None, say: Say) -> Checkpoint:
    """Find a checkpoint and read what it holds, but no weights.

    Args:
        name: None or the default model's name; a name of `tsc models`; a folder; a .safetensors or
            .gguf file; anything else is a hub id.
        say: told what takes long, and when a hub is used.
    Raises:
        UsageError: there is no such checkpoint, a part of it is missing, or it cannot be fetched.
        UnsupportedFileError: it is a pickle; those are never loaded.
        CorruptError: it is damaged, or names files outside its folder.
        LimitError: what its files say takes more memory than there is.
        StorageError: it cannot be read.
    """
    if name is None or name == default_model.NAME:
        return _folder(default_model.ensure(say), default_model.NAME)
    named = store.find(name)
    if named is not None and named.kind != "hub":
        return _folder(store.folder_of(named), named.name)
    name = named.source if named is not None else name
    path = Path(name).expanduser()
    if named is None and path.is_dir():
        return _folder(path, path.resolve().name)
    if path.is_file():
        return _file(path)
    if path.suffix in (".gguf", ".safetensors", *_PICKLES):
        raise UsageError("no such model file", path=name)
    if not is_hub_id(name):
        raise UsageError("no such model: neither a folder, nor a .safetensors or .gguf file, nor a hub id", path=name)
    say(f"looking for {name} in the local hub cache and on the model hub")
    return _folder(_fetch(name), name)


def _file(path: Path) -> Checkpoint:
    if path.suffix == ".gguf":
        tensors, config = read_gguf(path)
        return Checkpoint(path.name, str(path), "gguf", tensors, config, True)
    if path.suffix in _PICKLES:
        raise UnsupportedFileError(
            "is a pickle, which can run any program when it is loaded; it was not opened", path=str(path), hint=_CONVERT
        )
    if path.suffix != ".safetensors":
        raise UsageError(
            "is not a model: a folder, a .safetensors or .gguf file or a hub id was expected", path=str(path)
        )
    tensors = safetensors_files.read_file(path)
    return Checkpoint(path.name, str(path), "safetensors", tensors, _config(path.parent) or guessed(tensors), False)


def _folder(folder: Path, name: str) -> Checkpoint:
    if not (folder / safetensors_files.INDEX).is_file() and not any(folder.glob("*.safetensors")):
        pickle = next((p.name for p in sorted(folder.iterdir()) if p.suffix in _PICKLES), None)
        if pickle is not None:
            raise UnsupportedFileError(
                f"{pickle} is a pickle, which can run any program when it is loaded; it was not opened",
                path=str(folder),
                hint=_CONVERT,
            )
        gguf = sorted(folder.glob("*.gguf"))
        hint = f"name a file: {gguf[0]}" if gguf else "a folder with .safetensors files was expected"
        raise UsageError("the folder holds no safetensors checkpoint", path=str(folder), hint=hint)
    tensors = safetensors_files.read_folder(folder)
    return Checkpoint(name, str(folder), "safetensors", tensors, _config(folder) or guessed(tensors), True)


def _config(folder: Path) -> dict[str, Any]:
    """The language model's fields of config.json; empty where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    config = json_files.read_object(path, "fetch the checkpoint again")
    text = config.get("text_config")
    return config | text if isinstance(text, dict) else config


def _fetch(name: str) -> Path:
    """Return the folder of a hub model's config.json and safetensors files, fetched if needed."""
    hub.file_of(name, "config.json", optional=True)
    path = hub.file_of(name, safetensors_files.INDEX, optional=True)
    if path is None:
        path = hub.file_of(name, safetensors_files.SINGLE)
    else:
        # names of shards are checked to stay inside the folder before any is asked for
        for file in safetensors_files.read_index(path.parent):
            hub.file_of(name, file)
    if path is None:
        raise UsageError(f"{name} has no safetensors files", hint=f"fetch it, and {_CONVERT}")
    return path.parent
