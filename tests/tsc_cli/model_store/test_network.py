"""What a network does to the commands that ask one: a line that names the cause at the root, exit code 2, never 101."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.support import fake_hub, models

SCRIPT = """
import contextlib, io, json, sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.01))  # between the tries of huggingface_hub
from tsc_cli.cli.main import run
from tsc_cli.model_store import hub
hub.ANSWER = 1.0  # seconds until a hub that is silent is given up
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, fake_hub.Hub]]:
    folder = tmp_path_factory.mktemp("hub")
    models.save_small_model(folder / "small")
    with fake_hub.serving(folder) as (address, server):
        yield address, server


def run(commands: list[list[str]], cache: Path, address: str, **environment: str) -> list[tuple[int, str, str]]:
    """Commands of one process that has its own caches and asks the hub at `address`."""
    clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and key != "HF_HUB_OFFLINE"}
    own = {
        "HF_HOME": str(cache / "hf"),
        "TSC_CACHE": str(cache / "tsc"),
        "HF_ENDPOINT": address,
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        env=clean | own | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def one_line(done: tuple[int, str, str], *said: str) -> None:
    code, out, err = done
    errors = [line for line in err.splitlines() if line.startswith("tsc: error: ")]
    assert (code, out, len(errors)) == (2, "", 1), done
    assert "hint: " in err
    for words in said:
        assert words in errors[0], done


CAUSES = {
    "gated": "only to those who were granted access",
    "s401": "HTTP 401",
    "s403": "HTTP 403",
    "s429": "HTTP 429",
    "s500": "HTTP 500",
    "s503": "HTTP 503",
    "rude": "the server broke off",
    "circle": "redirects in a circle",
    "nonsense": "does not speak HTTP",
    "silent": "does not answer in time",
}


def test_every_way_in_which_a_hub_fails_is_named(hub: Any, tmp_path: Path) -> None:
    kinds = (["plan"], ["probe-weights"], ["models", "add"], ["capture", "x", "-o", "-", "-m"])
    commands = [[*words, f"{way}/small"] for way in CAUSES for words in kinds if way != "silent" or words == ["plan"]]
    found = run(commands, tmp_path, hub[0])
    for words, done in zip(commands, found, strict=True):
        one_line(done, CAUSES[words[-1].split("/")[0]])


def test_a_model_that_does_not_come_as_announced_is_not_taken(hub: Any, tmp_path: Path) -> None:
    commands = [["plan", "swapped/small"], ["models", "add", "broken/small"], ["models", "add", "short/small"]]
    swapped, broken, short = run(commands, tmp_path, hub[0])
    one_line(swapped, "the config.json of swapped/small is not the one that the hub announced")
    one_line(broken, "of broken/small", "the server broke off")
    one_line(short, "of short/small cannot be fetched: ")
    left = [path for path in (tmp_path / "hf").rglob("*") if path.is_file() and "snapshots" in str(path)]
    assert left == []


def test_a_model_that_is_not_there(hub: Any, tmp_path: Path) -> None:
    commands = [
        ["plan", "good/none"],
        ["plan", "good/small"],
        ["probe-weights", "good/none"],
        ["models", "add", "good/none"],
        ["capture", "x", "-m", "good/none", "-o", "-"],
    ]
    found = run(commands, tmp_path, hub[0])
    assert found.pop(1)[2] == "looking for the config.json of good/small on the model hub\n"
    for done in found:
        one_line(done, "the hub knows no model good/none")


PROXIES = {
    "socks5://127.0.0.1:9": "SOCKS proxy, for which a package is missing",
    "socks5h://user:secret@127.0.0.1:9": "SOCKS proxy, for which a package is missing",
    "nonsense://127.0.0.1:9": "the proxy setting cannot be used",
    "http://127.0.0.1:port": "the proxy setting cannot be used",
    "http://user:secret@127.0.0.1:9": "",
}


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_proxy_that_cannot_be_used_is_named(proxy: str, hub: Any, tmp_path: Path) -> None:
    commands = [["plan", "good/small"], ["models", "add", "good/small"]]
    for done in run(commands, tmp_path, "http://hub.invalid", ALL_PROXY=proxy, HTTP_PROXY=proxy):
        one_line(done, PROXIES[proxy])
        assert "secret" not in done[2]


def test_a_hub_that_is_nowhere(tmp_path: Path) -> None:
    found = run([["plan", "good/small"]], tmp_path, "http://hub.invalid")
    one_line(found[0], "cannot be looked up")
    found = run([["plan", "good/small"]], tmp_path, f"http://127.0.0.1:{fake_hub.unused_port()}")
    one_line(found[0], "nothing answers")


def test_no_secure_connection(hub: Any, tmp_path: Path) -> None:
    found = run([["plan", "good/small"]], tmp_path, hub[0].replace("http:", "https:"))
    one_line(found[0], "no secure connection")


@pytest.mark.full  # several processes
def test_a_hub_model_is_fetched_named_and_found_without_the_hub(hub: Any, tmp_path: Path) -> None:
    file = str(tmp_path / "t.tsc")
    capture = ["capture", "abc", "--steps", "1", "-q", "-o"]
    commands = [
        ["models", "add", "good/small", "--name", "tiny", "--json"],
        [*capture, file, "-m", "tiny"],
        ["plan", "tiny", "--json"],
        [*capture, f"{file}2", "-m", "good/small"],
        ["models", "--json"],
        ["models", "remove", "tiny"],
    ]
    found = run(commands, tmp_path, hub[0])
    assert [done[0] for done in found] == [0] * 6, found
    assert json.loads(found[0][1])["name"] == "tiny"
    assert "tiny" in {model["name"] for model in json.loads(found[4][1])["models"]}
    assert "good/small stays in the hub cache" in found[5][1]
    offline = run(
        [[*capture, f"{file}3", "-m", "good/small"], ["resume", file, "-n", "2"]], tmp_path, "http://hub.invalid"
    )
    assert [done[0] for done in offline] == [0, 0], offline


def test_a_full_disk_is_not_called_a_network(hub: Any, tmp_path: Path) -> None:
    limit = 2_000

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and key != "HF_HUB_OFFLINE"}
    own = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub[0], "HF_HUB_DISABLE_XET": "1", "TSC_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tsc_cli", "models", "add", "good/small"],
        env=clean | own,
        capture_output=True,
        text=True,
        preexec_fn=small_files,
        timeout=120,
        check=False,
        cwd=ROOT,
    )
    one_line((done.returncode, done.stdout, done.stderr), "no file may grow so large here")
    assert "network" not in done.stderr
