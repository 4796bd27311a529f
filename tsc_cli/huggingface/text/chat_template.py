"""A model's chat template: its variables, the content that it takes, and its text of a chat."""

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

# of what transformers' method takes, for a template as well
_ALLOWED = {"tools", "documents", "add_generation_prompt"}
_PROBE = "Quvorn"  # a word that no template has


def variables_of(given: Sequence[str], thinking: bool | None) -> dict[str, Any]:
    """Return template variables from KEY=VALUE, JSON where it parses, and `--enable-thinking`.

    Raises:
        UsageError: an argument is not KEY=VALUE, or a key is given twice.
    """
    variables: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    for assignment in given:
        key, equals, value = argument(assignment, "--template").partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(
                f"--template {assignment!r} is not KEY=VALUE", hint="such as --template enable_thinking=false"
            )
        if key in variables:
            raise UsageError(f"the template variable {key} is given twice")
        try:
            variables[key] = json.loads(value, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            variables[key] = value
        require_text(variables[key], f"--template {key}")
    return variables


def _refuse_constant(text: str) -> Any:
    raise ValueError(text)  # NaN and the like are text here


def template_variables(tokenizer: Any, given: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Return the variables to render with. Raises UsageError for names that a template has not."""
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise UsageError("the model has no chat template", hint="give the prompt as text")
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters
    reserved = {*parameters, "self", "messages", "conversations"} - _ALLOWED
    sources = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else repr(tokenizer.chat_template)
    for key, value in given.items():
        require_text(value, f"the template variable {key}")
        if key in reserved:
            raise UsageError(f"{key} is not a variable of a template")
        if not re.search(rf"\b{re.escape(key)}\b", sources):
            say(f"the chat template has no variable {key}, so that it changes nothing")
    return {"add_generation_prompt": True, **given}


def render(tokenizer: Any, messages: Messages, variables: Mapping[str, Any]) -> str:
    """Return the text of a chat. Raises UsageError with the template's reason for a refusal."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **variables)
    except MemoryError:
        raise
    except Exception as error:  # a template is a program and may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"the chat template refuses these messages: {reason}") from error
    if not isinstance(text, str):
        raise UsageError(f"the chat template gives a {type(text).__name__} instead of text")
    return text


def as_the_template_reads(tokenizer: Any, messages: Messages, variables: Mapping[str, Any]) -> Messages:
    """Return messages with content as this template reads it: text, parts, or either.

    Most templates print a list as Python would. Some, of models that also take images, print no
    content that is plain text.
    """
    texts, parts = (_reads(tokenizer, variables, probe) for probe in (_PROBE, [{"type": "text", "text": _PROBE}]))
    converted = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and not parts:
            message = message | {"content": "\n".join(part["text"] for part in content)}
        elif isinstance(content, str) and not texts and parts:
            message = message | {"content": [{"type": "text", "text": content}]}
        converted.append(message)
    return converted


def _reads(tokenizer: Any, variables: Mapping[str, Any], content: Any) -> bool:
    """Return whether a template takes content of this form."""
    try:
        text = render(tokenizer, [{"role": "user", "content": content}], variables)
    except UsageError:
        return False
    return _PROBE in text and "'type'" not in text and '"type"' not in text
