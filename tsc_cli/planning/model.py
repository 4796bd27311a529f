"""A config, understood: layers, parameters and dtype of the language model that it describes."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from formats.errors import CorruptError, UnsupportedFileError, UsageError
from formats.limits import MAX_ROWS
from tsc_cli.checkpoints.config_fields import Fields, shown
from tsc_cli.model_families.attention import Shape
from tsc_cli.model_families.config_class import ConfigClass, config_class
from tsc_cli.model_families.families import RULES, SYNONYMS, WRAPPERS
from tsc_cli.model_families.known_fields import ASSUMED, HARMLESS
from tsc_cli.model_families.layers import Layer
from tsc_cli.model_families.plan_rule import PlanRule
from tsc_cli.model_store.config_file import Config

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}
# fields that would change everything, were they anything else
_ONLY: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_bidirectional_attention": (False,),
    "mamba_use_mlp": (True,),
}


@dataclass(frozen=True)
class Parameters:
    """The sizes of a model's matrices; biases and norms, at most a thousandth, are left out.

    Attributes:
        layers_total: of all layers.
        layers_active: those that one token is multiplied with.
        head: of the matrix that gives logits.
        embeddings: of those that are only looked up.
    """

    layers_total: int
    layers_active: int
    head: int
    embeddings: int

    @property
    def total(self) -> int:
        return self.layers_total + self.head + self.embeddings


@dataclass(frozen=True)
class Model:
    """What a plan is made from.

    Attributes:
        dtype: of the cache.
        parameters: None where they are not computed for this model type.
        positions: the longest context that the config states, if it does.
        assumed: fields that the config leaves out, and transformers' defaults of them for this
            model type.
        extra_layers: layers for predicting several tokens at once, which the plan leaves out.
    """

    model_type: str
    layers: tuple[Layer, ...]
    hidden: int
    dtype: str
    parameters: Parameters | None
    positions: int | None
    assumed: Mapping[str, Any]
    extra_layers: int


def understand(config: Config, dtype: str = "auto", ignored: Collection[str] = ()) -> Model:
    """Read a config by the table of model families.

    Args:
        dtype: of the cache; "auto" takes the one that the config states.
        ignored: fields that somebody vouches for.
    Raises:
        UsageError: there is no such dtype.
        UnsupportedFileError: the model type, a kind of layer or a field that may matter is not
            known; it is named.
        CorruptError: a field is missing or is not what it must be; it is named.
    """
    if dtype != "auto" and dtype not in DTYPE_BYTES:
        raise UsageError(f"there is no dtype {dtype!r}", hint=f"auto, {', '.join(DTYPE_BYTES)}")
    outer = config.values
    model_type = _model_type(outer, config.path)
    values, inside = outer, ""
    if model_type in WRAPPERS:
        wrapped, inside = outer.get("text_config"), "text_config."
        if not isinstance(wrapped, dict):
            raise CorruptError("field 'text_config': an object was expected", path=config.path)
        _refuse_unknown(Fields(outer, config.path), ignored)
        values, named = wrapped, wrapped.get("model_type")
        model_type = WRAPPERS[model_type] if named is None else named
    rule, class_facts = _rule(model_type, inside, config.path)
    assumed = {name: class_facts.defaults[name] for name in ASSUMED | rule.assumes if name in class_facts.defaults}
    aliases = {**class_facts.aliases, **rule.aliases}
    fields = Fields(values, config.path, inside=inside, defaults=assumed, aliases=aliases)
    of = rule.shape(fields)
    layers = rule.layers(fields, of)
    tied = bool(class_facts.defaults.get("tie_word_embeddings"))
    parameters = _parameters(rule, fields, of, layers, Fields(outer, config.path), tied=tied)
    positions = fields.optional("max_position_embeddings", 1, MAX_ROWS)
    extra = max(fields.optional(name, 0) or 0 for name in ("num_nextn_predict_layers", "mtp_num_hidden_layers"))
    # a field that this model type has, and that these values of others leave without effect
    _refuse_unknown(fields, {*ignored, *rule.harmless, *assumed})
    if dtype == "auto":
        dtype = _dtype(fields, Fields(outer, config.path))
    return Model(model_type, tuple(layers), of.hidden, dtype, parameters, positions, fields.assumed, extra)


def _model_type(values: Mapping[str, Any], path: str) -> str:
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise CorruptError(
            "field 'model_type': " + ("is missing" if model_type is None else "a string was expected"),
            path=path,
            hint="the config.json of a transformers model was expected",
        )
    return model_type


def _rule(model_type: Any, inside: str, path: str) -> tuple[PlanRule, ConfigClass]:
    """The rule of a model type, and what transformers' configuration class says of it."""
    name = SYNONYMS.get(model_type, model_type) if isinstance(model_type, str) else ""
    if name not in RULES:
        near = difflib.get_close_matches(name, [*RULES, *WRAPPERS], 1, 0.7)
        raise UnsupportedFileError(
            f"field '{inside}model_type': {shown(model_type)} is not known",
            path=path,
            hint=f"{'the nearest is ' + near[0] + '; ' if near else ''}docs/models.md lists those that are, and "
            "CONTRIBUTING.md says how to add one",
        )
    class_facts = config_class(name)
    if class_facts is None:
        raise UnsupportedFileError(
            f"field '{inside}model_type': the installed transformers has no {shown(model_type)}",
            path=path,
            hint="a version of transformers that has it gives the defaults of its config",
        )
    return RULES[name], class_facts


def _refuse_unknown(fields: Fields, ignored: Collection[str]) -> None:
    for name, allowed in _ONLY.items():
        value = fields.values.get(name)
        if value is not None and value not in allowed and name not in ignored:
            raise fields.unsupported(name, f"{shown(value)} is not known: what is cached would be another thing")
    off = {name for name, value in fields.values.items() if name.startswith("use_") and value is False}
    if "use_sliding_window" in off:
        # written out by many configs, and used by no layer
        off |= {"sliding_window", "max_window_layers"}
    fields.refuse_unknown({*HARMLESS, *_ONLY, *off, *ignored})


def _parameters(
    rule: PlanRule, fields: Fields, of: Shape, layers: list[Layer], outer: Fields, *, tied: bool
) -> Parameters | None:
    """Count a model's parameters; None if its type has no rule for them.

    Args:
        tied: whether embeddings and output share their matrix where the config does not say it.
    """
    if rule.feed_forward is None:
        return None
    parts = rule.feed_forward(fields, of)
    mixing = sum(layer.weights for layer in layers)
    head = fields.integer("vocab_size") * of.hidden
    where = fields if fields.stated("tie_word_embeddings") else outer
    if where.stated("tie_word_embeddings"):
        tied = where.flag("tie_word_embeddings")
    looked_up = 0 if tied else head
    if rule.positions:
        looked_up += fields.integer("max_position_embeddings") * of.hidden
    return Parameters(
        mixing + sum(part.total for part in parts), mixing + sum(part.active for part in parts), head, looked_up
    )


def _dtype(fields: Fields, outer: Fields) -> str:
    """The dtype that a config states, under its newer or its older name, inside or outside."""
    hint = f"give it with --dtype: {', '.join(DTYPE_BYTES)}"
    for level in (fields, outer):
        quantized = level.values.get("quantization_config")
        if isinstance(quantized, dict) and quantized.get("kv_cache_scheme") is not None:
            raise level.unsupported("quantization_config", "its kv_cache_scheme gives the cache another dtype", hint)
    stated = [(level, name, level.text(name)) for level in (fields, outer) for name in ("dtype", "torch_dtype")]
    for level, name, text in stated:
        if text is None:
            continue
        plain = text.removeprefix("torch.")
        if plain not in DTYPE_BYTES:
            raise level.unsupported(name, f"{shown(text)} is not a dtype of a cache", hint)
        return plain
    raise fields.unsupported("dtype", "is missing", hint)
