"""How `tsc plan` reads the config of one model type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tsc_cli.checkpoints.config_fields import Fields

from .attention import Rule as LayerRule
from .attention import Shape
from .attention import shape as usual_shape
from .feed_forward import Rule as FeedForwardRule


@dataclass(frozen=True)
class PlanRule:
    """How to read the config of one model type, beside transformers' configuration class.

    Attributes:
        layers: what each layer caches.
        feed_forward: its feed-forward parts; None where parameters are not computed for this type.
        shape: heads and sizes.
        assumes: fields beyond `ASSUMED` whose default counts where a config leaves them out.
        aliases: older name of a field, under which published configs have it.
        harmless: fields whose names speak of caches or sizes, and which change neither for this
            type.
        positions: whether learned positions are a matrix of their own.
    """

    layers: LayerRule
    feed_forward: FeedForwardRule | None
    shape: Callable[[Fields], Shape] = usual_shape
    assumes: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    positions: bool = False
