"""What a .tsc file is: tensors and bytes, and nothing of models or command lines.

The format is specified in `docs/format.md`.  Names are imported when they are first used, and torch
when tensors are first made, so that a program which only looks at a file starts at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from formats.container.encryption import Secret
    from formats.file.reader import load
    from formats.file.save import save
    from formats.file.writer import TraceWriter
    from formats.trace.deduplicate import deduplicate
    from formats.trace.geometry import Geometry, LayerSpec
    from formats.trace.recorder import Recorder, TraceBuilder
    from formats.trace.trace import Snapshot, Trace

    from .errors import TscError

__all__ = [
    "Geometry",
    "LayerSpec",
    "Recorder",
    "Secret",
    "Snapshot",
    "Trace",
    "TraceBuilder",
    "TraceWriter",
    "TscError",
    "deduplicate",
    "load",
    "save",
]

_HOMES = {
    "Geometry": "trace.geometry",
    "LayerSpec": "trace.geometry",
    "Recorder": "trace.recorder",
    "Secret": "container.encryption",
    "Snapshot": "trace.trace",
    "Trace": "trace.trace",
    "TraceBuilder": "trace.recorder",
    "TraceWriter": "file.writer",
    "TscError": "errors",
    "deduplicate": "trace.deduplicate",
    "load": "file.reader",
    "save": "file.save",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'formats' has no attribute {name!r}")
    from importlib import import_module

    home = f"formats.{_HOMES[name]}"
    try:
        module = import_module(home)
    except AttributeError as error:  # Python would take it for "no such name", and hide what went wrong inside
        raise ImportError(f"{home} cannot be imported: AttributeError: {error}", name=home) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    """The public names, so that completion shows them before anything was imported."""
    return sorted(__all__)
