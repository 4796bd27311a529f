"""One hash of all weights of a model, in whatever form its tensors are packed."""

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
_cache: weakref.WeakKeyDictionary[torch.nn.Module, tuple[list[Any], str]] = weakref.WeakKeyDictionary()


def weights_of(model: torch.nn.Module) -> str:
    """Return SHA-256 of all parameters and persistent buffers: names, dtypes, shapes and bits.

    The hash is cached until torch counts a write. It does not count writes through `.data` or
    NumPy.

    Raises:
        UnsupportedCacheError: a weight cannot be read; it is named.
    """
    entries = model.state_dict(keep_vars=True)
    cached = _cache.get(model)
    if cached is not None and _is_unchanged(cached[0], entries):
        return cached[1]
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
        _cache.pop(model, None)
    else:
        _cache[model] = (state, value)
    return value


def _state(entries: Mapping[str, Any]) -> list[Any] | None:
    """Return what changes with every write to the weights, or None where torch counts no writes.

    It holds references, since a tensor that replaces another may have the same address.
    """
    for tensor in entries.values():
        if not isinstance(tensor, torch.Tensor) or _is_wrapper(tensor) or tensor.is_inference():
            return None
    return [(name, weakref.ref(tensor), tensor.data_ptr(), tensor._version) for name, tensor in entries.items()]


def _is_unchanged(state: list[Any], entries: Mapping[str, Any]) -> bool:
    return len(state) == len(entries) and all(
        name == old_name and reference() is tensor and tensor.data_ptr() == address and tensor._version == version
        for (old_name, reference, address, version), (name, tensor) in zip(state, entries.items(), strict=True)
    )


def _is_wrapper(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is made of others, as torchao's quantized ones are."""
    return hasattr(tensor, "__tensor_flatten__")


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor or bytes) of all that an entry of a state dict holds."""
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
