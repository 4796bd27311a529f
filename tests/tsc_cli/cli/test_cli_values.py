"""Values that make no sense, in every option of every command: refused in a line before anything is loaded."""

from __future__ import annotations

import resource
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from formats import load, save
from formats.codecs import CODECS
from formats.errors import LimitError, UsageError
from formats.trace.eviction import FILTERS
from tests.support import models
from tsc_cli import capture, verify
from tsc_cli.cli.app import app
from tsc_cli.verification.verify import VerifyOptions

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
NUMBERS = [
    (name, parameter)
    for name, command in COMMANDS.items()
    for parameter in command.params
    if parameter.param_type_name == "option" and hasattr(parameter.type, "clamp")
]
HUGE = [str(1 << 63), str(1 << 64), "9" * 5000, "inf", "nan", "1e400", "", "text"]


def arguments(command: str) -> list[str]:
    """As many as the command takes, none of them there: a value must be refused before they are looked for."""
    count = sum(one.param_type_name == "argument" and one.required for one in COMMANDS[command].params)
    return ["/nowhere/none.tsc"] * count


def test_every_number_is_walked() -> None:
    assert len(NUMBERS) >= 30
    plain = [
        f"{name} {parameter.opts[0]}"
        for name, command in COMMANDS.items()
        for parameter in command.params
        if parameter.type.name in ("int", "integer", "float")
    ]
    assert not plain, "these have no bounds"


# a quick run tries every third; that all have bounds is looked at above
@pytest.mark.parametrize(
    ("command", "option"),
    [
        pytest.param(name, one, id=f"{name}{one.opts[0]}", marks=pytest.mark.full if number % 3 else ())
        for number, (name, one) in enumerate(NUMBERS)
    ],
)
def test_a_number_that_makes_no_sense(tsc: Any, command: str, option: Any) -> None:
    name, kind = option.opts[0], option.type
    assert kind.min is not None
    assert kind.max is not None
    refused = [*HUGE]
    refused += [] if name == "--snapshot" else ["-1"]
    refused += [] if name == "--seed" else [str(1 << 31)]
    refused += ["0"] if kind.min > 0 else []
    refused += ["1e-320"] if kind.min > 0 or "int" in kind.name else []
    for value in refused:
        found = tsc(command, *arguments(command), f"{name}={value}")
        line, *rest = found.err.splitlines()
        assert (found.code, line.startswith("tsc: error: Invalid value for"), name in line) == (2, True, True), (
            found.err
        )
        assert all(one.lstrip().startswith("hint:") for one in rest)
        assert not found.out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    path = folder.parent / f"{folder.name}.tsc"
    save(capture(models.loaded(folder), models.prompt(24), tokenizer=models.byte_tokenizer(), steps=3), path)
    return path


DEVICES = ["mps", "xpu", "hpu", "meta", "cuda:99", "cuda:-1", "nonsense", "", "cpu:x", "CUDA", "cuda:", "9" * 5000]


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_not_here(tsc: Any, device: str, folder: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.tsc"
    for given in (
        ("capture", "hi", "-m", "/nowhere", "-o", out),  # the device is looked at before the model
        ("capture", "hi", "-m", folder, "-o", out),
        ("capture", "--append", file, "-m", folder),
        ("resume", file, "-m", folder),
        ("verify", file, "-m", folder),
        ("compress", file, "-m", folder, "-o", out),
        ("demo", "-m", folder, "-o", out),
        ("calibrate", "-m", folder),
        ("bench", "-m", folder, "-o", tmp_path / "b.json"),
    ):
        found = tsc(*given, "--device", device)
        assert (found.code, device[:200] in found.err, "device" in found.err) == (2, True, True), found.err
        assert not list(tmp_path.iterdir())


TEXTS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "--tier": (
        ("compress", "FILE", "-o", "OUT"),
        ["0x", "-1x", "0.5x", "1e308x", "1e-320x", "nanx", "infx", "x", "", "text", "9" * 30 + "x", "9" * 5000 + "x"],
    ),
    "--quality": (("compress", "FILE", "-o", "OUT"), ["", "0", "nan", "text", "9" * 5000]),
    "--codec": (("compress", "FILE", "-o", "OUT"), ["", "0", "nan", "text", "vq:bits=1", "9" * 5000]),
    "--snapshots": (
        ("verify", "FILE", "-m", "MODEL"),
        ["", "4", "-5", "0-99", "3-0", "1e3", "nan", "text", "0,,1", "0-", str(1 << 64), "0-" + "9" * 30, "9" * 5000],
    ),
    "--layers": (
        ("decode", "FILE", "-o", "TENSORS"),
        ["", "3", "-4", "0-99", "2-0", "nan", "text", "0,,1", str(1 << 64), "9" * 5000],
    ),
    "--context": (("plan", "MODEL"), ["", "0", "-1", "nan", "inf", "1e3", "1.5", str(1 << 31), str(1 << 64), "8q"]),
    "--memory": (("plan", "MODEL"), ["", "0", "-1", "nan", "inf", "1e-320", "9" * 5000, "80", "80XB"]),
    "--bandwidth": (("plan", "MODEL"), ["", "0B/s", "-1B/s", "nan", "inf", "1e-320B/s", "9" * 5000, "10", "text"]),
    "--flops": (("plan", "MODEL"), ["", "0", "-1", "nan", "inf", "1e-320", "9" * 5000, "text"]),
    "--parameters": (("plan", "MODEL"), ["", "0", "-1", "nan", "inf", "9" * 5000, "text"]),
    "--dtype": (("capture", "hi", "-m", "MODEL", "-o", "OUT"), ["", "0", "int8", "float64", "nan", "9" * 5000]),
    "--types": (("probe-weights", "MODEL"), ["text", "q,,zz", "9" * 5000]),
    "--suite": (("bench", "-m", "MODEL", "-o", "JSON"), ["", "0", "text", "9" * 5000]),
}


@pytest.mark.parametrize("option", sorted(TEXTS))
def test_a_text_that_makes_no_sense(tsc: Any, option: str, folder: Path, file: Path, tmp_path: Path) -> None:
    base, wrong = TEXTS[option]
    names = {
        "FILE": file,
        "MODEL": folder,
        "OUT": tmp_path / "o.tsc",
        "TENSORS": tmp_path / "o.safetensors",
        "JSON": tmp_path / "o.json",
    }
    for value in wrong:
        if option == "--memory" and value == "80":  # bytes: a size, if a small one
            continue
        found = tsc(*(names.get(word, word) for word in base), f"{option}={value}")
        assert found.code == 2, (value[:40], found.err)
        assert found.err.startswith("tsc: error: ")
        assert len(found.err.splitlines()) <= 3
        assert not list(tmp_path.iterdir())


CHOSEN = {("--codec", one.name): one.Settings for one in CODECS.values()}
CHOSEN |= {("--codec", "scalar", "--evict", name): kind for name, kind in FILTERS.items()}
SETTINGS = [(given, field.name) for given, kind in CHOSEN.items() for field in fields(kind) if field.name != "profile"]
ODD = ["0", "-1", str(1 << 31), str(1 << 63), str(1 << 64), "1e-320", "inf", "nan", "", "text", "9" * 5000]


# a quick run takes some of one codec: the settings of all are made and checked in one place
@pytest.mark.parametrize(
    ("codec", "name"),
    [
        pytest.param(
            given,
            name,
            id=f"{'.'.join(given[1::2])}.{name}",
            marks=() if given == ("--codec", "scalar") and name in ("bits", "group", "keys") else pytest.mark.full,
        )
        for given, name in SETTINGS
    ],
)
def test_a_setting_that_makes_no_sense(tsc: Any, codec: tuple[str, ...], name: str, file: Path, tmp_path: Path) -> None:
    for value in ODD:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = tsc("compress", file, "-o", tmp_path / "o.tsc", "--no-verify", *codec, "--set", f"{name}={value}", "-f")
        # 0: a value at the edge of its range; 4: a promise that it breaks
        assert found.code in (0, 2, 4), (value[:40], found.err)
        assert found.code or load(tmp_path / "o.tsc").snapshot() is not None
        assert value not in ("", "text", "nan", "inf", "9" * 5000) or found.code == 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000


def test_values_at_the_edge_of_sense(tsc: Any, folder: Path, file: Path, tmp_path: Path) -> None:
    model, out = ("-m", folder), tmp_path / "o.tsc"
    for code, given in (
        (0, ("capture", "hi", *model, "-o", out, "--steps", 2, "--temperature", "1e-320", "--seed", (1 << 63) - 1)),
        (0, ("capture", "hi", *model, "-o", out, "-f", "--steps", 0, "--chunk", 1 << 26, "--every", 1 << 26)),
        (0, ("resume", file, *model, "-n", 2, "--temperature", "5e-324", "--seed", 0)),
        (2, ("resume", file, *model, "-n", (1 << 20) - 1)),  # the model has no such positions
        (2, ("capture", "hi", *model, "-o", tmp_path / "p.tsc", "--steps", (1 << 20) - 1)),
        (2, ("capture", "hi", *model, "-o", tmp_path / "p.tsc", "--context", 1 << 26)),
        (0, ("verify", file, *model, "--positions", 1, "--greedy", 0, "--max-kl", "1e-320", "--min-top1", "1e-320")),
        (2, ("verify", file, *model, "--snapshot", 0)),  # no such option: --snapshots
        (2, ("resume", file, *model, "--snapshot", 4)),
        (2, ("resume", file, *model, "--sequence", 1)),
        (4, ("compress", file, *model, "-o", tmp_path / "p.tsc", "--bits", 0.001)),
        (4, ("compress", file, *model, "-o", tmp_path / "p.tsc", "--tier", "999999999x")),
        (0, ("compress", file, *model, "-o", tmp_path / "q.tsc", "--max-kl", "1e-320", "--positions", 4)),
        (0, ("compress", file, *model, "-o", tmp_path / "r.tsc", "--min-top1", 1, "--positions", 4)),
        (2, ("probe-cache", file, "--skip", 1 << 26)),
    ):
        found = tsc(*given)
        assert found.code == code, (given, found.err)
        assert code != 2 or len(found.err.splitlines()) <= 3
    assert not (tmp_path / "p.tsc").exists()


def test_positions_are_bounded_in_the_library_too(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, trace = models.loaded(folder), load(file)
    for positions in (0, -1, (1 << 16) + 1, 1 << 64):
        with pytest.raises(UsageError, match="positions are not from 1 to 65536"):
            verify(trace, model, options=VerifyOptions(positions=positions))
    with pytest.raises(UsageError, match="seed"):
        verify(trace, model, options=VerifyOptions(seed=1 << 64))
    monkeypatch.setenv("TSC_MEMORY_BUDGET", "1000000")
    with pytest.raises(LimitError, match="the logits of 5000 positions take 12000000 bytes"):
        verify(trace, model, options=VerifyOptions(positions=5000))
