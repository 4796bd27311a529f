"""A GGUF file into a folder that transformers loads at once: dequantized, with its tokenizer.

Every matrix is stored in the smallest of bfloat16, float16 and float32 that holds all of its
values. So the folder is the same model as the file, to the bit: 4 bytes a weight for what was
quantized, 2 for what was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from formats.errors import CorruptError, TscError, UnsupportedFileError, UsageError, optional_packages
from tsc_cli.libraries import quiet_libraries
from tsc_cli.progress import Progress, Say, Stage

from .disk_space import require_room
from .gguf_parts import join
from .network_errors import cause_of, first_line

if TYPE_CHECKING:
    import torch


# the types of a file that was not quantized, but for F32 alone: norms are that
_HALVES = {"BF16", "F16", "F32"}
_TOKENIZER = 32 << 20  # bytes of tokenizer and config files, generously


@dataclass(frozen=True)
class Header:
    """What the head of a GGUF file says.

    Attributes:
        octets: how much its folder takes, about.
    """

    octets: int


def header_of(parts: list[Path]) -> Header:
    """Read the heads of all parts, strictly.

    Raises:
        UsageError: one is not a GGUF file, is cut off, or has a type of tensor that is not known.
        StorageError: one cannot be read.
    """
    from tsc_cli.checkpoints.gguf_file import read_gguf

    kinds, values, count = set(), 0, 1
    for part in parts:
        try:
            tensors, config = read_gguf(part)
        except (CorruptError, UnsupportedFileError) as error:
            raise UsageError(
                f"cannot be loaded: {error.message}",
                path=str(part),
                offset=error.offset,
                hint="fetch the file again if it was cut off; tsc reads GGUF versions 2 and 3",
            ) from error
        kinds |= {tensor.encoding.name for tensor in tensors.values()}
        values += sum(math.prod(tensor.shape) for tensor in tensors.values())
        count = max(count, int(config.get("split_count", 1)))
    if count != len(parts):
        raise UsageError(
            f"is one of {count} parts, and its name does not tell which",
            path=str(parts[0]),
            hint="keep the names that gguf-split gave: NAME-00001-of-00002.gguf",
        )
    halves = kinds <= _HALVES and kinds != {"F32"}
    return Header(values * (2 if halves else 4) + _TOKENIZER)


def require_packages() -> None:
    """Raise UsageError unless the packages are installed by which transformers loads GGUF files."""
    with optional_packages("gguf", "converting a GGUF file"):
        import accelerate  # noqa: F401
        import gguf  # noqa: F401


def convert(parts: list[Path], built: Path, say: Say, stage: Stage) -> None:
    """Dequantize through transformers, store the result and compare it with the source.

    Args:
        parts: the files of the model.
        built: the folder to make, on the disk that will keep it.
        stage: opens a progress bar over so many units.
    Raises:
        UsageError: transformers cannot load the file, or the file does not hold the whole model.
        StorageError: the folder does not fit on the disk.
    """
    require_packages()
    shown = parts[0].name
    header = header_of(parts)
    joined = sum(part.stat().st_size for part in parts) if len(parts) > 1 else 0
    require_room(built.parent, header.octets + joined, f"the converted {shown}")
    quiet_libraries()
    gguf = parts[0]
    if joined:
        gguf = built.with_name("joined.gguf")
        with stage(f"joining {len(parts)} parts", None):
            join(parts, gguf)
    with stage(f"dequantizing {shown}", None):
        model = _loaded(gguf, parts[0])
    weights = _smallest(model.state_dict(), str(parts[0]))
    with stage("storing it", None):
        model.save_pretrained(built, state_dict=weights)
        _set_dtype(built / "config.json")
        _save_tokenizer(gguf, built, say)
    with stage("checking it", len(weights)) as advance:
        _compare(built, weights, advance)
    if joined:
        gguf.unlink()


def _loaded(gguf: Path, named: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    try:
        model, info = auto.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except MemoryError:
        raise
    except Exception as error:  # each architecture fails in its own way
        if "allocate memory" in str(error) or cause_of(error).local:
            raise
        text = first_line(error) if not isinstance(error, KeyError) else f"it lacks {error}"
        raise UsageError(
            f"transformers cannot load it: {text}",
            path=str(named),
            hint="a safetensors folder of the same model will do, if transformers has its architecture",
        ) from error
    missing = sorted(map(str, [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())]))
    if missing:
        raise UsageError(
            f"does not hold the whole model: {len(missing)} tensors are missing or misshapen, {missing[0]} first",
            path=str(named),
            hint="fetch the file again, or another conversion of the model",
        )
    # it is a plain float32 model now; with this mark transformers refuses to save it
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _smallest(weights: Mapping[str, torch.Tensor], path: str) -> dict[str, torch.Tensor]:
    """Return each matrix in the smallest dtype that holds its values; shared ones stay shared."""
    import torch

    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    narrowed = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in done:
            if not bool(torch.isfinite(tensor).all()):
                raise UsageError(f"{name} holds values that are no numbers", path=path, hint="fetch the file again")
            done[key] = _narrowed(tensor)
        narrowed[name] = done[key]
    return narrowed


def _narrowed(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    if tensor.dtype != torch.float32 or tensor.dim() < 2:  # norms and biases are next to nothing
        return tensor
    for dtype in (torch.bfloat16, torch.float16):
        # most fail here
        if torch.equal(tensor.flatten()[:4096].to(dtype).float(), tensor.flatten()[:4096]):
            narrow = tensor.to(dtype)
            if torch.equal(narrow.float(), tensor):
                return narrow
    return tensor


def _set_dtype(config: Path) -> None:
    """Make `--dtype auto` load float32, as it does for a GGUF file, whatever dtypes are stored."""
    values = json.loads(config.read_text("utf-8"))
    values["dtype"] = "float32"
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


def _save_tokenizer(gguf: Path, built: Path, say: Say) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # as `_loaded`; a model without a tokenizer can still be fed token ids
        if isinstance(error, MemoryError | TscError):
            raise
        say(f"its tokenizer cannot be read ({first_line(error)}): text cannot be fed to this model")
        return
    tokenizer.save_pretrained(built)


def _compare(built: Path, weights: Mapping[str, torch.Tensor], advance: Progress) -> None:
    """Raise OSError unless every stored tensor is what was to be stored."""
    import torch
    from safetensors import safe_open

    for file in built.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                if not torch.equal(stored.get_tensor(name), weights[name]):
                    raise OSError(f"the disk gave back another {name} than was written")
                advance(1)
