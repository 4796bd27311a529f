"""What `import tsc_cli` and `import formats` offer: completion shows it, and type checkers see the same names."""

from __future__ import annotations

import ast
import importlib
import inspect
from types import ModuleType

import pytest

import formats
import tsc_cli
from tests import ROOT

PACKAGES = (formats, tsc_cli)


def names_for_type_checkers(package: ModuleType) -> set[str]:
    """The names that a package imports where only type checkers look."""
    tree = ast.parse((ROOT / package.__name__ / "__init__.py").read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_completion_shows_what_type_checkers_see(package: ModuleType) -> None:
    assert set(dir(package)) - {"__version__"} == names_for_type_checkers(package)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_is_there_and_explained(package: ModuleType) -> None:
    for name in dir(package):
        assert name == "__version__" or inspect.getdoc(getattr(package, name)), name


def test_every_error_is_public() -> None:
    errors = importlib.import_module("formats.errors")
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.TscError)]
    assert {kind.__name__ for kind in kinds} <= set(dir(tsc_cli))


def test_no_public_function_takes_whatever_it_is_given() -> None:
    for name in dir(tsc_cli):
        function = getattr(tsc_cli, name)
        if inspect.isfunction(function):
            kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
            assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, name
