"""Read the defaults and aliases of fields from transformers' configuration classes.

The source is parsed instead of imported: importing one configuration class imports torch, which
takes seconds where parsing takes a tenth of one, and `tsc plan` needs nothing else of either.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ConfigClass:
    """The fields of one configuration class.

    Attributes:
        defaults: values of the fields whose default is a literal, by name.
        aliases: the name under which a config states a field, by the name that transformers reads
            it by.
    """

    defaults: Mapping[str, Any]
    aliases: Mapping[str, str]


@cache
def config_class(model_type: str) -> ConfigClass | None:
    """Look up the configuration class of a model type in the installed transformers.

    Args:
        model_type: as a config states it, such as "gemma3_text".
    Returns:
        What the class says, or None if this version of transformers has no such model type.
    """
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return None
    module = model_type.removesuffix("_text")
    path = Path(package.origin).parent / "models" / module / f"configuration_{module}.py"
    if not path.is_file():
        return None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in classes.values():
        if dict(_assigned(node)).get("model_type") == model_type:
            lineage = _lineage(node, classes)
            values = {name: value for part in lineage for name, value in (*_from_keywords(part), *_assigned(part))}
            return ConfigClass(values, values.get("attribute_map") or {})
    return None


def _lineage(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """A class and the classes of the same module that it inherits from, the most general first."""
    bases = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    return [part for base in bases for part in _lineage(base, classes)] + [node]


def _assigned(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """The class attributes of a class that have literal values."""
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            target, value = statement.targets[0], statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, value = statement.target, statement.value
        else:
            continue
        if isinstance(target, ast.Name):
            yield from _literal(target.id, value)


def _from_keywords(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """Yield fields read from keyword arguments: `kwargs.pop("full_attention_interval", 4)`."""
    for call in ast.walk(node):
        match call:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="kwargs"), attr="pop" | "get"),
                args=[ast.Constant(value=str(name)), default],
            ):
                yield from _literal(name, default)


def _literal(name: str, value: ast.expr) -> Iterator[tuple[str, Any]]:
    if isinstance(value, ast.Call):  # a field with a validator: interval(min=0)(default=1)
        stated = [keyword.value for keyword in value.keywords if keyword.arg == "default"]
        if not stated:
            return
        value = stated[0]
    try:
        yield name, ast.literal_eval(value)
    except ValueError:
        return
