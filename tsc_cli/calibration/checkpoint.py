"""What a calibration has done so far, in hidden files beside the profiles: one a stage, gone when it is done.

They hold text that the model wrote and statistics of given texts: mode 0600.  A file says whose it is and has a digest
of all of it; what does not agree is not used.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from tsc_cli.progress import Say

TIME_SHARE = 50  # putting aside takes a fiftieth of the time at most, where an item takes less than it
_KEPT_DAYS = 30  # of a calibration that nobody went on with


class Checkpoint:
    """The stages of one calibration.  Where nothing can be put aside, it goes on without."""

    def __init__(self, folder: Path, key: str, say: Say) -> None:
        self._folder, self._key, self._say = folder, key, say
        self._next, self._failed = 0.0, False
        self._forget_old()

    def _path(self, stage: str) -> Path:
        return self._folder / f".calibration-{self._key}.{stage}.safetensors"

    def load(self, stage: str) -> dict[str, torch.Tensor] | None:
        """What was put aside of a stage, or None: nothing, or a damaged or foreign file, which is said and removed."""
        from safetensors import SafetensorError, safe_open

        path = self._path(stage)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if facts.get("key") != self._key:
                problem = "belongs to another calibration"
            elif facts.get("sha256") != _digest(state):
                problem = "is damaged"
            else:
                return state
        except (OSError, SafetensorError):
            problem = "is damaged"
        self._say(f"what was put aside of an earlier calibration {problem} and is not used: {path}")
        path.unlink(missing_ok=True)
        return None

    def save(self, stage: str, state: Mapping[str, torch.Tensor]) -> None:
        """Put a stage aside; the file is whole at any moment."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._path(stage)
        new = Path(f"{path}.new")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            new.unlink(missing_ok=True)  # a link that somebody put there is not followed
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            save_file(
                {name: tensor.contiguous() for name, tensor in state.items()},
                new,
                {"key": self._key, "sha256": _digest(state)},
            )
            os.replace(new, path)
        except (OSError, SafetensorError) as error:
            new.unlink(missing_ok=True)
            if not self._failed:  # once, not for every item
                self._say(f"what was done cannot be put aside in {self._folder}: {error}")
            self._failed = True

    def save_now_and_then(self, stage: str, state: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Put a stage aside after an item: after every one, or seldom where that takes longer than the items."""
        started = time.monotonic()
        if started >= self._next:
            self.save(stage, state())
            ended = time.monotonic()
            self._next = ended + TIME_SHARE * (ended - started)

    def drop(self, stage: str) -> None:
        """A later stage has all that is needed of this one."""
        self._path(stage).unlink(missing_ok=True)

    def forget(self) -> None:
        """The calibration is done."""
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
