"""What of a model's config changes what its caches mean: one hash, and the names of the fields behind it."""

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
    """Every field of the config that may change a cache, nested ones as `outer.inner`, in the config's order."""
    ignored = _REPORTING | _NEVER_RUN | (set() if _counts_from_padding(model) else {"pad_token_id"})
    fields = flat(config_of(model).to_dict())
    return {name: value for name, value in fields.items() if not _is_ignored(name, value, ignored)}


def _is_ignored(name: str, value: Any, ignored: set[str]) -> bool:
    parts = name.split(".")
    return not ignored.isdisjoint(parts) or (_is_rate(value) and _DROPOUT.search(parts[-1]) is not None)


def _is_rate(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _counts_from_padding(model: Any) -> bool:
    """True for models such as RoBERTa, whose positions begin behind the id that pads."""
    from transformers import PreTrainedModel

    return any(
        getattr(module, "padding_idx", None) is not None
        and not isinstance(module, torch.nn.Embedding | PreTrainedModel)
        for module in model.modules()
    )


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with dotted names; an empty one stays as it is."""
    return dict(_flat(value, prefix))


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def hash_of(fields: Mapping[str, Any]) -> str:
    """SHA-256 of fields and values; 1 and 1.0 are one value, which config files mix."""
    whole = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in fields.items()
    }
    return _sha256(canonical(whole))


def _sha256(text: str) -> str:
    data = text.encode()
    return hashlib.sha256(len(data).to_bytes(8, "little") + data).hexdigest()


def changed_fields(model: PreTrainedModel, fields: Mapping[str, Any]) -> str:
    """The fields that are not at the default of their class, as JSON; a long value is a short digest.

    It names what differs where the hashes do, and decides nothing: the next transformers may have
    other defaults. Empty if there are too many to be worth a file's bytes.
    """
    usual = defaults(model)
    changed = {name: shown(value) for name, value in fields.items() if name not in usual or usual[name] != value}
    text = canonical(changed)
    return text if len(text) <= _ALL else ""


def defaults(model: PreTrainedModel) -> dict[str, Any]:
    """The fields of the config's class as the transformers that is installed has them."""
    return _defaults(cast("Hashable", type(config_of(model))))


@functools.cache
def _defaults(kind: Hashable) -> dict[str, Any]:
    try:
        return flat(kind().to_dict())  # type: ignore[operator]
    except Exception:  # a config class that cannot be made of nothing says so as it likes; then all fields are named
        return {}


def shown(value: Any) -> Any:
    """A scalar as it is; anything longer than a line's part as a digest."""
    text = canonical(value)
    plain = value is None or isinstance(value, bool | int | float | str)
    if len(text) > _LONGEST:
        return digest(text)
    return value if plain else text


def digest(text: str) -> str:
    """Eight digits that stand for a text too long to be kept."""
    return f"#{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def parsed(text: str | None) -> dict[str, Any] | None:
    """A JSON object out of a file, flat, or None for anything else."""
    try:
        found = json.loads(text or "")
        return flat(found) if isinstance(found, dict) else None
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
    """Which member of two JSON objects differs, as "config.rms_norm_eps is 1e-06 in the file and 1e-05 here".

    Args:
        recorded, here: a file's object and the model's.
        values: the model's members that are not in `here`, too; their order decides which one is
            named first.
        usual: what a member is that is not there; by default it is missing.
    Returns:
        None if these are not objects, or agree.
    """
    there, found = parsed(recorded), parsed(here)
    if there is None or found is None:
        return None
    values = values or {}
    for name in dict.fromkeys([*values, *found, *there]):
        if (name in there) == (name in found) and there.get(name) == found.get(name):
            continue
        one = there.get(name, "missing" if usual is None else _default(name, usual))
        other = found.get(name, shown(values[name]) if name in values else "missing")
        if any(isinstance(value, str) and value.startswith("#") for value in (one, other)):
            return f"{field}.{name} differs from the file's"
        return f"{field}.{name} is {_said(one)} in the file and {_said(other)} here"
    return None


def _default(name: str, usual: Mapping[str, Any]) -> str:
    return f"the default ({_said(usual[name])})" if name in usual else "the default"


def _said(value: Any) -> str:
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def dropouts(model: PreTrainedModel) -> list[str]:
    """The dropouts that are active now: of a config, or of modules, with their rates."""
    if not any(module.training for module in model.modules()):
        return []
    fields = flat(config_of(model).to_dict())
    found = [f"{name} {value:g}" for name, value in fields.items() if _is_rate(value) and value and _drops(name)]
    kinds = {
        type(module).__name__: module.p
        for module in model.modules()
        if module.training and isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0
    }
    return found or [f"{name} {rate:g}" for name, rate in kinds.items()]


def _drops(name: str) -> bool:
    return _DROPOUT.search(name.rpartition(".")[2]) is not None
