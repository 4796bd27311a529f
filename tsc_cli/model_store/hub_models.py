"""A whole model of a hub, in the local hub cache, where every program on this machine finds it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from formats.errors import TscError, UsageError
from tsc_cli.progress import Say, Stage, no_stage

from . import hub
from .disk_space import require_room
from .network_errors import cause_of

_SMALL = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_TEMPLATES = "additional_chat_templates/"
_ADAPTER = "adapter_model.safetensors"
# in the order in which transformers looks for them: one file, or an index of several
_WEIGHTS = (("model.safetensors", "model-", ".safetensors"), ("pytorch_model.bin", "pytorch_model-", ".bin"))


def fetch(name: str, say: Say, stage: Stage = no_stage, *, code: bool = False) -> Path:
    """Bring what a model is loaded from into the local hub cache, and return its folder there.

    Where the hub cannot be asked, a model that is in the cache is taken as it is.

    Args:
        stage: opens a progress bar over so many bytes.
        code: Python files, too.
    Raises:
        UsageError: there is no such model, it has no weights that can be loaded, or the hub cannot
            be reached.
        StorageError: it cannot be stored, or does not fit on the disk.
    """
    say(f"looking for {name} in the local hub cache and on the model hub")
    try:
        sizes = hub.files_of(name)
    except TscError as error:
        cause = cause_of(error)
        if not (hub.kept(name) and cause.unreachable):
            raise
        say(f"the hub cannot be asked ({cause.text}); {name} is taken from the local hub cache")
        return Path(_present(name, "config.json")).parent
    files = _chosen(sizes, code)
    if not any(file.endswith((".safetensors", ".bin")) for file in files):
        several = any(file.endswith(".gguf") for file in sizes)
        hint = "fetch one of its GGUF files, and give that with -m" if several else hub.HINT
        raise UsageError(f"{name} has no weights on the hub that transformers loads", hint=hint)
    missing = [file for file in files if not _is_kept(name, file)]
    _require_room(sum(sizes[file] for file in missing), name)
    folders = set()
    for file in files:
        if file in missing and hub.said_size(sizes[file]):
            say(f"fetching {file} of {name}{hub.said_size(sizes[file])}")
        with stage(f"fetching {file}", sizes[file]) if file in missing else no_stage(file, None) as advance:
            path = hub.file_of(name, file, advance=advance, asked=True)
        if path is None:
            raise UsageError(f"{name} has no {file} any more", hint="the model was changed on the hub; try again")
        folders.add(path.parent if "/" not in file else path.parent.parent)
    if len(folders) != 1:
        raise UsageError(f"{name} was changed on the hub while it was fetched", hint="try again")
    return folders.pop()


def _chosen(files: Iterable[str], code: bool) -> list[str]:
    names = list(files)
    chosen = [
        file
        for file in names
        if ("/" not in file and (file.endswith(_SMALL) or (code and file.endswith(".py")) or file == _ADAPTER))
        or (file.startswith(_TEMPLATES) and file.endswith(".jinja") and file.count("/") == 1)
    ]
    for single, start, end in _WEIGHTS:
        if single in names:
            return [*chosen, single]
        shards = [file for file in names if file.startswith(start) and file.endswith(end) and "/" not in file]
        if shards:
            return [*chosen, *shards]
    return chosen


def _present(name: str, file: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, file)
    return path if isinstance(path, str) else ""


def _is_kept(name: str, file: str) -> bool:
    return bool(_present(name, file))


def _require_room(octets: int, name: str) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    require_room(Path(HF_HUB_CACHE), octets, name)
