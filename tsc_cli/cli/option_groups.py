"""Options that belong together, as dataclasses: each field of one is an option of the command.

@with_groups
def command(file: File, source: ModelOfFile, chat: ChatOptions, out: Output) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from formats.errors import UsageError

from .options import (
    MOST_STEPS,
    MOST_TOKENS,
    AnyModel,
    Beyond,
    Device,
    Dtype,
    Encrypt,
    FileModel,
    KeyFile,
    Model,
    Seed,
    Temperature,
    TrustRemoteCode,
)
from .output import Output

if TYPE_CHECKING:
    from formats import Secret, Trace
    from tsc_cli.huggingface.models.loading import Loaded
    from tsc_cli.session.decode_loop import CaptureOptions


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command as Typer reads it, with the fields of its dataclasses as parameters.

    Typer knows single options only. Parameters are passed by name, so that their order is that of
    the help.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []

    def add(name: str, annotation: Any, default: Any) -> None:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))

    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        annotation = hints[parameter.name]
        if not is_dataclass(annotation):
            add(parameter.name, annotation, parameter.default)
            continue
        groups[parameter.name] = annotation
        of_fields = get_type_hints(annotation, include_extras=True)
        for field in fields(annotation):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            add(field.name, of_fields[field.name], default)

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    del flat.__wrapped__  # or Typer would read the command's own signature
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


@dataclass(frozen=True)
class ModelToLoad:
    """The model that a command runs, named by the user or the default one."""

    model: Model = None
    dtype: Dtype = "auto"
    device: Device = "auto"
    trust_remote_code: TrustRemoteCode = False

    def load(self, out: Output) -> Loaded:
        """Load it, with progress."""
        from tsc_cli.huggingface.models.loading import load

        with out.progress("loading the model"):
            return load(
                self.model, dtype=self.dtype, device=self.device, trust_remote_code=self.trust_remote_code, say=out.note
            )


@dataclass(frozen=True)
class ModelOfFile:
    """The model that a file was captured from, as the file or the user names it."""

    model: FileModel = None
    device: Device = "auto"
    trust_remote_code: TrustRemoteCode = False

    def load(self, trace: Trace, out: Output, *, any_model: bool = False) -> Loaded:
        """Load it in the dtype of the capture, with progress; see `of_trace.model_for`."""
        from tsc_cli.huggingface.models.of_trace import model_for

        return model_for(
            trace,
            self.model,
            self.device,
            out.progress,
            out.note,
            any_model=any_model,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True)
class AnyModelForFile(ModelOfFile):
    """As `ModelOfFile`, where another model may be forced upon the file."""

    force_model_mismatch: AnyModel = False

    def load(self, trace: Trace, out: Output, *, any_model: bool = False) -> Loaded:
        """Load it, and say what is not as it was at capture."""
        from .files import say_differences

        loaded = super().load(trace, out, any_model=any_model or self.force_model_mismatch)
        say_differences(trace, loaded, out, forced=self.force_model_mismatch)
        return loaded


@dataclass(frozen=True)
class DecodingOptions:
    """How many tokens are decoded, and how."""

    steps: Annotated[
        int,
        typer.Option(
            "--steps", min=0, max=MOST_STEPS, help="Tokens to decode after the prompt, a snapshot after each."
        ),
    ] = 64
    every: Annotated[
        int,
        typer.Option(
            "--every",
            min=1,
            max=MOST_TOKENS,
            metavar="K",
            help="Take a snapshot only after every K steps, and after the last.",
        ),
    ] = 1
    chunk: Annotated[
        int,
        typer.Option(
            "--chunk", min=1, max=MOST_TOKENS, help="Tokens of the prompt in one forward pass; fewer need less memory."
        ),
    ] = 1024
    temperature: Temperature = 0.0
    seed: Seed = 0
    beyond: Beyond = False

    def for_capture(self, keyframe_interval: int | None, *, attention: bool) -> CaptureOptions:
        """The options of a capture, or of an append to one."""
        from tsc_cli.session.decode_loop import CaptureOptions

        return CaptureOptions(
            self.steps, self.every, self.chunk, self.temperature, self.seed, keyframe_interval, attention, self.beyond
        )


@dataclass(frozen=True)
class EncryptionOptions:
    """Whether the file that is written is encrypted, and with what."""

    encrypt: Encrypt = False
    key_file: KeyFile = None

    def new_secret(self) -> Secret | None:
        """The secret to encrypt with, or None.  Raises UsageError for a key without `--encrypt`."""
        from .keys import Keys

        if self.key_file is not None and not self.encrypt:
            raise UsageError("--key-file needs --encrypt")
        return Keys(self.key_file).new() if self.encrypt else None
