"""Finding and loading models: the default one, a hub id, a local folder, a GGUF file."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from formats.errors import UsageError
from tsc_cli.libraries import quiet_libraries
from tsc_cli.model_store import default_model, hub_models, store
from tsc_cli.model_store.hub import is_hub_id
from tsc_cli.progress import Say
from tsc_cli.text_input import shown as as_text

from . import folder_checks, transformers_errors
from .folder_names import readable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tsc_cli.huggingface.adapter import ModelAdapter

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes:
        name: for files, without a local path: the default's name, a hub id, or a base name.
    """

    model: PreTrainedModel
    tokenizer: Any
    name: str

    @cached_property
    def adapter(self) -> ModelAdapter:
        from tsc_cli.huggingface.adapter import ModelAdapter  # imports torch

        return ModelAdapter(self.model)


def load(
    name: str | None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    fetch: bool = True,
    trust_remote_code: bool = False,
    say: Say,
) -> Loaded:
    """Load a causal language model and, if it has one, its tokenizer.

    Args:
        name: None or the default model's name; a name of `tsc models`; a folder; a .gguf file,
            which is converted once; anything else is a hub id. `./NAME` is the folder where a name
            is the same.
        dtype: "auto" takes the checkpoint's own.
        device: "auto" takes a CUDA device if there is one.
        fetch: a hub id may be fetched; otherwise it must be in the local hub cache.
        trust_remote_code: Python code that comes with the model may run; the default model has
            none.
        say: told what takes long, and when a hub is used.
    Raises:
        UsageError: there is no such model, it cannot be loaded here, or it needs code of its own
            that is not trusted.
        StorageError: the default model cannot be fetched.
    """
    check_dtype(dtype)
    check_trust(name, trust_remote_code)
    quiet_libraries()
    device = resolve_device(device)
    where, display_name = _locate(name, fetch, say, trust_remote_code)
    shown, folder = as_text(display_name), _folder(where)
    tensors = None if folder is None else folder_checks.check(folder, trust_remote_code=trust_remote_code)
    # where it is left out, transformers asks on stdin
    where["trust_remote_code"] = trust_remote_code
    with readable(where) as places:
        config = transformers_errors.load_config(places, shown, folder)
        tokenizer = transformers_errors.load_tokenizer(places, shown, folder)
        model = transformers_errors.load_model(places, shown, folder, config, tensors, dtype, device)
    return Loaded(model, tokenizer, shown)


def check_dtype(dtype: str) -> None:
    """Raise UsageError unless `dtype` is one in which a model can be loaded."""
    if dtype not in DTYPES:
        raise UsageError(f"there is no dtype {dtype!r}", hint=f"one of {', '.join(DTYPES)}")


def check_trust(name: str | None, trust_remote_code: bool) -> None:
    """Raise UsageError if code is to be trusted of a model that only a file names."""
    if trust_remote_code and name is None:
        raise UsageError("--trust-remote-code is for a model that you name yourself", hint="give it with -m")


def known_name(name: object) -> str | None:
    """Return a model's name from a file if `load` can resolve it here, else None.

    The default model and hub ids mean the same everywhere. Any other name is looked up in `tsc
    models`, and the fingerprint says whether it is the same model.
    """
    if not isinstance(name, str):
        return None
    if name == default_model.NAME or ("/" in name and is_hub_id(name)):
        return name
    return name if store.find(name) is not None else None


def _locate(name: str | None, fetch: bool, say: Say, code: bool) -> tuple[dict[str, Any], str]:
    """Return (arguments for from_pretrained, name to show)."""
    if name is None or name == default_model.NAME:
        folder = default_model.ensure(say)
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}, default_model.NAME
    if not name:
        raise UsageError("-m is empty", hint="a name of tsc models, a hub id, a folder or a .gguf file")
    stored = store.find(name)
    if stored is not None:
        return store.arguments(stored, say)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.is_file():
        return store.arguments(store.of_gguf_file(path, say), say)
    if path.is_dir():
        if not os.path.lexists(path / folder_checks.CONFIG):
            raise UsageError("the folder holds no model: there is no config.json in it", path=name)
        return {"pretrained_model_name_or_path": str(path), "local_files_only": True}, path.resolve().name
    if not is_hub_id(name):
        raise UsageError("no such model: neither a folder, nor a .gguf file, nor a hub id", path=name)
    if fetch:
        hub_models.fetch(name, say, code=code)
    return {"pretrained_model_name_or_path": name, "local_files_only": True}, name


def _folder(where: dict[str, Any]) -> Path | None:
    """Return the folder of a model's files; None for a model that is not on this machine."""
    name = where["pretrained_model_name_or_path"]
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, folder_checks.CONFIG)
    return Path(config).parent if isinstance(config, str) else None


def resolve_device(device: str) -> str:
    """Return the device, "auto" resolved. Raises UsageError unless it can compute."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            float(torch.zeros(1, device=device))  # `meta` has no values to read
    except Exception as error:  # a missing or incomplete backend may raise anything
        raise UsageError(f"there is no device {device!r} here", hint="--device cpu works everywhere") from error
    return device
