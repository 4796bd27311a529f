"""The bytes of small valid files, for tests that damage them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from formats import Trace, save
from tests.traces import growing_trace


def file_bytes(trace: Trace) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.tsc"
        save(trace, path, deterministic=True)
        return path.read_bytes()


@cache
def trace() -> Trace:
    """Four layers (the first two alike, the last with a sliding window), four snapshots, a reference."""
    built = growing_trace()
    built.reference = [40, 43, 46]
    built.info = {"prompt": "test", "seconds": 0.5}
    built.quality = [{"snapshot": 0, "equal": True}]
    return built


@cache
def valid() -> bytes:
    """`trace()` as a file of about 3.5 KB that holds a record of every known type.

    Records: 0 MODEL; 1, 2 ROWS of layers 0 and 1; 3, 4 of layer 2; 5, 6 of layer 3 (keys, values each);
    7 LABELS (12 rows); 8 VIEWS; 9 REFERENCE; 10 HEADER; 11 INDEX; 12 END.
    """
    return file_bytes(trace())
