"""One hash of all that a model has learned, whatever its tensors are packed into."""

from __future__ import annotations

import dataclasses
import hashlib
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any

import torch

from formats.errors import UnsupportedCacheError

_SCALARS = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format)
_known: weakref.WeakKeyDictionary[torch.nn.Module, tuple[list[Any], str]] = weakref.WeakKeyDictionary()


def weights_of(model: torch.nn.Module) -> str:
    """SHA-256 over all parameters and persistent buffers, by name, dtype, shape and bits; cached while unchanged.

    A write through `.data` or NumPy leaves no trace that would tell a cached hash; torch counts all
    others.

    Raises:
        UnsupportedCacheError: a weight cannot be read; it is named.
    """
    entries = model.state_dict(keep_vars=True)
    known = _known.get(model)
    if known is not None and _is_same(known[0], entries):
        return known[1]
    leaves = dict(leaf for name, value in entries.items() for leaf in _leaves(name, value))
    with ThreadPoolExecutor() as pool:  # hashlib releases the interpreter lock
        digests = list(pool.map(_digest, sorted(leaves), [leaves[name] for name in sorted(leaves)]))
    whole = hashlib.sha256()
    for digest in digests:
        whole.update(len(digest).to_bytes(8, "little"))
        whole.update(digest)
    value = whole.hexdigest()
    state = _state(entries)
    if state is None:
        _known.pop(model, None)
    else:
        _known[model] = (state, value)
    return value


def _state(entries: Mapping[str, Any]) -> list[Any] | None:
    """What tells that nothing was written since, or None where torch keeps no count.

    References, not addresses: what is made anew for each `state_dict` (packed weights) or was
    exchanged may come to lie where another tensor lay.
    """
    tensors = list(entries.values())
    if not all(isinstance(one, torch.Tensor) and not _is_wrapper(one) and not one.is_inference() for one in tensors):
        return None
    return [(name, weakref.ref(one), one.data_ptr(), one._version) for name, one in entries.items()]


def _is_same(state: list[Any], entries: Mapping[str, Any]) -> bool:
    return len(state) == len(entries) and all(
        name == known and reference() is tensor and tensor.data_ptr() == place and tensor._version == version
        for (known, reference, place, version), (name, tensor) in zip(state, entries.items(), strict=True)
    )


def _is_wrapper(tensor: torch.Tensor) -> bool:
    """True for a tensor that is made of others, such as torchao's quantized ones."""
    return hasattr(tensor, "__tensor_flatten__")


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(name, tensor or bytes) of everything that a state dict's entry holds."""
    if isinstance(value, torch.Tensor) and _is_wrapper(value):
        inner, context = value.__tensor_flatten__()  # type: ignore[attr-defined]
        yield f"{name}.type", f"{type(value).__name__} {value.dtype} {list(value.shape)}".encode()
        yield from _leaves(f"{name}.context", context)
        for part in inner:
            yield from _leaves(f"{name}.{part}", getattr(value, part))
    elif isinstance(value, torch.Tensor) and value.is_quantized:
        yield from _quantized(name, value)
    elif isinstance(value, torch.Tensor):
        yield name, value
    elif value is None or isinstance(value, _SCALARS):
        yield name, f"{type(value).__name__} {value!r}".encode()
    elif isinstance(value, Enum):
        yield name, str(value).encode()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        yield f"{name}.length", str(len(value)).encode()
        for number, inner in enumerate(value):
            yield from _leaves(f"{name}.{number}", inner)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _leaves(f"{name}.{field.name}", getattr(value, field.name))
    elif callable(getattr(value, "unpack", None)):  # torch.ao's packed parameters
        yield from _leaves(name, value.unpack())
    else:
        raise _unreadable(name, f"of type {type(value).__name__}")


def _quantized(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, Any]]:
    yield f"{name}.scheme", f"{tensor.dtype} {tensor.qscheme()}".encode()
    yield name, tensor.int_repr()
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        yield f"{name}.scale", f"{tensor.q_scale()!r} {tensor.q_zero_point()}".encode()
        return
    yield f"{name}.scales", tensor.q_per_channel_scales()
    yield f"{name}.zeros", tensor.q_per_channel_zero_points()
    yield f"{name}.axis", str(tensor.q_per_channel_axis()).encode()


def _digest(name: str, value: torch.Tensor | bytes) -> bytes:
    if isinstance(value, bytes):
        return hashlib.sha256(name.encode() + b"\0" + value).digest()
    try:
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        where = "not in memory" if value.is_meta else f"a {type(value).__name__} of {value.dtype}"
        raise _unreadable(name, where) from error
    digest = hashlib.sha256(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
    digest.update(flat.data)
    return digest.digest()


def _unreadable(name: str, what: str) -> UnsupportedCacheError:
    return UnsupportedCacheError(
        f"the weight {name} is {what}, which cannot be hashed: other weights would not be noticed",
        hint="load the model whole, in memory, with weights that its state_dict shows",
    )
