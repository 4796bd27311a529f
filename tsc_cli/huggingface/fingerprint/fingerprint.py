"""What identifies the model that a cache belongs to.

A restored cache is meaningless under other weights, another RoPE base or another tokenizer, and its
tensors do not show it. Each field is recorded by name, so that a refusal can name it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import transformers

from formats.errors import MismatchError, UsageError
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.wrappers import refuse_virtual_tokens

from . import adapters, config_fields, config_versions, rope_buffers
from .config_fields import canonical
from .weights import weights_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Fingerprint", "difference", "differences_in_rounding", "of", "require_same", "weights_of"]

# another kernel rounds differently, no more
_KERNELS = {"attention": "attention", "experts": "the experts"}
_EAGER = "eager"  # what every model has
NOT_COMPARED = frozenset({*_KERNELS, "config_fields", "config_usual", "transformers"})
# as a tokenizer's JSON begins
_TRUNCATION, _PADDING = '{"version":"1.0","truncation":', ',"padding":'


class Fingerprint(dict[str, str]):
    """The fields that a file keeps, and the config's fields, which only a comparison needs.

    Attributes:
        settings: the fields of the config by name, including those at their default.
        usual: the default fields of the config's class.
    """

    def __init__(self, fields: Mapping[str, str], settings: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.settings = settings
        self.usual = usual


def of(model: PreTrainedModel | ModelAdapter, tokenizer: Any = None) -> Fingerprint:
    """Return the fingerprint of a loaded model, and of its tokenizer if one is given.

    Hashing the weights takes about a second a gigabyte and core, once for each loaded model.

    Raises:
        UnsupportedCacheError: a weight cannot be hashed, or an adapter keeps rows of its own in the
            cache.
    """
    adapter = ModelAdapter.of(model)
    model = adapter.model
    config = config_fields.config_of(model)
    settings = config_fields.meaningful(model)
    experts = str(getattr(model.config, "_experts_implementation", None) or "")
    heads = getattr(config, "num_attention_heads", None)
    fields = {
        "architecture": adapter.name,
        "layers": str(getattr(config, "num_hidden_layers", "")),
        "heads": str(heads or ""),
        "kv_heads": str(getattr(config, "num_key_value_heads", None) or heads or ""),
        "rope": canonical(getattr(config, "rope_parameters", None)),
        "sliding_window": str(getattr(config, "sliding_window", None)),
        "config": config_fields.hash_of(settings),
        "config_fields": config_fields.changed_fields(model, settings),
        "config_usual": config_versions.usual_fields(settings, config_fields.defaults(model)),
        "dtype": adapter.dtype_name,
        "rope_frequencies": rope_buffers.frequencies_of(model),
        "adapters": adapters.adapters_of(model),
        "weights": weights_of(model),
        "attention": str(getattr(model.config, "_attn_implementation", "")),
        "experts": experts if experts != _EAGER else "",
        "transformers": transformers.__version__,
    }
    if tokenizer is not None:
        fields["tokenizer"] = tokenizer_hash(tokenizer)
    fields = {field: value for field, value in fields.items() if value or field not in NOT_COMPARED}
    return Fingerprint(fields, settings, config_fields.defaults(model))


def require_same(
    recorded: Mapping[str, str], current: Mapping[str, str], *, only: Collection[str] | None = None
) -> None:
    """Raise MismatchError that names the first difference between a file's model and this one.

    A trace with an empty fingerprint was made of a user's own caches and is accepted. One that
    lacks single fields is not.

    Args:
        only: the fields to compare; by default all but those that say how the model is computed.
    """
    missing = _missing_field(recorded, current, only)
    if missing is not None:
        raise MismatchError(
            f"the file does not say what model it belongs to: it has no {missing}",
            hint="--force-model-mismatch (allow_model_mismatch=True in Python) takes it at your word",
        )
    differs = difference(recorded, current, only=only)
    if differs is not None:
        raise MismatchError(
            f"the file belongs to another model: {differs}", hint="give the model of the capture with -m"
        )


def _missing_field(recorded: Mapping[str, str], current: Mapping[str, str], only: Collection[str] | None) -> str | None:
    """Return the first field that the file should have and does not."""
    optional = {*recorded, *NOT_COMPARED, "tokenizer"}
    missing = (field for field in current if field not in optional and (only is None or field in only))
    return next(missing, None) if recorded else None


def difference(
    recorded: Mapping[str, str], current: Mapping[str, str], *, only: Collection[str] | None = None
) -> str | None:
    """Describe the first difference between a file's model and this one, or None if they agree."""
    for field in dict.fromkeys([*current, *recorded]):
        value, here = recorded.get(field), current.get(field)
        if value is None or field in NOT_COMPARED or (only is not None and field not in only):
            continue
        if value == here or (field == "tokenizer" and here is None):
            continue
        described = _difference_in(field, recorded, current)
        if described is not None:
            return described
    return None


def _difference_in(field: str, recorded: Mapping[str, str], current: Mapping[str, str]) -> str | None:
    """Describe how a field differs whose texts do; None if its meaning is the same."""
    value, here = recorded[field], current.get(field, "missing")
    inner = None
    if field == "rope_frequencies":
        buffer = rope_buffers.name_of_difference(value, here)
        return None if buffer is None else f"{field}: {buffer} differs from the file's"
    if field == "config":
        settings, usual = (current.settings, current.usual) if isinstance(current, Fingerprint) else ({}, {})
        if settings and config_versions.agree(recorded, current, settings):
            return None
        texts = recorded.get("config_fields"), current.get("config_fields")
        inner = config_fields.name_of_difference(field, *texts, values=settings, usual=usual)
    elif field in ("rope", "adapters") and config_fields.parsed(value) and config_fields.parsed(here):
        return config_fields.name_of_difference(field, value, here)  # None: 1 and 1.0 are one value
    return inner or f"{field} is {_short(value)} in the file and {_short(here)} here"


def differences_in_rounding(recorded: Mapping[str, str], current: Mapping[str, str]) -> str | None:
    """Return a note for the user if another kernel computes here than at capture, else None."""
    changes = []
    for field, name in _KERNELS.items():
        then, now = recorded.get(field, _EAGER), current.get(field, _EAGER)
        if then != now and "attention" in recorded:
            changes.append(f"{name} by {_short(then)} at capture and by {_short(now)} here")
    if not changes:
        return None
    return f"computed {' and '.join(changes)}: the same cache, but results may differ as rounding does"


def another_version(recorded: Mapping[str, str]) -> str | None:
    """Return a note for the user if another transformers captured the file, else None.

    Versions may compute the same weights otherwise: 5.23 changed the norm of Mamba-2.
    """
    then, now = recorded.get("transformers", ""), transformers.__version__
    if not then or then.split(".")[:2] == now.split(".")[:2]:
        return None
    return (
        f"captured with transformers {_short(then)}, run with {now}: versions compute some models otherwise; "
        "tsc verify --recompute tells whether these do"
    )


def require_repeatable(adapter: ModelAdapter) -> None:
    """Raise an error for a model whose caches cannot be computed again.

    Raises:
        UsageError: dropout is active.
        UnsupportedCacheError: an adapter adds virtual tokens.
    """
    active = config_fields.dropouts(adapter.model)
    if active:
        raise UsageError(
            f"the model is in training mode, and drops out at random ({active[0]}): no cache of it can be had again",
            hint="model.eval()",
        )
    refuse_virtual_tokens(adapter.model)


def tokenizer_hash(tokenizer: Any) -> str:
    """Return SHA-256 of all that turns text into ids; not cached, as parts may be replaced."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = _tokenizer_json(backend) if backend is not None else canonical(tokenizer.get_vocab())
    data = text.encode()
    return hashlib.sha256(len(data).to_bytes(8, "little") + data).hexdigest()


def _tokenizer_json(backend: Any) -> str:
    """Return a fast tokenizer as JSON without the padding and truncation of its last call."""
    text: str = backend.to_str()
    if backend.padding is None and backend.truncation is None:
        return text
    try:  # both stand at the beginning; making a second tokenizer takes seconds
        _, end = json.JSONDecoder().raw_decode(text, len(_TRUNCATION))
        _, rest = json.JSONDecoder().raw_decode(text, end + len(_PADDING))
    except ValueError:
        end = rest = 0
    if text.startswith(_TRUNCATION) and text.startswith(_PADDING, end):
        return f"{_TRUNCATION}null{_PADDING}null{text[rest:]}"
    plain = type(backend).from_str(text)
    plain.no_padding()
    plain.no_truncation()
    return str(plain.to_str())


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:12]}..."
