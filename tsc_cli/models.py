"""Finding and loading models: the default one, a hub id, a local folder, a GGUF file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from formats.errors import UsageError

from . import default_model, hub_models, model_store
from .libraries import quiet_libraries
from .local_names import readable
from .texts import shown as as_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("auto", "float32", "bfloat16", "float16")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    Attributes:
        name: what a file may say of it without revealing a local path: the default's name, a hub id, or a base name.
    """

    model: PreTrainedModel
    tokenizer: Any
    name: str


def load(
    name: str | None, *, dtype: str = "auto", device: str = "auto", fetch: bool = True, say: Callable[[str], None]
) -> Loaded:
    """Load a causal language model and, if it has one, its tokenizer.

    Args:
        name: None or the default model's name; a name of `tsc models`; a folder; a .gguf file, which is converted once;
            anything else is a hub id.  `./NAME` is the folder where a name is the same.
        dtype: "auto" takes the checkpoint's own.
        device: "auto" takes a CUDA device if there is one.
        fetch: a hub id may be fetched; otherwise it must be in the local hub cache.
        say: told what takes long, and when a hub is used.
    Raises:
        UsageError: there is no such model, or it cannot be loaded here.
        StorageError: the default model cannot be fetched.
    """
    check_dtype(dtype)
    quiet_libraries()
    device = present(device)
    where, shown = _locate(name, fetch, say)
    with readable(where) as places:
        return Loaded(_load_model(places, shown, dtype, device), _load_tokenizer(places), as_text(shown))


def check_dtype(dtype: str) -> None:
    """Raise UsageError unless `dtype` is one in which a model can be loaded."""
    if dtype not in DTYPES:
        raise UsageError(f"there is no dtype {dtype!r}", hint=f"one of {', '.join(DTYPES)}")


def known_name(name: object) -> str | None:
    """A name out of a file that `load` can resolve, or None: a path of another machine is no use.

    The default model and hub ids mean the same everywhere; another name is one of this machine's own (`tsc models`),
    and the fingerprint says whether it is the same model.
    """
    if not isinstance(name, str):
        return None
    if name == default_model.NAME or ("/" in name and is_hub_id(name)):
        return name
    return name if model_store.find(name) is not None else None


def is_hub_id(name: str) -> bool:
    """True for what can be the name of a model on a hub."""
    return _HUB_ID.fullmatch(name) is not None


def _locate(name: str | None, fetch: bool, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """(arguments for from_pretrained, name to show)."""
    if name is None or name == default_model.NAME:
        folder = default_model.ensure(say)
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}, default_model.NAME
    named = model_store.find(name)
    if named is not None:
        return model_store.arguments(named, say)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.is_file():
        return model_store.arguments(model_store.of_gguf_file(path, say), say)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError("the folder holds no model: there is no config.json in it", path=name)
        return {"pretrained_model_name_or_path": str(path), "local_files_only": True}, path.resolve().name
    if not is_hub_id(name):
        raise UsageError("no such model: neither a folder, nor a .gguf file, nor a hub id", path=name)
    if fetch:
        hub_models.fetch(name, say)
    return {"pretrained_model_name_or_path": name, "local_files_only": True}, name


def _load_model(where: dict[str, Any], shown: str, dtype: str, device: str) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    try:
        auto: Any = AutoModelForCausalLM
        if "gguf_file" not in where and AutoConfig.from_pretrained(**where).is_encoder_decoder:
            auto = AutoModelForSeq2SeqLM
        model: Any = auto.from_pretrained(**where, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
        model.to(device)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(
            f"{shown} cannot be loaded: {reason}", hint="tsc models lists what is on this machine"
        ) from error
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


def _load_tokenizer(where: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(**where)
    except (OSError, ValueError, ImportError, KeyError):
        return None  # a model without one can still be fed token ids; a prompt as text is refused by name


def present(asked: str) -> str:
    """The device, "auto" resolved.  Raises UsageError unless a number can be had from it."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            float(torch.zeros(1, device=asked))  # `meta` takes tensors and gives nothing
    except Exception as error:  # whatever a backend raises that is not there, or not installed whole
        raise UsageError(f"there is no device {asked!r} here", hint="--device cpu works everywhere") from error
    return asked
