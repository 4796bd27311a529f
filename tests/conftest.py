from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from formats.paths import cache_folder
from tests.reliability.rows import tallying

# a busy machine makes no test fail: none is held to a time
settings.register_profile("tsc", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tsc")

if "PYTEST_XDIST_WORKER" in os.environ:  # each of several processes has a core to itself; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# before typer is imported anywhere: plain, 80 columns wide
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
os.environ["TERMINAL_WIDTH"] = "80"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a hub; the default model comes out of a wheel

# no profile of this machine is found by a test, and no test leaves one here; fetched models are shared
_models = cache_folder() / "models"
_models.mkdir(parents=True, exist_ok=True)
_cache = Path(tempfile.mkdtemp(prefix="tsc-tests-"))
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
(_cache / "models").symlink_to(_models.resolve(), target_is_directory=True)
os.environ["TSC_CACHE"] = str(_cache)


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def tsc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(
        "tsc_cli.progress.FIRST", 3600.0
    )  # what a command says does not depend on how busy a machine is

    def call(*words: object) -> Result:
        capsys.readouterr()
        from tsc_cli.cli.main import run

        code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def tally(record_property: Any) -> Any:
    """`with tally(row) as counts:` counts for a row of the fault matrix."""
    return partial(tallying, record=record_property)
