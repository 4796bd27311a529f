"""Token ids to text as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class TextStream:
    """Decodes tokens and emits text as soon as it can no longer change.

    A character may be spread over several tokens; it is held back until it is whole.  Without a tokenizer the ids
    themselves are the text.
    """

    def __init__(self, tokenizer: Any, emit: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._emit = emit
        self._tokens: list[int] = []
        self.text = ""

    def add(self, token: int) -> None:
        self._tokens.append(token)
        decoded = self._decode()
        if not decoded.endswith("\ufffd"):
            self._advance(decoded)

    def end(self) -> None:
        """Emit what was held back."""
        self._advance(self._decode())

    def _advance(self, decoded: str) -> None:
        self._emit(decoded[len(self.text) :])
        self.text = decoded

    def _decode(self) -> str:
        if self._tokenizer is None:
            return "".join(f"{token} " for token in self._tokens)
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
