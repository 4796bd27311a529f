"""What a file says, its name included, reaches no terminal, figure or JSON as it is."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from formats.file import check
from tests.format_conformance import samples
from tests.format_conformance.attacks.corpus import BIDI, ESCAPES, MARKUP, base
from tests.format_conformance.craft import HEADER, MODEL, PROFILE, Craft
from tests.format_conformance.liars_profile import described, reprofiled
from tests.support import models
from tests.support.traces import FULL, finite_rows, growing_trace
from tsc_cli.cli.output import Output
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.models.loading import load as load_model
from tsc_cli.text_format import plain, printable

EVIL = f"{ESCAPES}{BIDI}{MARKUP}\nFORGED line\x7f\x85\u2028$\\frac{{"
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def assert_harmless(text: str) -> None:
    found = UNSAFE.search(text)
    assert not found, ascii(text[max(0, found.start() - 60) : found.end() + 20])
    assert not re.search("^FORGED", text, re.MULTILINE), text


def poisoned(name: str, fields: Iterable[str] = ()) -> bytes:
    """A valid file with every free-form string and key replaced, and figures that are strings where that is allowed.

    Args:
        name: in `valid/`, or "long": one with as many rows as `tsc probe-cache` compares.
        fields: of the fingerprint, as a model has them.
    """
    long = growing_trace((FULL, FULL), dtype="float32", lengths=(40, 44), rows=finite_rows)
    craft = Craft.of(samples.file_bytes(long) if name == "long" else base(name))

    def model(value: Any) -> None:
        value["fingerprint"] = dict.fromkeys(("architecture", *fields, EVIL), EVIL)
        for number, state in enumerate(one for run in value["layers"] for one in run.get("states", ())):
            state["name"] = f"{number}{EVIL}"

    def header(value: Any) -> None:
        figures = ("snapshot", "kl_mean", "top1", "positions", "reference", "verdict", EVIL)
        value |= {"tier": EVIL, "created_by": EVIL, "quality": [dict.fromkeys(figures, EVIL), {"kl_mean": True}]}
        value["capture"] = dict.fromkeys(("model", "feeds", "chunk", "prompt_tokens", "appended", EVIL), EVIL)
        value |= {"codec": EVIL, "parameters": {"bits": EVIL, EVIL: EVIL, "profile": EVIL}}

    craft[MODEL].edit_json(model)
    craft[HEADER].edit_json(header)
    if name == "klt":
        info = {EVIL: EVIL, "tokens": EVIL, "texts": EVIL, "created": EVIL}
        reprofiled(craft, described(lambda value: value.update(name=EVIL, info=info, fingerprint={EVIL: EVIL})))
    return craft.build()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_small_model(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def fields(model_folder: Path) -> list[str]:
    """Of the fingerprint of that model."""
    loaded = load_model(str(model_folder), say=lambda _: None)
    return list(fingerprint.of(loaded.model, loaded.tokenizer))


def calls(path: Path, folder: Path, model: Path) -> Iterator[list[object]]:
    for flag in ("--layers", "--records", "--json"):
        yield ["inspect", path, flag]
    for command in ("test", "doctor"):
        yield [command, path]
        yield [command, path, "--json"]
    yield ["recover", path, "-o", folder / "recovered.tsc", "--force"]
    yield ["decode", path, "-o", folder / "out.safetensors", "--force"]
    yield ["verify", path]
    yield ["verify", path, "-m", model]
    yield ["resume", path, "-m", model]
    yield ["resume", path, "more"]
    yield ["capture", "--append", path, "more"]
    yield ["compress", path, "--codec", "lossless", "-o", folder / "compressed.tsc", "--force"]
    yield ["probe-cache", path, "--skip", 1, "--layers", "--no-rope", "--plot", folder / "figure.svg", "--force"]


@pytest.mark.parametrize(
    "name", ["long", "hybrid", *(pytest.param(one, marks=pytest.mark.full) for one in ("scalar", "klt"))]
)
def test_strings_of_a_valid_file(
    name: str, tsc: Any, tmp_path: Path, model_folder: Path, fields: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))  # no profile of this machine

    path = tmp_path / f"{name}\x1b[31m\u202e[bold]\n.tsc"
    path.write_bytes(poisoned(name, fields))
    file = check.check(path)
    assert (file.header.tier, file.header.created_by) == (EVIL, EVIL)
    for words in calls(path, tmp_path, model_folder):
        done = tsc(*words)
        assert done.code in (0, 2, 3), (words, done.code, done.err)  # never a bug of ours
        assert_harmless(done.out)
        assert_harmless(done.err)
        if words[0] == "inspect":
            assert done.code == 0
            assert "owned" in done.out
        if "--json" in words:
            assert done.json["path" if words[0] != "test" else "files"]
        if words[0] == "verify" and "-m" in words:
            assert "owned" in done.err  # the refusal says what the file says
        if name == "long" and words[0] == "probe-cache":
            assert done.code == 0, done.err
            assert_harmless((tmp_path / "figure.svg").read_text("utf-8"))


def test_profiles_are_listed_harmlessly(tsc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    craft = Craft.of(base("klt"))
    info = {EVIL: EVIL, "tokens": EVIL, "texts": EVIL, "created": EVIL}
    reprofiled(craft, described(lambda value: value.update(name=EVIL, info=info)))
    (tmp_path / "profile").write_bytes(craft[PROFILE].tensors()["data"][2])
    for words in (["profiles", "--import", tmp_path / "profile"], ["profiles"], ["profiles", "--json"]):
        done = tsc(*words)
        assert done.code == 0
        assert "owned" in done.out
        assert_harmless(done.out + done.err)


def test_a_state_does_not_take_the_place_of_keys(tsc: Any, tmp_path: Path) -> None:
    craft = Craft.of(base("hybrid"))
    runs = json.loads(craft[MODEL].raw)["layers"]
    at = next(number for number, run in enumerate(runs) if "states" in run and run["kind"] != "none")
    layer = sum(run["count"] for run in runs[:at])
    craft[MODEL].edit_json(lambda value: value["layers"][at]["states"][0].update(name="keys"))
    (tmp_path / "states.tsc").write_bytes(craft.build())
    done = tsc("decode", tmp_path / "states.tsc", "-o", tmp_path / "out.safetensors")
    assert done.code == 3
    assert f"layer {layer} has a state with the name of its rows, 'keys'" in done.err
    assert not (tmp_path / "out.safetensors").exists()


def test_markup_in_a_name_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", screen)
    with Output().progress("testing [/nothing] [bold]x[/bold]\x1b[2J") as advance:
        advance(1)
    assert "testing [/nothing] [bold]x[/bold]" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()


def test_escaping() -> None:
    assert_harmless(printable(EVIL))
    assert "\n" not in printable(EVIL)
    assert plain("a$b\n") == r"a\$b\n"
    with pytest.raises(AssertionError):
        assert_harmless(ESCAPES)
