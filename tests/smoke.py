"""A share of the tests with the oldest, or the newest, versions that pyproject.toml allows, in a fresh environment.

`python -m tests.smoke --oldest` and `--newest`, without constraints: the newest are resolved on the day.  torch alone
is pinned, in both, to a version of which the installer has a build without CUDA; `--torch` takes another one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path

from tests import ROOT

TORCH = "2.13.0"
EXTRAS = ("crypto", "gguf", "plot")
_FLOOR = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\d.]+)")
_SHOWN = (
    "transformers",
    "safetensors",
    "zstandard",
    "typer",
    "numpy",
    "torch",
    "tokenizers",
    "huggingface_hub",
    "accelerate",
    "constriction",
    "cryptography",
    "filelock",
    "gguf",
    "google-crc32c",
    "matplotlib",
    "platformdirs",
    "rich",
    "pytest",
)
# what every user meets: capture, restore, resume, append, verify, compress, calibrate, encrypt, the command line
SHARE = (
    "tests/tsc_cli/session/test_append.py::test_a_session_in_parts_is_the_session_in_one",
    "tests/tsc_cli/huggingface/test_bridge.py::test_generate_takes_the_cache",
    "tests/tsc_cli/calibration/test_calibration.py::test_the_library_compresses_with_a_profile",
    "tests/tsc_cli/session/test_capture.py::test_memory_file_and_pipe_hold_the_same",
    "tests/tsc_cli/session/test_capture.py::test_snapshots",
    "tests/tsc_cli/cli/test_cli.py::test_capture_reports",
    "tests/tsc_cli/cli/test_cli.py::test_inspect",
    "tests/tsc_cli/cli/test_cli.py::test_resume_streams_what_the_run_would_have_said",
    "tests/tsc_cli/cli/test_cli.py::test_the_demo",
    "tests/tsc_cli/cli/test_cli.py::test_tiers_and_models",
    "tests/tsc_cli/cli/test_cli.py::test_verify_passes_fails_and_records",
    "tests/tsc_cli/cli/test_cli_compress.py::test_a_tier_is_kept_and_recorded",
    "tests/tsc_cli/cli/test_cli_compress.py::test_by_hand",
    "tests/tsc_cli/cli/test_cli_encrypt.py::test_appending_keeps_it_encrypted",
    "tests/tsc_cli/cli/test_cli_encrypt.py::test_capture_and_its_options",
    "tests/tsc_cli/cli/test_cli_probe_cache.py::test_the_report",
    "tests/tsc_cli/huggingface/test_foreign.py::test_a_cache_of_prompt_lookup_decoding_goes_on",
    "tests/tsc_cli/huggingface/test_foreign.py::test_beams_are_a_batch",
    "tests/tsc_cli/huggingface/test_foreign.py::test_generate_goes_on_as_if_nothing_had_happened",
    "tests/tsc_cli/huggingface/test_foreign.py::test_quantized_caches_are_dequantized",
    "tests/tsc_cli/huggingface/test_foreign.py::test_static_caches",
    "tests/project/test_layers.py::test_starts_without_torch",
    "tests/project/test_python_page.py::test_every_block_runs",
    "tests/tsc_cli/verification/test_recompute.py::test_the_command",
    "tests/project/test_versions.py",
)


def requirements(project: dict[str, object], torch: str, *, oldest: bool) -> list[str]:
    """What pip is asked for: each range as it stands, or the version that it begins with."""
    found = []
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    for line in [*project["dependencies"], *(line for name in EXTRAS for line in extras[name])]:  # type: ignore[misc]
        floor = _FLOOR.match(line)
        if floor is None:
            raise SystemExit(f"pyproject.toml: {line!r} has no floor")
        if floor["name"] == "torch":
            found.append(f"torch=={torch}")
        else:
            found.append(f"{floor['name']}=={floor['version']}" if oldest else line)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.smoke", description=(__doc__ or "").partition("\n")[0])
    end = parser.add_mutually_exclusive_group(required=True)
    end.add_argument("--oldest", action="store_true", help="the version that each range begins with")
    end.add_argument("--newest", action="store_true", help="the newest version that each range allows today")
    parser.add_argument("--torch", default=TORCH, metavar="VERSION", help=f"by default {TORCH}, in both")
    parser.add_argument("--in", dest="folder", type=Path, help="make the environment here, and keep it")
    options = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = requirements(project, options.torch, oldest=options.oldest)
    # the tools are no part of what is tried
    tools = [
        line
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if line.startswith(("pytest", "hypothesis", "execnet"))
    ]
    with tempfile.TemporaryDirectory(prefix="tsc-smoke-") as temporary:
        folder = options.folder or Path(temporary) / "venv"
        python = folder / "bin" / "python"
        started = time.monotonic()
        if not python.exists():
            venv.create(folder, with_pip=True)
        # from a folder where no file of the checkout can be taken for a package
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *asked, *tools]
        subprocess.run(install, cwd=folder, check=True)
        installed = time.monotonic()
        code = (
            f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {_SHOWN!r}), sep=', ')"
        )
        shown = subprocess.run([python, "-c", code], cwd=folder, check=True, capture_output=True, text=True).stdout
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        code_of_tests = subprocess.run(
            [python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *SHARE], cwd=ROOT, env=environment
        ).returncode
        print(f"{'oldest' if options.oldest else 'newest'} allowed: {shown.strip()}")
        print(f"installed in {installed - started:.0f} s, tested in {time.monotonic() - installed:.0f} s")
    return code_of_tests


if __name__ == "__main__":
    sys.exit(main())
