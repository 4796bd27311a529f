"""Save a transformer's KV cache small, restore it, and measure how faithful the restored cache is.

    from tsc_cli import capture, compress, generate_inputs, load, save, to_cache, verify

    trace = capture(model, input_ids)                       # the cache of the prompt
    save(trace, "prompt.tsc")                               # lossless
    compress(trace, "small.tsc", tier="60x", model=model)   # 60 times smaller, at the best quality
    cache = to_cache(load("prompt.tsc"), model)             # a transformers Cache
    model.generate(**generate_inputs(load("prompt.tsc"), model))  # the cache, its tokens, its masks
    result = verify(load("small.tsc"), model)               # KL, top-1 agreement

Names are imported when they are first used, so that the command line's help does not wait for
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.lazy_names import lazy_names
from formats.version import VERSION as __version__

if TYPE_CHECKING:
    from formats.codecs.klt.profile import Profile as Profile
    from formats.container.encryption import Secret as Secret
    from formats.encode.recipe import Recipe as Recipe
    from formats.errors import CorruptError as CorruptError
    from formats.errors import LimitError as LimitError
    from formats.errors import LockedError as LockedError
    from formats.errors import MismatchError as MismatchError
    from formats.errors import PromiseError as PromiseError
    from formats.errors import StorageError as StorageError
    from formats.errors import TscError as TscError
    from formats.errors import UnsupportedCacheError as UnsupportedCacheError
    from formats.errors import UnsupportedFileError as UnsupportedFileError
    from formats.errors import UsageError as UsageError
    from formats.file.reader import load as load
    from formats.file.save import save as save
    from formats.trace.snapshot import Snapshot as Snapshot
    from formats.trace.trace import Trace as Trace
    from tsc_cli.calibration.calibrate import calibrate as calibrate
    from tsc_cli.calibration.effort import Effort as Effort
    from tsc_cli.compression.compressor import compress as compress
    from tsc_cli.huggingface.adapter import ModelAdapter as ModelAdapter
    from tsc_cli.huggingface.convert import branch as branch
    from tsc_cli.huggingface.convert import from_cache as from_cache
    from tsc_cli.huggingface.convert import from_tuples as from_tuples
    from tsc_cli.huggingface.convert import repeat as repeat
    from tsc_cli.huggingface.convert import to_tuples as to_tuples
    from tsc_cli.huggingface.restore import to_cache as to_cache
    from tsc_cli.huggingface.sampling import Sampler as Sampler
    from tsc_cli.huggingface.text.chat import chat_tokens as chat_tokens
    from tsc_cli.planning.costs import PlanOptions as PlanOptions
    from tsc_cli.planning.plan import plan as plan
    from tsc_cli.scoring.result import Verified as Verified
    from tsc_cli.session.append import append as append
    from tsc_cli.session.capture import capture as capture
    from tsc_cli.session.capture import capture_to_file as capture_to_file
    from tsc_cli.session.decode_loop import CaptureOptions as CaptureOptions
    from tsc_cli.session.resume import generate_inputs as generate_inputs
    from tsc_cli.session.resume import resume as resume
    from tsc_cli.verification.verify import VerifyOptions as VerifyOptions
    from tsc_cli.verification.verify import verify as verify
    from tsc_cli.verification.verify import verify_snapshots as verify_snapshots

_NAMES_BY_MODULE = {
    "formats.codecs.klt.profile": ("Profile",),
    "formats.container.encryption": ("Secret",),
    "formats.encode.recipe": ("Recipe",),
    "formats.errors": (
        "CorruptError",
        "LimitError",
        "LockedError",
        "MismatchError",
        "PromiseError",
        "StorageError",
        "TscError",
        "UnsupportedCacheError",
        "UnsupportedFileError",
        "UsageError",
    ),
    "formats.file.reader": ("load",),
    "formats.file.save": ("save",),
    "formats.trace.snapshot": ("Snapshot",),
    "formats.trace.trace": ("Trace",),
    "tsc_cli.calibration.calibrate": ("calibrate",),
    "tsc_cli.calibration.effort": ("Effort",),
    "tsc_cli.compression.compressor": ("compress",),
    "tsc_cli.huggingface.adapter": ("ModelAdapter",),
    "tsc_cli.huggingface.text.chat": ("chat_tokens",),
    "tsc_cli.huggingface.convert": ("branch", "from_cache", "from_tuples", "repeat", "to_tuples"),
    "tsc_cli.huggingface.restore": ("to_cache",),
    "tsc_cli.huggingface.sampling": ("Sampler",),
    "tsc_cli.planning.costs": ("PlanOptions",),
    "tsc_cli.planning.plan": ("plan",),
    "tsc_cli.scoring.result": ("Verified",),
    "tsc_cli.session.append": ("append",),
    "tsc_cli.session.capture": ("capture", "capture_to_file"),
    "tsc_cli.session.decode_loop": ("CaptureOptions",),
    "tsc_cli.session.resume": ("generate_inputs", "resume"),
    "tsc_cli.verification.verify": ("VerifyOptions", "verify", "verify_snapshots"),
}
_HOMES = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}
__all__ = ["__version__", *_HOMES]


__getattr__, __dir__ = lazy_names(globals(), _HOMES)
