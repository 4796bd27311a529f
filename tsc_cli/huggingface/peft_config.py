"""The settings of adapters that peft put into a model, read without peft."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from formats.errors import UnsupportedCacheError


def refuse_prompts(model: Any) -> None:
    """Raise UnsupportedCacheError for prompt and prefix tuning, whose rows stand for no token of the history."""
    for name, config in configs_of(model).items():
        if getattr(config, "is_prompt_learning", False) or getattr(config, "num_virtual_tokens", None):
            raise UnsupportedCacheError(
                f"adapter {name!r} is {plain(getattr(config, 'peft_type', 'prompt tuning'))}: "
                "its virtual tokens take cache rows that no token id stands for"
            )


def configs_of(model: Any) -> Mapping[str, Any]:
    """The configuration of each adapter, by name; none of a model without adapters."""
    found = getattr(model, "peft_config", None)
    return found if isinstance(found, Mapping) else {}


def plain(value: Any) -> Any:
    """A value of a configuration as JSON has it: of an enumeration its value, of a set a sorted list."""
    if isinstance(value, Enum):
        return value.value
    return sorted(value, key=str) if isinstance(value, set | frozenset) else value
