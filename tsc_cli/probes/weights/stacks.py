"""The layers of a model side by side: for each type of matrix, which layers have one, and where."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from formats.errors import CorruptError, LimitError, UnsupportedFileError, UsageError
from tsc_cli.checkpoints.matrices import Matrix, Tensor

from .checkpoint import Checkpoint
from .layouts import GROUPS, Part, parts

MAX_LAYERS = 512  # pairs grow with the square
_NUMBER = re.compile(r"[0-9]{1,5}")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")


@dataclass(frozen=True)
class Series:
    """One matrix in each of some layers, all of one shape, and of one expert of several."""

    expert: int | None
    layers: Mapping[int, Matrix]

    @property
    def shape(self) -> tuple[int, int]:
        return next(iter(self.layers.values())).shape


@dataclass(frozen=True)
class MatrixType:
    """All matrices of one type.

    Attributes:
        known: whether the table of layouts has the name; otherwise it was taken by its shape.
        experts: how many experts a layer has; 0 where the type has none.
    """

    name: str
    known: bool
    experts: int
    series: list[Series] = field(default_factory=list)


@dataclass(frozen=True)
class Stack:
    """The layers that are compared.

    Attributes:
        skipped: what was found beside and is not probed: (name, why).
    """

    layers: int
    types: list[MatrixType]
    skipped: list[tuple[str, str]]


def stack_of(checkpoint: Checkpoint, asked: Collection[str] = (), experts: int = 4) -> Stack:
    """Find the weight matrices of a checkpoint's layers.

    Args:
        asked: names of types; all where empty.
        experts: how many experts of a layer are taken, evenly spread.
    Raises:
        UsageError: there are no layers to compare, a type that is not there, or layers that do not
            agree.
        UnsupportedFileError: the matrices are stored in a way that is not read.
        CorruptError: layers are missing.
        LimitError: more layers than are compared.
    """
    stacks: dict[str, list[tuple[int, str, Tensor]]] = defaultdict(list)
    for name, tensor in checkpoint.tensors.items():
        words = name.split(".")
        word_index = next((n for n, word in enumerate(words[:-1]) if _NUMBER.fullmatch(word)), None)
        if word_index is not None:
            prefix = "".join(f"{word}." for word in words[:word_index])
            stacks[prefix].append((int(words[word_index]), ".".join(words[word_index + 1 :]), tensor))
    if not stacks:
        raise UsageError("holds no numbered layers, so that there is nothing to compare", path=checkpoint.path)
    prefix = max(stacks, key=lambda matrix_type: (_values(tensor for _, _, tensor in stacks[matrix_type]), matrix_type))
    skipped = [
        (other_prefix + "*", "not the largest stack of layers")
        for other_prefix in sorted(stacks)
        if other_prefix != prefix
    ]
    stack_tensors = stacks[prefix]
    layers = sorted({layer for layer, _, _ in stack_tensors})
    _check_layers(layers, prefix, checkpoint)
    by_type = _by_type(stack_tensors, checkpoint, experts, skipped)
    names = _chosen(by_type, asked, checkpoint)
    _check_groups(by_type, names, layers, prefix, checkpoint)
    types = []
    for name in names:
        matrix_type = _matrix_type(name, by_type[name], checkpoint, experts, asked, skipped)
        if matrix_type is not None:
            types.append(matrix_type)
    if not types:
        raise UsageError(
            "no type of matrix is in two layers, so that there is nothing to compare", path=checkpoint.path
        )
    return Stack(len(layers), types, skipped)


def _values(tensors: Iterable[Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _check_layers(layers: list[int], prefix: str, checkpoint: Checkpoint) -> None:
    if len(layers) > MAX_LAYERS:
        raise LimitError(f"has {len(layers)} layers, at most {MAX_LAYERS} are compared", path=checkpoint.path)
    if len(layers) < 2:
        raise UsageError("has one layer only, so that there is nothing to compare", path=checkpoint.path)
    gap = next((expected for expected, layer in enumerate(layers, layers[0]) if expected != layer), None)
    if gap is not None:
        raise CorruptError(
            f"layer {gap} is missing: no tensor {prefix}{gap}.*",
            path=checkpoint.path,
            hint="fetch the checkpoint again",
        )
    stated = next((n for n in (checkpoint.config.get(name) for name in _COUNTS) if isinstance(n, int)), 0)
    if checkpoint.complete and len(layers) < stated:
        raise CorruptError(
            f"config.json says {stated} layers, the files hold {len(layers)}",
            path=checkpoint.path,
            hint="fetch the checkpoint again",
        )


def _by_type(
    tensors: Iterable[tuple[int, str, Tensor]], checkpoint: Checkpoint, experts: int, skipped: list[tuple[str, str]]
) -> dict[str, list[tuple[int, Part]]]:
    by_type: dict[str, list[tuple[int, Part]]] = defaultdict(list)
    beside = set()
    for layer, rest, tensor in sorted(tensors, key=lambda entry: (entry[0], entry[1])):
        taken = parts(rest, tensor, checkpoint.config, experts)
        for part in taken:
            by_type[part.type].append((layer, part))
        if not taken and len(tensor.shape) > 2 and min(tensor.shape[-2:]) > 1:
            beside.add((rest, f"{len(tensor.shape)} dimensions, and no line of the table of layouts"))
    skipped += sorted(beside)
    return by_type


def _chosen(by_type: Mapping[str, object], asked: Collection[str], checkpoint: Checkpoint) -> list[str]:
    import difflib

    usual = [name for group in GROUPS for name in group]
    order = sorted(by_type, key=lambda name: (usual.index(name) if name in usual else len(usual), name))
    for name in asked:
        if name not in by_type:
            near = difflib.get_close_matches(name, order, 1)
            raise UsageError(
                f"there is no type {name!r} of matrix in it" + (f"; did you mean {near[0]!r}?" if near else ""),
                path=checkpoint.path,
                hint=f"types: {', '.join(order)}",
            )
    return [name for name in order if not asked or name in asked]


def _check_groups(
    by_type: Mapping[str, list[tuple[int, Part]]],
    names: list[str],
    layers: list[int],
    prefix: str,
    checkpoint: Checkpoint,
) -> None:
    """Check that each layer has all matrices of a group or none, as hybrid models' layers do."""
    for group in GROUPS:
        layers_by_type = {name: {layer for layer, _ in by_type[name]} for name in group if name in names}
        for layer in layers:
            lacking = [name for name in layers_by_type if layer not in layers_by_type[name]]
            if lacking and len(lacking) < len(layers_by_type):
                other_types = ",".join(name for name in names if name not in lacking)
                raise CorruptError(
                    f"layer {layer} has no {lacking[0]} matrix ({prefix}{layer}.*), which other layers have beside "
                    f"{', '.join(name for name in layers_by_type if name not in lacking)}",
                    path=checkpoint.path,
                    hint=f"fetch the checkpoint again, or probe the rest: --types {other_types}",
                )


def _matrix_type(
    name: str,
    found_parts: list[tuple[int, Part]],
    checkpoint: Checkpoint,
    experts: int,
    asked: Collection[str],
    skipped: list[tuple[str, str]],
) -> MatrixType | None:
    """The type's series, or None where it is in one layer only, or is none that can be compared."""
    in_table = found_parts[0][1].known
    for layer, part in found_parts:
        tensor = part.matrix.tensor
        if tensor.encoding.decode is None:
            raise UnsupportedFileError(
                f"tensor {tensor.name!r} is stored as {tensor.encoding.name}, which is not read",
                path=tensor.path,
                hint="probe the checkpoint that this one was quantized from",
            )
        if part.matrix.shape != found_parts[0][1].matrix.shape:
            if not in_table and name not in asked:
                skipped.append((name, "shapes differ between layers"))
                return None
            first, (rows, columns) = found_parts[0], part.matrix.shape
            raise UsageError(
                f"{name} of layer {layer} ({tensor.name}) is {rows}x{columns}, of layer {first[0]} "
                f"{'x'.join(map(str, first[1].matrix.shape))}: they have no difference",
                path=checkpoint.path,
                hint=f"leave {name} out with --types",
            )
    series: dict[int | None, dict[int, Matrix]] = defaultdict(dict)
    for layer, part in found_parts:
        if layer in series[part.expert]:
            raise CorruptError(
                f"two tensors of layer {layer} are its {name} matrix: {part.matrix.tensor.name!r} and "
                f"{series[part.expert][layer].tensor.name!r}",
                path=checkpoint.path,
            )
        series[part.expert][layer] = part.matrix
    numbers = sorted(expert for expert in series if expert is not None)
    total = _experts_held(found_parts, numbers)
    if len(numbers) > experts:  # a tensor each: all of them were found
        numbers = sorted({numbers[index * len(numbers) // experts] for index in range(experts)})
    layers = {layer for layer, _ in found_parts}
    for expert in numbers:
        if lacking := sorted(layers - series[expert].keys()):
            raise CorruptError(
                f"layer {lacking[0]} has no {name} matrix of expert {expert}, which other layers have",
                path=checkpoint.path,
                hint=f"leave {name} out with --types",
            )
    compared = [Series(None, series[None])] if None in series else [Series(n, series[n]) for n in numbers]
    compared = [one_series for one_series in compared if len(one_series.layers) > 1]
    if not compared:
        skipped.append((name, "in one layer only"))
        return None
    return MatrixType(name, in_table, total, compared)


def _experts_held(parts: list[tuple[int, Part]], numbers: list[int]) -> int:
    shape = parts[0][1].matrix.tensor.shape
    return shape[0] if numbers and len(shape) == 3 else len(numbers)
