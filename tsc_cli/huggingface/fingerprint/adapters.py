"""Which adapters a model runs with, and how strongly: their weights are hashed with all others, that is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsc_cli.huggingface.wrappers import adapter_configs, json_value, refuse_virtual_tokens

from .config_fields import canonical, digest

_TOLD = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")
# where an adapter comes from, and how it was trained or begun
_IGNORED = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "task_type",
    "auto_mapping",
    "peft_version",
    "init_lora_weights",
    "init_weights",
    "lora_dropout",
    "module_dropout",
    "rank_dropout",
    "loftq_config",
    "eva_config",
    "corda_config",
    "runtime_config",
    "base_model_class",
    "parent_library",
}


def names_of(model: Any) -> list[str]:
    """Names of active adapters."""
    if not (getattr(model, "_hf_peft_config_loaded", False) or adapter_configs(model)):
        return []
    tuned = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    if tuned:  # also where peft's own wrapper was taken off, of which transformers' method knows nothing
        return sorted({name for module in tuned for name in module.active_adapters})
    try:
        active = model.active_adapters
        active = active() if callable(active) else active
    except ValueError:  # settings are left of adapters that were merged into the weights, and are there no more
        return []
    return sorted([active] if isinstance(active, str) else active)


def adapters_of(model: Any) -> str:
    """The active adapters and their settings as JSON; their names alone where peft keeps no settings; or "none".

    Raises:
        UnsupportedCacheError: an adapter puts rows of its own into the cache.
    """
    refuse_virtual_tokens(model)
    names, configs = names_of(model), adapter_configs(model)
    if not names or not configs:
        return ",".join(names) or "none"
    return canonical({name: _described(model, name, configs.get(name)) for name in names})


def _described(model: Any, name: str, config: Any) -> dict[str, Any]:
    settings = config.to_dict() if callable(getattr(config, "to_dict", None)) else dict(vars(config)) if config else {}
    # what is empty or off is left out: the next peft has more of it
    settings = {key: json_value(value) for key, value in settings.items() if value and key not in _IGNORED}
    told = {key: settings.pop(key) for key in _TOLD if key in settings}
    layers = {
        path: module.scaling[name]
        for path, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), Mapping) and name in module.scaling
    }
    if layers:
        different = set(layers.values())
        told["scaling"] = different.pop() if len(different) == 1 else digest(canonical(layers))
    tuned = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    if tuned and all(module._disable_adapters for module in tuned):
        told["disabled"] = True
    return told | {"others": digest(canonical(settings))}
