"""How a model's rotary modules turn keys now, which its config need not say: buffers can be changed in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch

_NAME = "inv_freq"
# of sums of logarithms to the base 2: another device rounds each rate's last bit differently, which
# moves them by 1e-5
_TOLERANCE = 1e-4


def frequencies_of(model: torch.nn.Module) -> str:
    """The rates of every rotary module at rest, as JSON: {buffer: [rates, two sums of their logarithms, scaling]}.

    Sums and not a hash, since rates are computed on the device where a model is loaded. Equal
    modules stand once, as `name*count`.
    """
    names: dict[tuple[float, ...], list[str]] = {}
    for name, summary in _summaries(model):
        names.setdefault(summary, []).append(name)
    found = {
        all_of[0] + (f"*{len(all_of)}" if len(all_of) > 1 else ""): list(summary) for summary, all_of in names.items()
    }
    return json.dumps(found, separators=(",", ":"))


def _summaries(model: torch.nn.Module) -> Iterator[tuple[str, tuple[float, ...]]]:
    for path, module in model.named_modules():
        held = {**vars(module), **dict(module.named_buffers(recurse=False))}
        for name, tensor in held.items():
            if not name.endswith(_NAME) or name.endswith((f"original_{_NAME}", f"long_{_NAME}")):
                continue
            if not isinstance(tensor, torch.Tensor):
                continue
            prefix = name.removesuffix(_NAME)
            scaling = getattr(module, f"{prefix}attention_scaling", getattr(module, "attention_scaling", 1.0))
            rates = _at_rest(module, prefix, tensor)
            yield f"{path}.{name}".lstrip("."), (*_sums(rates), round(float(scaling), 9))


def _at_rest(module: Any, prefix: str, tensor: torch.Tensor) -> torch.Tensor:
    """Dynamic NTK and LongRoPE write other rates into the buffer while they run, and keep those that it began with."""
    kind = getattr(module, "rope_type", "")
    kind = kind.get(prefix.rstrip("_"), "") if isinstance(kind, dict) else kind
    original = getattr(module, f"{prefix}original_{_NAME}", None)
    if not isinstance(original, torch.Tensor):
        return tensor
    longest = getattr(module, f"{prefix}max_seq_len_cached", getattr(module, "max_seq_len_cached", 0))
    grown = "dynamic" in str(kind) and int(longest) > int(getattr(module, "original_max_seq_len", 0))
    return original if grown or kind == "longrope" else tensor


def _sums(rates: torch.Tensor) -> tuple[float, float, float]:
    """(count, sum, weighted sum) of logarithms, so that the slowest rate counts as much as the fastest."""
    rates = rates.detach().double().cpu().reshape(-1)
    logs = rates.abs().log2().clamp(min=-200.0)
    logs = torch.where(rates < 0, logs + 1000.0, logs)
    weights = torch.arange(1, len(logs) + 1, dtype=torch.float64) / max(len(logs), 1)
    return float(len(logs)), round(float(logs.sum()), 6), round(float((logs * weights).sum()), 6)


def name_of_difference(recorded: str, here: str) -> str | None:
    """The rotary buffer in which a file and a model differ, or None if they agree."""
    try:
        there, found = json.loads(recorded), json.loads(here)
        for name in dict.fromkeys([*found, *there]):
            if name not in there or name not in found or not _agree(there[name], found[name]):
                return str(name)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return "what the file says of it"
    return None


def _agree(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=_TOLERANCE) for a, b in zip(one, other, strict=True)
    )
