"""The documentation is true: generated pages are fresh, the README's lines are the ones that CI runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from formats import limits
from formats.codecs import CODECS
from formats.codecs.klt import codec as klt
from formats.codecs.klt import group, profile, shape, symbols
from formats.container import encryption, records
from formats.container.records import RecordType
from formats.trace import geometry
from tests import ROOT

README = (ROOT / "README.md").read_text()
FORMAT = (ROOT / "docs" / "format.md").read_text()
SETUP = "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt "


@pytest.mark.parametrize(("page", "script"), [("cli.md", "generate_cli"), ("models.md", "generate_models")])
def test_the_generated_page_is_fresh(page: str, script: str) -> None:
    code = f"import sys; sys.path.insert(0, 'docs'); import {script} as g; sys.stdout.write(g.generate())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == (ROOT / "docs" / page).read_text(), f"run python docs/{script}.py"


@pytest.mark.parametrize(
    ("page", "script", "tables"),
    [
        ("claims.md", "generate_claims", 5),
        ("klt.md", "generate_claims", 6),
        ("../README.md", "generate_claims", 1),
        ("probes.md", "generate_probes", 5),
    ],
)
def test_the_tables_are_the_measurements(page: str, script: str, tables: int) -> None:
    code = (
        f"import sys; sys.path.insert(0, 'docs'); import {script} as g; "
        f"sys.stdout.write(g.generate((g.DOCS / {page!r}).read_text('utf-8')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    text = (ROOT / "docs" / page).read_text("utf-8")
    assert done.stdout == text, f"run python docs/{script}.py"
    assert text.count("<!-- table ") == tables


def test_the_picture_shows_every_row_of_the_measurement(tmp_path: Path) -> None:
    code = (
        "import sys, json; sys.path.insert(0, 'docs'); import generate_picture as g; from pathlib import Path; "
        f"g.draw(Path({str(tmp_path / 'ratio.png')!r})); print(json.dumps(g.points()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    points = json.loads(done.stdout)
    rows = json.loads((ROOT / "docs" / "benchmarks" / "ladder.json").read_text("utf-8"))["rows"]
    assert points == {
        kind: {row["label"]: [row["ratio_final_fp32"] / 2, row["kl_mean"]] for row in rows if row["kind"] == kind}
        for kind in ("klt", "baseline", "peer")
    }
    assert (tmp_path / "ratio.png").stat().st_size > 10_000


def test_the_readme_gives_exactly_two_setup_lines() -> None:
    lines = [line for line in README.splitlines() if line.startswith(SETUP)]
    assert [line.removeprefix(SETUP) for line in lines] == [
        "'.[gguf]' && .venv/bin/tsc demo",  # the default model is a GGUF file
        "-e '.[test]' && .venv/bin/python -m pytest -n 2 --dist loadfile",
    ]


def test_ci_takes_its_line_from_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    found = re.search(r"^line=\$\((sed .*)\)$", ci, re.MULTILINE)
    assert found
    done = subprocess.run(["bash", "-c", found[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{SETUP}-e '.[test]' && .venv/bin/python -m pytest -n 2 --dist loadfile\n"
    assert "pip install" not in ci


@pytest.mark.parametrize(
    "page", sorted((ROOT).glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_specification_lists_every_record_type_and_codec() -> None:
    for kind in RecordType:
        assert re.search(rf"^\| 0x{kind:02x} \| {kind.name} \|", FORMAT, re.MULTILINE), kind
    for number, codec in CODECS.items():
        assert re.search(rf"^\| {number} \| {codec.name}", FORMAT, re.MULTILINE), codec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("that of a profile) | 1 MiB, nested 16 deep", (limits.MAX_JSON_BYTES, limits.MAX_JSON_DEPTH) == (1 << 20, 16)),
        ("| 65,536 code points", limits.MAX_STRING == 65536),
        ("dimensions of a tensor | 4,096; 8 |", (limits.MAX_TENSORS, limits.MAX_TENSOR_RANK) == (4096, 8)),
        ("| layers of a model; runs of layers in MODEL | 4,096; 4,096 |", limits.MAX_LAYERS == 4096),
        ("padding of a sequence | 2^20 |", limits.MAX_EXTENT == 1 << 20),
        ("extents of a state's shape | 16; 6 |", (geometry.MAX_STATES, geometry.MAX_STATE_RANK) == (16, 6)),
        ("| labelled rows; token ids of all of them | 2^26; 2^26 |", limits.MAX_ROWS == 1 << 26),
        ("tokens of REFERENCE | 2^20; 2^20 |", limits.MAX_LABELS_PER_RECORD == 1 << 20),
        (
            "each sequence has its own | 2^20; 2^22; 2^22 |",
            (limits.MAX_SNAPSHOTS, limits.MAX_COLUMNS, limits.MAX_NEXT_TOKENS) == (1 << 20, 1 << 22, 1 << 22),
        ),
        ("over all VIEWS records | 2^22 |", limits.MAX_SPANS == 1 << 22),
        ("entries of `quality` | 2^20 |", limits.MAX_SNAPSHOTS == 1 << 20),
        ("| records | 2^20", limits.MAX_RECORDS == 1 << 20),
        ("states, when decoded | 256 MiB", limits.MAX_BLOCK_BYTES == 256 << 20),
        ("follows from one to the next | 64 |", limits.MAX_CHAIN == 64),
        (
            "256 MiB; and, if over 16 MiB, 1,024 times",
            (limits.MAX_RECORD_RAW, limits.FREE_RAW, limits.MAX_RATIO) == (256 << 20, 16 << 20, 1024),
        ),
        (
            "records together | 16 MiB plus 64 times the length of the file |",
            (limits.FREE_TABLES, limits.TABLES_RATIO) == (16 << 20, 64),
        ),
        (
            "records together | 2^18 plus a quarter of the length of the file",
            (limits.FREE_LAYERS, limits.LAYERS_SHARE) == (2**18, 4),
        ),
        (
            "its raw length, a 128th of that (rounded down) and 4 KiB",
            (limits.FRAME_SHARE, limits.FRAME_MORE) == (128, 4096),
        ),
        ("| window of a zstd frame | 8 MiB |", limits.MAX_WINDOW == 8 << 20),
        ("Version 1.0.", (records.MAJOR, records.MINOR) == (1, 0)),
        ("reads and writes minor version 0", records.MINOR == 0),
        (
            "with N = 131,072, r = 8, p = 1",
            (encryption.SCRYPT_N, encryption.SCRYPT_R, encryption.SCRYPT_P) == (131_072, 8, 1),
        ),
        ("| a profile | 1 GiB;", limits.MAX_PROFILE_BYTES == 1 << 30),
        ("fineness (−1,024 to 2,048)", klt.FINENESS == (-1024, 2048)),
        (
            "entries of `curve` | 256; 4,096, 2^14 and 64; 256 |",
            (profile.MAX_GROUPS, shape.MAX_RANK, shape.MAX_BANDS) == (256, 1 << 14, 64),
        ),
        ("−3,200 to 3,200: of coefficients", group.MAX_SCALE == 3200),
        ("a number from 2^−100 to 2^100", shape.MAX_STEP == 2.0**100),
        ("numbers from −1,024 to 1,024", shape.MAX_FREQUENCY == 1024),
        ("U32 `[41, 256]`", symbols.CLASSES == 41),
        ("not less than −24 and not more than 16, plus 24", (symbols.LOWEST, symbols.HIGHEST) == (-24, 16)),
        ("(symbol − 127) × 2^low", (symbols.REACH, symbols.ESCAPE) == (127, 255)),
    ],
)
def test_the_specification_states_the_limits_of_the_code(text: str, value: bool) -> None:
    assert text in FORMAT
    assert value
