"""Writes the files of this folder and expected.json.

python -m tests.format_conformance.attacks
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import zstandard

from formats import load
from formats.errors import TscError
from formats.file import check
from tests.format_conformance import samples
from tests.format_conformance.attacks.corpus import ATTACKS, BASES, FOLDER, VALID, Attack
from tsc_cli.text_format import printable

EXPECTED = FOLDER / "expected.json"


def refusal(path: Path) -> tuple[str, TscError]:
    """Which of opening, checking (`tsc test`) and restoring meets the lie first, and what it says."""
    try:
        load(path)
    except TscError as error:
        return "open", error
    try:
        file = check.check(path)
    except TscError as error:
        return "test", error
    try:
        for block in file.blocks[::-1]:  # predicted ones before what predicts them
            block.read()
    except TscError as error:
        return "restore", error
    raise AssertionError(f"{path} is accepted")


def entry(attack: Attack) -> dict[str, Any]:
    met_by, error = refusal(attack.path)
    assert type(error) is attack.error, (attack.name, error)
    assert attack.message in error.message, (attack.name, error.message)
    stated = met_by != "restore"  # else what is read first decides where it is met
    return {
        "tries": attack.tries,
        "base": f"valid/{attack.base}.tsc",
        "met_by": met_by,
        "kind": {"CorruptError": "corrupt", "UnsupportedFileError": "unsupported"}[type(error).__name__],
        "error": type(error).__name__,
        "exit_code": error.exit_code,
        "message": printable(attack.message),
        "record": error.record if stated else None,
        "offset": error.offset if stated else None,
    }


def expected() -> dict[str, Any]:
    """What is in expected.json; the files have to be there."""
    return {
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "valid": {f"valid/{name}.tsc": sample for name, sample in BASES.items()},
        "attacks": {attack.path.name: entry(attack) for attack in ATTACKS},
    }


def main() -> int:
    VALID.mkdir(exist_ok=True)
    for name, sample in BASES.items():
        if not (path := VALID / f"{name}.tsc").exists():  # else what it was made of would change with it
            path.write_bytes(samples.sample(sample))
    for attack in ATTACKS:
        attack.path.write_bytes(attack.build())
    EXPECTED.write_text(json.dumps(expected(), indent=1) + "\n", "utf-8")
    print(f"{len(ATTACKS)} files, {sum(attack.path.stat().st_size for attack in ATTACKS)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
