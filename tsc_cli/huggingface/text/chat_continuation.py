"""What comes next in a conversation of which a cache holds the tokens so far.

Three cases, in this order:

1. The messages are the whole conversation: their tokens, or at least their text, begin with the
   session's. The rest of them follows. This is exact.
2. They are new turns. What the template writes behind an assistant's answer is found by rendering
   the turns behind made-up ones. It must be the same behind several of those, and must not change
   them. A token that ends the answer is not written twice.
3. Everything else is refused: a session that is not a chat of this template, and a template that
   changes earlier turns (such as one that removes the reasoning from answers) or lets them change
   new ones.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from formats.errors import UsageError
from tsc_cli.huggingface.text.chat_template import Messages, render
from tsc_cli.progress import Say

from .tokenizing import decode, encode

_WHOLE = "give the whole conversation, as the session has it, or capture it anew"


def following(
    tokenizer: Any,
    messages: Messages,
    session_ids: Sequence[int],
    variables: Mapping[str, Any],
    *,
    new_system: bool,
    say: Say,
) -> list[int]:
    """Return the tokens to feed behind those of a session.

    Args:
        session_ids: the session's tokens, including the pending one.
        new_system: the first message was put in front of the others.
    Raises:
        UsageError: the messages do not follow the session, or the template does not show how.
    """
    rest = _rest_of_whole(tokenizer, messages, session_ids, variables)
    if rest is None:
        _refuse_another_beginning(tokenizer, messages, session_ids, variables, new_system=new_system)
        rest = _Turns(tokenizer, messages, session_ids, variables).tokens(say)
    if not rest:
        raise UsageError("the session holds all of these messages already, so that there is nothing to feed")
    return rest


def _rest_of_whole(
    tokenizer: Any, messages: Messages, session_ids: Sequence[int], variables: Mapping[str, Any]
) -> list[int] | None:
    """Return the tokens that follow if the messages begin as the session does, else None."""
    try:
        text = render(tokenizer, messages, variables)
    except UsageError:  # a template may refuse turns without those before them
        return None
    whole = encode(text, tokenizer, special=False)
    if whole[: len(session_ids)] == list(session_ids):
        return whole[len(session_ids) :]
    # the tokens of a generated answer may differ from those that its text is encoded to
    so_far = _text_of(tokenizer, session_ids)
    return encode(text[len(so_far) :], tokenizer, special=False) if so_far and text.startswith(so_far) else None


def _refuse_another_beginning(
    tokenizer: Any, messages: Messages, session_ids: Sequence[int], variables: Mapping[str, Any], *, new_system: bool
) -> None:
    """Raise UsageError for messages that are meant as the whole conversation but differ from it."""
    if new_system:
        raise UsageError("the session does not begin with this system message and these messages", hint=_WHOLE)
    first = 2 if messages[0]["role"] == "system" else 1
    if len(messages) <= first:
        return
    closed = dict(variables) | {"add_generation_prompt": False}
    try:
        beginning = encode(render(tokenizer, messages[:first], closed), tokenizer, special=False)
        whole = encode(render(tokenizer, messages, variables), tokenizer, special=False)
    except UsageError:
        return
    if beginning and list(session_ids[: len(beginning)]) == beginning:
        pairs = enumerate(zip(whole, session_ids, strict=False))
        same = next((position for position, (new, old) in pairs if new != old), len(whole))
        raise UsageError(
            f"the messages begin as the session does, and say something else from token {same} of "
            f"{len(session_ids)} on",
            hint="give the new turns alone, or capture the conversation anew",
        )


class _Turns:
    """New turns behind an assistant's answer."""

    def __init__(
        self, tokenizer: Any, messages: Messages, session_ids: Sequence[int], variables: Mapping[str, Any]
    ) -> None:
        self.tokenizer, self.messages, self.session_ids, self.variables = tokenizer, messages, session_ids, variables
        self.closed = dict(variables) | {"add_generation_prompt": False}
        given = json.dumps(messages)
        mark = "quvorn"
        while mark in given:
            mark += "q"
        self.asked, self.answer = f"{mark} asks", f"{mark} answers"

    def tokens(self, say: Say) -> list[int]:
        """Return the tokens to feed. Raises UsageError where the template does not define them."""
        suffix = self._suffix([self._user(), self._assistant(self.answer)], self.answer)
        longer = [self._user(), self._assistant("Yes."), self._user(), self._assistant(self.answer)]
        others = [self._suffix(longer, self.answer)]
        with contextlib.suppress(_Refused):  # a template need not take a system message
            others.append(self._suffix([{"role": "system", "content": "Be brief."}, *longer], self.answer))
        if any(other != suffix for other in others):
            raise UsageError("the chat template writes new turns by what came before them", hint=_WHOLE)
        ids = self._in_context(suffix)
        added = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        end = _text_of(self.tokenizer, ids[:1]).strip() if ids and ids[0] in added else ""
        self._check_answer(suffix, end, say)
        most = min(len(ids), len(self.session_ids))
        overlap = next((n for n in range(most, 0, -1) if list(self.session_ids[-n:]) == ids[:n]), 0)
        return ids[overlap:]

    def _user(self) -> dict[str, Any]:
        return {"role": "user", "content": self.asked}

    @staticmethod
    def _assistant(content: str) -> dict[str, Any]:
        return {"role": "assistant", "content": content}

    def _suffix(self, turns: Messages, answer: str) -> str:
        """Return what the template writes behind the answer that `turns` end with."""
        try:
            text = render(self.tokenizer, [*turns, *self.messages], self.variables)
            before = render(self.tokenizer, turns[:-1], self.closed)
        except UsageError as error:
            raise _Refused(error.message, hint=_WHOLE) from error
        head, separator, suffix = text.rpartition(answer)
        if not separator or not head.startswith(before):
            raise UsageError("the chat template writes earlier turns anew when others follow", hint=_WHOLE)
        return suffix

    def _in_context(self, suffix: str) -> list[int]:
        """Return the suffix's tokens behind a word, as tokenizers may put a space before a text."""
        alone = encode(self.answer, self.tokenizer, special=False)
        both = encode(self.answer + suffix, self.tokenizer, special=False)
        if both[: len(alone)] != alone:
            raise UsageError(
                "the tokenizer joins what the template writes behind an answer with the answer", hint=_WHOLE
            )
        return both[len(alone) :]

    def _check_answer(self, suffix: str, end: str, say: Say) -> None:
        """Raise UsageError unless the session ends in an answer that the template keeps."""
        session = _text_of(self.tokenizer, self.session_ids)
        starts = [session.rfind(header) + len(header) for header in self._headers() if header in session]
        if not starts:
            raise UsageError(
                "the session is not a chat of this template: it has no assistant's turn",
                hint="give the prompt as text, or capture a chat with --messages",
            )
        answer = session[max(starts) :]
        if end:
            answer, _, more = answer.partition(end)
            if more.strip():
                say(f"the session went on behind {end}, which ends a turn; what it wrote there stays in it")
        answer = answer.strip()
        if not answer:
            return
        if self._suffix([self._user(), self._assistant(answer)], answer) != suffix:
            raise UsageError("the chat template writes new turns by what came before them", hint=_WHOLE)

    def _headers(self) -> list[str]:
        """Return the beginnings of an assistant's turn, at a prompt's end and in a conversation."""
        closed = render(self.tokenizer, [self._user()], self.closed)
        headers = []
        for variables in (self.variables, {}):
            opened = render(self.tokenizer, [self._user()], dict(variables) | {"add_generation_prompt": True})
            if opened.startswith(closed):
                headers.append(opened[len(closed) :].strip())
        within = render(self.tokenizer, [self._user(), self._assistant(self.answer)], self.closed)
        headers.append(within.partition(self.asked)[2].partition(self.answer)[0].strip())
        return [header for header in headers if header]


class _Refused(UsageError):
    """A template that does not take made-up turns."""


def _text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    return decode(tokens, tokenizer, skip_special=False)
