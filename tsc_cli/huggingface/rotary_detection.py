"""How a model's layers turn their keys, found by asking the model.

No formula of any family is repeated here. The model's own rotary modules are called for their
angles (whatever scaling made them: YaRN, Llama 3, linear), and what each layer does with them is
found by an experiment: the same tokens are run at two places, and the pairing that makes the keys
equal again is the layer's.
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
_EXPLAINED = 0.05  # relative difference of the keys that remains, at most; bfloat16 leaves about 0.01
_NONE = Rotary(())


def layers_of(adapter: ModelAdapter) -> list[Rotary]:
    """The rotary embedding of every cache layer; one without frequencies where keys do not turn.

    A layer whose keys depend on the position in a way that no rotary module explains (learned
    positions, say) has none: its keys are taken as they are.
    """
    if not adapter.takes("position_ids"):
        return [_NONE] * len(new_cache(adapter).layers)
    here, there = _keys_at(adapter, 0), _keys_at(adapter, _SHIFT)
    candidates = [
        Rotary(rates, interleaved) for rates in dict.fromkeys(_frequencies(adapter)) for interleaved in (False, True)
    ]
    return [_explaining(candidates, one, other) for one, other in zip(here, there, strict=True)]


def _explaining(candidates: list[Rotary], here: torch.Tensor, there: torch.Tensor) -> Rotary:
    if not here.numel():  # a layer without rows
        return _NONE
    places = torch.arange(here.shape[2])

    def left(rotary: Rotary) -> float:
        one, other = (rotary.turn(keys, places + at, back=True) for keys, at in ((here, 0), (there, _SHIFT)))
        return float((one - other).norm() / one.norm())

    fitting = [rotary for rotary in candidates if rotary.channels <= here.shape[-1]]
    best = min([_NONE, *fitting], key=left)
    return best if left(best) < _EXPLAINED else _NONE


@torch.no_grad()
def _keys_at(adapter: ModelAdapter, start: int) -> list[torch.Tensor]:
    """Keys of every layer, (1, heads, tokens, head size) in float32, of some tokens that begin at this position."""
    device, cache = adapter.device, new_cache(adapter)
    tokens = torch.arange(1, 1 + _TOKENS, device=device)[None] % adapter.config.get_text_config().vocab_size
    adapter.run(cache, input_ids=tokens, position_ids=torch.arange(start, start + _TOKENS, device=device)[None])
    nothing = torch.empty(1, 0, 0, 0)
    return [rows[0].float().cpu() if rows else nothing for rows in rows_of(cache)]


def _frequencies(adapter: ModelAdapter) -> Iterator[tuple[float, ...]]:
    """Radians a position of every rotary module: the angles that it gives at position 1, which are below one turn."""
    kinds = sorted(set(getattr(adapter.config.get_text_config(), "layer_types", None) or [])) or [None]
    for module in adapter.model.modules():
        if not type(module).__name__.endswith("RotaryEmbedding"):
            continue
        takes = inspect.signature(module.forward).parameters
        for kind in kinds if "layer_type" in takes else [None]:
            extra = {} if kind is None or "layer_type" not in takes else {"layer_type": kind}
            places = torch.tensor([[0, 1]], device=adapter.device)
            angles = _angles(module(torch.zeros(1, 2, 1, device=adapter.device), places, **extra))
            if angles is not None:
                yield tuple(angles.tolist())


def _angles(given: Any) -> torch.Tensor | None:
    """One angle a pair out of what a rotary module returns: (cos, sin) or unit complex numbers, (1, 2, channels)."""
    if isinstance(given, torch.Tensor) and given.is_complex():
        found = given.angle()[0, -1].double()
    elif isinstance(given, tuple) and len(given) == 2:
        cos, sin = (part.double().cpu() for part in given)
        found = torch.atan2(sin, cos)[0, -1]  # a scaling of both (YaRN's) cancels
    else:
        return None
    half = len(found) // 2  # often written once for each channel of a pair; vectorized cosines differ in the last bit
    if torch.allclose(found[:half], found[half:], rtol=1e-5):
        return found[:half]
    return found[0::2] if torch.allclose(found[0::2], found[1::2], rtol=1e-5) else found
