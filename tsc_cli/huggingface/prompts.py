"""Prompts: a sequence, a padded batch, or an encoder's input with a decoder's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from formats import Trace
from formats.errors import UsageError

from .adapter import ModelAdapter
from .generation import encode

# (tokens,) or (batch, tokens)
TokenIds = Sequence[int] | Sequence[Sequence[int]] | torch.Tensor


@dataclass(frozen=True)
class Prompt:
    """Token ids and what belongs to them.

    Attributes:
        ids: (batch, tokens), with padding at the left.
        padding: how many tokens at the beginning of each sequence are padding; empty if none has
            any.
        encoder: what the encoder is fed, by argument (`input_ids` or `input_features`), batch
            first; empty for a model without one.
    """

    ids: torch.Tensor
    padding: tuple[int, ...] = ()
    encoder: tuple[tuple[str, torch.Tensor], ...] = ()

    @property
    def batch(self) -> int:
        return self.ids.shape[0]

    @property
    def tokens(self) -> int:
        """Of each sequence, with padding."""
        return self.ids.shape[1]

    def encoded(self, adapter: ModelAdapter) -> torch.Tensor | None:
        """Return the encoder's output, (batch, tokens, width), or None without an encoder."""
        return encode(adapter, **dict(self.encoder)) if self.encoder else None

    def encoder_labels(self, rows: int) -> list[int]:
        """Return token ids of the encoder's rows, row by row; zeros if it is not fed tokens."""
        ids = dict(self.encoder).get("input_ids")
        return by_row(ids) if ids is not None and ids.shape[1] == rows else [0] * (rows * self.batch)

    def facts(self) -> dict[str, Any]:
        """Return what the tier header states of the prompt."""
        facts: dict[str, Any] = {"prompt_tokens": self.tokens}
        if self.batch > 1:
            facts["sequences"] = self.batch
        if self.encoder:
            facts["encoder"] = self.encoder[0][0]
        return facts


def by_row(ids: torch.Tensor) -> list[int]:
    """Return ids (batch, tokens) in the order of labels: an id a sequence, token by token."""
    return [int(token) for token in ids.T.reshape(-1).tolist()]


def prompt_of(
    adapter: ModelAdapter,
    input_ids: TokenIds | None,
    *,
    attention_mask: TokenIds | None = None,
    decoder_input_ids: TokenIds | None = None,
    input_features: torch.Tensor | None = None,
) -> Prompt:
    """Return a prompt made of what `model.generate` takes.

    Args:
        input_ids: token ids, (tokens,) or (batch, tokens); an encoder-decoder model's encoder is
            fed them.
        attention_mask: (batch, tokens), 0 at padding, which must be at the left.
        decoder_input_ids: what an encoder-decoder model's decoder begins with, by default its start
            token.
        input_features: what a speech model's encoder is fed instead of token ids, (1, ...).
    Raises:
        UsageError: padding that is not at the left, or an encoder's input with padding.
    """
    if not adapter.config.is_encoder_decoder:
        if decoder_input_ids is not None or input_features is not None:
            raise UsageError(f"{adapter.name} has no encoder: it takes input_ids alone")
        ids = as_ids(input_ids)
        return Prompt(ids, padding_of(attention_mask, ids))
    if (input_features is not None) != (adapter.model.main_input_name == "input_features"):
        raise UsageError(f"the encoder of {adapter.name} is fed {adapter.model.main_input_name}")
    encoder = (
        ("input_ids", as_ids(input_ids))
        if input_features is None
        else ("input_features", torch.as_tensor(input_features))
    )
    if attention_mask is not None and not bool(torch.as_tensor(attention_mask).bool().all()):
        raise UsageError("an encoder's input with padding cannot be captured", hint="one sequence at a time")
    if decoder_input_ids is None:
        decoder_input_ids = [[_start_token(adapter)]] * encoder[1].shape[0]
    ids = as_ids(decoder_input_ids)
    if ids.shape[0] != encoder[1].shape[0]:
        raise UsageError(f"{encoder[1].shape[0]} sequences for the encoder, {ids.shape[0]} for the decoder")
    return Prompt(ids, (), (encoder,))


def _start_token(adapter: ModelAdapter) -> int:
    for config in (adapter.model.generation_config, adapter.config):
        token = getattr(config, "decoder_start_token_id", None)
        if isinstance(token, int):
            return token
    raise UsageError(f"{adapter.name} does not say what its decoder begins with", hint="give decoder_input_ids")


def as_ids(input_ids: TokenIds | None) -> torch.Tensor:
    """Return token ids as (batch, tokens), int64 on the CPU. Raises UsageError for other input."""
    try:
        ids = torch.as_tensor(input_ids).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError("token ids are a sequence of integers, or a tensor of (tokens,) or (batch, tokens)") from error
    if ids.numel() and (ids.is_floating_point() or ids.dtype == torch.bool or ids.dim() not in (1, 2)):
        raise UsageError(f"token ids are integers of (tokens,) or (batch, tokens), not {ids.dtype} {tuple(ids.shape)}")
    return ids.to(torch.int64)[None] if ids.dim() == 1 else ids.to(torch.int64)


def padding_of(attention_mask: TokenIds | None, ids: torch.Tensor) -> tuple[int, ...]:
    """Return how many tokens at the beginning of each sequence are padding; empty without any."""
    if attention_mask is None:
        return ()
    mask = torch.as_tensor(attention_mask).bool().cpu()
    mask = mask[None] if mask.dim() == 1 else mask
    if mask.shape != ids.shape:
        raise UsageError(f"the attention mask is {tuple(mask.shape)}, the token ids are {tuple(ids.shape)}")
    padding = (~mask).sum(1)
    if not bool((mask == (torch.arange(mask.shape[1])[None] >= padding[:, None])).all()):
        raise UsageError(
            "the attention mask has holes, or padding at the right: only padding at the left can be captured",
            hint="tokenizer.padding_side = 'left'",
        )
    if not bool(mask.any(1).all()):
        raise UsageError("a sequence of the batch is nothing but padding")
    return tuple(padding.tolist()) if bool(padding.any()) else ()


def check(adapter: ModelAdapter, prompt: Prompt, steps: int, *, beyond: bool = False) -> None:
    """Raise UsageError unless the model knows all of the prompt's tokens and has room for the run.

    Args:
        beyond: go on beyond the positions that the model was made for.
    """
    if not prompt.ids.numel() or any(not tensor.numel() for _, tensor in prompt.encoder):
        raise UsageError("the prompt is empty")
    adapter.check_tokens(prompt.ids)
    for ids in (tensor for name, tensor in prompt.encoder if name == "input_ids"):
        adapter.check_tokens(ids)
        adapter.positions.require_encodable(ids.shape[1])
    adapter.positions.require_fit(prompt.tokens, steps, beyond=beyond)


def encoder_output_of(trace: Trace, adapter: ModelAdapter) -> torch.Tensor | None:
    """Compute the encoder's output of a captured trace again; None for a model without an encoder.

    Raises:
        UsageError: the encoder was not fed tokens.
    """
    cross = [layer for layer, spec in enumerate(trace.geometry.layers) if spec.kind == "cross"]
    if not cross:
        return None
    if trace.info.get("encoder") != "input_ids":
        raise UsageError(
            "the file does not hold what the encoder was fed, so that the exact cache cannot be made again",
            hint="--against a lossless file",
        )
    spans = trace.views[0].layers[cross[0]]
    ids = [trace.labels.tokens(spans, sequence) for sequence in range(trace.geometry.batch)]
    return encode(adapter, input_ids=torch.tensor(ids))
