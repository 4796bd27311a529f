"""Download files of models from a hub; no other module talks to one."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from formats.errors import StorageError, TscError, UsageError
from tsc_cli.libraries import quiet_environment
from tsc_cli.progress import Progress
from tsc_cli.text_format import size

from .network_errors import cause_of

HINT = "tsc models lists what is on this machine; a local file or folder will do, too"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
ANSWER = 10.0  # seconds for an answer
_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def file_of(
    name: str,
    file: str,
    *,
    optional: bool = False,
    revision: str | None = None,
    folder: Path | None = None,
    advance: Progress | None = None,
    asked: bool = False,
) -> Path | None:
    """Return a file of a model in the local hub cache, and fetch it if it is not there.

    A file that is fetched is held against the hash that the hub announced.

    Args:
        name: a hub id.
        optional: of a model that is in the cache, a file that is not, and cannot be asked for, is
            taken as one that the model does not have.
        folder: where to put the file instead.
        advance: told how many bytes have come.
        asked: the hub answered just now. Otherwise it is asked once before huggingface_hub does,
            whose tries of a hub that does not answer take minutes.
    Returns:
        None where the model has no such file.
    Raises:
        UsageError: there is no such model, it is not given to everybody, or the hub cannot be
            reached.
        StorageError: the file cannot be stored, or is not the one that was announced.
    """
    quiet_environment()
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    which = {"revision": revision} if revision is not None else {}
    more: dict[str, Any] = {**which}
    if folder is not None:
        more["local_dir"] = folder
    if advance is not None and "tqdm_class" in inspect.signature(hf_hub_download).parameters:
        more["tqdm_class"] = _bar(advance)
    with _explained(name, f"the {file} of {name}"):
        before = try_to_load_from_cache(name, file, **which)
        try:
            if not asked and not isinstance(before, str):
                get_hf_file_metadata(hf_hub_url(name, file, **which), timeout=ANSWER)
            path = Path(hf_hub_download(name, file, **more))
        except EntryNotFoundError as error:
            # not in the cache, and no hub to ask whether there is one
            if isinstance(error, LocalEntryNotFoundError):
                raise
            return None
        except Exception as error:
            if optional and _has_snapshots(name) and cause_of(error).unreachable:
                return None
            raise
        if folder is None and (not isinstance(before, str) or Path(before).resolve() != path.resolve()):
            _require_announced(path, name, file)
        return path


def files_of(name: str) -> dict[str, int]:
    """The files of a model on the hub, and their sizes.  Raises as `file_of` does."""
    quiet_environment()
    from huggingface_hub import HfApi

    with _explained(name, name):
        siblings = HfApi().model_info(name, files_metadata=True, timeout=ANSWER).siblings
    return {file.rfilename: file.size or 0 for file in siblings or ()}


def announced_sha256(name: str, file: str, revision: str, timeout: float) -> str | None:
    """Ask the hub once for the SHA-256 of a large file; None if it states none.

    Raises as `file_of` does.
    """
    quiet_environment()
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with _explained(name, f"the {file} of {name}"):
        etag = get_hf_file_metadata(hf_hub_url(name, file, revision=revision), timeout=timeout).etag
    return etag if etag and _SHA256.fullmatch(etag) else None


def said_size(octets: int) -> str:
    """ ", 988.10 MB" for what is worth saying, else nothing."""
    return f", {size(octets)}" if octets > 10_000_000 else ""


def kept(name: str) -> bool:
    """Whether a model's config is in the local hub cache; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _has_snapshots(name: str) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE

    return any(Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots").glob("*/*"))


@contextlib.contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """Turn errors of huggingface_hub and the libraries below it into one line that says why."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    except (TscError, MemoryError):
        raise
    except Exception as error:  # clients raise ImportError, ValueError and classes of their own for one wrong setting
        _explain(error, name, what)


def _explain(error: Exception, name: str, what: str) -> NoReturn:
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    cause = cause_of(error)
    if isinstance(error, GatedRepoError):  # before the next, which it is, too
        text = f"the hub gives {name} only to those who were granted access"
        raise UsageError(text, hint=cause.hint) from error
    if isinstance(error, RepositoryNotFoundError):
        raise UsageError(f"the hub knows no model {name}, or keeps it private", hint=HINT) from error
    if isinstance(error, HFValidationError):
        raise UsageError(f"{name} cannot be the name of a model on a hub", hint=HINT) from error
    if cause.local:
        raise StorageError(f"{what} cannot be fetched: {cause.text}", hint=cause.hint) from error
    if cause.unreachable:
        text = f"{what} is not in the local hub cache, and the hub cannot be asked: {cause.text}"
        raise UsageError(text, hint=f"{cause.hint}; {HINT}") from error
    raise UsageError(f"{what} cannot be fetched: {cause.text}", hint=f"{cause.hint}; {HINT}") from error


def _require_announced(path: Path, name: str, file: str) -> None:
    """Check a file against its name in the hub cache: SHA-256, or git's hash for small files."""
    blob = path.resolve()
    with blob.open("rb") as data:
        if _SHA256.fullmatch(blob.name):
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        elif _GIT.fullmatch(blob.name):
            head = f"blob {blob.stat().st_size}\0".encode()
            digest = hashlib.sha1(head + data.read(), usedforsecurity=False).hexdigest()
        else:  # a mirror that announces something else, or a system without links
            return
    if digest != blob.name:
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise StorageError(f"the {file} of {name} is not the one that the hub announced", hint="try again")


def _bar(advance: Progress) -> type:
    """What huggingface_hub takes for a progress bar."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            advance(int(n or 0))
            return None

    return Bar


def is_hub_id(name: str) -> bool:
    """True for what can be the name of a model on a hub."""
    return _HUB_ID.fullmatch(name) is not None
