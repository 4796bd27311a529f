"""What identifies the model that a cache belongs to.

A restored cache is meaningless under other weights, another RoPE base or another tokenizer, and
nothing in its tensors would show it. Each field is recorded by name, so that a refusal can say
which one differs.
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

_KERNELS = {"attention": "attention", "experts": "the experts"}  # another kernel rounds differently, no more
_EAGER = "eager"  # what every model has
NOT_COMPARED = frozenset({*_KERNELS, "config_fields", "config_usual", "transformers"})
_TRUNCATION, _PADDING = '{"version":"1.0","truncation":', ',"padding":'  # as a tokenizer's JSON begins


class Fingerprint(dict[str, str]):
    """Fields and their values, as a file keeps them, and what only a comparison needs.

    Attributes:
        settings: the fields of the config, by name, with those that are at their default.
        usual: the defaults.
    """

    def __init__(self, fields: Mapping[str, str], settings: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.settings = settings
        self.usual = usual


def of(model: PreTrainedModel | ModelAdapter, tokenizer: Any = None) -> Fingerprint:
    """The fingerprint of a loaded model; the tokenizer's field is there only when one is given.

    Hashing the weights takes about a second a gigabyte and core, once a loaded model.

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
    """Raise MismatchError that names the first field in which a file's model and the one at hand differ.

    A trace that names nothing was made of somebody's own caches and is taken; one that leaves a
    field out is not.

    Args:
        only: the fields to compare; by default all but those that say how the model is computed.
    """
    silent = _silent(recorded, current, only)
    if silent is not None:
        raise MismatchError(
            f"the file does not say what model it belongs to: it has no {silent}",
            hint="--force-model-mismatch (allow_model_mismatch=True in Python) takes it at your word",
        )
    differs = difference(recorded, current, only=only)
    if differs is not None:
        raise MismatchError(
            f"the file belongs to another model: {differs}", hint="give the model of the capture with -m"
        )


def _silent(recorded: Mapping[str, str], current: Mapping[str, str], only: Collection[str] | None) -> str | None:
    """A field that the file should name and does not."""
    known = {*recorded, *NOT_COMPARED, "tokenizer"}
    missing = (field for field in current if field not in known and (only is None or field in only))
    return next(missing, None) if recorded else None


def difference(
    recorded: Mapping[str, str], current: Mapping[str, str], *, only: Collection[str] | None = None
) -> str | None:
    """The first field in which a file's model and the one at hand differ, in words, or None; see `require_same`."""
    for field in dict.fromkeys([*current, *recorded]):
        value, here = recorded.get(field), current.get(field)
        if value is None or field in NOT_COMPARED or (only is not None and field not in only):
            continue
        if value == here or (field == "tokenizer" and here is None):
            continue
        named = _named(field, recorded, current)
        if named is not None:
            return named
    return None


def _named(field: str, recorded: Mapping[str, str], current: Mapping[str, str]) -> str | None:
    """How a field differs whose texts do, or None if it does not after all."""
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
    """A line for a person where the same cache is computed by another kernel than at capture, or None."""
    other = []
    for field, what in _KERNELS.items():
        then, now = recorded.get(field, _EAGER), current.get(field, _EAGER)
        if then != now and "attention" in recorded:
            other.append(f"{what} by {_short(then)} at capture and by {_short(now)} here")
    if not other:
        return None
    return f"computed {' and '.join(other)}: the same cache, but results may differ as rounding does"


def another_version(recorded: Mapping[str, str]) -> str | None:
    """A line for a person where a file was captured with another version of transformers, or None.

    Its weights and config are the same, yet a version may compute a model otherwise: 5.23 changed
    the norm of Mamba-2.
    """
    then, now = recorded.get("transformers", ""), transformers.__version__
    if not then or then.split(".")[:2] == now.split(".")[:2]:
        return None
    return (
        f"captured with transformers {_short(then)}, run with {now}: versions compute some models otherwise; "
        "tsc verify --recompute tells whether these do"
    )


def require_repeatable(adapter: ModelAdapter) -> None:
    """Raise UsageError for a model that drops out at random; UnsupportedCacheError for one with virtual tokens."""
    active = config_fields.dropouts(adapter.model)
    if active:
        raise UsageError(
            f"the model is in training mode, and drops out at random ({active[0]}): no cache of it can be had again",
            hint="model.eval()",
        )
    refuse_virtual_tokens(adapter.model)


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of everything that turns text into token ids; each time, since any part can be exchanged in place."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = _described(backend) if backend is not None else canonical(tokenizer.get_vocab())
    data = text.encode()
    return hashlib.sha256(len(data).to_bytes(8, "little") + data).hexdigest()


def _described(backend: Any) -> str:
    """A fast tokenizer as JSON, less how the last call asked it to pad and truncate, which it keeps."""
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
