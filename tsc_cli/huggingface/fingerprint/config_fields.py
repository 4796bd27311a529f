"""The fields of a model's config that change its caches: one hash, and the fields by name."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# where a config was loaded from, by which version, and how it was asked to report
_REPORTING = {
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "_attn_implementation",
    "_attn_implementation_internal",
    "dtype",
    "torch_dtype",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "quantization_config",
    "architectures",
    "_commit_hash",
}
# read when weights are drawn (they are hashed themselves), in a loss, by heads that classify, by
# `generate`, or never
_NEVER_RUN = {
    "initializer_range",
    "initializer_factor",
    "initializer_cutoff_factor",
    "init_std",
    "embed_init_std",
    "embedding_initializer_range",
    "output_router_logits",
    "router_aux_loss_coef",
    "aux_loss_coef",
    "router_z_loss_coef",
    "z_loss_coefficient",
    "moe_loss_weight",
    "mtp_loss_scaling_factor",
    "id2label",
    "label2id",
    "problem_type",
    "bos_token_id",
    "eos_token_id",
    "_model_name_or_path",
}
# router_jitter_noise is not one of them: Phi-3.5-MoE masks experts by it while evaluating, too
_DROPOUT = re.compile(r"(^|_)(dropout|pdrop|layerdrop)(_|$)")
_LONGEST, _ALL = 40, 4096  # characters of a value that is shown, and of all fields in a file


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def config_of(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def meaningful(model: PreTrainedModel) -> dict[str, Any]:
    """Return the config's fields that may change a cache, in its order, nested as `outer.inner`."""
    ignored = _REPORTING | _NEVER_RUN | (set() if _counts_from_padding(model) else {"pad_token_id"})
    fields = flat(config_of(model).to_dict())
    return {name: value for name, value in fields.items() if not _is_ignored(name, value, ignored)}


def _is_ignored(name: str, value: Any, ignored: set[str]) -> bool:
    return not ignored.isdisjoint(name.split(".")) or _is_dropout(name, value)


def _is_dropout(name: str, value: Any) -> bool:
    is_rate = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return is_rate and _DROPOUT.search(name.rpartition(".")[2]) is not None


def _counts_from_padding(model: Any) -> bool:
    """Return whether positions begin behind the padding id, as RoBERTa's do."""
    from transformers import PreTrainedModel

    return any(
        getattr(module, "padding_idx", None) is not None
        and not isinstance(module, torch.nn.Embedding | PreTrainedModel)
        for module in model.modules()
    )


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested objects as one with dotted names; an empty object stays a value."""
    return dict(_flat(value, prefix))


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def hash_of(fields: Mapping[str, Any]) -> str:
    """Return SHA-256 of fields and values; 1 and 1.0 are equal, since config files mix them."""
    whole = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in fields.items()
    }
    return _sha256(canonical(whole))


def _sha256(text: str) -> str:
    data = text.encode()
    return hashlib.sha256(len(data).to_bytes(8, "little") + data).hexdigest()


def changed_fields(model: PreTrainedModel, fields: Mapping[str, Any]) -> str:
    """Return the fields that differ from their class's defaults, as JSON; long values as digests.

    They only name what differs where hashes do, since another transformers may have other defaults.
    Empty if there are too many for a file's header.
    """
    usual = defaults(model)
    changed = {name: shown(value) for name, value in fields.items() if name not in usual or usual[name] != value}
    text = canonical(changed)
    return text if len(text) <= _ALL else ""


def defaults(model: PreTrainedModel) -> dict[str, Any]:
    """Return the default fields of the config's class in the installed transformers."""
    return _defaults(cast("Hashable", type(config_of(model))))


@functools.cache
def _defaults(kind: Hashable) -> dict[str, Any]:
    try:
        return flat(kind().to_dict())  # type: ignore[operator]
    except Exception:  # a class without defaults may raise anything; then all fields are named
        return {}


def shown(value: Any) -> Any:
    """Return a short scalar as it is, other short values as JSON, and long ones as a digest."""
    text = canonical(value)
    plain = value is None or isinstance(value, bool | int | float | str)
    if len(text) > _LONGEST:
        return digest(text)
    return value if plain else text


def digest(text: str) -> str:
    """Return eight hex digits for a text that is too long to keep."""
    return f"#{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def parsed(text: str | None) -> dict[str, Any] | None:
    """Return a file's JSON object, flattened, or None if the text is not one."""
    try:
        value = json.loads(text or "")
        return flat(value) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def name_of_difference(
    field: str,
    recorded: str | None,
    here: str | None,
    *,
    values: Mapping[str, Any] | None = None,
    usual: Mapping[str, Any] | None = None,
) -> str | None:
    """Describe the first difference of two JSON objects, a file's and the model's.

    Args:
        recorded: the file's object.
        here: the model's object.
        values: all members of the model's, in the order in which they are compared.
        usual: values of members that the file lacks; by default they are "missing".
    Returns:
        such as "config.rms_norm_eps is 1e-06 in the file and 1e-05 here"; None if the objects agree
        or one is not a JSON object.
    """
    in_file, in_model = parsed(recorded), parsed(here)
    if in_file is None or in_model is None:
        return None
    values = values or {}
    for name in dict.fromkeys([*values, *in_model, *in_file]):
        if (name in in_file) == (name in in_model) and in_file.get(name) == in_model.get(name):
            continue
        then = in_file.get(name, "missing" if usual is None else _default(name, usual))
        now = in_model.get(name, shown(values[name]) if name in values else "missing")
        if any(isinstance(value, str) and value.startswith("#") for value in (then, now)):
            return f"{field}.{name} differs from the file's"
        return f"{field}.{name} is {_shortened(then)} in the file and {_shortened(now)} here"
    return None


def _default(name: str, usual: Mapping[str, Any]) -> str:
    return f"the default ({_shortened(usual[name])})" if name in usual else "the default"


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def dropouts(model: PreTrainedModel) -> list[str]:
    """Return the active dropouts with their rates, those of the config or else of modules."""
    if not any(module.training for module in model.modules()):
        return []
    fields = flat(config_of(model).to_dict())
    named = [f"{name} {value:g}" for name, value in fields.items() if _is_dropout(name, value) and value]
    modules = {
        type(module).__name__: module.p
        for module in model.modules()
        if module.training and isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0
    }
    return named or [f"{name} {rate:g}" for name, rate in modules.items()]
