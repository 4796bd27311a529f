"""What a .tsc file is: tensors and bytes, and nothing of models or command lines.

The format is specified in `docs/format.md`.  Names are imported when they are first used, and torch
when tensors are first made, so that a program which only looks at a file starts at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy_names import lazy_names

if TYPE_CHECKING:
    from formats.container.encryption import Secret
    from formats.file.reader import load
    from formats.file.save import save
    from formats.file.writer import TraceWriter
    from formats.trace.deduplicate import deduplicate
    from formats.trace.geometry import Geometry, LayerSpec
    from formats.trace.recorder import Recorder, TraceBuilder
    from formats.trace.snapshot import Snapshot
    from formats.trace.trace import Trace

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
    "Geometry": "formats.trace.geometry",
    "LayerSpec": "formats.trace.geometry",
    "Recorder": "formats.trace.recorder",
    "Secret": "formats.container.encryption",
    "Snapshot": "formats.trace.snapshot",
    "Trace": "formats.trace.trace",
    "TraceBuilder": "formats.trace.recorder",
    "TraceWriter": "formats.file.writer",
    "TscError": "formats.errors",
    "deduplicate": "formats.trace.deduplicate",
    "load": "formats.file.reader",
    "save": "formats.file.save",
}


__getattr__, __dir__ = lazy_names(globals(), _HOMES)
