"""How the keys of a file turn: from the profile that it carries, an installed one, or the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from formats.codecs.klt import profile_store
from formats.codecs.klt.profile import Profile
from formats.codecs.klt.rotary import Rotary
from formats.errors import MismatchError, TscError
from formats.file.reader import TraceFile
from formats.trace.geometry import Geometry
from formats.trace.trace import Trace
from tsc_cli.huggingface.models.loading import check_trust
from tsc_cli.progress import Say, Stage

# of a fingerprint, that RoPE rests on
_FIELDS = ("architecture", "config", "layers", "kv_heads", "rope", "rope_frequencies")


@dataclass(frozen=True)
class Turning:
    """How each cache layer turns its keys, and who says so: "profile" or "model"."""

    layers: tuple[Rotary, ...]
    source: str

    @property
    def turns(self) -> bool:
        return any(rotary.frequencies for rotary in self.layers)


def turning_of(
    file: TraceFile, trace: Trace, model: str | None, stage: Stage, say: Say, *, trust_remote_code: bool = False
) -> Turning | None:
    """How the keys of a file turn, or None if nothing on this machine knows.

    A model that was asked for by name is loaded; else a profile will do, which takes no model; else
    the model that the file names, if it is on this machine. Nothing is fetched that was not asked
    for.

    Raises:
        UsageError: there is no such model.
        MismatchError: it is not the file's.
    """
    check_trust(model, trust_remote_code)
    if model is None:
        profile = _profile(file, trace)
        if profile is not None:
            return Turning(profile, "profile")
    from tsc_cli.huggingface.models.of_trace import model_at_hand, model_for

    if model is None and not model_at_hand(trace):
        return None
    from tsc_cli.huggingface import rotary_detection as rotary
    from tsc_cli.huggingface.fingerprint import fingerprint

    loaded = model_for(trace, model, "cpu", stage, say, trust_remote_code=trust_remote_code)
    fingerprint.require_same(trace.fingerprint, fingerprint.of(loaded.adapter), only=_FIELDS)
    layers = tuple(rotary.layers_of(loaded.adapter))
    if len(layers) != len(trace.geometry.layers):
        raise MismatchError(f"the file has {len(trace.geometry.layers)} layers, the model {len(layers)}")
    return Turning(layers, "model")


def _profile(file: TraceFile, trace: Trace) -> tuple[Rotary, ...] | None:
    """Of the file's own profile, or of one that is installed for its model."""
    try:
        profile = file.profile.load() if file.profile is not None else profile_store.for_model(trace.fingerprint)
    except TscError:  # a profile that is missing is missed by whoever needs its statistics
        return None
    return None if profile is None else of_profile(profile, trace.geometry)


def of_profile(profile: Profile, geometry: Geometry) -> tuple[Rotary, ...] | None:
    """A rotary embedding for each layer; None if the profile is of another geometry."""
    layers: list[Rotary] = []
    specs: Sequence[tuple[int, int]] = [
        (shape.heads, shape.key_size) for shape in profile.shapes for _ in range(shape.layer_count)
    ]
    for shape in profile.shapes:
        layers += shape.rotary
    same = [(spec.heads, spec.key_size) for spec in geometry.layers] == specs
    return tuple(layers) if same and len(layers) == len(specs) else None
