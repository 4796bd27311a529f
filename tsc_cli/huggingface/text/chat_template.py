"""A model's chat template: its variables, how it reads content, and the text that it makes of a chat."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from formats.errors import UsageError
from tsc_cli.progress import Say
from tsc_cli.text_input import argument, require_text

Messages = list[dict[str, Any]]

_ALLOWED = {"tools", "documents", "add_generation_prompt"}  # of what transformers' method takes, for a template as well
_PROBE = "Quvorn"  # a word that no template has


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


def template_variables(tokenizer: Any, given: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """What the template is given. Raises UsageError for what is none of its variables."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise UsageError("the model has no chat template", hint="give the prompt as text")
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters
    taken = {*parameters, "self", "messages", "conversations"} - _ALLOWED
    sources = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else repr(tokenizer.chat_template)
    for key, value in given.items():
        require_text(value, f"the template variable {key}")
        if key in taken:
            raise UsageError(f"{key} is not a variable of a template")
        if not re.search(rf"\b{re.escape(key)}\b", sources):
            say(f"the chat template has no variable {key}, so that it changes nothing")
    return {"add_generation_prompt": True, **given}


def render(tokenizer: Any, messages: Messages, variables: Mapping[str, Any]) -> str:
    """The text of a chat. Raises UsageError with what the template says against it."""
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


def as_the_template_reads(tokenizer: Any, messages: Messages, variables: Mapping[str, Any]) -> Messages:
    """Content as this template reads it: text, parts, or either.

    Most templates print a list as Python would, and some, of models that also take images, nothing
    for a text.
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
