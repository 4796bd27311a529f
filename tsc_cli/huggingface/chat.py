"""Chats through a model's template: a new conversation, or what comes next in one that a cache holds.

Messages are taken as OpenAI's API has them.  Of content in parts only text can be fed; everything else is refused by
name.  How the turns of a cached session are told from new ones is in `following`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from formats.errors import UsageError
from tsc_cli.cli.files import read_text
from tsc_cli.progress import Say, silent
from tsc_cli.text_input import argument, require_text

from .tokenizing import encode_prompt

if TYPE_CHECKING:
    from formats import Trace

Messages = list[dict[str, Any]]

_TEXT_TYPES = ("text", "input_text", "output_text")
_ALLOWED = {"tools", "documents", "add_generation_prompt"}  # of what transformers' method takes, for a template as well
_PROBE = "Quvorn"  # a word that no template has


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
    """The token ids of a chat, through the tokenizer's chat template.

    Args:
        messages: `{"role": ..., "content": ...}`, with content as text or as a list of parts of type "text".
        trace: a session that holds the conversation so far: the ids are then what follows its snapshot (and its
            pending token, if there is one), for `append`, `resume` and `generate_inputs(append=...)`. The messages are
            the new turns, or the whole conversation if their tokens begin with the session's.
        system: a system message to put in front.
        template: variables of the template, such as `{"enable_thinking": False}` or `{"tools": [...]}`;
            `add_generation_prompt` is true unless it is given.
        say: told what is worth knowing.
    Raises:
        UsageError: no template, messages that it refuses, a part that is no text, or a session that they do not follow.
    """
    chat = checked(messages)
    variables = _variables(tokenizer, template or {}, say)
    if system is not None:
        if chat[0]["role"] == "system":
            raise UsageError("the messages begin with a system message already, so that another cannot be put in front")
        require_text(system, "the system message")
        chat = [{"role": "system", "content": system}, *chat]
    chat = _as_it_takes(tokenizer, chat, variables)
    if trace is None:
        return encode_prompt(render(tokenizer, chat, variables), tokenizer, say, special=False)
    from .chat_continuation import following

    held = [*trace.token_ids(snapshot), *trace.pending_at(snapshot)]
    return following(tokenizer, chat, held, variables, new_system=system is not None, say=say)


def read_messages(path: str, say: Say = silent) -> Messages:
    """A chat out of a JSON file, or stdin for `-`.  Raises UsageError for what is none."""
    name = "stdin" if path == "-" else path
    try:
        found = json.loads(read_text(path, say))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is not JSON: {error}", path=name) from error
    try:
        return checked(found)
    except UsageError as error:
        raise UsageError(error.message, path=name, hint=error.hint) from error


def checked(messages: Any) -> Messages:
    """Messages without fields that are null, as templates expect them.  Raises UsageError for what is none."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UsageError('is not a list of {"role": ..., "content": ...}, with one message or more')
    return [_message(number, one) for number, one in enumerate(messages)]


def _message(number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f'message {number} is not {{"role": ..., "content": ...}}')
    what = f"message {number} ({message['role']})"
    found = {key: value for key, value in message.items() if value is not None}
    require_text(found, what)
    content = found.get("content")
    if content is None:
        if message["role"] != "assistant" or not (found.get("tool_calls") or found.get("function_call")):
            raise UsageError(
                f"{what} has no content", hint="only an assistant's message with tool_calls may do without"
            )
    elif isinstance(content, list):
        found["content"] = [{"type": "text", "text": _text(what, at, part)} for at, part in enumerate(content)]
        if not content:
            raise UsageError(f"{what} has content without a part")
    elif not isinstance(content, str):
        raise UsageError(f"{what} has content that is neither text nor a list of parts")
    return found


def _text(what: str, at: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise UsageError(f'{what}: part {at} is not {{"type": "text", "text": ...}}')
    if part.get("type") not in _TEXT_TYPES:
        raise UsageError(f"{what}: part {at} is of type {part.get('type')!r}, and only text can be captured")
    if not isinstance(part.get("text"), str):
        raise UsageError(f"{what}: part {at} has no text")
    text: str = part["text"]
    return text


def variables_of(given: Sequence[str], thinking: bool | None) -> dict[str, Any]:
    """Template variables out of KEY=VALUE and `--enable-thinking`; a value that is JSON is taken as such.

    Raises:
        UsageError: no KEY=VALUE, or a key twice.
    """
    found: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    for one in given:
        key, equals, value = argument(one, "--template").partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--template {one!r} is not KEY=VALUE", hint="such as --template enable_thinking=false")
        if key in found:
            raise UsageError(f"the template variable {key} is given twice")
        try:
            found[key] = json.loads(value, parse_constant=_no_number)
        except (ValueError, RecursionError):
            found[key] = value
        require_text(found[key], f"--template {key}")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(text)  # NaN and the like are words here


def _variables(tokenizer: Any, given: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """What the template is given.  Raises UsageError for what is none of its variables."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise UsageError("the model has no chat template", hint="give the prompt as text")
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters
    taken = {*parameters, "self", "messages", "conversations"} - _ALLOWED
    sources = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else repr(tokenizer.chat_template)
    for key, value in given.items():
        require_text(value, f"the template variable {key}")
        if key in taken:
            raise UsageError(f"{key} is no variable of a template")
        if not re.search(rf"\b{re.escape(key)}\b", sources):
            say(f"the chat template has no variable {key}, so that it changes nothing")
    return {"add_generation_prompt": True, **given}


def render(tokenizer: Any, messages: Messages, variables: Mapping[str, Any]) -> str:
    """The text of a chat.  Raises UsageError with what the template says against it."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **variables)
    except MemoryError:
        raise
    except Exception as error:  # a template is a program of its own and raises what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"the chat template refuses these messages: {reason}") from error
    if not isinstance(text, str):
        raise UsageError(f"the chat template gives a {type(text).__name__} instead of text")
    return text


def _as_it_takes(tokenizer: Any, messages: Messages, variables: Mapping[str, Any]) -> Messages:
    """Content as this template reads it: text, parts, or either.

    Most templates print a list as Python would, and some, of models that also take images, nothing for a text.
    """
    texts, parts = _reads(tokenizer, variables)
    found = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and not parts:
            message = message | {"content": "\n".join(part["text"] for part in content)}
        elif isinstance(content, str) and not texts and parts:
            message = message | {"content": [{"type": "text", "text": content}]}
        found.append(message)
    return found


def _reads(tokenizer: Any, variables: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a template takes content as text, and whether as parts."""
    found = []
    for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
        try:
            text = render(tokenizer, [{"role": "user", "content": content}], variables)
        except UsageError:
            text = ""
        found.append(_PROBE in text and "'type'" not in text and '"type"' not in text)
    return found[0], found[1]
