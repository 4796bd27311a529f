"""How many positions a model has, how many it was made for, and what a cache cannot cross.

Every command and function stops at the positions that a model has, and at those that it was made
for unless the user asks for more (`--allow-beyond-positions`, `allow_beyond_positions=True`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from formats.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TABLE = re.compile(r"(.*\.)?(wpe|embed_positions|positions_embed|pos_emb\w*|pos_encoding|position(al)?_embeddings?)")
# modules that are not the decoder's
_NOT_DECODER = re.compile(r"(^|[._])(encoder|vision|visual|audio|image)")


class Positions:
    """The positions of one model; each walk over its modules is done once.

    Args:
        model: the transformers model itself, without wrappers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._config: Any = model.config.get_text_config(decoder=True)

    @cached_property
    def end(self) -> int | None:
        """The number of positions of a model that looks them up in a table; else None."""
        return self._rows_of_tables()

    @cached_property
    def encoder_end(self) -> int | None:
        """As `end`, of the encoder of an encoder-decoder model."""
        return self._rows_of_tables(encoder=True)

    @property
    def reach(self) -> int | None:
        """The positions that the model was made for, RoPE scaling included; None without positions.

        A config states the positions before or after scaling, according to who wrote it. With
        LongRoPE and Llama 3's scaling, and where only some layers are scaled (Gemma 3), it is
        after, unless it states no more than `original_max_position_embeddings`. With the other
        kinds the larger of both readings counts.
        """
        end, stated, settings = self.end, self._stated, self._rope_settings
        if end is not None:
            return end if stated is None else min(end, stated)
        if stated is None or not self._has_positions:
            return None
        if len(settings) != 1:
            return stated
        factor, original = settings[0].get("factor"), settings[0].get("original_max_position_embeddings")
        base = original if isinstance(original, int) and original > 0 else stated
        scaled = int(base * factor) if isinstance(factor, int | float) and 1 <= factor < sys.maxsize else base
        if settings[0].get("rope_type") in ("longrope", "llama3") and stated > base:
            return stated
        return max(stated, scaled)

    @property
    def longrope_switch(self) -> int | None:
        """The context length beyond which LongRoPE (arXiv 2402.13753) has other rates, or None.

        transformers chooses the rates by the longest position of a pass, so that a cache which is
        filled in several passes must lie on one side.
        """
        lengths = [
            int(settings.get("original_max_position_embeddings") or self._config.original_max_position_embeddings)
            for settings in self._rope_settings
            if settings.get("rope_type") == "longrope"
        ]
        return min(lengths, default=None)

    @property
    def one_pass_beyond(self) -> int | None:
        """The length beyond which a prompt is fed in one pass, as its end sets all keys' rates."""
        if self.longrope_switch is None and self._is_dynamic:
            return self._stated
        return self.longrope_switch

    def room(self, held: int, *, beyond: bool = False) -> int:
        """Return how many tokens can be fed to a cache of `held` tokens.

        Args:
            beyond: go on beyond the positions that the model was made for.
        """
        ends = [end for end in (self.end, None if beyond else self.reach) if end is not None]
        switch = self.longrope_switch
        if switch is not None and 0 < held <= switch:
            ends.append(switch)
        return max(min(ends) - held, 0) if ends else sys.maxsize

    def require_room(self, held: int, count: int) -> None:
        """Raise UsageError if a pass cannot feed `count` tokens to a cache of `held`."""
        free = self.room(held, beyond=True)
        if free < count:
            raise UsageError(
                f"{count} tokens do not fit behind {held}: the model goes on for {free} positions only",
                hint="capture fewer tokens: --context",
            )

    def require_fit(
        self, tokens: int, steps: int, *, held: int = 0, beyond: bool = False, option: str = "--steps", unfed: int = 0
    ) -> None:
        """Raise UsageError unless `tokens` and then `steps` more fit behind a cache of `held`.

        Args:
            beyond: go on beyond the positions that the model was made for.
            option: the option that says how many steps, for the hint; it counts `unfed` more than
                those that are fed.
        """
        switch, total, least = self.longrope_switch, held + tokens + steps, held + tokens
        summary = f"{held} tokens, {tokens} more" if held and tokens else f"{least} tokens"
        for limit, hard in ((self.end, True), (self.reach, False)):
            if limit is None or total <= limit or (beyond and not hard):
                continue
            hints = [f"at most {option} {limit - least + unfed}"] if steps and least <= limit else []
            if not hints and not held:
                hints = [f"--context {max(limit - steps, 1)} takes the first tokens only"]
            if not hard and limit != self.end:
                hints.append("--allow-beyond-positions (in Python allow_beyond_positions=True) goes on all the same")
            raise UsageError(
                f"{summary} and {steps} steps make {total}, which do not fit into the model's {limit} positions",
                hint="; ".join(hints) or "begin anew with fewer tokens",
            )
        if switch is not None and 0 < (held or tokens) <= switch < total:
            raise UsageError(
                f"{summary} and {steps} steps cross {switch}, where the model's LongRoPE turns every key anew",
                hint=f"at most {option} {switch - least + unfed}"
                if least <= switch
                else "begin anew with all of the tokens",
            )

    def require_encodable(self, tokens: int) -> None:
        """Raise UsageError if the encoder has fewer positions than it is given tokens."""
        if self.encoder_end is not None and tokens > self.encoder_end:
            raise UsageError(f"{tokens} tokens do not fit into the {self.encoder_end} positions of the model's encoder")

    def settle(self) -> None:
        """Reset the rates of dynamic NTK scaling: the next pass sets them by its own length.

        transformers keeps the rates of the longest text that a model has seen, which would change
        how a cache goes on after another text.
        """
        if not self._is_dynamic:
            return
        for module in self._model.modules():
            original = getattr(module, "original_inv_freq", None)
            if isinstance(original, torch.Tensor) and hasattr(module, "max_seq_len_cached"):
                current = module.inv_freq
                assert isinstance(current, torch.Tensor)
                module.register_buffer("inv_freq", original.to(current.device), persistent=False)
                module.max_seq_len_cached = module.original_max_seq_len

    @property
    def _stated(self) -> int | None:
        limit = getattr(self._config, "max_position_embeddings", None)
        # XLNet states -1: there is no limit
        return limit if isinstance(limit, int) and limit > 0 else None

    @property
    def _rope_settings(self) -> list[Mapping[str, Any]]:
        """The settings of each kind of RoPE in the model; some models have one a type of layer."""
        stated = getattr(self._config, "rope_parameters", None) or {}
        if "rope_type" in stated:
            return [stated]
        return [settings for settings in stated.values() if isinstance(settings, Mapping)]

    @property
    def _is_dynamic(self) -> bool:
        return any("dynamic" in str(settings.get("rope_type")) for settings in self._rope_settings)

    @cached_property
    def _has_positions(self) -> bool:
        """Whether keys are rotated or a table grows; if not, a config's limit does not count."""
        if getattr(self._config, "alibi", False):
            return False
        modules = list(self._model.modules())
        turns = any(name.endswith("inv_freq") for module in modules for name in (*vars(module), *module._buffers))
        return turns or any(hasattr(module, "make_weights") for module in modules)

    def _rows_of_tables(self, *, encoder: bool = False) -> int | None:
        """Return the rows of the smallest table of positions; None without one that is fixed."""
        longest, ends = getattr(self._config, "max_seq_len", None), []
        if not encoder and hasattr(self._config, "attn_config") and isinstance(longest, int):
            ends.append(longest)  # MPT computes its biases for so many tokens
        root: Any = self._model
        if self._model.config.is_encoder_decoder:
            root = root.get_encoder() if encoder else root.get_decoder()
        for path, module in root.named_modules():
            if _NOT_DECODER.search(path):
                continue
            tables = {path: getattr(module, "weight", None)} if not hasattr(module, "make_weights") else {}
            attributes = {**vars(module), **module._buffers}
            tables |= {
                f"{path}.{name}": table
                for name, table in attributes.items()
                if name in ("embed_positions", "pos_encoding")
            }
            for name, table in tables.items():
                if isinstance(table, torch.Tensor) and table.ndim == 2 and _TABLE.fullmatch(name):
                    ends.append(len(table) - _rows_before_the_first(module))
        return min(ends, default=None)


def _rows_before_the_first(module: torch.nn.Module) -> int:
    """Return how many rows of a table precede that of the first position."""
    offset, padding = getattr(module, "offset", None), getattr(module, "padding_idx", None)
    if isinstance(offset, int):
        return offset
    return padding + 1 if isinstance(padding, int) else 0
