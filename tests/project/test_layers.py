"""The house: who may import whom, who may print, and what starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from formats import save
from tests import ROOT
from tests.support.traces import growing_trace

FORMATS = sorted((ROOT / "formats").rglob("*.py"))
PROGRAM = sorted((ROOT / "tsc_cli").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it; relative imports stay inside its own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", FORMATS, ids=lambda path: str(path.relative_to(ROOT)))
def test_formats_knows_nothing_of_models_and_command_lines(path: Path) -> None:
    assert not imported(path) & {"transformers", "typer", "tsc_cli", "rich", "huggingface_hub", "click"}


@pytest.mark.parametrize("path", PROGRAM, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_output_prints_and_nobody_imports_click(path: Path) -> None:
    assert "click" not in imported(path)
    if path.name != "output.py":
        tree = ast.parse(path.read_text())
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]


def test_only_two_files_know_cache_layers() -> None:
    users = {path.name for path in PROGRAM if "cache_utils" in path.read_text()}
    assert users == {"cache_layers.py", "evicted_layer.py"}


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["capture", "--help"],
        ["tiers"],
        ["inspect", "FILE"],
        ["test", "FILE"],
        ["doctor", "FILE"],
        ["recover", "FILE", "-o", "NEW"],
    ],
)
def test_starts_without_torch(command: list[str], tmp_path: Path) -> None:
    save(growing_trace(), tmp_path / "t.tsc")
    words = [{"FILE": str(tmp_path / "t.tsc"), "NEW": str(tmp_path / "n.tsc")}.get(word, word) for word in command]
    script = (
        "import sys\nfrom tsc_cli.cli.main import run\n"
        f"code = run({words!r})\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'{code} {sorted(heavy)}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["formats", "tsc_cli"])
def test_completion_shows_the_public_names(package: str) -> None:
    """Also in a process that has used none of them yet."""
    code = (
        f"import rlcompleter, {package} as p; c = rlcompleter.Completer({{'p': p}}); names = []\n"
        "while (one := c.complete('p.', len(names))) is not None: names.append(one.removeprefix('p.').rstrip('(,)'))\n"
        "assert {n for n in p.__all__ if n[0] != '_'} <= set(names)\n"
        "assert dir(p) == sorted(p.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
