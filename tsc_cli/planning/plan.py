"""What a model's cache costs, from its config alone: the function behind `tsc plan`."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

from formats.errors import UsageError
from formats.limits import MAX_ROWS
from tsc_cli.model_families.layers import runs
from tsc_cli.model_store import config_file
from tsc_cli.progress import Say, silent

from . import costs
from .costs import PlanOptions
from .model import DTYPE_BYTES, Model, understand
from .notes import notes, values_per_dimension

CONTEXTS = (8192, 32768, 131072)  # where none is asked for, as far as the model goes
MAX_CONTEXTS = 64


def plan(
    model: str | os.PathLike[str],
    contexts: Sequence[int] = (),
    *,
    dtype: str = "auto",
    options: PlanOptions | None = None,
    ignore: Collection[str] = (),
    say: Say = silent,
) -> dict[str, Any]:
    """Compute what a model's cache costs; no weights are read.

    Args:
        model: a config.json, a folder that has one, a name of `tsc models`, or a hub id.
        contexts: tokens; by default 8k, 32k and 128k, as far as the model goes.
        dtype: of the cache; "auto" takes the one that the config states.
        options: users, memory, bandwidth and compute to hold the cache against.
        ignore: unknown fields of the config that change nothing.
        say: told when a hub is asked.
    Returns:
        what `tsc plan --json` reports, but the schema: raw numbers, the unit in the key.
    Raises:
        UsageError: there is no such model or dtype, or the options do not go together.
        UnsupportedFileError: the model type or a field of the config is not known; it is named.
        CorruptError: a field of the config is not what it must be; it is named.
    """
    options = options or PlanOptions()
    if len(contexts) > MAX_CONTEXTS:
        raise UsageError(f"{len(contexts)} contexts; at most {MAX_CONTEXTS} fit into a report")
    _check(options)
    config = config_file.read(os.fspath(model), say)
    facts = understand(config, dtype, ignore)
    if options.compute is not None and facts.parameters is None and options.active is None:
        raise UsageError(f"parameters are not computed for {facts.model_type}", hint="give them with --parameters")
    chosen = sorted(set(contexts)) or _default_contexts(facts)
    return {"model": config.name, "config_path": config.path, **_report(config.name, facts, chosen, options)}


def _check(options: PlanOptions) -> None:
    if options.weights and options.memory is None:
        raise UsageError("--weights says what is taken from --memory, which is not given")
    if options.memory is not None and options.weights >= options.memory:
        raise UsageError("--weights leaves nothing of --memory", hint="a cache needs memory beside the weights")


def _default_contexts(model: Model) -> list[int]:
    reachable = [tokens for tokens in CONTEXTS if model.positions is None or tokens <= model.positions]
    return reachable or [model.positions or CONTEXTS[0]]


def _report(name: str, model: Model, contexts: Sequence[int], options: PlanOptions) -> dict[str, Any]:
    context_facts = [costs.at_context(model, tokens, options) for tokens in contexts]
    parameters = model.parameters
    return {
        "model_type": model.model_type,
        "dtype": model.dtype,
        "assumed_fields": dict(sorted(model.assumed.items())),
        "positions": model.positions,
        "hidden_size": model.hidden,
        "parameters": None
        if parameters is None
        else {
            "total": parameters.total,
            "layers_total": parameters.layers_total,
            "layers_active": parameters.layers_active,
            "head": parameters.head,
            "embeddings": parameters.embeddings,
            "bytes": parameters.total * DTYPE_BYTES[model.dtype],
        },
        "layers": costs.described(runs(model.layers), model.dtype),
        "bytes_per_token": costs.token_bytes(model.layers, model.dtype, 0),
        "bytes_per_token_windows_full": costs.token_bytes(model.layers, model.dtype, MAX_ROWS),
        "values_per_dimension": values_per_dimension(model),
        "users": options.users,
        "memory_bytes": options.memory,
        "weights_bytes": options.weights,
        "bandwidth_bytes_per_second": options.bandwidth,
        "compute_flop_per_second": options.compute,
        "contexts": context_facts,
        "notes": notes(name, model, context_facts, options),
    }
