"""The option `--messages` and those that need it, shared by several commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from formats.errors import UsageError

from .output import Output

if TYPE_CHECKING:
    from formats import Trace
    from tsc_cli.huggingface.chat_template import Messages


@dataclass(frozen=True)
class Chat:
    """What the options say of a chat."""

    path: str
    messages: Messages
    system: str | None
    variables: dict[str, Any]

    @classmethod
    def of(
        cls,
        path: str | None,
        system: str | None,
        thinking: bool | None,
        template: Sequence[str] | None,
        out: Output,
        *,
        beside: str | None,
    ) -> Chat | None:
        """The chat of `--messages`, or None without one; read before a model is loaded, so that errors come first.

        Args:
            beside: a prompt that was given, too.
        Raises:
            UsageError: options of a chat without one, a chat beside a prompt, or what is wrong with the messages.
        """
        if path is None:
            given = {"--system": system, "--enable-thinking": thinking, "--template": template or None}
            alone = next((name for name, value in given.items() if value is not None), None)
            if alone is not None:
                raise UsageError(f"{alone} needs --messages", hint="--messages FILE gives a chat as JSON")
            return None
        if beside is not None:
            raise UsageError("give one prompt", hint="as text, or as a chat with --messages")
        from tsc_cli.huggingface.chat import read_messages
        from tsc_cli.huggingface.chat_template import variables_of
        from tsc_cli.text_input import argument

        return cls(
            path,
            read_messages(path, out.note),
            None if system is None else argument(system, "--system"),
            variables_of(template or (), thinking),
        )

    def tokens(self, tokenizer: Any, say: Any, *, trace: Trace | None = None, snapshot: int = -1) -> list[int]:
        """The ids to feed; see `chat.chat_tokens`."""
        from tsc_cli.huggingface.chat import chat_tokens

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
