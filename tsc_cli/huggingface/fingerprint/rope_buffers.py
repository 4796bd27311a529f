"""The rates of a model's rotary modules, whose buffers may differ from what its config says."""

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
    """Return the rates of every rotary module before any pass, as JSON.

    Returns:
        {buffer: [number of rates, two sums of their logarithms, scaling]}: sums and not a hash,
        since rates depend on the device where they are computed. Equal modules stand once, as
        `name*count`.
    """
    names: dict[tuple[float, ...], list[str]] = {}
    for name, summary in _summaries(model):
        names.setdefault(summary, []).append(name)
    summaries = {
        equal[0] + (f"*{len(equal)}" if len(equal) > 1 else ""): list(summary) for summary, equal in names.items()
    }
    return json.dumps(summaries, separators=(",", ":"))


def _summaries(model: torch.nn.Module) -> Iterator[tuple[str, tuple[float, ...]]]:
    for path, module in model.named_modules():
        attributes = {**vars(module), **dict(module.named_buffers(recurse=False))}
        for name, tensor in attributes.items():
            if not name.endswith(_NAME) or name.endswith((f"original_{_NAME}", f"long_{_NAME}")):
                continue
            if not isinstance(tensor, torch.Tensor):
                continue
            prefix = name.removesuffix(_NAME)
            scaling = getattr(module, f"{prefix}attention_scaling", getattr(module, "attention_scaling", 1.0))
            rates = _initial_rates(module, prefix, tensor)
            yield f"{path}.{name}".lstrip("."), (*_sums(rates), round(float(scaling), 9))


def _initial_rates(module: Any, prefix: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the rates before any pass; dynamic NTK and LongRoPE overwrite the buffer."""
    kind = getattr(module, "rope_type", "")
    kind = kind.get(prefix.rstrip("_"), "") if isinstance(kind, dict) else kind
    original = getattr(module, f"{prefix}original_{_NAME}", None)
    if not isinstance(original, torch.Tensor):
        return tensor
    longest = getattr(module, f"{prefix}max_seq_len_cached", getattr(module, "max_seq_len_cached", 0))
    grown = "dynamic" in str(kind) and int(longest) > int(getattr(module, "original_max_seq_len", 0))
    return original if grown or kind == "longrope" else tensor


def _sums(rates: torch.Tensor) -> tuple[float, float, float]:
    """Return (count, sum, weighted sum) of the rates' logarithms to the base 2."""
    rates = rates.detach().double().cpu().reshape(-1)
    logs = rates.abs().log2().clamp(min=-200.0)
    logs = torch.where(rates < 0, logs + 1000.0, logs)
    weights = torch.arange(1, len(logs) + 1, dtype=torch.float64) / max(len(logs), 1)
    return float(len(logs)), round(float(logs.sum()), 6), round(float((logs * weights).sum()), 6)


def name_of_difference(recorded: str, here: str) -> str | None:
    """Return the rotary buffer in which a file and a model differ, or None if they agree."""
    try:
        in_file, in_model = json.loads(recorded), json.loads(here)
        for name in dict.fromkeys([*in_model, *in_file]):
            if name not in in_file or name not in in_model or not _agree(in_file[name], in_model[name]):
                return str(name)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return "what the file says of it"
    return None


def _agree(left: list[float], right: list[float]) -> bool:
    return len(left) == len(right) and all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=_TOLERANCE) for a, b in zip(left, right, strict=True)
    )
