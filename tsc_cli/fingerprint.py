"""What identifies the model that a cache belongs to.

A restored cache is meaningless under other weights, another RoPE base or another tokenizer, and nothing in its
tensors would show it.  Each field is recorded by name, so that a refusal can say which one differs.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from formats.errors import MismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# of a config: where it was loaded from, by which version, and how it was asked to report; none changes a cache
_VOLATILE = {
    "_name_or_path", "name_or_path", "transformers_version", "_attn_implementation", "_attn_implementation_internal",
    "dtype", "torch_dtype", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
    "quantization_config", "architectures", "_commit_hash",
}  # fmt: skip
NOT_COMPARED = frozenset({"attention"})  # another kernel rounds differently but means the same cache

_tokenizers: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()
_weights: weakref.WeakKeyDictionary[torch.nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


def of(model: PreTrainedModel, tokenizer: Any = None) -> dict[str, str]:
    """The fingerprint of a loaded model; the tokenizer's field is there only when one is given.

    Hashing the weights takes about a second a gigabyte and core, once a loaded model.
    """
    config = model.config.get_text_config(decoder=True)
    settings = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    heads = getattr(config, "num_attention_heads", None)
    fields = {
        "architecture": type(model).__name__,
        "layers": str(getattr(config, "num_hidden_layers", "")),
        "kv_heads": str(getattr(config, "num_key_value_heads", None) or heads or ""),
        "rope": _canonical(getattr(config, "rope_parameters", None)),
        "sliding_window": str(getattr(config, "sliding_window", None)),
        "config": _sha256([_canonical(settings).encode()]),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "adapters": ",".join(_adapters(model)) or "none",
        "weights": weights_of(model),
        "attention": str(getattr(model.config, "_attn_implementation", "")),
    }
    if tokenizer is not None:
        fields["tokenizer"] = tokenizer_hash(tokenizer)
    return fields


def require_same(recorded: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise MismatchError that names the first field in which a file's model and the one at hand differ.

    A trace that names nothing was made of somebody's own caches and is taken; one that leaves a field out is not.
    """
    silent = next((field for field in found if field not in {*recorded, *NOT_COMPARED, "tokenizer"}), None)
    if recorded and silent is not None:
        raise MismatchError(
            f"the file does not say what model it belongs to: it has no {silent}",
            hint="--force-model-mismatch (force=True in Python) takes it at your word",
        )
    for field, value in recorded.items():
        if field in NOT_COMPARED or (field == "tokenizer" and field not in found):
            continue
        if found.get(field) != value:
            raise MismatchError(
                f"the file belongs to another model: {field} is {_short(value)} in the file "
                f"and {_short(found.get(field, 'missing'))} here",
                hint="give the model of the capture with -m",
            )


def weights_of(model: torch.nn.Module) -> str:
    """SHA-256 over all parameters and persistent buffers, by name, dtype, shape and bits; cached while unchanged."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    state = tuple((name, tensor.data_ptr(), tensor._version) for name, tensor in tensors.items())
    known = _weights.get(model)
    if known is not None and known[0] == state:
        return known[1]
    with ThreadPoolExecutor() as pool:  # hashlib releases the interpreter lock
        digests = pool.map(_tensor_digest, sorted(tensors), [tensors[name] for name in sorted(tensors)])
        value = _sha256(digests)
    _weights[model] = (state, value)
    return value


def _tensor_digest(name: str, tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    head = f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode()
    digest = hashlib.sha256(head)
    digest.update(flat.data)
    return digest.digest()


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of everything that turns text into token ids; cached while no token is added."""
    known = _tokenizers.get(tokenizer)
    if known is not None and known[0] == len(tokenizer):
        return known[1]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = _described(backend) if backend is not None else _canonical(tokenizer.get_vocab())
    value = _sha256([text.encode()])
    _tokenizers[tokenizer] = (len(tokenizer), value)
    return value


def _described(backend: Any) -> str:
    """A fast tokenizer as JSON, less how the last call asked it to pad and truncate, which it keeps."""
    text: str = backend.to_str()
    if backend.padding is None and backend.truncation is None:
        return text
    plain = type(backend).from_str(text)
    plain.no_padding()
    plain.no_truncation()
    return str(plain.to_str())


def _adapters(model: Any) -> list[str]:
    """Names of active adapters; their weights are in the weights' hash."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return []
    return sorted(model.active_adapters())


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # length-prefixed: no two lists of parts hash alike
        digest.update(part)
    return digest.hexdigest()


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:12]}..."
