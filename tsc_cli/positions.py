"""How far a model's positions go: what it can be fed at all, and what a cache can be carried across."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from formats.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def limit_of(model: PreTrainedModel) -> int | None:
    """The positions that the model states, if it does."""
    limit = getattr(_config(model), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None  # XLNet says -1: as many as there are


def switch_of(model: PreTrainedModel) -> int | None:
    """The length of a context beyond which LongRoPE (arXiv 2402.13753) turns every key at other rates, or None.

    transformers chooses the rates by the longest position of a pass, so that a cache of several passes must lie on one
    side.
    """
    found = [
        int(settings.get("original_max_position_embeddings") or _config(model).original_max_position_embeddings)
        for settings in _rope_settings(model) if settings.get("rope_type") == "longrope"
    ]  # fmt: skip
    return min(found, default=None)


def room(model: PreTrainedModel, held: int) -> int:
    """How many tokens can be fed to a cache of `held`: no end of them with RoPE, unless its rates change on the way.

    Learned positions come to an end, and so does dynamic NTK scaling, whose rates depend on everything that the model
    has ever seen.
    """
    limit, switch = limit_of(model), switch_of(model)
    kinds = {settings.get("rope_type") for settings in _rope_settings(model)}
    ends = []
    if limit is not None and (not kinds or "dynamic" in kinds):
        ends.append(limit)
    if switch is not None and 0 < held <= switch:
        ends.append(switch)
    return max(min(ends) - held, 0) if ends else sys.maxsize


def require_room(model: PreTrainedModel, held: int, count: int) -> None:
    """Raise UsageError if `count` tokens cannot be fed to a cache of `held`."""
    free = room(model, held)
    if free < count:
        raise UsageError(
            f"{count} tokens do not fit behind {held}: the model goes on for {free} positions only",
            hint="capture fewer tokens: --context",
        )


def check_prompt(model: PreTrainedModel, tokens: int, steps: int) -> None:
    """Raise UsageError unless a prompt of so many tokens and the decode steps after it fit into the model's positions.

    A cache is captured only as far as the model states, RoPE or not: what lies beyond was never trained.
    """
    limit, switch = limit_of(model), switch_of(model)
    if limit is not None and tokens + steps > limit:
        raise UsageError(
            f"{tokens} tokens and {steps} steps do not fit into the model's {limit} positions",
            hint=f"at most --steps {limit - tokens}"
            if tokens < limit
            else f"--context {max(limit - steps, 1)} takes the first tokens only",
        )
    if switch is not None and tokens <= switch < tokens + steps:
        raise UsageError(
            f"{steps} steps after {tokens} tokens cross {switch}, where the model's LongRoPE turns every key anew",
            hint=f"at most --steps {switch - tokens}",
        )


def _config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


def _rope_settings(model: PreTrainedModel) -> Iterator[Mapping[str, Any]]:
    """The settings of every kind of RoPE that the model has; some have one a type of layer."""
    found = getattr(_config(model), "rope_parameters", None) or {}
    yield from [found] if "rope_type" in found else [one for one in found.values() if isinstance(one, Mapping)]
