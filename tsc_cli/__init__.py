"""Save a transformer's KV cache small, restore it, and measure how faithful the restored cache is.

    from tsc_cli import capture, compress, load, save, to_cache, verify

    trace = capture(model, input_ids, steps=64)             # snapshots of the cache, rows held once
    save(trace, "session.tsc")                              # lossless
    compress(trace, "small.tsc", tier="219x", model=model)  # 219 times smaller than the snapshots, at the best quality
    cache = to_cache(load("session.tsc"), model)            # a transformers Cache, ready for model.generate
    report = verify(load("session.tsc"), model)

`save` and `load` are those of `formats`.  Names are imported when they are first used, so that the command line's
help does not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from formats.version import VERSION as __version__

if TYPE_CHECKING:
    from formats import load, save

    from .bridge import to_cache
    from .calibrating import calibrate
    from .capturing import capture
    from .compressing import compress
    from .verification import verify

__all__ = ["__version__", "calibrate", "capture", "compress", "load", "save", "to_cache", "verify"]

_HOMES = {
    "calibrate": "tsc_cli.calibrating", "capture": "tsc_cli.capturing", "compress": "tsc_cli.compressing",
    "load": "formats", "save": "formats", "to_cache": "tsc_cli.bridge", "verify": "tsc_cli.verification",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tsc_cli' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
