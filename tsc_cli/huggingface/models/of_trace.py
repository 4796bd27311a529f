"""Finding the model that a trace was captured from."""

from __future__ import annotations

from formats import Trace
from formats.errors import UsageError
from tsc_cli.model_store import default_model, hub, store
from tsc_cli.progress import Say, Stage

from .loading import Loaded, check_trust, known_name, load


def model_for(
    trace: Trace,
    name: str | None,
    device: str,
    stage: Stage,
    say: Say,
    *,
    any_model: bool = False,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load the model of a file, in the dtype of the capture.

    A name that only the file gives is looked up on this machine and never fetched: a file must not
    decide what is downloaded, nor that a model's code may run.

    Args:
        name: of the model; None takes what the file says.
        any_model: load another model than the file's, in its own dtype.
        stage, say: told of the loading.
    Raises:
        UsageError: the file does not name a model that can be found here, and neither does `name`;
            or code is to be trusted of a model that only the file names.
    """
    check_trust(name, trust_remote_code)
    chosen = name or known_name(trace.info.get("model"))
    if chosen is None:
        raise UsageError("the file does not name a model that can be found here", hint="give it with -m")
    dtype = "auto" if any_model else trace.fingerprint.get("dtype", trace.geometry.dtype)
    with stage("loading the model", None):
        return load(
            chosen, dtype=dtype, device=device, fetch=name is not None, trust_remote_code=trust_remote_code, say=say
        )


def model_at_hand(trace: Trace) -> bool:
    """Return whether the model that a file names is on this machine."""
    name = known_name(trace.info.get("model"))
    if name is None:
        return False
    if name == default_model.NAME:
        return default_model.is_ready()
    return store.is_at_hand(name) if store.find(name) is not None else hub.kept(name)
