"""Loading through transformers; its errors become one line with the model, file and cause."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from formats.errors import TscError, UsageError
from tsc_cli.libraries import is_out_of_memory, is_panic, quiet_panics

from . import config_checks, folder_checks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tsc_cli.checkpoints.matrices import Tensor

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SHOWN = 3  # names of tensors in a message
_LONGEST = 300
_LIST = "tsc models lists what is on this machine"
_TRUST = "--trust-remote-code with -m runs it: only if you know who wrote it"


def load_config(where: Mapping[str, Any], shown: str, folder: Path | None) -> Any:
    """Load the config of a model by transformers. Raises UsageError."""
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if folder is not None:
        content = folder_checks.read_object(folder / folder_checks.CONFIG)
        model_type = content.get("model_type")
        if isinstance(model_type, str) and model_type not in CONFIG_MAPPING and "auto_map" not in content:
            raise UsageError(
                f"field 'model_type': {model_type[:60]!r} is not known to transformers {transformers.__version__}",
                path=str(folder / folder_checks.CONFIG),
            )
    with explained(shown, folder, folder_checks.CONFIG):
        return AutoConfig.from_pretrained(**where)


def load_model(
    where: Mapping[str, Any],
    shown: str,
    folder: Path | None,
    config: Any,
    tensors: Mapping[str, Tensor] | None,
    dtype: str,
    device: str,
) -> PreTrainedModel:
    """Load a model all of whose tensors come from its checkpoint.

    Args:
        folder: where its files are, if that is known.
        config: as `load_config` gives it.
        tensors: what the checkpoint holds, if that is known.
    Raises:
        UsageError: it cannot be loaded, or tensors are missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

    # imports torch, which not every user of this module waits for
    from tsc_cli.huggingface import probe_run
    from tsc_cli.huggingface.adapter import ModelAdapter

    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if folder is not None:
        if tensors is not None and not where["trust_remote_code"]:
            _check_memory(auto, config, tensors, folder)
        if (folder / folder_checks.GENERATION).is_file():
            with explained(shown, folder, folder_checks.GENERATION):
                GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    with explained(shown, folder, None):
        model, info = auto.from_pretrained(
            **where,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            weights_only=True,
            # a wrong shape is named below; by itself the library says that it printed it
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        _check_complete(info, shown)
        model.to(device)
    model.eval()
    # what a config gets wrong may show in the first pass only
    with explained(shown, folder, folder_checks.CONFIG):
        probe_run.geometry(ModelAdapter(model))
    loaded: PreTrainedModel = model
    return loaded


def load_tokenizer(where: Mapping[str, Any], shown: str, folder: Path | None) -> Any:
    """Load the tokenizer; return None for a model without one, which takes token ids only.

    Raises:
        UsageError: the tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    if folder is not None and not folder_checks.has_tokenizer(folder):
        return None
    try:
        with explained(shown, folder, folder_checks.SETTINGS), quiet_panics():
            return AutoTokenizer.from_pretrained(**where)
    except UsageError as error:
        broken = _broken_tokenizer(folder)
        if broken is not None:
            raise broken from error
        raise


@contextlib.contextmanager
def explained(shown: str, folder: Path | None, file: str | None) -> Iterator[None]:
    """Turn any error of a library into a UsageError about a model, or about one of its files.

    Args:
        file: the one that is being read; None if that may be any.
    """
    try:
        yield
    except TscError:
        raise
    except BaseException as error:  # a model's parts may raise anything, even the panic of a Rust thread
        if is_out_of_memory(error) or not (isinstance(error, Exception) or is_panic(error)):
            raise
        if "trust_remote_code" in str(error):
            raise UsageError(f"{shown} needs Python code that comes with it, which is not run", hint=_TRUST) from error
        if type(error).__name__ in ("UnpicklingError", "EOFError") or "PytorchStreamReader" in str(error):
            raise UsageError(
                f"{shown} cannot be loaded: a pickle of its weights holds more than tensors, or is damaged; nothing "
                "in it was run",
                hint="a folder with .safetensors files was expected",
            ) from error
        text, field = _reason(error), _field(folder, error)
        if field is not None:
            text, file = f"field {field!r}: {text}", folder_checks.CONFIG
        if folder is not None and file is not None and (folder / file).exists():
            raise UsageError(text, path=str(folder / file), hint="fetch the model again, or mend the file") from error
        hint = _LIST if folder is None else f"look at {folder / folder_checks.CONFIG}, or fetch the model again"
        raise UsageError(f"{shown} cannot be loaded: {text}", hint=hint) from error


def _reason(error: BaseException) -> str:
    """Return the root cause of a library's exception, in one line."""
    error = _root(error)
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    kind = type(error).__name__
    # else a sentence
    if isinstance(error, KeyError) and error.args and " " not in str(error.args[0]):
        return f"{error.args[0]!r} is not known"
    if not lines:
        return kind
    lines[0] += f" {' '.join(lines[1:])}" if lines[0].endswith(":") else ""
    line = lines[0] if len(lines[0]) <= _LONGEST else f"{lines[0][: _LONGEST - 4]} ..."
    return line if isinstance(error, OSError | ValueError | RuntimeError | ImportError) else f"{kind}: {line}"


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _field(folder: Path | None, error: BaseException) -> str | None:
    """Return the config's field whose value a library did not find and names without the field."""
    root = _root(error)
    if folder is None or not isinstance(root, KeyError) or not root.args:
        return None
    try:
        return config_checks.field_of(folder_checks.read_object(folder / folder_checks.CONFIG), root.args[0])
    except TscError:
        return None


def _check_memory(auto: Any, config: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    import copy

    import torch

    try:
        with torch.device("meta"):
            model = auto.from_config(copy.deepcopy(config))
    except Exception:  # the load with memory fails in the same way, and is explained there
        return
    path = folder / folder_checks.CONFIG
    try:
        config_checks.check_memory(model, folder_checks.read_object(path), tensors, str(path))
    except TscError as error:
        raise folder_checks.refused(error) from error


def _check_complete(info: Mapping[str, Any], shown: str) -> None:
    """Raise UsageError unless all tensors came from the checkpoint: the library draws the rest."""
    mismatched = sorted(info.get("mismatched_keys") or ())
    if mismatched:
        name, stored, built = mismatched[0][:3]
        more = f", and {len(mismatched) - 1} more differ" if mismatched[1:] else ""
        raise UsageError(
            f"{shown} cannot be loaded: tensor {name!r} is {tuple(stored)} in the weights and {tuple(built)} by the "
            f"config{more}",
            hint="config.json and the weights are of different models",
        )
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        spare = sorted(info.get("unexpected_keys") or ())
        also = f", and hold what is not of this model: {_names(spare)}" if spare else ""
        raise UsageError(
            f"{shown} cannot be loaded: its weights lack {_names(missing)}{also}",
            hint="are the names those of another program, or of a part of the model?"
            if spare
            else "fetch the model again",
        )
    errors = list(info.get("error_msgs") or ())
    if errors:
        raise UsageError(f"{shown} cannot be loaded: {str(errors[0]).splitlines()[0]}", hint=_LIST)


def _names(names: list[str]) -> str:
    """Return a count and the first few names."""
    few = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"tensor {few}" if len(names) == 1 else f"{len(names)} tensors, {few}{', ...' * (len(names) > _SHOWN)}"


def _broken_tokenizer(folder: Path | None) -> UsageError | None:
    """Return an error for tokenizer.json if that file is the cause, else None."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer

    path = str(folder / "tokenizer.json")
    try:
        with quiet_panics():
            Tokenizer.from_file(path)
    except BaseException as error:  # the library raises bare ones, and panics
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        return UsageError(
            f"is not a tokenizer: {_reason(error).removeprefix('Exception: ')}",
            path=path,
            hint="fetch the model again, or mend the file",
        )
    return None
