"""Token ids of a chat: a new conversation, or what comes next in one that a cache holds.

Messages are those of OpenAI's API. Of content in parts only text can be fed; other parts are
refused by name. `following` tells the turns of a cached session from new ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from formats.errors import UsageError
from tsc_cli.progress import Say, silent
from tsc_cli.text_input import read_text, require_text

from .chat_continuation import following
from .chat_template import Messages, as_the_template_reads, render, template_variables
from .tokenizing import encode_prompt

if TYPE_CHECKING:
    from formats import Trace

_TEXT_TYPES = ("text", "input_text", "output_text")


def chat_tokens(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    trace: Trace | None = None,
    snapshot: int = -1,
    system: str | None = None,
    template: Mapping[str, Any] | None = None,
    say: Say = silent,
) -> list[int]:
    """Return the token ids of a chat by the tokenizer's chat template.

    Args:
        messages: `{"role": ..., "content": ...}`, with content as text or as a list of parts of
            type "text".
        trace: a session that holds the conversation so far: the ids are then what follows its
            snapshot and pending token, for `append`, `resume` and `generate_inputs(append=...)`.
            The messages are the new turns, or the whole conversation if their tokens begin with the
            session's.
        system: a system message to put in front.
        template: variables of the template, such as `{"enable_thinking": False}`;
            `add_generation_prompt` is true by default.
        say: called with notes for the user.
    Raises:
        UsageError: no template, messages that it refuses, a part that is not text, or a session
            that the messages do not follow.
    """
    chat = checked(messages)
    variables = template_variables(tokenizer, template or {}, say)
    if system is not None:
        if chat[0]["role"] == "system":
            raise UsageError("the messages begin with a system message already, so that another cannot be put in front")
        require_text(system, "the system message")
        chat = [{"role": "system", "content": system}, *chat]
    chat = as_the_template_reads(tokenizer, chat, variables)
    if trace is None:
        return encode_prompt(render(tokenizer, chat, variables), tokenizer, say, special=False)
    held = [*trace.token_ids(snapshot), *trace.pending_at(snapshot)]
    return following(tokenizer, chat, held, variables, new_system=system is not None, say=say)


def read_messages(path: str, say: Say = silent) -> Messages:
    """Read a chat from a JSON file, or stdin for `-`. Raises UsageError if it is not one."""
    name = "stdin" if path == "-" else path
    try:
        messages = json.loads(read_text(path, say))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is not JSON: {error}", path=name) from error
    try:
        return checked(messages)
    except UsageError as error:
        raise UsageError(error.message, path=name, hint=error.hint) from error


def checked(messages: Any) -> Messages:
    """Return messages without null fields. Raises UsageError for input that is not a chat."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UsageError('is not a list of {"role": ..., "content": ...}, with one message or more')
    return [_message(number, message) for number, message in enumerate(messages)]


def _message(number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f'message {number} is not {{"role": ..., "content": ...}}')
    label = f"message {number} ({message['role']})"
    fields = {key: value for key, value in message.items() if value is not None}
    require_text(fields, label)
    content = fields.get("content")
    if content is None:
        if message["role"] != "assistant" or not (fields.get("tool_calls") or fields.get("function_call")):
            raise UsageError(
                f"{label} has no content", hint="only an assistant's message with tool_calls may do without"
            )
    elif isinstance(content, list):
        fields["content"] = [
            {"type": "text", "text": _text(f"{label}: part {index}", part)} for index, part in enumerate(content)
        ]
        if not content:
            raise UsageError(f"{label} has content without a part")
    elif not isinstance(content, str):
        raise UsageError(f"{label} has content that is neither text nor a list of parts")
    return fields


def _text(label: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise UsageError(f'{label} is not {{"type": "text", "text": ...}}')
    if part.get("type") not in _TEXT_TYPES:
        raise UsageError(f"{label} is of type {part.get('type')!r}, and only text can be captured")
    if not isinstance(part.get("text"), str):
        raise UsageError(f"{label} has no text")
    text: str = part["text"]
    return text
