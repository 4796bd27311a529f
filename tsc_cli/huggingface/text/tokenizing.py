"""Text to token ids and back; errors of the tokenizers library become one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, cast

from formats.errors import UsageError
from tsc_cli import text_input
from tsc_cli.libraries import is_out_of_memory, is_panic
from tsc_cli.progress import Say


def encode(text: str, tokenizer: Any, *, special: bool = True) -> list[int]:
    """Return the token ids of a text.

    Args:
        special: add the tokens with which the tokenizer begins or ends a text.
    Raises:
        UsageError: the model has no tokenizer, the text is not valid Unicode, or the tokenizer
            fails on it.
    """
    if tokenizer is None:
        raise UsageError("the model has no tokenizer, so that text cannot be fed to it")
    text_input.require_text(text, "the text")
    with _explained(tokenizer, "encode the text"):
        return cast("list[int]", tokenizer(text, add_special_tokens=special)["input_ids"])


def encode_prompt(text: str, tokenizer: Any, say: Say, *, special: bool = True) -> list[int]:
    """Return the token ids of a prompt; tell the user if it has two beginning-of-text tokens.

    Raises:
        UsageError: as of `encode`, or the prompt has no tokens.
    """
    ids = encode(text, tokenizer, special=special)
    if not ids:
        raise UsageError("the prompt has no tokens: the tokenizer makes nothing of it")
    begin = getattr(tokenizer, "bos_token_id", None)
    if begin is not None and ids[:2] == [begin, begin]:
        say(
            f"the prompt begins with two {tokenizer.bos_token}: the text has one, and the tokenizer adds another; "
            "--no-special-tokens adds none"
            if special
            else f"the prompt begins with two {tokenizer.bos_token}: the chat template and the messages write one each"
        )
    return ids


def decode(tokens: Sequence[int], tokenizer: Any, *, skip_special: bool) -> str:
    """Return the text of token ids, unchanged. Raises UsageError where the tokenizer fails."""
    with _explained(tokenizer, "decode the tokens"):
        text: str = tokenizer.decode(list(tokens), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return text


@contextlib.contextmanager
def _explained(tokenizer: Any, what: str) -> Iterator[None]:
    """Turn any error of the tokenizers library, a Rust panic included, into a UsageError."""
    try:
        yield
    except BaseException as error:
        if is_out_of_memory(error) or not (isinstance(error, Exception) or is_panic(error)):
            raise
        path = os.path.join(str(getattr(tokenizer, "name_or_path", "")), "tokenizer.json")
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UsageError(
            f"the tokenizer cannot {what}: {reason}",
            path=path if os.path.isfile(path) else None,
            hint="are its files those of this model, and complete?",
        ) from error
