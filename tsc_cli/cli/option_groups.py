"""Options that belong together, as dataclasses: a command that takes one has an option for each of its fields.

    @with_groups
    def command(file: File, source: ModelOfFile, chat: ChatOptions, out: Output) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from .options import AnyModel, Device, Dtype, FileModel, Model, TrustRemoteCode
from .output import Output

if TYPE_CHECKING:
    from formats import Trace
    from tsc_cli.huggingface.models.loading import Loaded


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer reads it: each dataclass among its parameters is replaced by the fields of that dataclass.

    Typer knows single options only.  Parameters are passed by name, so that their order is that of the help.
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
                self.model,
                dtype=self.dtype,
                device=self.device,
                trust_remote_code=self.trust_remote_code,
                say=out.note,
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
