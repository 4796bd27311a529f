"""What a .tsc file is: tensors and bytes, and nothing of models or command lines.

The format is specified in `docs/format.md`.  Importing this package does not import torch; functions that make
tensors import it when they are called.
"""

from .errors import TscError
from .geometry import Geometry, LayerSpec
from .timeline import Recorder, TraceBuilder, deduplicate
from .trace import Snapshot, Trace
from .trace_file import load
from .trace_writer import TraceWriter, save

__all__ = [
    "Geometry", "LayerSpec", "Recorder", "Snapshot", "Trace", "TraceBuilder", "TraceWriter", "TscError",
    "deduplicate", "load", "save",
]  # fmt: skip
