"""Save a transformer's KV cache small, restore it, and measure how faithful the restored cache is.

    from tsc_cli import capture, compress, generate_inputs, load, save, to_cache, verify

    trace = capture(model, input_ids, steps=64)             # snapshots of the cache, rows held once
    save(trace, "session.tsc")                              # lossless
    compress(trace, "small.tsc", tier="219x", model=model)  # 219 times smaller than the snapshots, at the best quality
    cache = to_cache(load("session.tsc"), model)            # a transformers Cache
    model.generate(**generate_inputs(load("session.tsc"), model))  # the cache, its tokens, its masks
    report = verify(load("session.tsc"), model)

`save` and `load` are those of `formats`.  Names are imported when they are first used, so that the command line's
help does not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from formats.version import VERSION as __version__

if TYPE_CHECKING:
    from formats import Secret, load, save

    from .appending import append
    from .calibrating import calibrate
    from .capturing import capture
    from .chat import chat_tokens
    from .compressing import compress
    from .foreign import branch, from_cache, from_tuples, repeat, to_tuples
    from .restoring import to_cache
    from .resuming import generate_inputs
    from .verification import verify

__all__ = [
    "Secret", "__version__", "append", "branch", "calibrate", "capture", "chat_tokens", "compress", "from_cache",
    "from_tuples", "generate_inputs", "load", "repeat", "save", "to_cache", "to_tuples", "verify",
]  # fmt: skip

_HOMES = {
    "Secret": "formats",
    "append": "tsc_cli.appending", "branch": "tsc_cli.foreign", "calibrate": "tsc_cli.calibrating",
    "capture": "tsc_cli.capturing", "chat_tokens": "tsc_cli.chat", "compress": "tsc_cli.compressing",
    "from_cache": "tsc_cli.foreign", "from_tuples": "tsc_cli.foreign", "generate_inputs": "tsc_cli.resuming",
    "load": "formats",
    "repeat": "tsc_cli.foreign", "save": "formats", "to_cache": "tsc_cli.restoring", "to_tuples": "tsc_cli.foreign",
    "verify": "tsc_cli.verification",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tsc_cli' has no attribute {name!r}")
    from importlib import import_module

    try:
        home = import_module(_HOMES[name])
    except AttributeError as error:  # Python would take it for "no such name", and hide what went wrong inside
        raise ImportError(f"{_HOMES[name]} cannot be imported: AttributeError: {error}", name=_HOMES[name]) from error
    return getattr(home, name)
