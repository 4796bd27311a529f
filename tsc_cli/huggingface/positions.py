"""How far a model's positions go: what it has, what it was made for, and what a cache cannot be carried across.

One rule for every command and function: beyond the positions that a model has nothing goes on, beyond those that it was
made for only what is asked to (`--allow-beyond-positions`, `allow_beyond_positions=True`).
"""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from formats.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TABLE = re.compile(r"(.*\.)?(wpe|embed_positions|positions_embed|pos_emb\w*|pos_encoding|position(al)?_embeddings?)")
_OTHERS = re.compile(r"(^|[._])(encoder|vision|visual|audio|image)")  # modules that are not the decoder's

_ends: weakref.WeakKeyDictionary[torch.nn.Module, int | None] = weakref.WeakKeyDictionary()
_placed: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


def end_of(model: PreTrainedModel) -> int | None:
    """How many positions there are at all, for a model that looks them up in a table; None where there is no end."""
    if model not in _ends:
        _ends[model] = _rows_of_tables(model)
    return _ends[model]


def reach_of(model: PreTrainedModel) -> int | None:
    """How many positions the model was made for, scaling of RoPE included; None for a model without positions.

    A config states the positions before or after scaling, according to who wrote it.  With LongRoPE and Llama 3's
    scaling, and where only some layers are scaled (Gemma 3), it is after, unless it states no more than
    `original_max_position_embeddings`.  With the other kinds the larger of both readings counts.
    """
    end, stated = end_of(model), _stated(model)
    kinds = list(_rope_settings(model))
    if end is not None:
        return end if stated is None else min(end, stated)
    if stated is None or not _has_positions(model):
        return None
    if len(kinds) != 1:
        return stated
    factor, original = kinds[0].get("factor"), kinds[0].get("original_max_position_embeddings")
    begun = original if isinstance(original, int) and original > 0 else stated
    scaled = int(begun * factor) if isinstance(factor, int | float) and 1 <= factor < sys.maxsize else begun
    if kinds[0].get("rope_type") in ("longrope", "llama3") and stated > begun:
        return stated
    return max(stated, scaled)


def switch_of(model: PreTrainedModel) -> int | None:
    """The length of a context beyond which LongRoPE (arXiv 2402.13753) turns every key at other rates, or None.

    transformers chooses the rates by the longest position of a pass, so that a cache of several passes must lie on one
    side.
    """
    found = [
        int(settings.get("original_max_position_embeddings") or _config(model).original_max_position_embeddings)
        for settings in _rope_settings(model)
        if settings.get("rope_type") == "longrope"
    ]
    return min(found, default=None)


def one_pass_beyond(model: PreTrainedModel) -> int | None:
    """The length beyond which a prompt is fed in one pass: its longest position decides how all of its keys turn."""
    switch = switch_of(model)
    if switch is None and any("dynamic" in str(one.get("rope_type")) for one in _rope_settings(model)):
        return _stated(model)
    return switch


def room(model: PreTrainedModel, held: int, *, beyond: bool = False) -> int:
    """How many tokens can be fed to a cache of `held`.

    Args:
        beyond: go on beyond the positions that the model was made for.
    """
    ends = [end for end in (end_of(model), None if beyond else reach_of(model)) if end is not None]
    switch = switch_of(model)
    if switch is not None and 0 < held <= switch:
        ends.append(switch)
    return max(min(ends) - held, 0) if ends else sys.maxsize


def require_room(model: PreTrainedModel, held: int, count: int) -> None:
    """Raise UsageError if a pass cannot feed `count` tokens to a cache of `held`, whoever asks for it."""
    free = room(model, held, beyond=True)
    if free < count:
        raise UsageError(
            f"{count} tokens do not fit behind {held}: the model goes on for {free} positions only",
            hint="capture fewer tokens: --context",
        )


def require_fit(
    model: PreTrainedModel,
    tokens: int,
    steps: int,
    *,
    held: int = 0,
    beyond: bool = False,
    option: str = "--steps",
    unfed: int = 0,
) -> None:
    """Raise UsageError unless `tokens` and then `steps` more fit behind a cache of `held`.

    Args:
        beyond: go on beyond the positions that the model was made for.
        option: what says how many steps, for the hint; `unfed` more than those that are fed.
    """
    end, reach, switch, total = end_of(model), reach_of(model), switch_of(model), held + tokens + steps
    said = f"{held} tokens, {tokens} more" if held and tokens else f"{held + tokens} tokens"
    least = held + tokens
    for limit, hard in ((end, True), (reach, False)):
        if limit is None or total <= limit or (beyond and not hard):
            continue
        hints = [f"at most {option} {limit - least + unfed}"] if steps and least <= limit else []
        if not hints and not held:
            hints = [f"--context {max(limit - steps, 1)} takes the first tokens only"]
        if not hard and limit != end:
            hints.append("--allow-beyond-positions (in Python allow_beyond_positions=True) goes on all the same")
        raise UsageError(
            f"{said} and {steps} steps make {total}, which do not fit into the model's {limit} positions",
            hint="; ".join(hints) or "begin anew with fewer tokens",
        )
    first = held or tokens
    if switch is not None and 0 < first <= switch < total:
        raise UsageError(
            f"{said} and {steps} steps cross {switch}, where the model's LongRoPE turns every key anew",
            hint=f"at most {option} {switch - least + unfed}"
            if least <= switch
            else "begin anew with all of the tokens",
        )


def require_encodable(model: PreTrainedModel, tokens: int) -> None:
    """Raise UsageError if the encoder of a model has fewer positions than it is given tokens."""
    end = _rows_of_tables(model, encoder=True)
    if end is not None and tokens > end:
        raise UsageError(f"{tokens} tokens do not fit into the {end} positions of the model's encoder")


def settle(model: PreTrainedModel) -> None:
    """Make the rates of dynamic NTK scaling those of the next pass alone.

    transformers keeps the rates of the longest text that a model has seen, so that a cache would go on in another way
    after another text.  An unbroken run only grows, and computes them for each pass.
    """
    if not any("dynamic" in str(one.get("rope_type")) for one in _rope_settings(model)):
        return
    for module in model.modules():
        original = getattr(module, "original_inv_freq", None)
        if isinstance(original, torch.Tensor) and hasattr(module, "max_seq_len_cached"):
            now = module.inv_freq
            assert isinstance(now, torch.Tensor)
            module.register_buffer("inv_freq", original.to(now.device), persistent=False)
            module.max_seq_len_cached = module.original_max_seq_len


def _config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


def _stated(model: PreTrainedModel) -> int | None:
    limit = getattr(_config(model), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None  # XLNet says -1: as many as there are


def _has_positions(model: PreTrainedModel) -> bool:
    """Whether keys are turned or a table grows; otherwise what a config states means nothing (ALiBi, no positions)."""
    if getattr(_config(model), "alibi", False):
        return False
    if model not in _placed:
        turns = (name.endswith("inv_freq") for module in model.modules() for name in (*vars(module), *module._buffers))
        _placed[model] = any(turns) or any(hasattr(module, "make_weights") for module in model.modules())
    return _placed[model]


def _rows_of_tables(model: PreTrainedModel, *, encoder: bool = False) -> int | None:
    """The rows of the smallest table of positions, learned or computed once; one that grows by itself is none."""
    config = _config(model)
    longest, ends = getattr(config, "max_seq_len", None), []
    if not encoder and hasattr(config, "attn_config") and isinstance(longest, int):
        ends.append(longest)  # MPT computes its biases for so many tokens
    root: Any = model
    if model.config.is_encoder_decoder:
        root = root.get_encoder() if encoder else root.get_decoder()
    for path, module in root.named_modules():
        if _OTHERS.search(path):
            continue
        tables = {path: getattr(module, "weight", None)} if not hasattr(module, "make_weights") else {}
        held = {**vars(module), **module._buffers}
        tables |= {f"{path}.{name}": one for name, one in held.items() if name in ("embed_positions", "pos_encoding")}
        for name, table in tables.items():
            if isinstance(table, torch.Tensor) and table.ndim == 2 and _TABLE.fullmatch(name):
                ends.append(len(table) - _offset(module))
    return min(ends, default=None)


def _offset(module: torch.nn.Module) -> int:
    """Rows of a table that stand before that of the first position."""
    offset, padding = getattr(module, "offset", None), getattr(module, "padding_idx", None)
    if isinstance(offset, int):
        return offset
    return padding + 1 if isinstance(padding, int) else 0


def _rope_settings(model: PreTrainedModel) -> Iterator[Mapping[str, Any]]:
    """The settings of every kind of RoPE that the model has; some have one a type of layer."""
    found = getattr(_config(model), "rope_parameters", None) or {}
    yield from [found] if "rope_type" in found else [one for one in found.values() if isinstance(one, Mapping)]
