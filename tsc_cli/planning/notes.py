"""What has to be said beside the figures of a plan, where it applies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tsc_cli.model_families.families import family_of
from tsc_cli.text_format import size

from .costs import PlanOptions, row_values
from .model import DTYPE_BYTES, Model
from .rates import MEASURED_ON

# of the default model: 30 layers, 3 KV heads, keys and values of 64, over 576 dimensions of its
# residual stream
MEASURED_VALUES_PER_DIMENSION = 2 * 30 * 3 * 64 / 576
_STATES = ("mamba", "linear", "conv")


def values_per_dimension(model: Model) -> float:
    """Cached values a token for each dimension of the residual stream.

    Codec klt lives on their being many (docs/klt.md): keys and values of all layers are linear in
    that stream.
    """
    return row_values(model, 1) / model.hidden


def notes(name: str, model: Model, contexts: Sequence[dict[str, Any]], options: PlanOptions) -> list[str]:
    """One sentence or two each, the more important first.

    Args:
        name: under which the model was asked for.
    """
    return [*_measured(name, model), *_reading(model, contexts), *_left_out(model, options), *_config(model, contexts)]


def _measured(name: str, model: Model) -> Iterator[str]:
    if not row_values(model, 1):
        yield "No layer keeps rows: the state is the cache, and its size in other codecs was never measured."
        return
    own = name == MEASURED_ON and model.dtype == "float32"
    yield (
        f"Bits and KL were measured on {MEASURED_ON} in float32, one cache of 1,024 tokens. "
        f"For {'other texts and lengths' if own else 'this model'} they are an assumption until "
        f"{'' if own else 'tsc calibrate and '}tsc compress {'has' if own else 'have'} measured it. "
        "The profile that klt needs is not counted."
    )
    times = 4 // DTYPE_BYTES[model.dtype]
    share = "" if times == 1 else f"; to a {model.dtype} cache they are {'half' if times == 2 else 'a quarter'} of that"
    yield (
        f"Tiers are ratios to one float32 cache, not to a sequence of snapshots{share}. Qualities near-exact and high "
        "are interpolated between measured files; for balanced the coarsest file that was measured is shown, and a "
        "smaller one may do."
    )
    here = values_per_dimension(model)
    if here < MEASURED_VALUES_PER_DIMENSION / 2:
        yield (
            f"This model caches {here:.2g} values a token for each dimension of its residual stream, the measured one "
            f"{MEASURED_VALUES_PER_DIMENSION:.2g}: there is less for klt to find, so expect more bits."
        )


def _reading(model: Model, contexts: Sequence[dict[str, Any]]) -> Iterator[str]:
    longest = max(contexts, key=lambda context: context["tokens"])
    table_4 = longest["reports_table_4"]
    if table_4 is not None:
        yield (
            "Table 4 of the TSC reports counts query heads instead of KV heads. For this model that would be "
            f"{size(table_4['bytes'])} at {longest['tokens']:,} tokens instead of {size(longest['raw_bytes'])}, "
            f"{table_4['times']:.3g} times as much."
        )
    if any(layer.window is not None and layer.row_values for layer in model.layers):
        yield "Windows are counted full; between two steps transformers keeps one row less of each."
    if any(kind in layer.kind for layer in model.layers for kind in _STATES):
        yield (
            "States of constant size are counted as transformers keeps them, recurrent ones in float32, and are not "
            "compressed in any row. The recurrences are left out of the prefill."
        )
    family = family_of(model.model_type)
    if family is None or not family.tried:
        yield f"tsc was not tried with models of the type {model.model_type}; a capture tests itself first."
    elif family.refused:
        why = family.refused if " " in family.refused else f"layers of the kind {family.refused} cannot be stored yet"
        yield f"tsc cannot capture such a model: {why}."


def _left_out(model: Model, options: PlanOptions) -> Iterator[str]:
    if options.memory is not None:
        yield (
            "A cache that is being used must be there as it is, too: stored ones are those of users who wait. "
            "Nothing but the weights given with --weights is taken from --memory."
        )
    if options.bandwidth is not None or options.compute is not None:
        yield "Encoding and decoding take time, too, which is not in these figures (docs/measurements.md)."
    if model.parameters is None and options.active is None:
        yield f"Parameters are not computed for {model.model_type}: --parameters N gives the prefill."
    if model.extra_layers:
        layers = "A further layer" if model.extra_layers == 1 else f"{model.extra_layers} further layers"
        yield f"{layers} for predicting several tokens at once: left out."


def _config(model: Model, contexts: Sequence[dict[str, Any]]) -> Iterator[str]:
    beyond = [
        f"{context['tokens']:,}"
        for context in contexts
        if model.positions is not None and context["tokens"] > model.positions
    ]
    if beyond:
        yield f"The config states {model.positions:,} positions; {', '.join(beyond)} tokens are more than that."
    if model.assumed:
        stated = ", ".join(f"{name} {value}" for name, value in sorted(model.assumed.items()))
        yield f"Not in the config, and taken from the defaults of its architecture: {stated}."
