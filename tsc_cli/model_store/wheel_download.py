"""Download a wheel from a package index over HTTP, by PEP 503 and PEP 691, without an installer.

Where pip is not installed, the index is the one that pip's or uv's settings name, else the public
one.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from configparser import ConfigParser, Error
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from formats.errors import StorageError
from tsc_cli.progress import Progress, Stage

from .network_errors import without_login

PUBLIC = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5, application/vnd.pypi.simple.v1+html;q=0.6"
_TIMEOUT = (10, 30)  # seconds: for a connection, and between two pieces
TRIES = 3
_PIECE = 1 << 14  # what a broken connection loses at most
_MAX_PAGE = 16 << 20


class _Links(HTMLParser):
    """The links of an index page of PEP 503."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = dict(attrs).get("href")
        if tag == "a" and link:
            self.found.append(link)


def download(project: str, version: str, folder: Path, stage: Stage, *, at_most: int) -> Path:
    """Fetch the wheel of a pure Python project into `folder`, and check the index's hash of it.

    Args:
        stage: opens a progress bar over so many bytes.
        at_most: bytes beyond which it cannot be the file.
    Raises:
        StorageError: no index has it, or what came is not what the index announced.
        OSError, ValueError: as `requests` raises them, where an index cannot be reached.
    """
    import requests

    with requests.Session() as session:
        if "PIP_CERT" in os.environ and "REQUESTS_CA_BUNDLE" not in os.environ:
            session.verify = os.environ["PIP_CERT"]
        trouble: Exception | None = None
        for index in indexes():
            try:
                wheel = _find(session, index, project, version)
            except (OSError, ValueError) as error:  # one of several indexes may be gone
                trouble = trouble or error
                continue
            if wheel is not None:
                return _fetch(session, *wheel, folder, stage, at_most)
        if trouble is not None:
            raise trouble
    raise StorageError(f"no package index has {project} {version}", hint="see PIP_INDEX_URL and UV_DEFAULT_INDEX")


def indexes() -> list[str]:
    """The indexes of this machine over HTTP, the main one first."""
    pip, uv = _pip_settings(), _uv_settings()
    environment = os.environ
    main = (
        environment.get("PIP_INDEX_URL")
        or environment.get("UV_DEFAULT_INDEX")
        or environment.get("UV_INDEX_URL")
        or pip.get("index-url")
        or uv.get("index-url")
        or PUBLIC
    )
    more = " ".join(
        [
            environment.get("PIP_EXTRA_INDEX_URL") or pip.get("extra-index-url", ""),
            environment.get("UV_EXTRA_INDEX_URL", ""),
            environment.get("UV_INDEX", ""),
            uv.get("extra-index-url", ""),
        ]
    )
    # uv may name an index: NAME=URL
    urls = [re.sub(r"^[\w.-]+=", "", url) for url in (main, *more.split())]
    return list(dict.fromkeys(url for url in urls if url.startswith(("http://", "https://"))))


def _pip_settings() -> Mapping[str, str]:
    import platformdirs

    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return {}
    home, user = Path.home(), Path(platformdirs.user_config_dir("pip", appauthor=False, roaming=True))
    name = "pip.conf"
    system = [Path(folder, "pip", name) for folder in platformdirs.site_config_dir(multipath=True).split(os.pathsep)]
    files = [*system, Path("/etc") / name, home / ".pip" / name, user / name, Path(sys.prefix) / name]
    settings: dict[str, str] = {}
    for file in [*files, *([Path(named)] if named else [])]:
        parser = ConfigParser(interpolation=None)
        try:
            parser.read_string(file.read_text("utf-8"))
        except (OSError, ValueError, Error):
            continue
        for section in ("global", "download"):
            if parser.has_section(section):
                settings |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    return settings


def _uv_settings() -> Mapping[str, str]:
    import platformdirs

    named = os.environ.get("UV_CONFIG_FILE")
    files = (
        [Path(named)]
        if named
        else [
            Path("/etc/uv/uv.toml"),
            Path(platformdirs.user_config_dir("uv", appauthor=False, roaming=True)) / "uv.toml",
        ]
    )
    settings: dict[str, str] = {}
    for file in files:
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        for place in (values, values.get("pip", {})):
            if isinstance(place, dict) and isinstance(place.get("index-url"), str):
                settings["index-url"] = place["index-url"]
        listed = values.get("index")
        for index in listed if isinstance(listed, list) else []:
            if isinstance(index, dict) and isinstance(index.get("url"), str):
                key = "index-url" if index.get("default") else "extra-index-url"
                settings[key] = " ".join(filter(None, [settings.get(key) if key != "index-url" else "", index["url"]]))
    return settings


def _find(session: Any, index: str, project: str, version: str) -> tuple[str, str | None] | None:
    """(URL, SHA-256 if the index has one) of a project's wheel for every system."""
    page = f"{index.rstrip('/')}/{re.sub('[-_.]+', '-', project).lower()}/"
    with session.get(page, headers={"Accept": _ACCEPT}, timeout=_TIMEOUT, stream=True) as answer:
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        data = answer.raw.read(_MAX_PAGE + 1, decode_content=True)
        if len(data) > _MAX_PAGE:
            raise StorageError(f"the page of {project} is too long", path=without_login(index))
        base, kind = answer.url, answer.headers.get("Content-Type", "")
    wanted = f"{re.sub('[-_.]+', '_', project).lower()}-{version}-py3-none-any.whl"
    for link, digest in _json_files(data) if "json" in kind else _html_files(data):
        url = urljoin(base, link)
        if unquote(urlsplit(url).path.rpartition("/")[2]).lower() == wanted:
            return url, digest
    return None


def _json_files(data: bytes) -> Iterator[tuple[str, str | None]]:
    import json

    files = json.loads(data)
    files = files.get("files") if isinstance(files, dict) else None
    for file in files if isinstance(files, list) else []:
        if isinstance(file, dict) and isinstance(file.get("url"), str):
            hashes = file.get("hashes")
            digest = hashes.get("sha256") if isinstance(hashes, dict) else None
            yield file["url"], digest if isinstance(digest, str) else None


def _html_files(data: bytes) -> Iterator[tuple[str, str | None]]:
    parser = _Links()
    parser.feed(data.decode("utf-8", "replace"))
    for link in parser.found:
        url, fragment = urldefrag(link)
        yield url, fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None


def _fetch(session: Any, url: str, digest: str | None, folder: Path, stage: Stage, at_most: int) -> Path:
    """Fetch a file, and resume a broken download where it ended if the server can."""
    import requests

    name = unquote(urlsplit(url).path.rpartition("/")[2])
    target = folder / os.path.basename(name)
    with stage(f"downloading {name}", None) as advance, target.open("wb") as file:
        for left in reversed(range(TRIES)):
            try:
                if _go_on(session, url, file, at_most, advance):
                    break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                if left == 0:
                    raise
            if left == 0:
                raise StorageError(f"the index broke off after {file.tell()} bytes of {name}", hint="try again")
            time.sleep(1)
    with target.open("rb") as file:
        digest_here = hashlib.file_digest(file, "sha256").hexdigest()
    if digest is not None and digest_here != digest.lower():
        raise StorageError(f"{name} is not the file that the index announced: SHA-256 {digest_here}", hint="try again")
    return target


def _go_on(session: Any, url: str, file: Any, at_most: int, advance: Progress) -> bool:
    """Append what is missing; whether the server sent all that it announced."""
    offset = file.tell()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with session.get(url, headers=headers, timeout=_TIMEOUT, stream=True) as answer:
        # nothing is missing, or the file is another one now: its hash will tell
        if answer.status_code == 416:
            return True
        answer.raise_for_status()
        if offset and answer.status_code != 206:  # from the start again
            file.seek(0)
            file.truncate()
        length = answer.headers.get("Content-Length", "")
        end = file.tell() + int(length) if length.isdigit() else None
        for piece in answer.iter_content(_PIECE):
            file.write(piece)
            advance(len(piece))
            if file.tell() > at_most:
                raise StorageError(f"{without_login(url)} sends more than the file can have", hint="see PIP_INDEX_URL")
    return end is None or file.tell() >= end
