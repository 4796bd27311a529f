"""The model inside of its wrappers: `torch.compile`, `DataParallel`, peft and others.

A wrapper takes other arguments, has no config, and puts a prefix before the names of weights. So
every function that is given a model looks through it first, and runs the model itself. What is done
to a model in place (`model.compile()`, accelerate's hooks, a layer that peft or another library
exchanged) stays.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch

from formats.errors import UnsupportedCacheError

# the attribute in which each keeps the model; by name, as most of them are in libraries that need
# not be installed
_MODEL_ATTRIBUTES = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",  # torch.optim.swa_utils
    "DeepSpeedEngine": "module",
    "InferenceEngine": "module",  # DeepSpeed's
}
_LIBRARIES = ("torch", "deepspeed")


def unwrapped(model: Any) -> Any:
    """Return the transformers model without the wrappers around it.

    Raises:
        UnsupportedCacheError: what is given is no transformers model and no wrapper that is known,
            or it adds virtual tokens.
    """
    outer = type(model).__name__
    while (inner := _inside(model)) is not None:
        model = inner
    # what only looks like a model (`config` is asked for first everywhere) is refused here, by name
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        inside = "" if type(model).__name__ == outer else f", which holds a {type(model).__name__}"
        raise UnsupportedCacheError(
            f"a {outer}{inside} was given where a transformers model was expected",
            hint="give the model that is inside of it",
        )
    return model


def _inside(model: Any) -> Any:
    """Return the object that this one wraps, or None."""
    kind = type(model)
    if kind.__module__.split(".")[0] == "peft" or _is_peft(model):
        refuse_virtual_tokens(model)
        return model.get_base_model() if hasattr(model, "get_base_model") else getattr(model, "model", None)
    wrapper = next((base for base in kind.__mro__ if base.__name__ in _MODEL_ATTRIBUTES), None)
    if wrapper is None or wrapper.__module__.split(".")[0] not in _LIBRARIES:
        return None
    return getattr(model, _MODEL_ATTRIBUTES[wrapper.__name__])


def _is_peft(model: Any) -> bool:
    peft = sys.modules.get("peft")  # whoever has such a model has imported it
    kinds = tuple(
        kind for name in ("PeftModel", "PeftMixedModel") if isinstance(kind := getattr(peft, name, None), type)
    )
    return isinstance(model, kinds)


def refuse_virtual_tokens(model: Any) -> None:
    """Raise UnsupportedCacheError for prompt and prefix tuning, whose cache rows have no token."""
    for name, config in adapter_configs(model).items():
        if getattr(config, "is_prompt_learning", False) or getattr(config, "num_virtual_tokens", None):
            raise UnsupportedCacheError(
                f"adapter {name!r} is {json_value(getattr(config, 'peft_type', 'prompt tuning'))}: "
                "its virtual tokens take cache rows that no token id stands for"
            )


def adapter_configs(model: Any) -> Mapping[str, Any]:
    """Return the configuration of each adapter, by name; empty for a model without adapters."""
    configs = getattr(model, "peft_config", None)
    return configs if isinstance(configs, Mapping) else {}


def json_value(value: Any) -> Any:
    """Return a value that JSON can hold: of an enumeration its value, of a set a sorted list."""
    if isinstance(value, Enum):
        return value.value
    return sorted(value, key=str) if isinstance(value, set | frozenset) else value
