"""The option `--messages` and those that need it, shared by several commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from formats.errors import UsageError

from .options import ChatMessages, NextMessages, System, Template, Thinking
from .output import Output

if TYPE_CHECKING:
    from formats import Trace
    from tsc_cli.huggingface.text.chat_template import Messages


@dataclass(frozen=True)
class ChatOptions:
    """A chat to feed, put through the model's template, and the variables of the template."""

    messages: ChatMessages = None
    system: System = None
    enable_thinking: Thinking = None
    template: Template = None

    def read(self, out: Output, *, beside: str | None) -> Chat | None:
        """Read the chat of `--messages` before a model is loaded; None without one.

        Args:
            beside: a prompt that was given, too.
        Raises:
            UsageError: options of a chat without one, a chat beside a prompt, or what is wrong with
                the messages.
        """
        if self.messages is None:
            given = {
                "--system": self.system,
                "--enable-thinking": self.enable_thinking,
                "--template": self.template or None,
            }
            alone = next((name for name, value in given.items() if value is not None), None)
            if alone is not None:
                raise UsageError(f"{alone} needs --messages", hint="--messages FILE gives a chat as JSON")
            return None
        if beside is not None:
            raise UsageError("give one prompt", hint="as text, or as a chat with --messages")
        from tsc_cli.huggingface.text.chat import read_messages
        from tsc_cli.huggingface.text.chat_template import variables_of
        from tsc_cli.text_input import argument

        return Chat(
            self.messages,
            read_messages(self.messages, out.note),
            None if self.system is None else argument(self.system, "--system"),
            variables_of(self.template or (), self.enable_thinking),
        )


@dataclass(frozen=True)
class NextChatOptions(ChatOptions):
    """As `ChatOptions`, behind a session."""

    messages: NextMessages = None


@dataclass(frozen=True)
class Chat:
    """Messages that were read, and what the template is given beside them.

    Attributes:
        path: where the messages come from, for errors.
    """

    path: str
    messages: Messages
    system: str | None
    variables: dict[str, Any]

    def tokens(self, tokenizer: Any, say: Any, *, trace: Trace | None = None, snapshot: int = -1) -> list[int]:
        """The ids to feed; see `chat.chat_tokens`."""
        from tsc_cli.huggingface.text.chat import chat_tokens

        try:
            return chat_tokens(
                tokenizer,
                self.messages,
                trace=trace,
                snapshot=snapshot,
                system=self.system,
                template=self.variables,
                say=say,
            )
        except UsageError as error:
            raise UsageError(error.message, path="stdin" if self.path == "-" else self.path, hint=error.hint) from error
