"""Packages of extras that are not installed: one line says which, and how to install it; nothing is left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import ROOT
from tests.support import checkpoints

LADDER = ROOT / "docs" / "benchmarks" / "ladder.json"
GOLDEN = min((ROOT / "tests" / "format_conformance" / "golden").glob("1.*-*.tsc"))
# what is hidden, the words after `tsc`, and what the error says
CASES = {
    "matplotlib": (("plot", str(LADDER), "-o", "figure.png"), "a figure needs matplotlib", "plot"),
    "gguf": (("probe-weights", "model.gguf"), "a GGUF file needs gguf", "gguf"),
    "accelerate": (("models", "--fetch"), "converting a GGUF file needs accelerate", "gguf"),
    "cryptography": (
        ("encrypt", str(GOLDEN), "-o", "out.tsc", "--key-file", "key"),
        "encryption needs cryptography",
        "crypto",
    ),
}
SCRIPT = "import sys; sys.modules[sys.argv[1]] = None; from tsc_cli.cli.main import run; sys.exit(run(sys.argv[2:]))"


@pytest.mark.parametrize("package", CASES)
def test_a_missing_package_is_named_with_its_extra(package: str, tmp_path: Path) -> None:
    words, message, extra = CASES[package]
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "key").chmod(0o600)
    checkpoints.write_gguf(tmp_path / "model.gguf")
    before = sorted(path.name for path in tmp_path.iterdir())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TSC_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, package, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert f"{message}, which is not installed" in done.stderr
    assert f"hint: pip install 'tsc-kv[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == before


def test_every_extra_that_an_error_names_is_one() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {extra for _, _, extra in CASES.values()} <= extras.keys()
    (pulled,) = (line for line in extras["test"] if line.startswith("tsc-kv["))
    assert {extra for _, _, extra in CASES.values()} == set(re.findall(r"\w+", pulled.removeprefix("tsc-kv")))
