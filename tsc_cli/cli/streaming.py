"""Token ids to text as they come."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from tsc_cli.huggingface.text.tokenizing import decode

# a byte of a character that the vocabulary lacks, as SentencePiece has it
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_REPLACEMENT = "\ufffd"  # what a tokenizer makes of bytes that are no character, or not yet


class TextStream:
    """Decodes tokens and emits text as soon as it can no longer change.

    A character may be spread over several tokens; it is held back until it is whole. Only the last
    few tokens are decoded anew: those of the piece before, which a tokenizer needs as the context
    of a leading space, and those behind it. Without a tokenizer the ids themselves are the text.

    Attributes:
        text: after `end`, what `decode` gives for all tokens; before, what was emitted.
    """

    def __init__(self, tokenizer: Any, emit: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._emit = emit
        self._tokens: list[int] = []
        self._window: list[int] = []  # the last piece that was emitted, and what came since
        self._read = 0  # how many tokens of the window were emitted
        self._before = ""  # the text of those
        self._decoded = ""  # the text of the whole window
        self._pieces: list[str] = []
        self._whole: str | None = None
        self._skipped = frozenset(getattr(tokenizer, "all_special_ids", ()))

    @property
    def text(self) -> str:
        return "".join(self._pieces) if self._whole is None else self._whole

    def add(self, token: int) -> None:
        self._tokens.append(token)
        if self._tokenizer is None:
            self._advance(f"{token} ")
            return
        if token in self._skipped:  # it is no text, and neither is it any token's context
            return
        self._window.append(token)
        decoded, previous = self._decode(self._window), self._decoded
        self._decoded = decoded
        if decoded == previous or decoded.endswith(_REPLACEMENT) or self._is_byte(token):
            return
        # no tokenizer that is known; the end has the whole
        if not decoded.startswith(self._before):
            return
        self._advance(decoded[len(self._before) :])
        last = self._decode(self._window[self._read :])
        # a piece that is nothing by itself does not keep a leading space from being taken off
        if last:
            del self._window[: self._read]
        self._before = self._decoded = last or decoded
        self._read = len(self._window)

    def end(self) -> None:
        """Emit what was held back."""
        if self._tokenizer is not None:
            whole, emitted = self._decode(self._tokens), self.text
            self._advance(whole[len(emitted) :])
            self._whole = whole

    def _advance(self, piece: str) -> None:
        self._pieces.append(piece)
        self._emit(piece)

    def _decode(self, tokens: Sequence[int]) -> str:
        return decode(tokens, self._tokenizer, skip_special=True)

    def _is_byte(self, token: int) -> bool:
        """True for a byte of a run: one byte more can make another text of all of it."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        return isinstance(name, str) and _BYTE.fullmatch(name) is not None
