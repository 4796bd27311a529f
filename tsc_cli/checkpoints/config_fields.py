"""Read the fields of a config strictly, and keep account of those that were read or assumed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from formats.errors import CorruptError, UnsupportedFileError
from formats.limits import MAX_EXTENT, MAX_LAYERS

# a field with such a name may change what is cached; one that nothing here knows is refused, not
# skipped
_MATTERS = re.compile(
    r"kv|cache|window|sliding|attn|attention|latent|lora|head|layer|state|ssm|mamba|conv|linear|recurrent|shar|chunk|"
    r"sparse|index_|indexer|compress|hybrid|expert|moe|ffn|mlp|intermediate|block|rank",
    re.IGNORECASE,
)
_NORM = re.compile(r"layer_?norm", re.IGNORECASE)  # the one layer that caches nothing
_MISSING = object()


def shown(value: object) -> str:
    """A value out of a file as a message can bear it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}..."


class Fields:
    """One JSON object of a config.

    Attributes:
        assumed: fields that the config does not state, and the value that the architecture itself
            gives them.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        path: str,
        *,
        inside: str = "",
        defaults: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.values, self.path, self.inside = values, path, inside
        self.defaults, self.aliases = dict(defaults or {}), dict(aliases or {})
        self.assumed: dict[str, Any] = {}
        self._read: set[str] = set()

    def integer(self, name: str, low: int = 1, high: int = MAX_EXTENT) -> int:
        """Raises CorruptError if the field is missing or is not an integer from `low` to `high`."""
        value = self._get(name)
        if value is _MISSING or value is None:
            raise self.error(name, "is missing", f"{self.article} without it says too little")
        return self._integer(value, name, low, high)

    def optional(self, name: str, low: int = 1, high: int = MAX_EXTENT) -> int | None:
        """An integer, or None if the field is null or missing and has no default."""
        value = self._get(name)
        return None if value is _MISSING or value is None else self._integer(value, name, low, high)

    def automatic(self, name: str) -> int | None:
        """An integer, or None if the field is missing, null or the word auto."""
        if self._get(name) in (_MISSING, None, "auto"):
            return None
        return self.optional(name)

    def number(self, name: str, low: float, high: float) -> float:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.error(name, f"a number from {low:g} to {high:g} was expected")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if value is _MISSING or value is None:
            return False
        if not isinstance(value, bool):
            raise self.error(name, "true or false was expected")
        return value

    def text(self, name: str) -> str | None:
        value = self._get(name)
        if value is _MISSING or value is None:
            return None
        if not isinstance(value, str):
            raise self.error(name, "a string was expected")
        return value

    def words(self, name: str, count: int) -> list[str] | None:
        """One word a layer, or None if the config says null or nothing."""
        value = self._list(name)
        if value is None:
            return None
        if len(value) != count or not all(isinstance(word, str) for word in value):
            raise self.error(name, f"a list of {count} strings, one a layer, was expected")
        return value

    def integers(self, name: str, low: int, high: int) -> list[int] | None:
        """A list of at most `MAX_LAYERS` integers, or None if the config says null or nothing."""
        value = self._list(name)
        return None if value is None else [self._integer(item, name, low, high) for item in value]

    def stated(self, name: str) -> bool:
        """Whether the config itself has this field, be it null."""
        return self._name(name) in self.values

    def error(self, name: str, problem: str, hint: str | None = None) -> CorruptError:
        return CorruptError(f"field {shown(self.inside + self._name(name))}: {problem}", path=self.path, hint=hint)

    def unsupported(self, name: str, problem: str, hint: str | None = None) -> UnsupportedFileError:
        return UnsupportedFileError(
            f"field {shown(self.inside + self._name(name))}: {problem}", path=self.path, hint=hint
        )

    def refuse_unknown(self, harmless: Collection[str]) -> None:
        """Raise UnsupportedFileError for an unread field that may change what is cached.

        Args:
            harmless: fields that are known to change nothing here.
        """
        for name, value in self.values.items():
            if value in (None, [], {}) or name in self._read or name in harmless:
                continue
            if not _MATTERS.search(_NORM.sub("", name)):
                continue
            near = difflib.get_close_matches(name, self._read, 1, 0.8)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise self.unsupported(
                name,
                "is not known for this model type and may change what is cached",
                f"{guess}if it changes nothing: --ignore {name[:60]}",
            )

    @property
    def article(self) -> str:
        return f"a config of model type {shown(self.values.get('model_type'))}"

    def _name(self, name: str) -> str:
        """The name under which this config has the field."""
        old = self.aliases.get(name)
        return old if old is not None and name not in self.values else name

    def _get(self, name: str) -> Any:
        old = self.aliases.get(name, name)
        self._read |= {name, old}
        if {name, old} <= self.values.keys() and self.values[name] != self.values[old]:
            raise self.error(name, f"and {old!r} mean the same and differ")
        value = self.values.get(self._name(name), _MISSING)
        if value is _MISSING and self.defaults.get(name) is not None:
            value = self.assumed[name] = self.defaults[name]
        return value

    def _integer(self, value: Any, name: str, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, f"an integer from {low:,} to {high:,} was expected")
        return value

    def _list(self, name: str) -> list[Any] | None:
        value = self._get(name)
        if value is _MISSING or value is None:
            return None
        if not isinstance(value, list) or len(value) > MAX_LAYERS:
            raise self.error(name, f"a list of at most {MAX_LAYERS:,} entries was expected")
        return value
