"""`tsc plan`: what a model's cache will cost, before there is one."""

from __future__ import annotations

from typing import Annotated

import typer

from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.output import Output


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
    from tsc_cli.planning import quantities
    from tsc_cli.planning.costs import PlanOptions
    from tsc_cli.planning.plan import plan
    from tsc_cli.planning.report import text

    options = PlanOptions(
        users,
        quantities.size(memory, "--memory") if memory is not None else None,
        quantities.size(weights, "--weights") if weights is not None else 0,
        quantities.bandwidth(bandwidth) if bandwidth is not None else None,
        quantities.flops(flops) if flops is not None else None,
        quantities.count(parameters, "--parameters") if parameters is not None else None,
    )
    contexts = [quantities.tokens(tokens) for tokens in context or []]
    facts = plan(model, contexts, dtype=dtype, options=options, ignore=ignore or [], say=out.note)
    headline = "\n".join(str(at_context["raw_bytes"]) for at_context in facts["contexts"])
    out.report("tsc.plan/1", facts, text(facts), headline)
