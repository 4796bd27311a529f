"""A drill before a capture: does a cache that is taken apart and put together again go on as the live one does?

transformers shows what a cache layer is, not what a model keeps elsewhere.  So a few tokens are tried on the model at
hand, with another text in between, which would disturb whatever is kept outside of the cache.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch

from formats import Recorder, TraceBuilder
from formats.errors import UnsupportedCacheError

from . import bridge, supported, trial
from .generation import feed
from .positions import limit_of
from .prompts import by_row
from .restoring import restore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STEPS = 2
_TOLERANCE = 1e-3  # of the largest logit; what is missing moved them by 0.0004 to 1 of it, rounding on one machine by 0

_passed: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def require_restorable(model: PreTrainedModel) -> None:
    """Raise UnsupportedCacheError if the cache of a few tokens is not all that the model goes on from; once a model."""
    limit = limit_of(model)
    if model in _passed or (limit is not None and limit < trial.TOKENS + _STEPS):
        return
    cache, after = trial.filled(model, 3), trial.tokens_from(model, 90)
    geometry = bridge.geometry_of(cache, type(model).__name__)
    builder = TraceBuilder(geometry, {})
    recorder = Recorder(builder, geometry)
    recorder.encoder([0] * bridge.encoded_rows(cache))
    recorder.snapshot(by_row(trial.tokens_from(model, 3)), bridge.rows_of(cache), (), bridge.states_of(cache))
    recorder.finish()
    exact = [feed(model, cache, after[:, step : step + 1]) for step in range(_STEPS)]
    trial.filled(model, 41)
    restored = restore(builder.trace.snapshot(), model, geometry.layers)
    again = [feed(model, restored, after[:, step : step + 1]) for step in range(_STEPS)]
    for have, want in zip(again, exact, strict=True):
        if not float((have - want).abs().max()) <= _TOLERANCE * float(want.abs().max()):
            raise UnsupportedCacheError(
                f"{type(model).__name__} cannot be captured: restored, its cache does not go on as it did, so that it "
                "keeps a part of its state elsewhere",
                hint=supported.HINT,
            )
    _passed.add(model)
