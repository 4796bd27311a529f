"""Checks of the files in a model's folder, before any library opens them.

Libraries report a damaged file in words of their own, and allocate what a config asks for before
they compare it with the weights. Here each file is read strictly, and every error names it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from formats.errors import CorruptError, StorageError, TscError, UnsupportedFileError, UsageError
from formats.limits import MAX_EXTENT
from tsc_cli.checkpoints import json_files

from . import config_checks

if TYPE_CHECKING:
    from tsc_cli.checkpoints.matrices import Tensor

CONFIG = "config.json"
GENERATION = "generation_config.json"
SETTINGS = "tokenizer_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# a model with a tokenizer has at least one of these
TOKENIZERS = (
    "tokenizer.json",
    SETTINGS,
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
)
_OBJECTS = (
    GENERATION,
    SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    "chat_template.json",
    "processor_config.json",
)
_TEXTS = ("merges.txt", "vocab.txt", "chat_template.jinja")
_MOST_TEXT = 64 << 20
_LONG_NUMBER = re.compile(rb":\s*[0-9]{8}")
_HINT = "fetch the model again, or mend the file"


def check(folder: Path, *, trust_remote_code: bool) -> Mapping[str, Tensor] | None:
    """Check the files of a folder that a model is loaded from.

    Returns:
        the tensors of the weights; None where they are not safetensors.
    Raises:
        UsageError: a file is missing, damaged, not a regular file, or has a value that no model
            has; the error names the file.
    """
    try:
        config = read_object(folder / CONFIG)
        config_checks.check(config, str(folder / CONFIG), trust_remote_code=trust_remote_code)
        for name in _OBJECTS:
            if os.path.lexists(folder / name):
                content = read_object(folder / name)
                if name == GENERATION:
                    config_checks.check_generation(content, str(folder / name))
                if name == SETTINGS:
                    config_checks.check_tokenizer(content, str(folder / name))
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json"):
            if os.path.lexists(folder / name):
                _refuse_empty(folder / name)
        if os.path.lexists(folder / "tokenizer.json"):
            _check_ids(folder / "tokenizer.json")
        for name in _TEXTS:
            if os.path.lexists(folder / name):
                _check_text(folder / name)
        if os.path.lexists(folder / "adapter_config.json"):
            _check_adapter(folder)
        tensors = _weights(folder, config)
        if tensors is not None:
            config_checks.check_sizes(config, tensors, str(folder / CONFIG))
    except (CorruptError, UnsupportedFileError, StorageError) as error:
        raise refused(error) from error
    return tensors


def refused(error: TscError) -> UsageError:
    """Return the same error as a UsageError, since no .tsc file is damaged."""
    return UsageError(error.message, path=error.path, hint=error.hint or _HINT)


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file. Raises UsageError, CorruptError, StorageError, LimitError."""
    open_file(path).close()
    return json_files.read_object(path, _HINT)


def open_file(path: Path) -> Any:
    """Open a regular file. Raises UsageError for any other, since a pipe or a device may block."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise UsageError(f"is {kind}, where a file was expected", path=str(path), hint=_HINT)
        return path.open("rb")
    except FileNotFoundError as error:
        reason = "is a link to a file that is missing" if path.is_symlink() else "is missing"
        raise UsageError(reason, path=str(path), hint=_HINT) from error
    except OSError as error:
        reason = "is a link to itself" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise UsageError(reason, path=str(path), hint=_HINT) from error


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has a file of a tokenizer, damaged or not."""
    return any(os.path.lexists(folder / name) for name in TOKENIZERS) or any(folder.glob("*.tiktoken"))


def _check_ids(path: Path) -> None:
    """Refuse token ids that no model has: the library allocates memory up to the highest."""
    with open_file(path) as file:
        if _LONG_NUMBER.search(file.read(_MOST_TEXT)) is None:
            return
    content = read_object(path)  # slow, and rarely needed
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    highest = max((token for token in ids if type(token) is int), default=0)
    if highest > MAX_EXTENT:
        raise UsageError(f"has a token of id {highest}, more than any model has", path=str(path), hint=_HINT)


def _check_text(path: Path) -> None:
    with open_file(path) as file:
        try:
            file.read(_MOST_TEXT).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptError(f"not UTF-8 (byte {error.start})", path=str(path), hint=_HINT) from error


def _check_adapter(folder: Path) -> None:
    """Refuse an adapter without peft, where transformers would silently load the model alone."""
    if find_spec("peft") is None:
        raise UsageError(
            "holds an adapter, which needs the package peft",
            path=str(folder / "adapter_config.json"),
            hint="pip install peft, or take the file away to have the model without its adapter",
        )


def _weights(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Tensor] | None:
    """Return the tensors of the safetensors files that transformers prefers; None for pickles."""
    from tsc_cli.checkpoints import safetensors_files

    # the library checks that it is in the folder
    if isinstance(config.get("transformers_weights"), str):
        return None
    if os.path.lexists(folder / SINGLE):
        _refuse_empty(folder / SINGLE)
        return safetensors_files.read_file(folder / SINGLE)
    if os.path.lexists(folder / INDEX):
        index = read_object(folder / INDEX)
        if not isinstance(index.get("metadata"), dict):
            raise UsageError("field 'metadata': an object was expected", path=str(folder / INDEX), hint=_HINT)
        for shard in safetensors_files.read_index(folder):
            _refuse_empty(folder / shard)
        return safetensors_files.read_folder(folder)
    for name in (PICKLE, PICKLE_INDEX):
        if os.path.lexists(folder / name):
            _refuse_empty(folder / name)
            return None
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    misnamed = f"; {others[0]} is not the name that is looked for" if others else ""
    raise UsageError(
        f"the folder holds no weights: neither {SINGLE} nor {INDEX} nor {PICKLE}{misnamed}",
        path=str(folder),
        hint=_HINT,
    )


def _refuse_empty(path: Path) -> None:
    with open_file(path) as file:
        if not file.read(1):
            raise UsageError("is empty", path=str(path), hint=_HINT)
