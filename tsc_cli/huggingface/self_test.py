"""A self-test before a capture: does a restored cache go on as the live one does?

transformers shows what a cache layer is, not what a model keeps elsewhere. So a few tokens are
tried on the model at hand, with another text in between, which would disturb whatever is kept
outside of the cache.
"""

from __future__ import annotations

import weakref

import torch

from formats import Recorder, TraceBuilder
from formats.errors import TscError, UnsupportedCacheError
from tsc_cli.model_families import families

from . import caches, probe_run
from .adapter import ModelAdapter
from .generation import feed
from .prompts import by_row
from .restore import restore

_STEPS = 2
# of the largest logit; what is missing moved them by 0.0004 to 1 of it, rounding on one machine by
# 0
_TOLERANCE = 1e-3

_passed: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def require_restorable(adapter: ModelAdapter) -> None:
    """Raise UnsupportedCacheError if the model keeps a part of its state outside of its cache.

    A model is tried once.
    """
    limit = adapter.positions.end
    if adapter.model in _passed or (limit is not None and limit < probe_run.TOKENS + _STEPS):
        return
    try:
        alike = _restored_continues_alike(adapter)
    except TscError:
        raise
    except Exception as error:  # an untried model may raise anything
        raise UnsupportedCacheError(
            f"{adapter.name} cannot be captured: a few tokens fed to it end in {type(error).__name__}: {error}",
            hint=families.HINT,
        ) from error
    if not alike:
        raise UnsupportedCacheError(
            f"{adapter.name} cannot be captured: restored, its cache does not go on as it did, so that it "
            "keeps a part of its state elsewhere",
            hint=families.HINT,
        )
    _passed.add(adapter.model)


def _restored_continues_alike(adapter: ModelAdapter) -> bool:
    """Return whether a restored cache gives the logits that the live one gives."""
    cache, after = probe_run.filled(adapter, 3), probe_run.tokens_from(adapter, 90)
    encoded = probe_run.encoded(adapter, 3)
    geometry = caches.geometry_of(cache, adapter.name)
    builder = TraceBuilder(geometry, {})
    recorder = Recorder(builder, geometry)
    recorder.encoder([0] * caches.encoded_rows(cache))
    recorder.snapshot(by_row(probe_run.tokens_from(adapter, 3)), caches.rows_of(cache), (), caches.states_of(cache))
    recorder.finish()
    # the live cache beside what the encoder made, the restored one beside zeros
    exact = [feed(adapter, cache, after[:, step : step + 1], encoded=encoded) for step in range(_STEPS)]
    probe_run.filled(adapter, 41)
    restored = restore(builder.trace.snapshot(device=adapter.device), adapter, geometry.layers)
    again = [feed(adapter, restored, after[:, step : step + 1]) for step in range(_STEPS)]
    return all(map(_alike, again, exact))


def _alike(restored: torch.Tensor, exact: torch.Tensor) -> bool:
    """Return whether logits are equal but for rounding; both must exclude the same tokens."""
    lowest = torch.finfo(exact.dtype).min / 2  # some models set the logits of excluded tokens below
    possible = exact > lowest
    if not torch.equal(possible, restored > lowest):
        return False
    return float((restored - exact)[possible].abs().max()) <= _TOLERANCE * float(exact[possible].abs().max())
