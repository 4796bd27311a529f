"""Which adapters a model runs with and at which scaling; their weights are hashed with the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsc_cli.huggingface.wrappers import adapter_configs, json_value, refuse_virtual_tokens

from .config_fields import canonical, digest

_RECORDED = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")
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
    """Return the names of the active adapters, sorted."""
    if not (getattr(model, "_hf_peft_config_loaded", False) or adapter_configs(model)):
        return []
    tuned = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    if tuned:  # also where peft's wrapper was removed, which transformers' method does not see
        return sorted({name for module in tuned for name in module.active_adapters})
    try:
        active = model.active_adapters
        active = active() if callable(active) else active
    except ValueError:  # adapters merged into the weights leave their settings behind
        return []
    return sorted([active] if isinstance(active, str) else active)


def adapters_of(model: Any) -> str:
    """Return the active adapters and their settings as JSON, their names alone, or "none".

    Raises:
        UnsupportedCacheError: an adapter puts rows of its own into the cache.
    """
    refuse_virtual_tokens(model)
    names, configs = names_of(model), adapter_configs(model)
    if not names or not configs:
        return ",".join(names) or "none"
    return canonical({name: _settings_of(model, name, configs.get(name)) for name in names})


def _settings_of(model: Any, name: str, config: Any) -> dict[str, Any]:
    settings = config.to_dict() if callable(getattr(config, "to_dict", None)) else dict(vars(config)) if config else {}
    # empty settings are left out, since another version of peft has more of them
    settings = {key: json_value(value) for key, value in settings.items() if value and key not in _IGNORED}
    recorded = {key: settings.pop(key) for key in _RECORDED if key in settings}
    layers = {
        path: module.scaling[name]
        for path, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), Mapping) and name in module.scaling
    }
    if layers:
        scalings = set(layers.values())
        recorded["scaling"] = scalings.pop() if len(scalings) == 1 else digest(canonical(layers))
    tuned = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    if tuned and all(module._disable_adapters for module in tuned):
        recorded["disabled"] = True
    return recorded | {"others": digest(canonical(settings))}
