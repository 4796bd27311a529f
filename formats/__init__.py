"""What a .tsc file is: tensors and bytes, and nothing of models or command lines.

The format is specified in `docs/format.md`.  Names are imported when they are first used, and torch when tensors are
first made, so that a program which only looks at a file starts at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .deduplication import deduplicate
    from .encryption import Secret
    from .errors import TscError
    from .geometry import Geometry, LayerSpec
    from .timeline import Recorder, TraceBuilder
    from .trace import Snapshot, Trace
    from .trace_file import load
    from .trace_writer import TraceWriter, save

__all__ = [
    "Geometry", "LayerSpec", "Recorder", "Secret", "Snapshot", "Trace", "TraceBuilder", "TraceWriter", "TscError",
    "deduplicate", "load", "save",
]  # fmt: skip

_HOMES = {
    "TscError": "errors", "Geometry": "geometry", "LayerSpec": "geometry", "Recorder": "timeline",
    "TraceBuilder": "timeline", "deduplicate": "deduplication", "Snapshot": "trace", "Trace": "trace",
    "Secret": "encryption",
    "load": "trace_file", "TraceWriter": "trace_writer", "save": "trace_writer",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'formats' has no attribute {name!r}")
    from importlib import import_module

    home = f"formats.{_HOMES[name]}"
    try:
        found = import_module(home)
    except AttributeError as error:  # Python would take it for "no such name", and hide what went wrong inside
        raise ImportError(f"{home} cannot be imported: AttributeError: {error}", name=home) from error
    return getattr(found, name)
