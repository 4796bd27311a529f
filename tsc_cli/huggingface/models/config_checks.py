"""Checks of a config before a model is built: types, ranges, and sizes against the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from formats.errors import CorruptError, UsageError
from formats.limits import MAX_EXTENT, MAX_LAYERS
from tsc_cli.checkpoints.config_fields import Fields, shown

if TYPE_CHECKING:
    from tsc_cli.checkpoints.matrices import Tensor

_HINT = "fetch the model again, or mend the file"
_LAYERS = ("num_hidden_layers", "n_layer", "encoder_layers", "decoder_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "encoder_attention_heads", "decoder_attention_heads")
_MAX_LABELS = 1 << 20  # a name is made for each
_EXTENTS = (*_WIDTHS, *_HEADS, "vocab_size")
_NULLABLE = (  # null where the architecture has a rule of its own
    "head_dim",
    "num_key_value_heads",
    "intermediate_size",
    "n_inner",
    "num_experts",
    "num_local_experts",
    "kv_lora_rank",
    "q_lora_rank",
    "state_size",
    "conv_kernel",
    "max_position_embeddings",
    "n_positions",
)
_POSITIONS = ("max_position_embeddings", "n_positions")
_MAX_POSITIONS = 1 << 40
_ANY_SIZE = re.compile(r"_(size|dim|rank|heads|layers|experts|groups|blocks)$|^(n|num)_")
_MAX_SIZE = 1 << 31  # of fields that are not known by name
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
_FLOATS = re.compile(r"(_eps|_epsilon|^rope_theta|_base|_softcapping|_multiplier|_scalar)$")
_OBJECTS = re.compile(r"_config$|^(auto_map|attribute_map|id2label|label2id)$")
_ROPE = ("rope_parameters", "rope_scaling")
_NOT_NUMBERS = ("rope_type", "type")
# extents of weights that are packed are smaller than what they stand for: 2 bits in a word of 32
_PACKED, _SURPLUS, _FREE = 16, 2, 1 << 20
_FREE_BUFFERS = 1 << 28
_TOKENIZER_TYPES: dict[str, tuple[type, ...]] = {
    "tokenizer_class": (str,),
    "model_max_length": (int, float),
    "added_tokens_decoder": (dict,),
    "auto_map": (dict, list),
    "chat_template": (str, dict, list),
    "additional_special_tokens": (list,),
    "extra_special_tokens": (dict, list),
    "padding_side": (str,),
    "truncation_side": (str,),
    "bos_token": (str, dict),
    "eos_token": (str, dict),
    "pad_token": (str, dict),
    "unk_token": (str, dict),
}
_ARTICLES = {str: "a string", int: "a number", dict: "an object", list: "a list"}


def check(config: Mapping[str, Any], path: str, *, trust_remote_code: bool) -> None:
    """Raise UsageError or CorruptError for values that no model can have.

    The types of rarer fields are left to the library.
    """
    for inside, values in _objects(config):
        fields = Fields(values, path, inside=inside)
        for name in _LAYERS:
            _size(fields, name, MAX_LAYERS)
        for name in _EXTENTS:
            _size(fields, name, MAX_EXTENT)
        if fields.stated("num_labels"):
            _size(fields, "num_labels", _MAX_LABELS)
        for name in _NULLABLE:
            if values.get(name) is not None and not isinstance(values[name], list):
                _size(fields, name, _MAX_POSITIONS if name in _POSITIONS else MAX_EXTENT)
        for name, value in values.items():
            if type(value) is int and _ANY_SIZE.search(name) and value > _MAX_SIZE:
                raise fields.error(name, f"{value} is more than any model has", _HINT)
            if _FLOATS.search(name) and isinstance(value, str | list):
                raise fields.error(name, "a number was expected", _HINT)
            if _OBJECTS.search(name) and value is not None and not isinstance(value, dict):
                raise fields.error(name, f"is {shown(value)}; an object was expected", _HINT)
        _check_heads(fields)
        _check_windows(fields)
        _check_rope(fields)
        _check_dtype(fields)
        if not trust_remote_code:
            _check_kernels(fields)
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise Fields(config, path).error("model_type", "a string was expected", _HINT)


def check_generation(config: Mapping[str, Any], path: str) -> None:
    """Raise CorruptError unless the end of a text is a token id, or several."""
    ids = config.get("eos_token_id")
    for token in ids if isinstance(ids, list) else [ids]:
        if token is not None and (type(token) is not int or not 0 <= token < 1 << 31):
            raise Fields(config, path).error("eos_token_id", "a token id, or a list of them, was expected", _HINT)


def check_tokenizer(config: Mapping[str, Any], path: str) -> None:
    """Raise CorruptError for fields of a tokenizer_config.json of a wrong type."""
    fields = Fields(config, path)
    for name, value in config.items():
        kinds = _TOKENIZER_TYPES.get(name)
        if kinds and value is not None and not isinstance(value, kinds):
            raise fields.error(name, f"is {shown(value)}; {_ARTICLES[kinds[0]]} was expected", _HINT)


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str) -> None:
    """Compare width, vocabulary and layers of the language model with the weights.

    A width is the extent of some norm, a vocabulary that of the embedding, and each layer has a
    tensor of its own.

    Raises:
        CorruptError: the weights are those of another config.
    """
    inside, values = _language_model(config)
    fields = Fields(values, path, inside=inside)
    extents = {extent for tensor in tensors.values() for extent in tensor.shape}
    for name in (*_WIDTHS, "vocab_size"):
        value = values.get(name)
        if type(value) is int and value not in extents:
            raise fields.error(name, f"is {value}, which is not the extent of any tensor of the weights", _HINT)
    for name in ("num_hidden_layers", "n_layer"):
        value = values.get(name)
        if type(value) is int and value > len(tensors):
            raise fields.error(name, f"is {value}, and the weights hold {len(tensors)} tensors", _HINT)


def check_memory(model: Any, config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str) -> None:
    """Compare a model built on the meta device with the weights, before it takes memory.

    Raises:
        CorruptError: the model is much larger than its weights.
    """
    stored = sum(math.prod(tensor.shape) for tensor in tensors.values())
    most = stored * (_PACKED if "quantization_config" in config else 1) * _SURPLUS + _FREE
    parameters = sum(tensor.numel() for tensor in model.parameters())
    buffers = sum(tensor.numel() for tensor in model.buffers())
    if parameters > most or buffers > stored * _SURPLUS + _FREE_BUFFERS:
        raise CorruptError(
            f"describes a model of {max(parameters, buffers):,} values, and the weights hold {stored:,}",
            path=path,
            hint=_HINT,
        )


def field_of(config: Mapping[str, Any], value: object) -> str | None:
    """Return the dotted name of a field that has a value, which a library's error names alone."""
    for inside, values in _objects(config):
        for name, stated in values.items():
            candidates = [stated, *stated] if isinstance(stated, list) else [stated]
            if any(type(candidate) is type(value) and candidate == value for candidate in candidates):
                return inside + name
    return None


def _objects(config: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the config and every object in it, with the dotted prefix of its fields."""
    yield inside, config
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _objects(value, f"{inside}{name}.")


def _language_model(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    text = config.get("text_config")
    return ("text_config.", text) if isinstance(text, dict) else ("", config)


def _size(fields: Fields, name: str, most: int) -> None:
    if fields.stated(name):
        value = fields.values[name]
        if isinstance(value, list) and name == "num_attention_heads":
            return  # one a layer, in some architectures
        if type(value) is not int or not 1 <= value <= most:
            raise fields.error(name, f"is {shown(value)}; an integer from 1 to {most:,} was expected", _HINT)


def _check_heads(fields: Fields) -> None:
    heads, kv = (fields.values.get(name) for name in ("num_attention_heads", "num_key_value_heads"))
    if type(heads) is int and type(kv) is int and heads % kv:
        raise fields.error("num_key_value_heads", f"is {kv}, which does not divide {heads} attention heads", _HINT)


def _check_windows(fields: Fields) -> None:
    """Refuse windows below 2 tokens, which keep no rows; unused ones may have any value."""
    kinds = fields.values.get("layer_types")
    for name, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        value = fields.values.get(name)
        if value is None or (isinstance(kinds, list) and kind not in kinds):
            continue
        if isinstance(value, list) or fields.values.get("use_sliding_window") is False:
            continue
        if type(value) is not int or value < 2:
            raise fields.error(name, f"is {shown(value)}; an integer of at least 2 was expected", _HINT)


def _check_rope(fields: Fields) -> None:
    for name in _ROPE:
        value = fields.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise fields.error(name, f"is {shown(value)}; an object was expected", _HINT)
        for inside, values in _objects(value or {}, f"{name}."):
            for key, setting in values.items():
                expected = None
                if isinstance(setting, str) and key not in _NOT_NUMBERS:
                    expected = "a number"
                elif key in _NOT_NUMBERS and not isinstance(setting, str | None):
                    expected = "a string"
                elif key == "rope_theta" and not (type(setting) in (int, float) and setting > 0):
                    expected = "a number above 0"
                if expected is not None:
                    raise fields.error(inside + key, f"is {shown(setting)}; {expected} was expected", _HINT)


def _check_dtype(fields: Fields) -> None:
    import torch

    for name in ("dtype", "torch_dtype"):
        value = fields.values.get(name)
        if value is None or isinstance(value, dict):
            continue
        if not isinstance(value, str) or (
            value != "auto" and not isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype)
        ):
            raise fields.error(name, f"is {shown(value)}; a dtype such as 'bfloat16' was expected", _HINT)


def _check_kernels(fields: Fields) -> None:
    for name in _KERNELS:
        value = fields.values.get(name)
        for kernel in value.values() if isinstance(value, dict) else [value]:
            if isinstance(kernel, str) and "/" in kernel:
                raise UsageError(
                    f"field {shown(fields.inside + name)} names code on a hub, {shown(kernel)}, which is not run",
                    path=fields.path,
                    hint="--trust-remote-code with -m runs it: only if you know who wrote it",
                )
