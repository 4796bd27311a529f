"""Changes one module in every small way that mutmut knows, and shows the changes that no test notices.

    python -m tests.reliability.mutants MODULE TESTS...
    python -m tests.reliability.mutants formats/trace/spans.py tests/formats/trace/test_spans.py

It needs the extra `mutation`, and minutes for a module of 100 lines whose tests take seconds.  `guards` removes checks;
this also changes numbers, comparisons, operators, arguments and results.  All runs in a copy of the tree.  The exit
code is 1 where a change survives; some survive because they change nothing that can be seen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import ROOT

COPIED = ("formats", "tsc_cli", "tests", "docs", "pyproject.toml", "README.md", "CHANGELOG.md")
SURVIVED = ("survived", "no tests", "suspicious")
# a change that never ends is stopped after ten times the seconds of CPU that its tests take, and ten more
SETTINGS = """[mutmut]
source_paths=
    formats
    tsc_cli
also_copy=
    docs
    README.md
    CHANGELOG.md
only_mutate={module}
pytest_add_cli_args_test_selection=
{tests}
pytest_add_cli_args=
    -p
    no:cacheprovider
timeout_multiplier=10
"""


def copy_tree(target: Path, module: str, tests: list[str]) -> None:
    """Copy what the tests need, and write the settings of mutmut beside it."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy(source, target / name)
    lines = "\n".join(f"    {test}" for test in tests)
    (target / "setup.cfg").write_text(SETTINGS.format(module=module, tests=lines))


def mutmut(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run mutmut in the copy."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "mutmut", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def survivors(folder: Path) -> tuple[int, list[str]]:
    """How many changes were tried, and the names of those that no test noticed."""
    listed = mutmut(folder, "results", "--all", "true").stdout.splitlines()
    states = dict(line.strip().rsplit(": ", 1) for line in listed if ": " in line)
    return len(states), [name for name, state in states.items() if state in SURVIVED]


def main() -> int:
    words = argparse.ArgumentParser()
    words.add_argument("module", help="path of the module, from the top folder")
    words.add_argument("tests", nargs="+", help="files of tests that should notice")
    words.add_argument("--jobs", type=int, default=2, help="how many processes at once")
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy_tree(folder, asked.module, asked.tests)
        done = mutmut(folder, "run", "--max-children", str(asked.jobs))
        tried, left = survivors(folder)
        if not tried:
            raise SystemExit(f"mutmut changed nothing:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        for name in left:
            print(mutmut(folder, "show", name).stdout)
    print(f"{asked.module}: {tried} changes, {tried - len(left)} noticed, {len(left)} not")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
