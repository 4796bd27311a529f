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
    from tsc_cli.calibration.calibrate import calibrate
    from tsc_cli.compression.compressor import compress
    from tsc_cli.huggingface.chat import chat_tokens
    from tsc_cli.huggingface.convert import branch, from_cache, from_tuples, repeat, to_tuples
    from tsc_cli.huggingface.restore import to_cache
    from tsc_cli.session.append import append
    from tsc_cli.session.capture import capture
    from tsc_cli.session.resume import generate_inputs
    from tsc_cli.verification.verify import verify

__all__ = [
    "Secret",
    "__version__",
    "append",
    "branch",
    "calibrate",
    "capture",
    "chat_tokens",
    "compress",
    "from_cache",
    "from_tuples",
    "generate_inputs",
    "load",
    "repeat",
    "save",
    "to_cache",
    "to_tuples",
    "verify",
]

_HOMES = {
    "Secret": "formats",
    "append": "tsc_cli.session.append",
    "branch": "tsc_cli.huggingface.convert",
    "calibrate": "tsc_cli.calibration.calibrate",
    "capture": "tsc_cli.session.capture",
    "chat_tokens": "tsc_cli.huggingface.chat",
    "compress": "tsc_cli.compression.compressor",
    "from_cache": "tsc_cli.huggingface.convert",
    "from_tuples": "tsc_cli.huggingface.convert",
    "generate_inputs": "tsc_cli.session.resume",
    "load": "formats",
    "repeat": "tsc_cli.huggingface.convert",
    "save": "formats",
    "to_cache": "tsc_cli.huggingface.restore",
    "to_tuples": "tsc_cli.huggingface.convert",
    "verify": "tsc_cli.verification.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tsc_cli' has no attribute {name!r}")
    from importlib import import_module

    try:
        home = import_module(_HOMES[name])
    except AttributeError as error:  # Python would take it for "no such name", and hide what went wrong inside
        raise ImportError(f"{_HOMES[name]} cannot be imported: AttributeError: {error}", name=_HOMES[name]) from error
    return getattr(home, name)


def __dir__() -> list[str]:
    """The public names, so that completion shows them before anything was imported."""
    return sorted(__all__)
