"""Checkpoints of a calibration: a hidden file for each stage, in the folder of profiles.

The files have mode 0600, since they hold texts of the model and statistics of given texts.  Each
has the calibration's key and a digest of its content; a file in which either is wrong is not used.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from tsc_cli.progress import Say

TIME_SHARE = 50  # saving takes at most a fiftieth of the time if it takes longer than an item
_KEPT_DAYS = 30  # after which an interrupted calibration is removed


class Checkpoint:
    """The checkpoints of one calibration, which goes on without them if they cannot be written."""

    def __init__(self, folder: Path, key: str, say: Say) -> None:
        self._folder, self._key, self._say = folder, key, say
        self._next, self._failed = 0.0, False
        self._forget_old()

    def _path(self, stage: str) -> Path:
        return self._folder / f".calibration-{self._key}.{stage}.safetensors"

    def load(self, stage: str) -> dict[str, torch.Tensor] | None:
        """Return the saved state of a stage; None if there is none or it is damaged or foreign."""
        from safetensors import SafetensorError, safe_open

        path = self._path(stage)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if metadata.get("key") != self._key:
                problem = "belongs to another calibration"
            elif metadata.get("sha256") != _digest(state):
                problem = "is damaged"
            else:
                return state
        except (OSError, SafetensorError):
            problem = "is damaged"
        self._say(f"what was put aside of an earlier calibration {problem} and is not used: {path}")
        path.unlink(missing_ok=True)
        return None

    def save(self, stage: str, state: Mapping[str, torch.Tensor]) -> None:
        """Save the state of a stage; the file is replaced atomically."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._path(stage)
        new = Path(f"{path}.new")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            new.unlink(missing_ok=True)  # an existing link must not be followed
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            save_file(
                {name: tensor.contiguous() for name, tensor in state.items()},
                new,
                {"key": self._key, "sha256": _digest(state)},
            )
            os.replace(new, path)
        except (OSError, SafetensorError) as error:
            new.unlink(missing_ok=True)
            if not self._failed:  # say it once
                self._say(f"what was done cannot be put aside in {self._folder}: {error}")
            self._failed = True

    def save_now_and_then(self, stage: str, state: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Save the state after an item, or after several if saving takes longer than an item."""
        started = time.monotonic()
        if started >= self._next:
            self.save(stage, state())
            ended = time.monotonic()
            self._next = ended + TIME_SHARE * (ended - started)

    def drop(self, stage: str) -> None:
        """Remove the state of a stage that a later one includes."""
        self._path(stage).unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove all checkpoints of the calibration."""
        for path in self._folder.glob(f".calibration-{self._key}.*"):
            path.unlink(missing_ok=True)

    def _forget_old(self) -> None:
        for path in self._folder.glob(".calibration-*.safetensors*"):
            try:
                if time.time() - path.stat().st_mtime > _KEPT_DAYS * 86_400:
                    path.unlink()
            except OSError:  # another calibration has removed it
                continue


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
