"""Codecs of other packages: found by entry points, used like TSC's own, and no danger to other files if they fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from formats import load, save
from formats.codecs import CODECS, codec_by_id, codec_by_name, codec_name, installed_codecs, is_exact, registered
from formats.codecs.registry import PRIVATE_IDS
from formats.container.records import RecordType
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import Header, write
from formats.errors import PromiseError, UnsupportedFileError, UsageError
from formats.file.check import check
from formats.repair.recover import recover
from formats.trace.distortion import relative_error
from tests import ROOT
from tests.format_conformance import samples
from tests.formats.codecs.test_codecs import HEAD_SIZES, rows_for, there_and_back
from tests.support.traces import finite_rows, growing_trace

MODULE = ROOT / "tests" / "support" / "private_codec" / "tsc_rounded.py"
ID = 0x9A3D
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package that brings a codec, as pip lays it out; returns the folder that is on sys.path."""
    installed: set[str] = set()

    def call(
        package: str = "tsc-rounded", entry: str = "rounded = tsc_rounded:Rounded", source: str | None = None
    ) -> Path:
        folder = tmp_path_factory.mktemp("site")
        module = package.replace("-", "_")
        if source is None:
            shutil.copy(MODULE, folder / f"{module}.py")
        else:
            (folder / f"{module}.py").write_text(source)
        info = folder / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[tsc.codecs]\n{entry}\n")
        monkeypatch.syspath_prepend(folder)
        installed.add(module)
        installed_codecs.cache_clear()
        return folder

    installed_codecs.cache_clear()
    yield call
    for module in installed:
        sys.modules.pop(module, None)
    installed_codecs.cache_clear()


def uninstall(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    installed_codecs.cache_clear()


def rounded_file(path: Path, **recipe: Any) -> None:
    with path.open("wb") as sink:
        write(Source(growing_trace(rows=finite_rows, dtype="float32")), Recipe("rounded", **recipe), sink)


def test_a_codec_of_another_package_is_used_like_any_other(install: Install, tmp_path: Path) -> None:
    install()
    codec = codec_by_name("rounded", {"octets": "3"})
    assert (codec.id, type(codec_by_id(ID, "file")), codec_name(ID)) == (ID, type(codec), "rounded")
    assert registered()[-1].owner == "tsc-rounded 1.2"
    for part in codec.parts:
        for size in HEAD_SIZES:
            rows = rows_for(part, (2, 1, 2, 7, size), "float32")
            assert ((there_and_back(codec, part, rows) - rows).abs() <= rows.abs() * 2.0**-15).all()
    path = tmp_path / "t.tsc"
    rounded_file(path, settings={"octets": 2}, exact_sinks=2)
    trace = check(path).trace()
    assert {block.header.codec for block in trace.blocks} == {2, ID}  # type: ignore[attr-defined]
    assert (trace.codec, trace.parameters["octets"], trace.lost_by) == ("rounded", 2, "rounded")
    assert 0 < relative_error(growing_trace(rows=finite_rows, dtype="float32"), trace) < 2.0**-7
    with pytest.raises(UsageError, match="octets=9 is not from 1 to 8"):
        codec_by_name("rounded", {"octets": 9})


def test_a_damaged_file_of_such_a_codec_is_recovered(install: Install, tmp_path: Path) -> None:
    install()
    path = tmp_path / "t.tsc"
    rounded_file(path)
    path.write_bytes(path.read_bytes()[:-150])
    recover(path, tmp_path / "new.tsc")
    assert len(check(tmp_path / "new.tsc").trace()) == len(growing_trace())


def test_without_the_package_rows_are_refused_by_id_and_name(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = install(), tmp_path / "t.tsc"
    rounded_file(path)
    uninstall(monkeypatch, folder)
    trace = load(path)  # what is not rows can be read
    assert (trace.codec, trace.lost_by) == ("rounded", "rounded")
    with pytest.raises(
        UnsupportedFileError, match=rf"codec {ID} is not known to this reader \(the file's codec is 'rounded'\)"
    ) as caught:
        trace.snapshot(0)
    assert caught.value.hint == "another package brings this codec: install it"
    assert not is_exact(ID)
    with pytest.raises(UsageError, match="there is no codec 'rounded'"):
        codec_by_name("rounded")


EMPTY = "from formats.codecs import Codec\n"
WHOLE = (
    "import dataclasses\nfrom formats.codecs import Codec\nfrom formats.settings import Settings\n\n\n"
    "class Rounded(Codec):\n    id, name = {id}, {name!r}\n"
    "    def encode(self, rows, context=None): raise NotImplementedError\n"
    "    def check(self, tensors, part, shape, what): raise NotImplementedError\n"
    "    def decode(self, tensors, part, shape, device, context=None): raise NotImplementedError\n"
)
BROKEN: dict[str, tuple[str, str, str]] = {
    "fails to import": ("rounded", "import nothing_of_this_name\n", "it fails to import: ModuleNotFoundError"),
    "has no such class": ("rounded", EMPTY, "it fails to import: AttributeError"),
    "raises something odd": ("rounded", "raise RuntimeError('odd')\n", "it fails to import: RuntimeError('odd')"),
    "ends the process": ("rounded", "raise SystemExit(3)\n", "it fails to import: SystemExit(3)"),
    "is no codec": ("rounded", "class Rounded: id, name = 40_000, 'rounded'\n", "is not a class derived from"),
    "is an instance": ("rounded", "Rounded = 7\n", "is not a class derived from"),
    "decodes nothing": ("rounded", EMPTY + "class Rounded(Codec): id = 40_000\n", "does not define check, decode"),
    "a public id": ("rounded", WHOLE.format(id=7, name="rounded"), "its id is 7, and 32768 to 65535 are for private"),
    "an id that is true": ("rounded", WHOLE.format(id=True, name="rounded"), "its id is True"),
    "another name": ("rounded", WHOLE.format(id=40_000, name="other"), "its name is 'other'"),
    "an odd name": ("rou nded", WHOLE.format(id=40_000, name="rou nded"), "its name is 'rou nded'"),
    "a name of ours": ("scalar", WHOLE.format(id=40_000, name="scalar"), "a codec of the format has this name"),
    "settings of another type": (
        "rounded",
        WHOLE.format(id=40_000, name="rounded") + "    Settings = dict\n",
        "its Settings are not a dataclass derived from formats.settings.Settings",
    ),
    "settings without defaults": (
        "rounded",
        WHOLE.format(id=40_000, name="rounded")
        + "    @dataclasses.dataclass(frozen=True)\n    class Settings(Settings):\n        bits: int\n",
        "its Settings need a default each",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_codec_that_cannot_be_used_is_said_to_be_so(
    name: str, install: Install, tsc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And files of other codecs are none the worse for it, nor those of other packages."""
    entry, source, reason = BROKEN[name]
    good = install()
    path, plain = tmp_path / "t.tsc", tmp_path / "plain.tsc"
    rounded_file(path)
    save(growing_trace(), plain)
    if entry == "rounded":
        uninstall(monkeypatch, good)
    install("tsc-broken", f"{entry} = tsc_broken:Rounded", source)
    (fault,) = [one.text for one in installed_codecs().faults]
    assert fault.startswith(f"codec {entry!r} of tsc-broken 1.2 cannot be used: ")
    assert reason in fault
    listed = tsc("tiers", "--codecs")
    assert listed.code == 0
    assert fault in listed.out
    assert tsc("tiers", "--codecs", "--json").json["faults"] == [fault]
    assert tsc("test", "--decode", plain).code == 0
    assert codec_by_name("scalar").id == 2
    done = tsc("test", "--decode", path)
    if entry == "rounded":
        assert "is not known to this reader" in done.out + done.err
        with pytest.raises(UsageError, match="there is no codec 'rounded'") as caught:
            codec_by_name("rounded")
        assert caught.value.hint == fault
        with pytest.raises(UnsupportedFileError) as refused:
            load(path).snapshot(0)
        assert refused.value.hint == fault
    else:
        assert done.code == 0


@pytest.mark.parametrize(("number", "what"), [(ID, f"id {ID}"), (ID + 1, "this name")])
def test_two_packages_that_claim_the_same_are_both_refused(number: int, what: str, install: Install) -> None:
    install()
    name = "rounded" if number != ID else "other"
    install("tsc-other", f"{name} = tsc_other:Rounded", WHOLE.format(id=number, name=name))
    texts = [fault.text for fault in installed_codecs().faults]
    assert len(texts) == 2
    assert all(text.endswith(f"another package has {what}, too") for text in texts)
    assert {text.split(" cannot")[0].split(" of ")[1] for text in texts} == {"tsc-rounded 1.2", "tsc-other 1.2"}
    assert not installed_codecs().codecs
    with pytest.raises(UsageError, match="there is no codec 'rounded'"):
        codec_by_name("rounded")


def test_private_ids_are_the_documented_ones_and_no_codec_of_the_format_has_one() -> None:
    text = (ROOT / "docs" / "codecs.md").read_text()
    assert f"{PRIVATE_IDS.start:,} to {PRIVATE_IDS.stop - 1:,}" in text
    assert not set(CODECS) & set(PRIVATE_IDS)


def test_a_file_of_such_a_codec_states_no_tier_lossless(install: Install) -> None:
    """Whether it keeps every bit is not known where the package is not installed."""
    source = MODULE.read_text().replace('    name = "rounded"\n', '    name = "rounded"\n    exact = True\n')
    install(source=source)
    assert is_exact("rounded")
    assert not is_exact("rounded", own=True)
    with pytest.raises(PromiseError, match="its rows are not as captured"):
        samples.compressed_to(growing_trace(), Recipe("rounded", {"octets": 8}), Header("lossless"))


def test_the_command_line_knows_it(install: Install, tsc: Any, tmp_path: Path) -> None:
    folder = install()
    raw, small = tmp_path / "raw.tsc", tmp_path / "small.tsc"
    save(growing_trace(rows=finite_rows, dtype="float32"), raw)
    words = ["compress", raw, "--codec", "rounded", "--set", "octets=1", "--no-verify", "-o", small]
    done = subprocess.run(  # in a process of its own, which has nothing but the folder to find it by
        [sys.executable, "-m", "tsc_cli", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert tsc("test", "--decode", small).code == 0
    facts = tsc("inspect", small, "--json").json
    assert (facts["codec"], facts["parameters"]["octets"], facts["lost_by"]) == ("rounded", 1, "rounded")
    assert {record.codec for _, record in check(small).entries if record.type == RecordType.ROWS} == {ID}
    listed = tsc("tiers", "--codecs", "--json").json
    assert listed["faults"] == []
    assert listed["codecs"][-1] == {
        "id": ID,
        "name": "rounded",
        "exact": False,
        "package": "tsc-rounded 1.2",
        "settings": {"octets": 2},
    }
    text = tsc("tiers", "--codecs").out
    assert [line.split()[:4] for line in text.splitlines()[2:4]] == [
        ["1", "lossless", "exact", "tsc"],
        ["2", "scalar", "lossy", "tsc"],
    ]
    assert tsc("tiers", "--codecs", "-q").out.split() == [*(kind.name for kind in CODECS.values()), "rounded"]
