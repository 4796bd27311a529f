"""Find the root cause of a failed download in whatever libraries made of it.

Libraries wrap errors several times and say "check your connection" of a full disk. What they raise
differs between their versions, too, so that nothing here rests on one library's classes.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no file may grow so large here",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk failed",
}
# as libraries in Rust and pip say it
_DISK_TEXTS = {os.strerror(number): text for number, text in _DISK.items()}
_DENIED = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_STATUS = {
    401: ("asks for a login", "hf auth login, if you have access"),
    403: ("refuses access", "ask the owner for access, then hf auth login"),
    404: ("has no such thing", "check the name"),
    407: ("is behind a proxy that asks for a login", "put the name and password into the proxy's URL"),
    429: ("was asked too often", "wait a few minutes, or log in with hf auth login"),
}
_LOGIN = re.compile(r"//[^/@\s]*@")
_CHAIN = 32  # more links than any library makes
_NETWORK_HINT = "check the network and the proxy settings, and try again"


@dataclass(frozen=True)
class Cause:
    """The root of a failed transfer.

    Attributes:
        text: one line without names, passwords or control characters of a URL.
        hint: what to do about it.
        local: it lies on this machine (disk, permissions, a proxy setting), so that another source
            would not help.
        unreachable: nothing answered, so that nothing is known of what was asked for.
    """

    text: str
    hint: str
    local: bool = False
    unreachable: bool = False


def cause_of(error: BaseException) -> Cause:
    """What lies at the root of an error that a library raised while it fetched something."""
    links = list(_links(error))
    for link in links:
        cause = _disk(link)
        if cause is not None:
            return cause
    for tell in (_answer, _security, _proxy, _connection):
        for link in links:
            cause = tell(link)
            if cause is not None:
                return cause
    for link in reversed(links):
        if str(link).strip():
            return Cause(first_line(link), _NETWORK_HINT)
    return Cause(type(error).__name__, _NETWORK_HINT)


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, without a login out of a URL."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return without_login(line)


def without_login(text: str) -> str:
    """A text in which no URL shows a name and password."""
    return _LOGIN.sub("//***@", text)


def _links(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was raised from, the outermost first."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting and len(seen) < _CHAIN:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        inner = (link.__cause__, link.__context__, getattr(link, "reason", None), *link.args)
        waiting += [error_inside for error_inside in inner if isinstance(error_inside, BaseException)]


def _disk(link: BaseException) -> Cause | None:
    if isinstance(link, OSError) and link.filename is not None and link.errno in _DENIED:
        text = f"{link.filename} cannot be written: {link.strerror}"
        return Cause(text, "TSC_CACHE and HF_HOME say where things are kept", local=True)
    error_number = link.errno if isinstance(link, OSError) else None
    text = _DISK.get(error_number or 0) or next(
        (ours for theirs, ours in _DISK_TEXTS.items() if theirs in str(link)), ""
    )
    if not text:
        return None
    where = f" ({link.filename})" if isinstance(link, OSError) and link.filename else ""
    return Cause(text + where, "make room, or set TSC_CACHE and HF_HOME to folders on another disk", local=True)


def _answer(link: BaseException) -> Cause | None:
    """What a server said."""
    status = getattr(getattr(link, "response", None), "status_code", None)
    if not isinstance(status, int) or status < 400:
        return None
    if status >= 500:
        return Cause(f"the server failed (HTTP {status})", "try again later")
    text, hint = _STATUS.get(status, ("refuses the request", _NETWORK_HINT))
    return Cause(f"the server {text} (HTTP {status})", hint)


def _security(link: BaseException) -> Cause | None:
    if not isinstance(link, ssl.SSLError):
        return None
    hint = "SSL_CERT_FILE and REQUESTS_CA_BUNDLE name the certificates of a network that has its own"
    detail = getattr(link, "verify_message", "") or link.reason or first_line(link)
    return Cause(f"no secure connection: {detail}", hint, unreachable=True)


def _proxy(link: BaseException) -> Cause | None:
    text = first_line(link)
    if "socks" in text.lower() and isinstance(link, ImportError | ValueError):
        return Cause(
            "the proxy is a SOCKS proxy, for which a package is missing",
            "pip install socksio PySocks, or unset ALL_PROXY and HTTPS_PROXY",
            local=True,
        )
    about_settings = isinstance(link, ValueError) or type(link).__name__ in ("InvalidURL", "UnsupportedProtocol")
    if about_settings and ("proxy" in text.lower() or "scheme" in text.lower() or _is_of_proxy(link)):
        return Cause(f"the proxy setting cannot be used: {text}", "see HTTPS_PROXY, HTTP_PROXY and ALL_PROXY", True)
    if type(link).__name__ == "ProxyError":
        return Cause(f"the proxy does not let it through: {text}", "see HTTPS_PROXY and ALL_PROXY", unreachable=True)
    return None


def _is_of_proxy(link: BaseException) -> bool:
    """Return whether an error arose in reading proxy settings; its text may only name a host."""
    trace = link.__traceback__
    while trace is not None:
        if "proxy" in trace.tb_frame.f_code.co_name.lower() or "proxies" in trace.tb_frame.f_code.co_name.lower():
            return True
        trace = trace.tb_next
    return False


def _connection(link: BaseException) -> Cause | None:
    name = type(link).__name__
    text = None
    if isinstance(link, socket.gaierror):
        text = f"the name of the server cannot be looked up: {link.strerror}"
    elif isinstance(link, TimeoutError) or "Timeout" in name:
        text = "the server does not answer in time"
    elif isinstance(link, ConnectionRefusedError):
        text = "nothing answers at the server's address"
    elif isinstance(link, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        text = "the server broke off the connection"
    elif name in ("RemoteProtocolError", "IncompleteRead", "ProtocolError", "ChunkedEncodingError", "ReadError"):
        text = "the server broke off, or does not speak HTTP"
    elif name == "TooManyRedirects":
        text = "the server redirects in a circle"
    elif name == "OfflineModeIsEnabled":
        return Cause("HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE to ask the hub", unreachable=True)
    elif isinstance(link, OSError) and link.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
        text = f"the server cannot be reached: {link.strerror}"
    return None if text is None else Cause(text, _NETWORK_HINT, unreachable=True)
