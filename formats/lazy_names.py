"""Public names of a package, imported when they are first used, so that it starts at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: dict[str, Any], homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make `__getattr__` and `__dir__` of a package.

    Args:
        package: its namespace, as `globals()` gives it, with `__all__`.
        homes: the module of each name.
    Returns:
        `__getattr__`, which looks a name up once, and `__dir__`, which completion shows before
        anything was imported.
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        try:
            home = import_module(homes[name])
        except AttributeError as error:
            # Python would take it for "no such name", and hide what went wrong inside
            raise ImportError(f"{homes[name]} cannot be imported: AttributeError: {error}", name=homes[name]) from error
        value = package[name] = getattr(home, name)
        return value

    def dir_() -> list[str]:
        return sorted(package["__all__"])

    return getattr_, dir_
