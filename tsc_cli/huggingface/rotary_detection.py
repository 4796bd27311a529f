"""The rotary embedding of each layer of a model, found by experiment.

No formula of any family is repeated here. The model's own rotary modules are called for their
angles, which include any scaling (YaRN, Llama 3, linear). Then the same tokens are run at two
positions, and the channel pairing that makes their keys equal again is the layer's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from formats.codecs.klt.rotary import Rotary

from .adapter import ModelAdapter
from .caches import new_cache, rows_of

_TOKENS, _SHIFT = 8, 17
# relative difference of the keys that remains, at most; bfloat16 leaves about 0.01
_EXPLAINED = 0.05
_NONE = Rotary(())


def layers_of(adapter: ModelAdapter) -> list[Rotary]:
    """Return the rotary embedding of every cache layer, without frequencies where there is none.

    A layer whose keys depend on the position in another way (learned positions) counts as one
    without.
    """
    if not adapter.takes("position_ids"):
        return [_NONE] * len(new_cache(adapter).layers)
    here, there = _keys_at(adapter, 0), _keys_at(adapter, _SHIFT)
    candidates = [
        Rotary(rates, interleaved) for rates in dict.fromkeys(_frequencies(adapter)) for interleaved in (False, True)
    ]
    return [_best_fit(candidates, keys, shifted) for keys, shifted in zip(here, there, strict=True)]


def _best_fit(candidates: list[Rotary], keys: torch.Tensor, shifted: torch.Tensor) -> Rotary:
    """Return the candidate that makes keys and the same keys `_SHIFT` positions on equal."""
    if not keys.numel():  # a layer without rows
        return _NONE
    positions = torch.arange(keys.shape[2])

    def residual(rotary: Rotary) -> float:
        unturned = rotary.turn(keys, positions, back=True)
        difference = unturned - rotary.turn(shifted, positions + _SHIFT, back=True)
        return float(difference.norm() / unturned.norm())

    fitting = [rotary for rotary in candidates if rotary.channels <= keys.shape[-1]]
    best = min([_NONE, *fitting], key=residual)
    return best if residual(best) < _EXPLAINED else _NONE


@torch.no_grad()
def _keys_at(adapter: ModelAdapter, start: int) -> list[torch.Tensor]:
    """Return each layer's float32 keys at `start` and on, (1, heads, tokens, head size)."""
    device, cache = adapter.device, new_cache(adapter)
    tokens = torch.arange(1, 1 + _TOKENS, device=device)[None] % adapter.config.get_text_config().vocab_size
    adapter.run(cache, input_ids=tokens, position_ids=torch.arange(start, start + _TOKENS, device=device)[None])
    empty = torch.empty(1, 0, 0, 0)
    return [rows[0].float().cpu() if rows else empty for rows in rows_of(cache)]


def _frequencies(adapter: ModelAdapter) -> Iterator[tuple[float, ...]]:
    """Yield the radians a position of every rotary module: its angles at position 1."""
    layer_types = sorted(set(getattr(adapter.config.get_text_config(), "layer_types", None) or [])) or [None]
    for module in adapter.model.modules():
        if not type(module).__name__.endswith("RotaryEmbedding"):
            continue
        typed = "layer_type" in inspect.signature(module.forward).parameters
        for layer_type in layer_types if typed else [None]:
            arguments = {} if layer_type is None else {"layer_type": layer_type}
            positions = torch.tensor([[0, 1]], device=adapter.device)
            angles = _angles(module(torch.zeros(1, 2, 1, device=adapter.device), positions, **arguments))
            if angles is not None:
                yield tuple(angles.tolist())


def _angles(output: Any) -> torch.Tensor | None:
    """Return one angle a pair of channels at position 1, in radians.

    Args:
        output: of a rotary module: (cos, sin) or unit complex numbers, (1, 2, channels) each.
    """
    if isinstance(output, torch.Tensor) and output.is_complex():
        angles = output.angle()[0, -1].double()
    elif isinstance(output, tuple) and len(output) == 2:
        cos, sin = (part.double().cpu() for part in output)
        angles = torch.atan2(sin, cos)[0, -1]  # a scaling of both (YaRN's) cancels
    else:
        return None
    half = len(angles) // 2  # often one for each channel; vectorized cosines differ in the last bit
    if torch.allclose(angles[:half], angles[half:], rtol=1e-5):
        return angles[:half]
    return angles[0::2] if torch.allclose(angles[0::2], angles[1::2], rtol=1e-5) else angles
