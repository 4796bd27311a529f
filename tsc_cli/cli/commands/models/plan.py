"""`tsc plan`: what a model's cache will cost, before there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.output import Output

if TYPE_CHECKING:
    from tsc_cli.planning.costs import Means
    from tsc_cli.planning.model import Model

CONTEXTS = (8192, 32768, 131072)  # without --context, as far as the model goes
MAX_CONTEXTS = 64


@with_groups
def command(
    *,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or a config.json.", show_default=False)
    ],
    context: Annotated[
        list[str] | None,
        typer.Option(
            "--context",
            metavar="TOKENS",
            show_default=False,
            help="Such as 128k, where k is 1,024; may be repeated. [default: 8k, 32k, 128k, as far as the model goes]",
        ),
    ] = None,
    users: Annotated[int, typer.Option("--users", min=1, max=1_000_000_000, help="Caches to be held at once.")] = 1,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="SIZE", help="How many caches fit into this, such as 80GB or 80GiB.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="SIZE", help="What the weights take of --memory.", show_default=False),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            "--bandwidth",
            metavar="RATE",
            show_default=False,
            help="Seconds to move a cache at this, such as 10Gbit/s or 1.25GB/s.",
        ),
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(
            "--flops",
            metavar="RATE",
            show_default=False,
            help="Seconds to recompute it at this, such as 400TFLOP/s, as achieved.",
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", help="Dtype of the cache: auto, float32, bfloat16, float16, float8; auto is the config's."
        ),
    ] = "auto",
    parameters: Annotated[
        str | None,
        typer.Option(
            "--parameters",
            metavar="COUNT",
            show_default=False,
            help="Parameters of the layers that each token uses, such as 6.98B, where they cannot be computed.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore",
            metavar="FIELD",
            show_default=False,
            help="Ignore this unknown field of the config; may be repeated.",
        ),
    ] = None,
    out: Output,
) -> None:
    """Compute what a model's cache costs, from its config alone.

    Bytes a token and at the given contexts, as it is and in every codec whose bits are known; how
    many fit into a memory; the prefill that a stored cache saves; the time to move one instead.

    No weights are read. A config that says something unknown is refused, and the field named. The
    bits were measured on the default model and are an assumption for any other.
    """
    from tsc_cli.model_store import config_file
    from tsc_cli.planning import quantities
    from tsc_cli.planning.costs import Means
    from tsc_cli.planning.model import understand
    from tsc_cli.planning.report import text

    wanted = [quantities.tokens(one) for one in context or []]
    if len(wanted) > MAX_CONTEXTS:
        raise UsageError(f"{len(wanted)} contexts; at most {MAX_CONTEXTS} fit into a report")
    means = Means(
        users,
        quantities.size(memory, "--memory") if memory is not None else None,
        quantities.size(weights, "--weights") if weights is not None else 0,
        quantities.bandwidth(bandwidth) if bandwidth is not None else None,
        quantities.flops(flops) if flops is not None else None,
        quantities.count(parameters, "--parameters") if parameters is not None else None,
    )
    _check(means)
    config = config_file.read(model, out.note)
    found = understand(config, dtype, ignore or [])
    if means.compute is not None and found.parameters is None and means.active is None:
        raise UsageError(f"parameters are not computed for {found.model_type}", hint="give them with --parameters")
    facts = {
        "model": config.name,
        "config_path": config.path,
        **facts_of(config.name, found, sorted(set(wanted)) or _contexts(found), means),
    }
    headline = "\n".join(str(one["raw_bytes"]) for one in facts["contexts"])
    out.report("tsc.plan/1", facts, text(facts), headline)


def _check(means: Means) -> None:
    if means.weights and means.memory is None:
        raise UsageError("--weights says what is taken from --memory, which is not given")
    if means.memory is not None and means.weights >= means.memory:
        raise UsageError("--weights leaves nothing of --memory", hint="a cache needs memory beside the weights")


def _contexts(model: Model) -> list[int]:
    reachable = [tokens for tokens in CONTEXTS if model.positions is None or tokens <= model.positions]
    return reachable or [model.positions or CONTEXTS[0]]


def facts_of(name: str, model: Model, contexts: list[int], means: Means) -> dict[str, Any]:
    """What `tsc.plan/1` holds of a model: raw numbers, the unit in the key."""
    from formats.limits import MAX_ROWS
    from tsc_cli.model_families.layers import runs
    from tsc_cli.planning import costs
    from tsc_cli.planning.model import DTYPE_BYTES
    from tsc_cli.planning.notes import notes, values_per_dimension

    context_facts = [costs.at_context(model, tokens, means) for tokens in contexts]
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
        "users": means.users,
        "memory_bytes": means.memory,
        "weights_bytes": means.weights,
        "bandwidth_bytes_per_second": means.bandwidth,
        "compute_flop_per_second": means.compute,
        "contexts": context_facts,
        "notes": notes(name, model, context_facts, means),
    }
